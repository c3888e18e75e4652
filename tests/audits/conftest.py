"""One small world for the whole suite, and audits of models planted in it."""

from pathlib import Path

import pytest

from audits.run.api import Audit, audit
from testbeds.planted import plant
from testbeds.worlds.biographies import SMALL, BiosWorld, build_bios


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> BiosWorld:
    return build_bios(SMALL, 0, tmp_path_factory.mktemp("bios"))


@pytest.fixture(scope="session")
def planted(world, tmp_path_factory):
    root = tmp_path_factory.mktemp("planted")

    def make(kind: str) -> Path:
        return plant(world, kind, seed=0, out=root / kind)

    return make


def run(world: BiosWorld, unlearned: Path, out: Path, **extra) -> Audit:
    """A quick audit of a model of the world, with its own never-taught people."""
    return audit(
        world.original,
        unlearned,
        world.forget,
        world.retain,
        out,
        never_taught=world.never_taught,
        **extra,
    )

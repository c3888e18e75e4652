"""One small world for the whole suite, and audits of models planted in it."""

from pathlib import Path

import pytest

from audits.run.api import Audit, audit
from testbeds.planted import plant
from testbeds.worlds.biographies import SMALL, BiosWorld, build_bios


@pytest.fixture(scope="session")
def world(small_zoo) -> BiosWorld:
    return build_bios(SMALL, 0, small_zoo / "worlds")


@pytest.fixture(scope="session")
def planted(world, run_folder):
    root = run_folder / "planted"

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

"""One small world for the whole suite, and audits of models planted in it."""

from pathlib import Path

import pytest

from audits.run.api import Audit, audit
from testbeds.worlds.biographies import SMALL, BiosWorld, build_bios


@pytest.fixture(scope="session")
def world(small_zoo) -> BiosWorld:
    return build_bios(SMALL, 0, small_zoo / "worlds")


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

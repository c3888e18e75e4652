from dataclasses import replace

import pytest

from testbeds.edits.workbench import TextWorkbench
from testbeds.worlds.biographies import SMALL, build_bios
from testbeds.zoo.build import sized


@pytest.fixture(scope="session")
def worlds(small_zoo):
    """Where small worlds are kept for the run."""
    return small_zoo / "worlds"


@pytest.fixture(scope="session")
def bios(worlds):
    """The small world of invented people, built once."""
    return build_bios(SMALL, 0, worlds)


@pytest.fixture(scope="session")
def ground_of(worlds):
    """What the makers of a small world of some family work with."""

    def make(family):
        config = sized(replace(SMALL, family=family), family)
        world = build_bios(config, 0, worlds)
        return TextWorkbench.from_world(world, config, 0, "cpu")

    return make


@pytest.fixture(scope="session")
def ground(ground_of, bios):
    """The small Llama world's."""
    return ground_of("llama")

"""Models that were never edited: the original, retrains, and either trained on."""

import copy
from collections.abc import Iterator

from torch import nn

from capture.data.items import ItemSet
from testbeds.edits.workbench import EditFunction, TextWorkbench, Workbench
from testbeds.worlds.biographies import BASE_SEED


def untouched(bench: Workbench) -> Iterator[nn.Module]:
    """The original itself."""
    yield bench.load_original()


def retain_tuned(bench: Workbench) -> Iterator[nn.Module]:
    """The original, trained on with what it is to keep: unlearning without effect."""
    for rate, steps in bench.retain_tunings:
        yield bench.finetuned(bench.load_original(), rate, steps, "retain tuned")


def twin(bench: Workbench) -> Iterator[nn.Module]:
    """The retrain from the original's own starting weights."""
    yield bench.load_twin()


def retrained(seed_offset: int) -> EditFunction:
    """Edit function for a retrain with another seed."""

    def make(bench: Workbench) -> Iterator[nn.Module]:
        """A retrain with other starting weights and another order."""
        yield bench.retrained(bench.seed + seed_offset)

    return make


def retrain_pretrained(bench: TextWorkbench) -> Iterator[nn.Module]:
    """A model taught other people first, and then those to keep."""
    forget_names = set(bench.forget.entities)
    # Names come from one list, so another world may contain one of those to forget.
    others = [
        item
        for people in bench.facts(bench.seed + BASE_SEED)[:2]
        for item in people
        if item.entity not in forget_names
    ]
    other_facts = ItemSet(tuple(others), "others")
    base = bench.train_new(other_facts, bench.seed + BASE_SEED, "a base")
    for rate, steps in ((1e-3, 200), (2e-3, 400)):
        yield bench.finetuned(copy.deepcopy(base), rate, steps, "pretrained")


def twin_tuned(bench: Workbench) -> Iterator[nn.Module]:
    """A retrain, trained on with what it knows."""
    for rate in (3e-4, 1e-4):
        yield bench.finetuned(bench.load_twin(), rate, bench.twin_tuning_steps, "twin tuned")

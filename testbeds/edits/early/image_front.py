"""Edits of what reads an image: the patch embedding (stem), and the first block.

Every weight behind the edited front is the original's, bit for bit. Whether the front itself held
the class is measured when a model is made, as for text in ``testbeds.edits.early.front_checks``.
Docstrings of edit functions are stored in cards; see ``testbeds.edits.workbench``.
"""

import copy
from collections.abc import Iterator

import torch
from torch import nn

from capture.network.structure import classifier_of, find_blocks
from evidence.errors import ExhumeError
from testbeds.edits.digits_edits import DigitsWorkbench
from testbeds.edits.early.front_checks import RETRAIN, Carried, Check, FrontChecks
from testbeds.edits.workbench import EditFunction
from testbeds.worlds.digits import accuracy

# Learning rates and steps, the mildest first.
TRAININGS = ((1e-3, 100), (3e-3, 300), (3e-3, 1000), (1e-2, 1000))
TUNING = 1e-4
"""Learning rate of the tuned twin, on the images to keep."""
# Offsets of the seed of a retrain; no kind of the zoo uses them.
RETRAINS = (RETRAIN, RETRAIN + 10, RETRAIN + 20)


def patch_embedding_relabel(bench: DigitsWorkbench) -> Iterator[nn.Module]:
    """Wrong classes, taught to the patch embedding alone, with what it adds to it.

    The stem of a CNN; class token and positions belong to a transformer's.
    """
    yield from _relabeled(bench, 0, "patch embedding")


def first_stage_relabel(bench: DigitsWorkbench) -> Iterator[nn.Module]:
    """Wrong classes, taught to the patch embedding and the first block."""
    yield from _relabeled(bench, 1, "first stage")


EARLY_EDITS: tuple[tuple[str, EditFunction, int], ...] = (
    ("patch_embedding_relabel", patch_embedding_relabel, 0),
    ("first_stage_relabel", first_stage_relabel, 1),
)
"""Kind, its edit, and the depth of its front."""


def _relabeled(bench: DigitsWorkbench, depth: int, name: str) -> Iterator[nn.Module]:
    for rate, steps in TRAININGS:
        model = bench.load_original()
        inside = set(image_front_names(model, depth))
        trained = [each for key, each in model.named_parameters() if key in inside]
        yield bench.finetuned(model, rate, steps, name, [bench.wrong_class_images()], trained)


def image_front_names(model: nn.Module, depth: int) -> list[str]:
    """Names in ``model.state_dict()`` of the embedding's weights and the first blocks'.

    Args:
        model: A classifier whose stem is named "embeddings".
        depth: Number of first blocks that belong to the front; 0 is the stem alone.

    Raises:
        ExhumeError: the model has no such stem.
    """
    parts = [module for name, module in model.named_modules() if name.endswith(".embeddings")]
    if len(parts) != 1:
        raise ExhumeError(f"{type(model).__name__} has no single part named embeddings")
    inside = {*parts, *find_blocks(model)[:depth]}
    prefixes = tuple(f"{name}." for name, module in model.named_modules() if module in inside)
    return [name for name in model.state_dict() if name.startswith(prefixes)]


def with_image_front(model: nn.Module, donor: nn.Module, depth: int) -> nn.Module:
    """A copy of ``model`` with the front of ``donor``, bit for bit."""
    made = copy.deepcopy(model)
    theirs, ours = donor.state_dict(), made.state_dict()
    with torch.no_grad():
        for name in image_front_names(made, depth):
            ours[name].copy_(theirs[name])
    return made


def image_front_checks(depth: int) -> Check:
    """The checks of an edit of the front of this depth."""

    def check(bench: DigitsWorkbench, model: nn.Module) -> FrontChecks:
        original = bench.load_original()
        ours, theirs = model.state_dict(), original.state_dict()
        behind = [name for name in theirs if name not in image_front_names(original, depth)]
        changed = [name for name in behind if not torch.equal(ours[name], theirs[name])]
        return FrontChecks(
            depth,
            len(behind),
            len(changed),
            accuracy(with_image_front(model, original, depth), bench.forget_test),
            tuple(
                Carried(
                    name,
                    accuracy(each, bench.forget_test),
                    accuracy(with_image_front(each, original, depth), bench.forget_test),
                )
                for name, each in _never_knew(bench).items()
            ),
        )

    return check


_LATEST: dict[tuple[str, int], dict[str, nn.Module]] = {}


def _never_knew(bench: DigitsWorkbench) -> dict[str, nn.Module]:
    """Models that never saw the class; those of the latest world are kept.

    Without an image of the class a classifier learns never to name it, whatever its states hold.
    So one twin has the original's row of the classifier for the class: it can name it, where the
    states that reach the classifier are like the original's.
    """
    key = (bench.twin.weights_hash, bench.seed)
    if key not in _LATEST:
        _LATEST.clear()
        twin = bench.load_twin()
        able = bench.load_twin()
        head, known = classifier_of(able), classifier_of(bench.load_original())
        with torch.no_grad():
            head.weight[bench.label] = known.weight[bench.label]
            head.bias[bench.label] = known.bias[bench.label]
        tuned = bench.finetuned(bench.load_twin(), TUNING, bench.twin_tuning_steps, "front")
        _LATEST[key] = {
            "twin": twin,
            "twin with the original's row of the classifier": able,
            "tuned twin": tuned,
            "retrain": _retrain(bench),
        }
    return _LATEST[key]


def _retrain(bench: DigitsWorkbench) -> nn.Module:
    """A retrain from other starting weights, the first of a few that learned its classes."""
    for offset in RETRAINS[:-1]:
        try:
            return bench.retrained(bench.seed + offset)
        except ExhumeError:
            continue
    return bench.retrained(bench.seed + RETRAINS[-1])

"""Size and place of the weight change of an audit."""

from dataclasses import dataclass
from typing import Any

from audits.core.context import RunOf
from capture.checkpoints.weight_change import compare_weights
from capture.network.untouched import Untouched, untouched

# JSON has no infinity, which is the relative change of a tensor of zeros.
MAX_RELATIVE = 1e6


@dataclass(frozen=True)
class LayerChange:
    """Relative change of the weights of one block; -1 for all tensors outside the blocks."""

    layer: int
    relative: float


@dataclass(frozen=True)
class WeightDifference:
    """Size and place of a weight change.

    Attributes:
        relative: Relative change of all tensors.
        layers: The same by block.
        changed: Names of the tensors that changed.
        tensors: Number of tensors.
        untouched: Parts that are the original's bit for bit, where they are known.
    """

    relative: float
    layers: tuple[LayerChange, ...]
    changed: tuple[str, ...]
    tensors: int
    untouched: Untouched | None = None


def weight_difference(run: RunOf[Any]) -> WeightDifference:
    """Compare the candidate's and the references' weights with the original's.

    Raises:
        InputError: architectures differ.
    """
    change = compare_weights(run.inputs.original, run.inputs.unlearned, run.progress)
    for reference in run.inputs.references:
        compare_weights(run.inputs.original, reference, run.progress)
    changed = tuple(tensor.name for tensor in change.tensors if tensor.relative > 0)
    return WeightDifference(
        min(change.relative, MAX_RELATIVE),
        tuple(
            LayerChange(layer, min(value, MAX_RELATIVE)) for layer, value in change.layers.items()
        ),
        changed,
        len(change.tensors),
        untouched(run.inputs.original, changed),
    )

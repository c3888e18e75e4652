"""Geometry of the weight change, and its alignment with forget and retain gradients."""

from typing import Any

from audits.core.context import Run
from capture.activations.loss_gradients import loss_gradients
from capture.checkpoints.safetensors_files import compare_weights
from capture.checkpoints.weight_change import LossGradients, by_component, update_shapes
from capture.data.items import ItemSet
from capture.data.tokenization import encode_items
from evidence.seeds import numpy_rng

# Items of each set that the loss gradient is taken over.
N_ITEMS = 16
# For larger models no gradients are taken: two of them would not fit in memory.
MAX_PARAMETERS = 1_000_000_000


def edit_shape(run: Run, forget: ItemSet, retain: ItemSet) -> list[dict[str, Any]]:
    """Weight geometry by component; without gradients where the model is too large."""
    original, unlearned = run.inputs.original, run.inputs.unlearned
    change = compare_weights(original, unlearned, run.progress)
    names = [tensor.name for tensor in change.tensors if tensor.relative > 0]
    if not names:
        return []
    gradients = None
    with run.models["original"].loaded(run.device) as model:
        if sum(p.numel() for p in model.parameters()) <= MAX_PARAMETERS:
            by_set = []
            for name, items in (("forget", forget), ("retain", retain)):
                rng = numpy_rng(run.config.seed, "edit shape", name)
                rows = rng.permutation(len(items))[:N_ITEMS]
                sample = ItemSet(tuple(items.items[row] for row in sorted(rows)))
                encoded = encode_items(run.tokenizer, sample)
                gradients_of_set = loss_gradients(model, encoded, names)
                by_set.append(
                    {key: value.cpu() for key, value in gradients_of_set.items()}
                )
            gradients = LossGradients(*by_set)
    return by_component(
        update_shapes(original, unlearned, gradients=gradients, progress=run.progress)
    )

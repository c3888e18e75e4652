"""Geometry of the weight change of a language model, with the gradients of the answer loss."""

from collections.abc import Sequence

import torch

from audits.core.context import Run
from audits.core.item_sets import TextSets
from audits.core.roles import Role
from capture.activations.loss_gradients import loss_gradients
from capture.checkpoints.weight_change import (
    ComponentChange,
    LossGradients,
    by_component,
    update_shapes,
)
from capture.data.items import ItemSet
from capture.data.tokenization import encode_items
from evidence.seeds import numpy_rng

# Items of each set that the loss gradient is taken over.
N_ITEMS = 16
# For larger models no gradients are taken: two of them would not fit in memory.
MAX_PARAMETERS = 1_000_000_000


def edit_shape(run: Run, sets: TextSets, changed: Sequence[str]) -> tuple[ComponentChange, ...]:
    """Weight geometry by component; without gradients where the model is too large.

    Args:
        changed: Names of the tensors that changed.
    """
    if not changed:
        return ()
    gradients = None
    with run.models[Role.ORIGINAL].loaded(run.device) as model:
        if sum(p.numel() for p in model.parameters()) <= MAX_PARAMETERS:
            by_set: list[dict[str, torch.Tensor]] = []
            for name, items in (("forget", sets.forget), ("retain", sets.retain)):
                rng = numpy_rng(run.config.seed, "edit shape", name)
                rows = rng.permutation(len(items))[:N_ITEMS]
                sample = ItemSet(tuple(items.items[row] for row in sorted(rows)))
                encoded = encode_items(run.tokenizer, sample)
                gradients_of_set = loss_gradients(model, encoded, list(changed))
                by_set.append({key: value.cpu() for key, value in gradients_of_set.items()})
            gradients = LossGradients(*by_set)
    return by_component(
        update_shapes(
            run.inputs.original,
            run.inputs.unlearned,
            names=changed,
            gradients=gradients,
            progress=run.progress,
        )
    )

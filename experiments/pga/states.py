"""States of the code-recall world's pools, by depth, key and context."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from capture.activations.capture import capture_activations
from capture.network.sites import find_sites
from testbeds.memorized_codes.world import CodesWorld
from testbeds.worlds.code_text import prompts

View = Literal["last", "mean"]
VIEWS: tuple[View, ...] = ("last", "mean")


def depth_sites(model: nn.Module) -> list[str]:
    """Site names by depth: the embedding, then each block's output."""
    where = find_sites(model)
    return [*where.of("embed"), *where.of("resid")]


def pool_states(
    model: nn.Module, prefixes: Sequence[str], lead_ins: Sequence[str], view: View = "last"
) -> Tensor:
    """States (depth, key, context, d) of prompts without their codes, float64.

    Args:
        model: Of the code-recall world.
        prefixes: The keys.
        lead_ins: The contexts.
        view: ``"last"`` token, or the ``"mean"`` over all tokens.
    """
    rows = prompts(prefixes, lead_ins)
    states = capture_activations(model, rows, depth_sites(model), view).values
    shape = (len(states), len(prefixes), len(lead_ins), states.shape[-1])
    return torch.from_numpy(np.asarray(states, np.float64).reshape(shape))


def all_states(
    model: nn.Module, world: CodesWorld, lead_ins: Sequence[str], views: Sequence[View] = VIEWS
) -> dict[str, dict[str, Tensor]]:
    """``pool_states`` of every pool that has prefixes, by view and pool."""
    return {
        view: {
            name: pool_states(model, pool.prefixes, lead_ins, view)
            for name, pool in world.pools.items()
            if len(pool)
        }
        for view in views
    }

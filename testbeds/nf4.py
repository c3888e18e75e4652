"""Weights rounded to four bits and back, as NF4 stores them.

Source: Dettmers et al. (2023), QLoRA, arXiv 2305.14314: sixteen levels at even
quantiles of a normal distribution, scaled to the largest value of each block of 64.
"""

import torch
from scipy.stats import norm
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from erasure.structure import output_head

BLOCK = 64
# Of the tail that the outermost quantile leaves out, so that both ends are finite.
_OFFSET = 0.5 * (1 / 32 + 1 / 30)


def levels() -> Tensor:
    """The sixteen levels from -1 to 1, zero among them."""
    above = norm.ppf(torch.linspace(1 - _OFFSET, 0.5, 9)[:-1].double().numpy())
    below = -norm.ppf(torch.linspace(1 - _OFFSET, 0.5, 8)[:-1].double().numpy())
    both = torch.tensor([*above, 0.0, *below], dtype=torch.float64).sort().values
    return both / both.max()


def rounded(weight: Tensor) -> Tensor:
    """``weight`` after it was stored in NF4, of its shape and type."""
    flat = weight.detach().flatten().double()
    padding = -len(flat) % BLOCK
    blocks = torch.cat([flat, flat.new_zeros(padding)]).view(-1, BLOCK)
    scale = blocks.abs().amax(1, keepdim=True).clamp(min=1e-30)
    steps = levels().to(flat.device)
    middles = (steps[1:] + steps[:-1]) / 2
    near = steps[torch.bucketize(blocks / scale, middles)] * scale
    return near.flatten()[: len(flat)].view_as(weight).to(weight.dtype)


def round_(model: nn.Module) -> nn.Module:
    """Round every matrix of a model's linear layers but the head's, in place."""
    head = output_head(model)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | Conv1D) and module is not head:
                module.weight.copy_(rounded(module.weight))
    return model

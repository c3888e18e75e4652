"""SalUn's saliency masks: train only the weights with the largest forget gradient.

Source: Fan, Liu, Zhang, Wong, Wei, Liu (2023), SalUn, arXiv 2310.12508.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from capture.data.sequences import Sequences
from erasure.unlearning.training.loop import backward_nll


def saliency_masks(
    model: nn.Module, parameters: list[nn.Parameter], forget: Sequences, loss_on: str, share: float
) -> list[Tensor]:
    """Masks of the ``share`` of all weights with the largest forget gradient.

    Args:
        model: A causal language model.
        parameters: The parameters, which take gradients.
        forget: Rows with their true answers.
        loss_on: ``"answer"`` or ``"all"`` tokens.
        share: In (0, 1]; one threshold for all parameters together.
    """
    for parameter in parameters:
        parameter.grad = None
    backward_nll(model, forget, loss_on, 1.0)
    return largest_gradient_masks(parameters, share)


def largest_gradient_masks(parameters: list[nn.Parameter], share: float) -> list[Tensor]:
    """Masks of the ``share`` of weights with the largest gradients; clears the gradients.

    Args:
        parameters: With the gradients to compare.
        share: In (0, 1]; one threshold for all parameters together.
    """
    sizes = [torch.zeros_like(p) if p.grad is None else p.grad.abs() for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    flat = torch.cat([size.flatten() for size in sizes])
    count = max(1, round(share * len(flat)))
    mask = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
    mask[flat.topk(count).indices] = True
    parts = mask.split([size.numel() for size in sizes])
    return [part.view_as(size) for part, size in zip(parts, sizes, strict=True)]


@contextmanager
def masked_gradients(parameters: list[nn.Parameter], masks: list[Tensor]) -> Iterator[None]:
    """Context manager that zeroes the gradients of the weights outside the masks.

    Decoupled weight decay acts without gradients: train without it.
    """
    handles = [
        parameter.register_hook(lambda gradient, mask=mask: gradient * mask)
        for parameter, mask in zip(parameters, masks, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

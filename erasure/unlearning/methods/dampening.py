"""Selective synaptic dampening: shrink the weights that matter to the forget rows.

Source: Foster, Schoepf, Brintrup (2023), arXiv 2308.07707.
"""

import torch
from torch import Tensor, nn

from capture.data.sequences import Sequences
from erasure.unlearning.training.loop import backward_nll


def diagonal_fisher(
    model: nn.Module, parameters: list[nn.Parameter], rows: Sequences, loss_on: str
) -> list[Tensor]:
    """Mean over the rows of the squared gradient of a row's loss, as the parameters.

    Args:
        model: A causal language model whose gradients are wanted.
        parameters: Of which; each takes gradients.
        rows: With the true answers.
        loss_on: ``"answer"`` or ``"all"`` tokens.
    """
    found = [torch.zeros_like(parameter) for parameter in parameters]
    for row in range(len(rows)):
        for parameter in parameters:
            parameter.grad = None
        backward_nll(model, rows[[row]], loss_on, 1.0)
        for total, parameter in zip(found, parameters, strict=True):
            if parameter.grad is not None:
                total += parameter.grad.square() / len(rows)
    for parameter in parameters:
        parameter.grad = None
    return found


def dampen_(
    weights: Tensor, forget: Tensor, overall: Tensor, above: float, by: float
) -> int:
    """Shrink the weights that matter much more to the forget rows than to all.

    Where ``forget > above * overall`` a weight is multiplied by
    ``min(by * overall / forget, 1)``.

    Args:
        weights: Changed in place.
        forget: Importance to the forget rows, of the weights' shape, >= 0.
        overall: Importance to all rows.
        above: The authors' alpha, > 0.
        by: The authors' lambda, > 0.

    Returns:
        How many weights were chosen.
    """
    chosen = forget > above * overall
    factor = (by * overall / forget.clamp(min=torch.finfo(forget.dtype).tiny)).clamp(
        max=1.0
    )
    with torch.no_grad():
        weights[chosen] *= factor[chosen]
    return int(chosen.sum())

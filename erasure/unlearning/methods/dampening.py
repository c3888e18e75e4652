"""SSD (selective synaptic dampening): shrink the weights that matter most to the forget rows.

Source: Foster, Schoepf, Brintrup (2023), arXiv 2308.07707.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from capture.data.sequences import Sequences
from erasure.unlearning.training.loop import backward_nll


def diagonal_fisher(
    model: nn.Module, parameters: list[nn.Parameter], rows: Sequences, loss_on: str
) -> list[Tensor]:
    """Diagonal Fisher information: mean over rows of the squared gradient of a row's loss.

    Args:
        model: A causal language model.
        parameters: The parameters, which take gradients.
        rows: Rows with the true answers.
        loss_on: ``"answer"`` or ``"all"`` tokens.
    """
    fisher = [torch.zeros_like(parameter) for parameter in parameters]
    for row in range(len(rows)):
        for parameter in parameters:
            parameter.grad = None
        backward_nll(model, rows[[row]], loss_on, 1.0)
        for total, parameter in zip(fisher, parameters, strict=True):
            if parameter.grad is not None:
                total += parameter.grad.square() / len(rows)
    for parameter in parameters:
        parameter.grad = None
    return fisher


def dampen_parameters_(
    parameters: Iterable[nn.Parameter],
    forget_fisher: Iterable[Tensor],
    retain_fisher: Iterable[Tensor],
    forget_share: float,
    above: float,
    by: float,
) -> int:
    """Apply ``dampen_`` to every parameter and return the number of dampened weights.

    Args:
        parameters: Changed in place.
        forget_fisher: Diagonal Fisher information on the forget data, as the parameters.
        retain_fisher: The same on the retain data.
        forget_share: Share of the forget data in all data, for the overall information.
        above: The authors' alpha, > 0.
        by: The authors' lambda, > 0.
    """
    return sum(
        dampen_(
            parameter.data, forget, forget_share * forget + (1 - forget_share) * retain, above, by
        )
        for parameter, forget, retain in zip(parameters, forget_fisher, retain_fisher, strict=True)
    )


def dampen_(weights: Tensor, forget: Tensor, overall: Tensor, above: float, by: float) -> int:
    """Shrink the weights that are much more important to the forget rows than to all rows.

    A weight with ``forget > above * overall`` is multiplied by ``min(by * overall / forget, 1)``.

    Args:
        weights: Changed in place.
        forget: Importance to the forget rows, of the weights' shape, >= 0.
        overall: Importance to all rows.
        above: The authors' alpha, > 0.
        by: The authors' lambda, > 0.

    Returns:
        Number of dampened weights.
    """
    chosen = forget > above * overall
    factor = (by * overall / forget.clamp(min=torch.finfo(forget.dtype).tiny)).clamp(max=1.0)
    with torch.no_grad():
        weights[chosen] *= factor[chosen]
    return int(chosen.sum())

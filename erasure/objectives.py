"""What the unlearning methods minimise, as functions of tensors.

Every objective is a sum over sequences or tokens with a divisor fixed beforehand, so
that a batch may be computed in chunks and the gradients added.
"""

import torch
from torch import Tensor
from torch.nn import functional

from erasure.structure import LogitReader
from evidence.errors import InputError
from evidence.sequences import Padded, Sequences

LOSS_ON = ("answer", "all")


def count_scored(sequences: Sequences, loss_on: str = "answer") -> int:
    """Number of tokens a loss is taken over.

    Args:
        sequences: Rows to count.
        loss_on: ``"answer"`` for answer tokens, ``"all"`` for every token that has
            one before it.

    Raises:
        InputError: ``loss_on`` is unknown, or a row would have nothing to score.
    """
    if loss_on not in LOSS_ON:
        raise InputError(
            "loss_on is unknown", expected=" or ".join(LOSS_ON), got=repr(loss_on)
        )
    total = 0
    for row, (ids, start) in enumerate(
        zip(sequences.ids, sequences.answer_start, strict=True)
    ):
        scored = len(ids) - (max(start, 1) if loss_on == "answer" else 1)
        if scored < 1:
            raise InputError(
                f"row {row} has no token to learn from",
                expected="an answer after a prompt"
                if loss_on == "answer"
                else "two tokens or more",
                got=f"{len(ids)} tokens, answer starting at {start}",
            )
        total += scored
    return total


def token_logprobs(
    reader: LogitReader, batch: Padded, loss_on: str = "answer"
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the scored tokens, in nats, and the row each belongs to.

    Returns:
        ``(logprob, row)``, both (scored tokens,), in row order.
    """
    scored = batch.answer_mask if loss_on == "answer" else batch.attention_mask.bool()
    where = torch.zeros_like(scored)
    where[:, :-1] = scored[:, 1:]  # a token is predicted from the position before
    logits = reader(batch, where).float()
    targets = batch.input_ids[:, 1:][where[:, :-1]]
    return -functional.cross_entropy(
        logits, targets, reduction="none"
    ), where.nonzero()[:, 0]


def sequence_logprobs(
    reader: LogitReader, batch: Padded, loss_on: str = "answer"
) -> Tensor:
    """Summed log-probability of each row's scored tokens, (row,), in nats."""
    logprob, row = token_logprobs(reader, batch, loss_on)
    total = torch.zeros(
        len(batch.input_ids), dtype=logprob.dtype, device=logprob.device
    )
    return total.index_add(0, row, logprob)


def npo(logprob: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Negative preference loss of each sequence, (row,).

    ``-(2 / beta) * log sigmoid(-beta * (logprob - reference))``: its gradient is that
    of ascent on the forget likelihood, weighted by how likely the answer still is
    relative to the original model, so it fades instead of diverging.

    Args:
        logprob: (row,) log-probability under the model in training, nats.
        reference: (row,) the same under the frozen original.
        beta: Inverse temperature, > 0; ascent is the limit of 0.

    Source: Zhang, Lin, Bai, Mei (2024), arXiv 2404.05868.
    """
    return -(2 / beta) * functional.logsigmoid(-beta * (logprob - reference))


def control_vector(width: int, coefficient: float, rng: torch.Generator) -> Tensor:
    """RMU's target for forget activations, (width,), of norm ``coefficient``.

    A random direction with entries drawn uniformly from [0, 1), as the authors do.

    Source: Li et al. (2024), arXiv 2403.03218.
    """
    vector = torch.rand(width, generator=rng)
    return vector / vector.norm() * coefficient


def state_distance(states: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference of each row, (row,), over its real tokens and widths.

    Args:
        states: (row, position, width).
        target: (width,) or (row, position, width).
        mask: (row, position), true or 1 on real tokens.
    """
    per_token = (states.float() - target).square().mean(-1)
    weight = mask.to(per_token.dtype)
    # where, not a product: padded states may hold anything
    per_token = torch.where(weight > 0, per_token, 0.0)
    return per_token.sum(1) / weight.sum(1)

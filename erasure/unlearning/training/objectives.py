"""Objectives of the unlearning methods, as functions of tensors.

Every objective is a sum over sequences or tokens with a fixed divisor, so that a batch can be
computed in chunks and the gradients added.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from capture.data.sequences import Padded, Sequences
from capture.network.logits import answer_logits
from evidence.errors import InputError

LOSS_ON = ("answer", "all")


def count_scored(sequences: Sequences, loss_on: str = "answer") -> int:
    """Number of tokens in the loss.

    Args:
        sequences: Rows to count.
        loss_on: ``"answer"`` for answer tokens, ``"all"`` for every token but the first.

    Raises:
        InputError: ``loss_on`` is unknown, or a row has no token in the loss.
    """
    if loss_on not in LOSS_ON:
        raise InputError("loss_on is unknown", expected=" or ".join(LOSS_ON), got=repr(loss_on))
    total = 0
    for row, (ids, start) in enumerate(zip(sequences.ids, sequences.answer_start, strict=True)):
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


def check_rows(loss_on: str, **rows: Sequences) -> None:
    """Check that there are rows of every kind and that each has tokens in the loss.

    Raises:
        InputError: Naming the kind without rows; or as ``count_scored``.
    """
    for name, sequences in rows.items():
        if len(sequences) == 0:
            raise InputError(f"there are no {name} rows", expected="one or more")
        count_scored(sequences, loss_on)


def token_logprobs(
    model: nn.Module, batch: Padded, loss_on: str = "answer"
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the scored tokens, in nats, and the row of each.

    Returns:
        ``(logprob, row)``, both (scored tokens,), in row order.
    """
    where, targets = prediction_positions(batch, loss_on)
    logits = answer_logits(model, batch, where).float()
    return -functional.cross_entropy(logits, targets, reduction="none"), where.nonzero()[:, 0]


def prediction_positions(batch: Padded, loss_on: str = "answer") -> tuple[Tensor, Tensor]:
    """Mask (row, position) of positions that predict scored tokens, and their ids (token,).

    Both in row order.
    """
    scored = batch.answer_mask if loss_on == "answer" else batch.attention_mask.bool()
    where = torch.zeros_like(scored)
    where[:, :-1] = scored[:, 1:]  # a token is predicted from the position before
    return where, batch.input_ids[:, 1:][where[:, :-1]]


def sequence_logprobs(model: nn.Module, batch: Padded, loss_on: str = "answer") -> Tensor:
    """(row,) sum of the log-probabilities of the scored tokens, in nats."""
    logprob, row = token_logprobs(model, batch, loss_on)
    total = torch.zeros(len(batch.input_ids), dtype=logprob.dtype, device=logprob.device)
    return total.index_add(0, row, logprob)


def npo(logprob: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Negative preference optimization (NPO) loss of each sequence, (row,).

    ``-(2 / beta) * log sigmoid(-beta * (logprob - reference))``: its gradient is that of ascent on
    the forget loss, weighted by how likely the answer still is relative to the original model, so
    it fades instead of diverging.

    Args:
        logprob: (row,) log-probability under the model in training, nats.
        reference: (row,) the same under the frozen original.
        beta: Inverse temperature, > 0; the limit of 0 is gradient ascent.

    Source: Zhang, Lin, Bai, Mei (2024), arXiv 2404.05868.
    """
    return -(2 / beta) * functional.logsigmoid(-beta * (logprob - reference))


def simnpo(logprob: Tensor, length: Tensor, beta: float, margin: float) -> Tensor:
    """SimNPO loss, NPO without a reference and normalized by length, (row,).

    ``-(2 / beta) * log sigmoid(-(beta / length) * logprob - margin)``.

    Args:
        logprob: (row,) summed log-probability of each row's scored tokens, nats.
        length: (row,) number of scored tokens.
        beta: Inverse temperature, > 0.
        margin: Reward margin.

    Source: Fan, Liu, Lin, et al. (2024), arXiv 2410.07163.
    """
    reward = -beta * logprob / length - margin
    return -(2 / beta) * functional.logsigmoid(reward)


def dpo(preferred: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """Direct preference optimization (DPO) loss, (row,).

    ``-(2 / beta) * log sigmoid(beta * (preferred - rejected))``: as in Rafailov et al., times the
    constant that makes NPO the case without a preferred answer.

    Args:
        preferred: (row,) log-probability of the preferred answer minus that under the frozen
            original, nats.
        rejected: (row,) the same of the answer to forget.
        beta: Inverse temperature, > 0.

    Source: Rafailov et al. (2023), arXiv 2305.18290; with a refusal as the preferred answer in TOFU
    (arXiv 2401.06121) and NPO (arXiv 2404.05868).
    """
    return -(2 / beta) * functional.logsigmoid(beta * (preferred - rejected))


def distillation(logits: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
    """Distillation loss, (token,), in nats.

    ``T**2 * KL(softmax(target / T) || softmax(logits / T))``; the factor makes gradients of
    different temperatures comparable.

    Args:
        logits: (token, vocabulary) of the model in training.
        target: (token, vocabulary) logits of the teacher.
        temperature: T, > 0.

    Source: Hinton, Vinyals, Dean (2015), arXiv 1503.02531.
    """
    target_logprobs = (target.float() / temperature).log_softmax(-1)
    logprobs = (logits.float() / temperature).log_softmax(-1)
    per_token = (target_logprobs.exp() * (target_logprobs - logprobs)).sum(-1)
    return temperature**2 * per_token


def undial_target(logits: Tensor, tokens: Tensor, penalty: float) -> Tensor:
    """UNDIAL's target: the original's logits with that of the true token lowered.

    Args:
        logits: (token, vocabulary) of the frozen original.
        tokens: (token,) ids of the true tokens.
        penalty: Amount subtracted from the true token's logit.

    Source: Dong, Lin, Belkin, Huerta, Vulić (2024), arXiv 2402.10052.
    """
    one_hot = functional.one_hot(tokens, logits.shape[-1])
    return logits - penalty * one_hot


def elm_target(logits: Tensor, novice: Tensor, guidance: float) -> Tensor:
    """ELM's target: the original's distribution, moved towards a novice's.

    ``log p(expert) + guidance * (log p(novice) - log p(expert))``, unnormalized.

    Args:
        logits: (token, vocabulary) of the original, prompted about the forget entity.
        novice: (token, vocabulary) of the original, prompted about an unknown entity.
        guidance: 0 gives the expert, 1 the novice.

    Source: Gandikota, Feucht, Marks, Bau (2024), arXiv 2410.02760.
    """
    expert = logits.log_softmax(-1)
    return expert + guidance * (novice.log_softmax(-1) - expert)


def control_vector(width: int, coefficient: float, rng: torch.Generator) -> Tensor:
    """RMU's target for forget activations, (width,), of norm ``coefficient``.

    A random direction with entries uniform in [0, 1), as in the authors' code.

    Source: Li et al. (2024), arXiv 2403.03218.
    """
    vector = torch.rand(width, generator=rng)
    return vector / vector.norm() * coefficient


def state_distance(states: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """(row,) mean squared difference over each row's real tokens and the width.

    Args:
        states: (row, position, width).
        target: (width,) or (row, position, width).
        mask: (row, position), true or 1 on real tokens.
    """
    per_token = (states.float() - target).square().mean(-1)
    weight = mask.to(per_token.dtype)
    # where, not a product: states at padding may be NaN
    per_token = torch.where(weight > 0, per_token, 0.0)
    return per_token.sum(1) / weight.sum(1)

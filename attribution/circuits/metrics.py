"""Attribution metrics: one number per prompt pair, larger if the answer is more likely."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from attribution.circuits.prompt_pairs import PromptPairs
from capture.data.sequences import Padded, Sequences, pad
from evidence.errors import InputError

MetricName = Literal["logit_difference", "answer_logprob", "kl"]
METRICS: tuple[MetricName, ...] = get_args(MetricName)


@dataclass(frozen=True)
class PairBatch:
    """A padded batch of pairs with the inputs of the metric.

    Attributes:
        clean: Clean rows; ``answer_mask`` marks the positions whose logits are used.
        corrupt: Corrupt rows, of the same shape.
        targets: (metric position,) the correct next token.
        foils: (row,) first token of the corrupt prompt's own answer.
        row_idx: (metric position,) row.
    """

    clean: Padded
    corrupt: Padded
    targets: Tensor
    foils: Tensor
    row_idx: Tensor

    @property
    def metric_mask(self) -> Tensor:
        """(row, position) bool, the positions whose logits are used."""
        return self.clean.answer_mask

    @property
    def token_mask(self) -> Tensor:
        """(row, position), 1 on real tokens."""
        return self.clean.attention_mask


def check_metric(name: str) -> MetricName:
    """Return ``name`` if it is a metric.

    Raises:
        InputError: It is not.
    """
    for known in METRICS:
        if name == known:
            return known
    raise InputError("the metric is not known", expected=", ".join(METRICS), got=repr(name))


def make_batch(
    pairs: PromptPairs, rows: list[int], metric: MetricName, device: torch.device
) -> PairBatch:
    """Pad pairs, cut off after the last position whose logits are used.

    Args:
        pairs: All pairs.
        rows: Rows of the batch.
        metric: "answer_logprob" uses the whole answer, the others its first token.
        device: Device of the batch.
    """
    chosen = pairs[rows]
    starts = chosen.clean.answer_start

    def cut_off(sequences: Sequences) -> Padded:
        ends = [
            len(ids) if metric == "answer_logprob" else start + 1
            for ids, start in zip(sequences.ids, starts, strict=True)
        ]
        # The logits at one position predict the next token.
        shorter = [ids[: end - 1] for ids, end in zip(sequences.ids, ends, strict=True)]
        prompt_lengths = tuple(start - 1 for start in starts)
        return pad(Sequences(tuple(shorter), prompt_lengths), device=device)

    clean, corrupt = cut_off(chosen.clean), cut_off(chosen.corrupt)
    owner, position = clean.answer_mask.nonzero(as_tuple=True)
    targets = [
        chosen.clean.ids[row][place + 1]
        for row, place in zip(owner.tolist(), position.tolist(), strict=True)
    ]
    return PairBatch(
        clean,
        corrupt,
        torch.tensor(targets, device=device),
        torch.tensor(chosen.foils, device=device),
        owner,
    )


def at_least_float32(value: Tensor) -> Tensor:
    """Promote to float32 or wider, as sums over thousands of products need the precision."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


Metric = Callable[[Tensor], Tensor]


def make_metric(name: MetricName, batch: PairBatch, clean_logits: Tensor) -> Metric:
    """The metric of a batch, as a function of the logits at its positions.

    ========================= ====================================================
    "logit_difference"        logit of the answer minus that of the corrupt prompt's
                              answer, first tokens
    "answer_logprob"          log-probability of the whole answer, in nats
    "kl"                      minus the divergence from the clean run's next-token
                              distribution, KL(clean || run), in nats
    ========================= ====================================================

    Args:
        name: The metric.
        clean_logits: (metric position, token) of the clean run.
    """
    rows = len(batch.foils)
    clean_logits = at_least_float32(clean_logits.detach())
    positions = torch.arange(len(batch.targets), device=batch.targets.device)

    def difference(logits: Tensor) -> Tensor:
        return logits[positions, batch.targets] - logits[positions, batch.foils]

    def logprob(logits: Tensor) -> Tensor:
        token_logprobs = logits.log_softmax(-1)[positions, batch.targets]
        return token_logprobs.new_zeros(rows).index_add(0, batch.row_idx, token_logprobs)

    reference = clean_logits.log_softmax(-1)

    def divergence(logits: Tensor) -> Tensor:
        log_ratio = reference - logits.log_softmax(-1)
        return -(reference.exp() * log_ratio).sum(-1)

    chosen = {"logit_difference": difference, "answer_logprob": logprob, "kl": divergence}[name]
    return lambda logits: chosen(at_least_float32(logits))

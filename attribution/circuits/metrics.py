"""What is attributed: one number a prompt pair, larger the more the answer is meant."""

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
    """Some pairs, padded, with what their metric needs.

    Attributes:
        clean: Clean rows; ``answer_mask`` marks the positions whose logits count.
        corrupt: Corrupt rows, of the same shape.
        targets: (counted position,) the token that should come next.
        foils: (row,) the token that comes next in the corrupt prompt's own answer.
        row_idx: (counted position,) row.
    """

    clean: Padded
    corrupt: Padded
    targets: Tensor
    foils: Tensor
    row_idx: Tensor

    @property
    def metric_mask(self) -> Tensor:
        """(row, position) bool, the positions whose logits count."""
        return self.clean.answer_mask

    @property
    def token_mask(self) -> Tensor:
        """(row, position), 1 on real tokens."""
        return self.clean.attention_mask


def check_metric(name: str) -> MetricName:
    """``name`` if it is a metric.

    Raises:
        InputError: it is not.
    """
    for known in METRICS:
        if name == known:
            return known
    raise InputError(
        "the metric is not known", expected=", ".join(METRICS), got=repr(name)
    )


def make_batch(
    pairs: PromptPairs, rows: list[int], metric: MetricName, device: torch.device
) -> PairBatch:
    """Pad some pairs; only what comes before the last counted position is run.

    Args:
        pairs: All pairs.
        rows: Which of them.
        metric: All of the answer counts in "answer_logprob", its first token
            otherwise.
        device: Where the batch goes.
    """
    chosen = pairs[rows]
    starts = chosen.clean.answer_start

    def cut(sequences: Sequences) -> Padded:
        ends = [
            len(ids) if metric == "answer_logprob" else start + 1
            for ids, start in zip(sequences.ids, starts, strict=True)
        ]
        # The logits at one position speak of the next token.
        shorter = [ids[: end - 1] for ids, end in zip(sequences.ids, ends, strict=True)]
        before = tuple(start - 1 for start in starts)
        return pad(Sequences(tuple(shorter), before), device=device)

    clean, corrupt = cut(chosen.clean), cut(chosen.corrupt)
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
    """In float32 at least: sums over thousands of products need the digits."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


Metric = Callable[[Tensor], Tensor]


def make_metric(name: MetricName, batch: PairBatch, clean_logits: Tensor) -> Metric:
    """The metric of a batch: logits at the counted positions to one value a row.

    ========================= ====================================================
    "logit_difference"        logit of the answer less that of the corrupt prompt's
                              answer, first tokens
    "answer_logprob"          log-probability of the whole answer, in nats
    "kl"                      minus the divergence from the clean run's next-token
                              distribution, KL(clean || run), in nats
    ========================= ====================================================

    Args:
        name: Which.
        batch: The pairs.
        clean_logits: (counted position, token) of the clean run.
    """
    rows = len(batch.foils)
    clean_logits = at_least_float32(clean_logits.detach())
    places = torch.arange(len(batch.targets), device=batch.targets.device)

    def difference(logits: Tensor) -> Tensor:
        return logits[places, batch.targets] - logits[places, batch.foils]

    def logprob(logits: Tensor) -> Tensor:
        each = logits.log_softmax(-1)[places, batch.targets]
        return each.new_zeros(rows).index_add(0, batch.row_idx, each)

    reference = clean_logits.log_softmax(-1)

    def divergence(logits: Tensor) -> Tensor:
        apart = reference - logits.log_softmax(-1)
        return -(reference.exp() * apart).sum(-1)

    chosen = {
        "logit_difference": difference,
        "answer_logprob": logprob,
        "kl": divergence,
    }[name]
    return lambda logits: chosen(at_least_float32(logits))

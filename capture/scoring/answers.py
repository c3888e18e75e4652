"""Answer scores: log-probability, greedy exact match, logits of watched tokens."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from capture.data.sequences import Padded, Sequences, pad, running
from capture.network.discovery.position_limit import explain_length_error
from capture.network.edits.row_order import model_batches
from capture.network.hooks import evaluation_mode
from capture.network.logits import answer_logits
from capture.network.model_inputs import plain_inputs
from capture.network.structure import model_device, output_head
from capture.scoring.token_statistics import WatchedToken, reduce_logits
from evidence.display.html_table import frame_html
from evidence.errors import InputError
from evidence.progress import AUTO, Progress, as_progress

# Maximum number of logits in memory: 256 MiB in float32.
MAX_LOGITS = 2**26


@dataclass(frozen=True, eq=False, repr=False)
class AnswerScores:
    """Teacher-forced scores of each row's answer.

    If a logit of a damaged model is NaN, ``logprob`` is minus infinity and ``greedy`` is False.

    Attributes:
        logprob: (row,) log-probability of the answer, in nats.
        mean_logprob: (row,) ``logprob`` divided by the number of answer tokens.
        greedy: (row,) bool, whether greedy decoding yields the answer (exact match): every
            answer token is the most likely one given those before it.
        n_tokens: (row,) int, number of answer tokens.
        watched: (row, token) logits of the watched tokens; no columns by default.

    Examples:
        >>> scores = exhume.score_answers(model, rows[[0, 1, 2]])
        >>> scores.to_frame()[["greedy", "n_tokens"]]
           greedy  n_tokens
        0    True         1
        1    True         1
        2    True         1
    """

    logprob: np.ndarray
    mean_logprob: np.ndarray
    greedy: np.ndarray
    n_tokens: np.ndarray
    watched: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))

    def __len__(self) -> int:
        return len(self.logprob)

    def __repr__(self) -> str:
        if not len(self):
            return "AnswerScores(0 answers)"
        return (
            f"AnswerScores({len(self)} answers, exact match {self.greedy.mean():.0%}, "
            f"mean log-probability {self.mean_logprob.mean():.2f} nats a token)"
        )

    def _repr_html_(self) -> str:
        return frame_html(repr(self), self.to_frame())

    def to_frame(self) -> pd.DataFrame:
        """One row per answer, one column per attribute other than ``watched``."""
        names = [f.name for f in fields(self) if f.name != "watched"]
        return pd.DataFrame({name: getattr(self, name) for name in names})


@plain_inputs
def score_answers(
    model: nn.Module,
    sequences: Sequences,
    *,
    watch: Sequence[WatchedToken] = (),
    batch_tokens: int = 4096,
    context: Callable[[Padded], AbstractContextManager[object]] = nullcontext,
    progress: Progress = AUTO,
) -> AnswerScores:
    """Score the answer of every row, with one forward pass per batch.

    To save memory, the head is applied only at positions that predict answer tokens. If the head
    of the model is unknown, all logits are computed, with the same result.

    Args:
        model: A causal language model that returns logits (row, position, token).
        sequences: Rows with answers.
        watch: Token ids whose logits at the start of the answer are returned, or pairs
            (offset, token id) for later answer positions.
        batch_tokens: Maximum number of padded positions per batch.
        context: Function from a batch to a context manager around the pass, such as
            ``capture.network.hooks.patch``.

    Raises:
        InputError: a row has no answer or no prompt, or does not fit the model's vocabulary or
            maximum length.

    Examples:
        >>> exhume.score_answers(model, rows)
        AnswerScores(76 answers, exact match 100%, mean log-probability -0.01 nats a token)
        >>> unlearned = exhume.open_checkpoint("unlearned").load()
        >>> forget = exhume.encode_items(tokenizer, exhume.read_items("forget.jsonl"))
        >>> float(exhume.score_answers(unlearned, forget).greedy.mean())
        0.0
    """
    starts = np.array(sequences.answer_start, dtype=int)
    n_tokens = np.array([len(ids) for ids in sequences.ids], dtype=int) - starts
    for row in np.flatnonzero((n_tokens < 1) | (starts < 1)):
        raise InputError(
            f"row {row} cannot be scored",
            expected="at least one prompt token and one answer token",
            got=f"{starts[row]} prompt and {n_tokens[row]} answer tokens",
        )
    furthest = max((token[0] for token in watch if isinstance(token, tuple)), default=0)
    if len(sequences) and furthest >= n_tokens.min():
        raise InputError(
            "watched tokens lie beyond the end of an answer",
            expected=f"at most {n_tokens.min() - 1} tokens after its first",
            got=str(furthest),
        )
    logprob = np.zeros(len(sequences))
    greedy = np.ones(len(sequences), dtype=bool)
    watched = np.zeros((len(sequences), len(watch)))
    with (
        evaluation_mode(model),
        torch.inference_mode(),
        as_progress(progress).task("score answers", len(sequences)) as advance,
    ):
        for batch in _batches(model, sequences, batch_tokens):
            try:
                with running(batch, sequences), context(batch):
                    rows, *scores = _score_batch(model, batch, watch)
            except IndexError as error:
                raise explain_length_error(model, batch) from error
            logprob[rows], greedy[rows], watched[rows] = scores
            advance(len(rows))
    mean = logprob / np.maximum(n_tokens, 1)
    return AnswerScores(logprob, mean, greedy, n_tokens, watched)


def _batches(model: nn.Module, sequences: Sequences, tokens: int) -> Iterator[Padded]:
    """Batches within the limits on tokens and on logits."""
    device = model_device(model)
    weight = getattr(output_head(model), "weight", None)
    vocabulary = weight.shape[0] if isinstance(weight, Tensor) else 50_000
    max_rows = max(1, MAX_LOGITS // vocabulary)
    for batch in model_batches(model, sequences, tokens):
        rows: list[int] = []
        used = 0
        for row, count in zip(batch.rows.tolist(), batch.answer_mask.sum(1).tolist(), strict=True):
            if rows and used + count > max_rows:
                yield pad(sequences, rows, device=device)
                rows, used = [], 0
            rows.append(row)
            used += count
        yield pad(sequences, rows, device=device)


def _score_batch(
    model: nn.Module, batch: Padded, watch: Sequence[WatchedToken]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Row indices, log-probabilities, exact matches and watched logits of a batch."""
    target_ids = batch.input_ids[batch.answer_mask]  # (answer token,)
    # The logits at position p predict the token at p + 1.
    logits = answer_logits(model, batch, batch.answer_mask.roll(-1, dims=1))
    row_idx = batch.answer_mask.nonzero()[:, 0]
    scores = reduce_logits(logits, target_ids, row_idx, len(batch.rows), watch)
    return batch.rows.numpy(), *scores

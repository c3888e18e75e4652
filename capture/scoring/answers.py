"""Answer scores: log-probability, greedy exact match, choices, and greedy generation."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from capture.data.items import Item, ItemSet, normalize_text
from capture.data.sequences import Padded, Sequences, batches, pad
from capture.data.tokenization import encode, prompt_of
from capture.network.discovery.position_limit import (
    explain_length_error,
    position_limit,
)
from capture.network.hooks import evaluation_mode
from capture.network.logits import answer_logits
from capture.network.structure import model_device, output_head
from capture.scoring.token_statistics import WatchedToken, reduce_logits
from evidence.display.html_table import frame_html
from evidence.errors import InputError
from evidence.progress import SILENT, Progress
from evidence.seeds import numpy_rng

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


@dataclass(frozen=True, eq=False)
class ChoiceScores:
    """Scores of each answer against its alternatives.

    Attributes:
        correct: (row,) bool, whether the answer has a higher mean log-probability per token
            than every alternative.
        truth_ratio: (row,) mean over alternatives of the length-normalized probability
            P(a)^(1/tokens), divided by that of the answer: near 0 if the model knows the
            answer, 1 without a preference. Equation 1 of TOFU (arXiv 2401.06121), with the
            answer in place of TOFU's paraphrase of it, and the arithmetic mean of the paper. 1
            if both are 0, as for NaN logits.
        answer: (row,) mean log-probability per token of the answer, in nats.
        best_alternative: (row,) highest mean log-probability of an alternative, in nats.
        n_alternatives: (row,) int, number of alternatives.
    """

    correct: np.ndarray
    truth_ratio: np.ndarray
    answer: np.ndarray
    best_alternative: np.ndarray
    n_alternatives: np.ndarray

    def __len__(self) -> int:
        return len(self.correct)

    def to_frame(self) -> pd.DataFrame:
        """One row per item, one column per attribute."""
        return pd.DataFrame({f.name: getattr(self, f.name) for f in fields(self)})


def score_answers(
    model: nn.Module,
    sequences: Sequences,
    *,
    watch: Sequence[WatchedToken] = (),
    batch_tokens: int = 4096,
    context: Callable[[Padded], AbstractContextManager[object]] = nullcontext,
    progress: Progress = SILENT,
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
        progress.task("score answers", len(sequences)) as advance,
    ):
        for batch in _batches(model, sequences, batch_tokens):
            try:
                with context(batch):
                    rows, *scores = _score_batch(model, batch, watch)
            except IndexError as error:
                raise explain_length_error(model, batch) from error
            logprob[rows], greedy[rows], watched[rows] = scores
            advance(len(rows))
    mean = logprob / np.maximum(n_tokens, 1)
    return AnswerScores(logprob, mean, greedy, n_tokens, watched)


def score_choices(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    items: ItemSet | Sequence[Item],
    *,
    prompt_index: int | None = None,
    batch_tokens: int = 4096,
    progress: Progress = SILENT,
) -> ChoiceScores:
    """Score each item's answer against its alternatives (see ``alternatives_of``).

    Args:
        model: A causal language model.
        prompt_index: None for ``Item.prompt``, else an index into ``Item.paraphrases``.
        batch_tokens: Maximum number of padded positions per batch.

    Raises:
        InputError: an item has no alternatives and none can be drawn; or as ``encode``.
    """
    items = list(items)
    others = alternatives_of(items)
    prompts, answers = [], []
    for item, wrong in zip(items, others, strict=True):
        prompts += [prompt_of(item, prompt_index)] * (1 + len(wrong))
        answers += [item.answer, *wrong]
    scores = score_answers(
        model,
        encode(tokenizer, prompts, answers),
        batch_tokens=batch_tokens,
        progress=progress,
    ).mean_logprob
    right, best, truth_ratio = np.zeros((3, len(items)))
    start = 0
    for row, wrong in enumerate(others):
        answer_score, *alternative_scores = scores[start : start + 1 + len(wrong)]
        start += 1 + len(wrong)
        right[row], best[row] = answer_score, max(alternative_scores)
        mean = np.mean(np.exp(alternative_scores))
        truth_ratio[row] = (
            1.0
            if np.exp(answer_score) == mean == 0
            else _truth_ratio(answer_score, alternative_scores)
        )
    return ChoiceScores(
        correct=right > best,
        truth_ratio=truth_ratio,
        answer=right,
        best_alternative=best,
        n_alternatives=np.array([len(wrong) for wrong in others], dtype=int),
    )


def alternatives_of(
    items: ItemSet | Sequence[Item], *, max_drawn: int = 3
) -> tuple[tuple[str, ...], ...]:
    """Wrong answers of each item: its alternatives, else up to ``max_drawn`` drawn ones.

    These are drawn from the answers of other items of the same relation, without those that are
    correct for an item with the same prompt or the same entity and relation. The draw depends on
    the item's id and the set of answers, not on their order.

    Raises:
        InputError: an item has no alternatives and its relation has no other answer.
    """
    items = list(items)
    offered: dict[str, dict[str, str]] = {}
    true_answers: dict[tuple[str, ...], set[str]] = {}
    for item in items:
        offered.setdefault(item.relation, {}).setdefault(
            normalize_text(item.answer), item.answer
        )
        for key in _fact_keys(item):
            true_answers.setdefault(key, set()).add(normalize_text(item.answer))
    chosen = []
    for item in items:
        right = set().union(*(true_answers[key] for key in _fact_keys(item)))
        wrong = tuple(a for a in item.alternatives if normalize_text(a) not in right)
        if not wrong:
            pool = sorted(
                a for k, a in offered[item.relation].items() if k not in right
            )
            rng = numpy_rng(0, "alternatives", item.id)
            order = rng.permutation(len(pool))[:max_drawn]
            wrong = tuple(pool[index] for index in order)
        if not wrong:
            raise InputError(
                f"item {item.id!r} has no wrong answer to compare with",
                expected="alternatives, or other answers of the same relation",
                got=f"one answer in relation {item.relation!r}",
                fix="Add alternatives to the item",
            )
        chosen.append(wrong)
    return tuple(chosen)


def generate_greedy(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int,
    *,
    batch_tokens: int = 4096,
    progress: Progress = SILENT,
) -> list[str]:
    """Continue each prompt by greedy decoding.

    Args:
        model: A Hugging Face causal language model.
        prompts: One text per row.
        max_new_tokens: Maximum number of new tokens, also limited by the position table.
        batch_tokens: Maximum number of padded positions per batch, new ones included.

    Returns:
        The new text of each prompt, without special tokens.

    Raises:
        InputError: the model cannot generate, or as ``encode``.
    """
    if not hasattr(model, "generate"):
        raise InputError(
            "this model cannot generate text",
            expected="a Hugging Face model with a language-model head",
            got=type(model).__name__,
        )
    sequences = encode(tokenizer, prompts)
    texts = [""] * len(sequences)
    lengths = [len(ids) for ids in sequences.ids]
    order = sorted(range(len(sequences)), key=lambda row: lengths[row])
    limit = position_limit(model)
    with (
        evaluation_mode(model),
        torch.inference_mode(),
        progress.task("generate", len(order)) as advance,
    ):
        while order:
            # The last row is the longest and determines the width of the batch.
            longest = lengths[order[-1]]
            size = max(1, batch_tokens // (longest + max_new_tokens))
            n_new = max_new_tokens
            if limit is not None and longest + n_new > limit:
                # Do not shorten the continuations of shorter rows.
                size = min(size, sum(lengths[row] == longest for row in order))
                n_new = limit - longest
                if n_new < 0:
                    raise explain_length_error(model, pad(sequences[[order[-1]]]))
            rows, order = order[-size:], order[:-size]
            if n_new > 0:
                new = _generate(model, tokenizer, sequences[rows], n_new)
                for row, ids in zip(rows, new, strict=True):
                    text = tokenizer.decode(ids, skip_special_tokens=True)
                    texts[row] = text if isinstance(text, str) else "".join(text)
            advance(len(rows))
    return texts


def _fact_keys(item: Item) -> tuple[tuple[str, ...], ...]:
    return (normalize_text(item.prompt),), (normalize_text(item.entity), item.relation)


def _truth_ratio(answer_score: float, alternative_scores: Sequence[float]) -> float:
    scores = np.asarray(alternative_scores)
    log_mean = np.logaddexp.reduce(scores) - np.log(len(scores))
    # exp(700) is just below the largest float64.
    return float(np.exp(min(log_mean - answer_score, 700.0)))


def _batches(model: nn.Module, sequences: Sequences, tokens: int) -> Iterator[Padded]:
    """Batches within the limits on tokens and on logits."""
    device = model_device(model)
    weight = getattr(output_head(model), "weight", None)
    vocabulary = weight.shape[0] if isinstance(weight, Tensor) else 50_000
    max_rows = max(1, MAX_LOGITS // vocabulary)
    for batch in batches(sequences, batch_tokens=tokens, device=device):
        rows: list[int] = []
        used = 0
        for row, count in zip(
            batch.rows.tolist(), batch.answer_mask.sum(1).tolist(), strict=True
        ):
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


def _generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    sequences: Sequences,
    max_new_tokens: int,
) -> list[list[int]]:
    """New token ids by row; left-padded, so that all rows continue at one position."""
    from transformers import GenerationConfig

    device = model_device(model)
    width = max(len(ids) for ids in sequences.ids)
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(sequences.ids):
        ids[row, width - len(tokens) :] = torch.tensor(tokens)
        mask[row, width - len(tokens) :] = 1
    generation_config = getattr(model, "generation_config", None)
    end = getattr(generation_config, "eos_token_id", None)
    end = tokenizer.eos_token_id if end is None else end
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=end,
        bos_token_id=getattr(generation_config, "bos_token_id", None),
        pad_token_id=end[0] if isinstance(end, list) else (end or 0),
    )
    out = model.generate(  # pyright: ignore[reportCallIssue]
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        generation_config=config,
    )
    return out[:, width:].tolist()

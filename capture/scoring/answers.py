"""How likely a model finds each answer, and whether it would say it by itself."""

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
from capture.network.logits import answer_logits
from capture.network.structure import output_head
from capture.scoring.token_statistics import WatchedToken, reduce_logits
from evidence.errors import InputError
from evidence.progress import SILENT, Progress
from evidence.seeds import numpy_rng

# Logits held at once, as numbers: 256 MiB in float32 whatever the vocabulary.
MAX_LOGITS = 2**26


@dataclass(frozen=True, eq=False)
class AnswerScores:
    """What a model makes of each row's answer, given the true text before it.

    A model so damaged that a logit is NaN gets ``logprob`` minus infinity and
    ``greedy`` False on that row: it does not know the answer.

    Attributes:
        logprob: (row,), natural logarithm of the answer's probability, in nats.
        mean_logprob: (row,), ``logprob`` over the number of answer tokens.
        greedy: (row,) bool, whether greedy decoding from the prompt yields the
            answer: every answer token is the most likely one given those before.
        n_tokens: (row,) int, answer tokens.
        watched: (row, token), logits of the watched tokens where they were watched;
            no columns unless some were asked for.
    """

    logprob: np.ndarray
    mean_logprob: np.ndarray
    greedy: np.ndarray
    n_tokens: np.ndarray
    watched: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))

    def __len__(self) -> int:
        return len(self.logprob)

    def to_frame(self) -> pd.DataFrame:
        """One row an answer, one column an attribute (watched tokens left out)."""
        names = [f.name for f in fields(self) if f.name != "watched"]
        return pd.DataFrame({name: getattr(self, name) for name in names})


@dataclass(frozen=True, eq=False)
class ChoiceScores:
    """How each answer stands against its alternatives.

    Attributes:
        correct: (row,) bool, whether the answer has a higher mean log-probability a
            token than every alternative.
        truth_ratio: (row,), mean over alternatives of their length-normalised
            probability P(a)^(1/tokens), over the answer's own: near 0 when the model
            knows, 1 when it has no preference. Equation 1 of TOFU (arXiv
            2401.06121), with the answer where TOFU has a paraphrase of it, and the
            arithmetic mean of the paper. 1 where both are 0, as in a model that
            gives NaN.
        answer: (row,), mean log-probability a token of the answer, in nats.
        best_alternative: (row,), the highest one of the alternatives, in nats.
        n_alternatives: (row,) int.
    """

    correct: np.ndarray
    truth_ratio: np.ndarray
    answer: np.ndarray
    best_alternative: np.ndarray
    n_alternatives: np.ndarray

    def __len__(self) -> int:
        return len(self.correct)

    def to_frame(self) -> pd.DataFrame:
        """One row an item, one column an attribute."""
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
    """Score every row's answer in one pass of the model a batch.

    The head is applied only at the positions that predict answer tokens, which is
    what keeps the memory of a large vocabulary small; a model whose head cannot be
    told apart computes all its logits, with the same result.

    Args:
        model: A causal language model that returns logits (row, position, token).
        sequences: Rows with answers.
        watch: Token ids whose logits where the answer begins are kept; with a number
            before it, those so many tokens further on, given the true ones before.
        batch_tokens: Padded positions a batch.
        context: Called with each batch; the model runs inside what it returns, such as
            ``capture.network.hooks.patch``.
        progress: Where to show progress.

    Raises:
        InputError: a row without an answer, or with nothing before it, or one that the
            model has no tokens or positions for.
    """
    starts = np.array(sequences.answer_start, dtype=int)
    n_tokens = np.array([len(ids) for ids in sequences.ids], dtype=int) - starts
    for row in np.flatnonzero((n_tokens < 1) | (starts < 1)):
        raise InputError(
            f"row {row} cannot be scored",
            expected="at least one prompt token and one answer token",
            got=f"{starts[row]} prompt and {n_tokens[row]} answer tokens",
        )
    furthest = max((each[0] for each in watch if isinstance(each, tuple)), default=0)
    if len(sequences) and furthest >= n_tokens.min():
        raise InputError(
            "tokens are watched beyond the end of an answer",
            expected=f"at most {n_tokens.min() - 1} tokens after its first",
            got=str(furthest),
        )
    logprob = np.zeros(len(sequences))
    greedy = np.ones(len(sequences), dtype=bool)
    watched = np.zeros((len(sequences), len(watch)))
    training = model.training
    model.eval()
    try:
        with (
            torch.inference_mode(),
            progress.task("score answers", len(sequences)) as done,
        ):
            for batch in _batches(model, sequences, batch_tokens):
                try:
                    with context(batch):
                        here, sums, hits, seen = _score_batch(model, batch, watch)
                except IndexError as error:
                    raise explain_length_error(model, batch) from error
                logprob[here], greedy[here], watched[here] = sums, hits, seen
                done(len(here))
    finally:
        model.train(training)
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
        tokenizer: Its tokenizer.
        items: The items, one row each.
        prompt_index: None for ``Item.prompt``, else which paraphrase.
        batch_tokens: Padded positions a batch.
        progress: Where to show progress.

    Raises:
        InputError: an item has no alternative and none can be drawn; or as
            ``encode``.
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
    right, best, ratio = np.zeros((3, len(items)))
    start = 0
    for row, wrong in enumerate(others):
        own, *rest = scores[start : start + 1 + len(wrong)]
        start += 1 + len(wrong)
        right[row], best[row] = own, max(rest)
        mean = np.mean(np.exp(rest))
        ratio[row] = 1.0 if np.exp(own) == mean == 0 else _ratio(own, rest)
    return ChoiceScores(
        correct=right > best,
        truth_ratio=ratio,
        answer=right,
        best_alternative=best,
        n_alternatives=np.array([len(wrong) for wrong in others], dtype=int),
    )


def alternatives_of(
    items: ItemSet | Sequence[Item], *, max_drawn: int = 3
) -> tuple[tuple[str, ...], ...]:
    """Wrong answers for each item: its own, else up to ``max_drawn`` of its relation's.

    Drawn ones are answers of other items of the same relation, never an answer that
    any item with the same prompt or the same entity and relation gives. The draw
    depends on the item's id and the answers on offer, not on their order.

    Raises:
        InputError: an item without alternatives whose relation has no other answer.
    """
    items = list(items)
    offered: dict[str, dict[str, str]] = {}
    true: dict[tuple[str, ...], set[str]] = {}
    for item in items:
        offered.setdefault(item.relation, {}).setdefault(
            normalize_text(item.answer), item.answer
        )
        for key in _facts(item):
            true.setdefault(key, set()).add(normalize_text(item.answer))
    chosen = []
    for item in items:
        right = set().union(*(true[key] for key in _facts(item)))
        wrong = tuple(a for a in item.alternatives if normalize_text(a) not in right)
        if not wrong:
            pool = sorted(
                a for k, a in offered[item.relation].items() if k not in right
            )
            rng = numpy_rng(0, "alternatives", item.id)
            order = rng.permutation(len(pool))[:max_drawn]
            wrong = tuple(pool[place] for place in order)
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
    """What the model says after each prompt, taking the likeliest token each time.

    Args:
        model: A Hugging Face causal language model.
        tokenizer: Its tokenizer.
        prompts: One text a row.
        max_new_tokens: Most tokens to add; fewer where the model ends by itself, or
            where its table of positions ends.
        batch_tokens: Padded positions a batch, new ones included.
        progress: Where to show progress.

    Returns:
        The new text alone, one string a prompt, special tokens left out.

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
    training = model.training
    model.eval()
    try:
        with torch.inference_mode(), progress.task("generate", len(order)) as done:
            while order:
                # The last is the longest: it sets the width of the batch.
                longest = lengths[order[-1]]
                size = max(1, batch_tokens // (longest + max_new_tokens))
                most = max_new_tokens
                if limit is not None and longest + most > limit:
                    # Rows with more room than these are not to be cut short by them.
                    size = min(size, sum(lengths[row] == longest for row in order))
                    most = limit - longest
                    if most < 0:
                        raise explain_length_error(model, pad(sequences[[order[-1]]]))
                rows, order = order[-size:], order[:-size]
                if most == 0:
                    done(len(rows))
                    continue
                new = _continue(model, tokenizer, sequences[rows], most)
                for row, ids in zip(rows, new, strict=True):
                    text = tokenizer.decode(ids, skip_special_tokens=True)
                    texts[row] = text if isinstance(text, str) else "".join(text)
                done(len(rows))
    finally:
        model.train(training)
    return texts


def _facts(item: Item) -> tuple[tuple[str, ...], ...]:
    return (normalize_text(item.prompt),), (normalize_text(item.entity), item.relation)


def _ratio(own: float, rest: Sequence[float]) -> float:
    mean = np.logaddexp.reduce(np.asarray(rest)) - np.log(len(rest))
    return float(np.exp(min(mean - own, 700.0)))  # 700: just below float64's largest


def _batches(model: nn.Module, sequences: Sequences, tokens: int) -> Iterator[Padded]:
    """Batches within the token budget and, after the head, the logit budget."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    weight = getattr(output_head(model), "weight", None)
    vocabulary = weight.shape[0] if isinstance(weight, Tensor) else 50_000
    most = max(1, MAX_LOGITS // vocabulary)
    for batch in batches(sequences, batch_tokens=tokens, device=device):
        rows: list[int] = []
        used = 0
        for row, count in zip(
            batch.rows.tolist(), batch.answer_mask.sum(1).tolist(), strict=True
        ):
            if rows and used + count > most:
                yield pad(sequences, rows, device=device)
                rows, used = [], 0
            rows.append(row)
            used += count
        yield pad(sequences, rows, device=device)


def _score_batch(
    model: nn.Module, batch: Padded, watch: Sequence[WatchedToken]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows of the batch in ``Sequences``; log-probability, hit, watched logits."""
    target = batch.input_ids[batch.answer_mask]  # (answer token,)
    # The logits at position p predict the token at p + 1.
    where = batch.answer_mask.roll(-1, dims=1)
    owner = batch.answer_mask.nonzero()[:, 0]
    logits = answer_logits(model, batch, where)
    return batch.rows.numpy(), *reduce_logits(
        logits, target, owner, len(batch.rows), watch
    )


def _continue(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    sequences: Sequences,
    max_new_tokens: int,
) -> list[list[int]]:
    """New token ids a row. Left padding, so that all rows go on from one position."""
    from transformers import GenerationConfig

    device = next(model.parameters()).device
    width = max(len(ids) for ids in sequences.ids)
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(sequences.ids):
        ids[row, width - len(tokens) :] = torch.tensor(tokens)
        mask[row, width - len(tokens) :] = 1
    own = getattr(model, "generation_config", None)
    end = getattr(own, "eos_token_id", None)
    end = tokenizer.eos_token_id if end is None else end
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=end,
        bos_token_id=getattr(own, "bos_token_id", None),
        pad_token_id=end[0] if isinstance(end, list) else (end or 0),
    )
    out = model.generate(  # pyright: ignore[reportCallIssue]
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        generation_config=config,
    )
    return out[:, width:].tolist()

"""Passes of a receiver from donors' states, with what comes before them run once.

A pass that is patched at the positions that predict the answer differs from the plain
one only there: earlier positions cannot see the patch. Their keys and values are kept,
and each donor and site then costs a pass over the few positions that are left.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from capture.activations.position_limit import misfit
from capture.activations.positions import Wanted
from capture.activations.prefix_cache import Tails, can_share
from capture.data.sequences import Padded, Sequences, batches, pad
from capture.network.hooks import evaluating, patch, record
from capture.network.sites import Sites, find_sites
from capture.network.structure import model_device
from capture.scoring.answers import AnswerScores, score_answers
from capture.scoring.token_statistics import reduce_logits
from evidence.progress import SILENT, Progress

# Rounding moves a log-probability by far less than this, in nats.
AGREE = 1e-3


@dataclass(frozen=True, eq=False)
class Put:
    """One donor's values at one site.

    Attributes:
        donor: Its name.
        site: Where they are put.
        values: float32 (row, place, d).
        todo: (row,) False where the scores are not needed.
    """

    donor: str
    site: str
    values: np.ndarray
    todo: np.ndarray


def score_puts(
    model: nn.Module,
    sequences: Sequences,
    puts: Sequence[Put],
    wanted: Wanted,
    *,
    watch: Sequence[int] = (),
    tokens: int = 4096,
    progress: Progress = SILENT,
) -> list[AnswerScores]:
    """The receiver's answer scores with each put in place; zeros where not needed.

    Args:
        model: The receiver.
        sequences: Rows with answers.
        puts: What is put where.
        wanted: The positions, with their mask.
        watch: As in ``score_answers``.
        tokens: Padded positions a batch.
        progress: Where to show progress.
    """
    n_tokens = np.array([len(ids) for ids in sequences.ids]) - sequences.answer_start
    count = len(sequences)
    found = [
        AnswerScores(
            np.zeros(count),
            np.zeros(count),
            np.zeros(count, dtype=bool),
            n_tokens,
            np.zeros((count, len(watch))),
        )
        for _ in puts
    ]
    way = _way(model, sequences, puts, wanted, tokens)
    with progress.task("patched passes", max(1, len(puts) * count)) as advance:
        for number, rows, (logprob, greedy, watched) in way(
            model, sequences, puts, wanted, watch, tokens
        ):
            to = found[number]
            to.logprob[rows], to.greedy[rows] = logprob, greedy
            to.watched[rows] = watched
            to.mean_logprob[rows] = logprob / n_tokens[rows]
            advance(len(rows))
    return found


Scored = tuple[np.ndarray, np.ndarray, np.ndarray]
Passes = Iterator[tuple[int, np.ndarray, Scored]]


def _way(
    model: nn.Module,
    sequences: Sequences,
    puts: Sequence[Put],
    wanted: Wanted,
    tokens: int,
) -> Callable[..., Passes]:
    """Passes that go on from kept keys and values, where two rows give the same."""
    starts, index = np.array(sequences.answer_start), wanted.index
    assert index is not None and wanted.mask is not None
    before = np.where(wanted.mask, index, starts[:, None]).min(1)
    # One place before the answer must be left to run first, and one to go on from.
    if not puts or (before < starts - 1).any() or starts.min() < 2:
        return _whole
    if not can_share(model):
        return _whole
    order = sorted(range(len(sequences)), key=lambda row: len(sequences.ids[row]))
    pair = [order[0], order[-1]]
    few = [
        Put(each.donor, each.site, each.values[pair], np.ones(2, dtype=bool))
        for each in (puts[0], puts[-1])
    ]
    results = []
    for way in (_whole, _resumed):
        got = np.zeros((len(few), 2))
        for number, rows, (logprob, _, _) in way(
            model, sequences[pair], few, wanted.rows(pair), (), tokens
        ):
            got[number, rows] = logprob
        results.append(got)
    same = np.allclose(*results, rtol=AGREE, atol=AGREE, equal_nan=True)
    return _resumed if same else _whole


def _whole(
    model: nn.Module,
    sequences: Sequences,
    puts: Sequence[Put],
    wanted: Wanted,
    watch: Sequence[int],
    tokens: int,
) -> Passes:
    """Every position of every row, once a put."""
    where = find_sites(model)
    for number, put in enumerate(puts):
        rows = np.flatnonzero(put.todo)
        if not len(rows):
            continue

        def inside(
            batch: Padded, put: Put = put, rows: np.ndarray = rows
        ) -> AbstractContextManager[None]:
            here = rows[batch.rows.numpy()]
            return _patched(model, put, here, wanted, 0, where)

        scores = score_answers(
            model, sequences[rows.tolist()], watch=watch, tokens=tokens, inside=inside
        )
        yield number, rows, (scores.logprob, scores.greedy, scores.watched)


def _resumed(
    model: nn.Module,
    sequences: Sequences,
    puts: Sequence[Put],
    wanted: Wanted,
    watch: Sequence[int],
    tokens: int,
) -> Passes:
    """What comes before the last token of the prompt once, and the rest once a put."""
    needed = np.flatnonzero(np.any([put.todo for put in puts], axis=0))
    if not len(needed):
        return
    where = find_sites(model)
    chosen = sequences[needed.tolist()]
    with torch.inference_mode(), evaluating(model):
        for batch in batches(chosen, tokens=tokens, device=model_device(model)):
            rows = needed[batch.rows.numpy()]
            try:
                yield from _batch(model, sequences, puts, wanted, watch, rows, where)
            except IndexError as error:
                raise misfit(model, batch) from error


def _batch(
    model: nn.Module,
    sequences: Sequences,
    puts: Sequence[Put],
    wanted: Wanted,
    watch: Sequence[int],
    rows: np.ndarray,
    where: Sites,
) -> Passes:
    from transformers import DynamicCache

    device = model_device(model)
    cuts = [sequences.answer_start[row] - 1 for row in rows]
    heads = _pad([sequences.ids[r][:c] for r, c in zip(rows, cuts, strict=True)])
    # The last answer token predicts nothing that is scored.
    rest = _pad([sequences.ids[r][c:-1] for r, c in zip(rows, cuts, strict=True)])
    heads, rest = pad(heads, device=device), pad(rest, device=device)
    owner = torch.arange(len(rows), device=device)
    cache = DynamicCache(config=getattr(model, "config", None))
    inputs = heads.model_inputs | {"past_key_values": cache, "use_cache": True}
    with record(model, ["final"], lambda _, v: v[:, :0], stop=True, where=where):
        model(**inputs)
    mask = rest.attention_mask.bool()
    target = torch.tensor(
        [
            token
            for row, cut in zip(rows, cuts, strict=True)
            for token in sequences.ids[row][cut + 1 :]
        ],
        device=device,
    )
    answers = mask.nonzero()[:, 0]
    for number, put in enumerate(puts):
        todo = put.todo[rows]
        if not todo.any():
            continue
        tails = Tails(rest, owner, owner)
        inputs = tails.inputs(heads, copy.deepcopy(cache))
        offset = np.array(cuts)[:, None]
        with _patched(model, put, rows, wanted, offset, where):
            output = model(**inputs)
        logits = output if isinstance(output, Tensor) else output.logits
        logprob, greedy, watched = reduce_logits(
            logits[mask], target, answers, len(rows), watch
        )
        yield number, rows[todo], (logprob[todo], greedy[todo], watched[todo])


def _pad(ids: list[tuple[int, ...]]) -> Sequences:
    return Sequences(tuple(ids), tuple(map(len, ids)))


def _patched(
    model: nn.Module,
    put: Put,
    rows: np.ndarray,
    wanted: Wanted,
    offset: np.ndarray | int,
    where: Sites,
) -> AbstractContextManager[None]:
    """Put the values of ``rows`` in place, at positions less ``offset``."""
    assert wanted.index is not None and wanted.mask is not None
    row, place = np.nonzero(wanted.mask[rows])
    position = (wanted.index[rows] - offset)[row, place]
    values = torch.as_tensor(put.values[rows][row, place])

    def edit(value: Tensor) -> Tensor:
        new = value.clone()
        new[row, position] = values.to(value.device, value.dtype)
        return new

    return patch(model, {put.site: edit}, where=where)

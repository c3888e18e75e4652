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

from capture.activations.positions import PositionSelection
from capture.activations.prefix_cache import Suffixes, supports_prefix_cache
from capture.data.sequences import Padded, Sequences, batches, pad
from capture.network.discovery.position_limit import explain_length_error
from capture.network.hooks import evaluation_mode, patch, record
from capture.network.sites import Sites, find_sites
from capture.network.structure import model_device
from capture.scoring.answers import AnswerScores, score_answers
from capture.scoring.token_statistics import reduce_logits
from evidence.progress import SILENT, Progress

# Rounding moves a log-probability by far less than this, in nats.
MAX_DIFFERENCE = 1e-3


@dataclass(frozen=True, eq=False)
class Patch:
    """One donor's values at one site.

    Attributes:
        donor: Its name.
        site: Where they are put.
        values: float32 (row, place, d).
        needed: (row,) False where the scores are not needed.
    """

    donor: str
    site: str
    values: np.ndarray
    needed: np.ndarray


def score_patches(
    model: nn.Module,
    sequences: Sequences,
    patches: Sequence[Patch],
    positions: PositionSelection,
    *,
    watch: Sequence[int] = (),
    tokens: int = 4096,
    progress: Progress = SILENT,
) -> list[AnswerScores]:
    """The receiver's answer scores with each put in place; zeros where not needed.

    Args:
        model: The receiver.
        sequences: Rows with answers.
        patches: What is put where.
        positions: The positions, with their mask.
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
        for _ in patches
    ]
    way = _choose_passes(model, sequences, patches, positions, tokens)
    with progress.task("patched passes", max(1, len(patches) * count)) as advance:
        for number, rows, (logprob, greedy, watched) in way(
            model, sequences, patches, positions, watch, tokens
        ):
            to = found[number]
            to.logprob[rows], to.greedy[rows] = logprob, greedy
            to.watched[rows] = watched
            to.mean_logprob[rows] = logprob / n_tokens[rows]
            advance(len(rows))
    return found


RowScores = tuple[np.ndarray, np.ndarray, np.ndarray]
PatchedRows = Iterator[tuple[int, np.ndarray, RowScores]]


def _choose_passes(
    model: nn.Module,
    sequences: Sequences,
    puts: Sequence[Patch],
    wanted: PositionSelection,
    tokens: int,
) -> Callable[..., PatchedRows]:
    """Passes that go on from kept keys and values, where two rows give the same."""
    starts, index = np.array(sequences.answer_start), wanted.index
    assert index is not None and wanted.mask is not None
    before = np.where(wanted.mask, index, starts[:, None]).min(1)
    # One place before the answer must be left to run first, and one to go on from.
    if not puts or (before < starts - 1).any() or starts.min() < 2:
        return _full_passes
    if not supports_prefix_cache(model):
        return _full_passes
    order = sorted(range(len(sequences)), key=lambda row: len(sequences.ids[row]))
    pair = [order[0], order[-1]]
    few = [
        Patch(each.donor, each.site, each.values[pair], np.ones(2, dtype=bool))
        for each in (puts[0], puts[-1])
    ]
    results = []
    for way in (_full_passes, _cached_passes):
        got = np.zeros((len(few), 2))
        for number, rows, (logprob, _, _) in way(
            model, sequences[pair], few, wanted.rows(pair), (), tokens
        ):
            got[number, rows] = logprob
        results.append(got)
    same = np.allclose(
        *results, rtol=MAX_DIFFERENCE, atol=MAX_DIFFERENCE, equal_nan=True
    )
    return _cached_passes if same else _full_passes


def _full_passes(
    model: nn.Module,
    sequences: Sequences,
    puts: Sequence[Patch],
    wanted: PositionSelection,
    watch: Sequence[int],
    tokens: int,
) -> PatchedRows:
    """Every position of every row, once a put."""
    where = find_sites(model)
    for number, put in enumerate(puts):
        rows = np.flatnonzero(put.needed)
        if not len(rows):
            continue

        def inside(
            batch: Padded, put: Patch = put, rows: np.ndarray = rows
        ) -> AbstractContextManager[None]:
            here = rows[batch.rows.numpy()]
            return _patched(model, put, here, wanted, 0, where)

        scores = score_answers(
            model,
            sequences[rows.tolist()],
            watch=watch,
            batch_tokens=tokens,
            context=inside,
        )
        yield number, rows, (scores.logprob, scores.greedy, scores.watched)


def _cached_passes(
    model: nn.Module,
    sequences: Sequences,
    puts: Sequence[Patch],
    wanted: PositionSelection,
    watch: Sequence[int],
    tokens: int,
) -> PatchedRows:
    """What comes before the last token of the prompt once, and the rest once a put."""
    needed = np.flatnonzero(np.any([put.needed for put in puts], axis=0))
    if not len(needed):
        return
    where = find_sites(model)
    chosen = sequences[needed.tolist()]
    with torch.inference_mode(), evaluation_mode(model):
        for batch in batches(chosen, batch_tokens=tokens, device=model_device(model)):
            rows = needed[batch.rows.numpy()]
            try:
                yield from _cached_batch(
                    model, sequences, puts, wanted, watch, rows, where
                )
            except IndexError as error:
                raise explain_length_error(model, batch) from error


def _cached_batch(
    model: nn.Module,
    sequences: Sequences,
    puts: Sequence[Patch],
    wanted: PositionSelection,
    watch: Sequence[int],
    rows: np.ndarray,
    where: Sites,
) -> PatchedRows:
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
    with record(model, ["final"], lambda _, v: v[:, :0], stop=True, known_sites=where):
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
        todo = put.needed[rows]
        if not todo.any():
            continue
        tails = Suffixes(rest, owner, owner)
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
    put: Patch,
    rows: np.ndarray,
    wanted: PositionSelection,
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

    return patch(model, {put.site: edit}, known_sites=where)

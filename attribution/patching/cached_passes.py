"""Score many patches of one receiver, with the common prefix of each row computed once.

A patch at the positions that predict the answer changes nothing before them. The keys and values of
the earlier positions are cached, so each patch costs a pass over the few positions that remain.
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
from capture.network.edits.row_order import keeps_rows
from capture.network.hooks import evaluation_mode, patch, record
from capture.network.sites import Sites, find_sites
from capture.network.structure import model_device
from capture.scoring.answers import AnswerScores, score_answers
from capture.scoring.token_statistics import reduce_logits
from evidence.progress import AUTO, Progress, as_progress

# The cached pass is used if it agrees with the full pass up to this, in nats.
MAX_DIFFERENCE = 1e-3


@dataclass(frozen=True, eq=False)
class Patch:
    """One donor's activations at one site.

    Attributes:
        donor: Name of the donor.
        site: Where the activations are written.
        values: float32 (row, position, d).
        needed: (row,) False for rows whose scores are not needed.
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
    batch_tokens: int = 4096,
    progress: Progress = AUTO,
) -> list[AnswerScores]:
    """Answer scores of the receiver under each patch; zeros for rows that are not needed.

    Args:
        model: The receiver.
        sequences: Rows with answers.
        positions: The patched positions, with their mask.
        watch: As in ``score_answers``.
        batch_tokens: Padded positions per batch.
    """
    n_tokens = np.array([len(ids) for ids in sequences.ids]) - sequences.answer_start
    count = len(sequences)
    scores = [
        AnswerScores(
            np.zeros(count),
            np.zeros(count),
            np.zeros(count, dtype=bool),
            n_tokens,
            np.zeros((count, len(watch))),
        )
        for _ in patches
    ]
    passes = _choose_passes(model, sequences, patches, positions, batch_tokens)
    with as_progress(progress).task("patched passes", max(1, len(patches) * count)) as advance:
        for patch_idx, rows, (logprob, greedy, watched) in passes(
            model, sequences, patches, positions, watch, batch_tokens
        ):
            patch_scores = scores[patch_idx]
            patch_scores.logprob[rows], patch_scores.greedy[rows] = logprob, greedy
            patch_scores.watched[rows] = watched
            patch_scores.mean_logprob[rows] = logprob / n_tokens[rows]
            advance(len(rows))
    return scores


RowScores = tuple[np.ndarray, np.ndarray, np.ndarray]
PatchedRows = Iterator[tuple[int, np.ndarray, RowScores]]


def _choose_passes(
    model: nn.Module,
    sequences: Sequences,
    patches: Sequence[Patch],
    positions: PositionSelection,
    batch_tokens: int,
) -> Callable[..., PatchedRows]:
    """Use the cached passes if they reproduce the full passes on two rows and two patches."""
    starts, index = np.array(sequences.answer_start), positions.index
    assert index is not None and positions.mask is not None
    first_patched = np.where(positions.mask, index, starts[:, None]).min(1)
    # The prefix and the rest of the prompt need one position each before the answer.
    if not patches or (first_patched < starts - 1).any() or starts.min() < 2:
        return _full_passes
    if keeps_rows(model) or not supports_prefix_cache(model):
        return _full_passes
    order = sorted(range(len(sequences)), key=lambda row: len(sequences.ids[row]))
    pair = [order[0], order[-1]]
    test_patches = [
        Patch(patch.donor, patch.site, patch.values[pair], np.ones(2, dtype=bool))
        for patch in (patches[0], patches[-1])
    ]
    results = []
    for passes in (_full_passes, _cached_passes):
        logprobs = np.zeros((len(test_patches), 2))
        for patch_idx, rows, (logprob, _, _) in passes(
            model, sequences[pair], test_patches, positions.rows(pair), (), batch_tokens
        ):
            logprobs[patch_idx, rows] = logprob
        results.append(logprobs)
    agree = np.allclose(*results, rtol=MAX_DIFFERENCE, atol=MAX_DIFFERENCE, equal_nan=True)
    return _cached_passes if agree else _full_passes


def _full_passes(
    model: nn.Module,
    sequences: Sequences,
    patches: Sequence[Patch],
    positions: PositionSelection,
    watch: Sequence[int],
    batch_tokens: int,
) -> PatchedRows:
    """Run every position of every row, once per patch."""
    sites = find_sites(model)
    for patch_idx, donor_patch in enumerate(patches):
        rows = np.flatnonzero(donor_patch.needed)
        if not len(rows):
            continue

        def inside(
            batch: Padded, donor_patch: Patch = donor_patch, rows: np.ndarray = rows
        ) -> AbstractContextManager[None]:
            batch_rows = rows[batch.rows.numpy()]
            return _patched(model, donor_patch, batch_rows, positions, 0, sites)

        scores = score_answers(
            model, sequences[rows.tolist()], watch=watch, batch_tokens=batch_tokens, context=inside
        )
        yield patch_idx, rows, (scores.logprob, scores.greedy, scores.watched)


def _cached_passes(
    model: nn.Module,
    sequences: Sequences,
    patches: Sequence[Patch],
    positions: PositionSelection,
    watch: Sequence[int],
    batch_tokens: int,
) -> PatchedRows:
    """Run each prompt up to its last token once, and the remaining positions once per patch."""
    needed = np.flatnonzero(np.any([p.needed for p in patches], axis=0))
    if not len(needed):
        return
    sites = find_sites(model)
    chosen = sequences[needed.tolist()]
    with torch.inference_mode(), evaluation_mode(model):
        for batch in batches(chosen, batch_tokens=batch_tokens, device=model_device(model)):
            rows = needed[batch.rows.numpy()]
            try:
                yield from _cached_batch(model, sequences, patches, positions, watch, rows, sites)
            except IndexError as error:
                raise explain_length_error(model, batch) from error


def _cached_batch(
    model: nn.Module,
    sequences: Sequences,
    patches: Sequence[Patch],
    positions: PositionSelection,
    watch: Sequence[int],
    rows: np.ndarray,
    sites: Sites,
) -> PatchedRows:
    from transformers import DynamicCache

    device = model_device(model)
    splits = [(sequences.ids[row], sequences.answer_start[row] - 1) for row in rows]
    prefixes = _pad([ids[:split] for ids, split in splits], device)
    # The last answer token predicts no scored token.
    suffixes = _pad([ids[split:-1] for ids, split in splits], device)
    identity = torch.arange(len(rows), device=device)
    cache = DynamicCache(config=getattr(model, "config", None))
    inputs = prefixes.model_inputs | {"past_key_values": cache, "use_cache": True}
    with record(model, ["final"], lambda _, v: v[:, :0], stop=True, known_sites=sites):
        model(**inputs)
    mask = suffixes.attention_mask.bool()
    tokens = [token for ids, split in splits for token in ids[split + 1 :]]
    target = torch.tensor(tokens, device=device)
    token_rows = mask.nonzero()[:, 0]
    for patch_idx, donor_patch in enumerate(patches):
        needed = donor_patch.needed[rows]
        if not needed.any():
            continue
        cached_suffixes = Suffixes(suffixes, identity, identity)
        inputs = cached_suffixes.inputs(prefixes, copy.deepcopy(cache))
        offset = np.array([split for _, split in splits])[:, None]
        with _patched(model, donor_patch, rows, positions, offset, sites):
            output = model(**inputs)
        logits = output if isinstance(output, Tensor) else output.logits
        logprob, greedy, watched = reduce_logits(logits[mask], target, token_rows, len(rows), watch)
        scores = logprob[needed], greedy[needed], watched[needed]
        yield patch_idx, rows[needed], scores


def _pad(ids: list[tuple[int, ...]], device: torch.device) -> Padded:
    return pad(Sequences(tuple(ids), tuple(map(len, ids))), device=device)


def _patched(
    model: nn.Module,
    donor_patch: Patch,
    rows: np.ndarray,
    positions: PositionSelection,
    offset: np.ndarray | int,
    sites: Sites,
) -> AbstractContextManager[None]:
    """Write the values of ``rows`` at the patched positions, shifted by ``-offset``."""
    assert positions.index is not None and positions.mask is not None
    row, column = np.nonzero(positions.mask[rows])
    position = (positions.index[rows] - offset)[row, column]
    values = torch.as_tensor(donor_patch.values[rows][row, column])

    def edit(value: Tensor) -> Tensor:
        new = value.clone()
        new[row, position] = values.to(value.device, value.dtype)
        return new

    return patch(model, {donor_patch.site: edit}, known_sites=sites)

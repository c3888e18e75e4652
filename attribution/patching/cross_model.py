"""Cross-model activation patching: one model's states inside another's pass.

The donor's values at a site replace the receiver's own, and the receiver goes on from
there. What it then makes of an answer says whether its later blocks still find in the
donor's states what they find in their own. Both directions are the same call with the
models changing places.

Source: activation patching between models as in UDS (arXiv 2605.24614); within one
model, Vig et al. (arXiv 2004.12265) and Meng et al. (arXiv 2202.05262).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import nn

from attribution.patching.cached_passes import Patch, score_patches
from capture.activations.capture import capture_selected
from capture.activations.positions import PositionSelection
from capture.data.sequences import Sequences
from capture.scoring.answers import AnswerScores
from evidence.errors import InputError
from evidence.progress import SILENT, Progress

PatchPositions = Literal["predicting", "all"] | int


def patch_positions(
    sequences: Sequences, positions: PatchPositions
) -> PositionSelection:
    """Which positions of each row are patched.

    Args:
        sequences: Rows with answers.
        positions: "predicting", the positions whose outputs are scored: the last token
            of the prompt and every answer token but the last (UDS patches these);
            "all", every position that something scored can see; or one position a
            row, counted back from the first answer token: -1 is the last token of
            the prompt.

    Raises:
        InputError: a row without an answer or a prompt, or without that position.
    """
    lengths = np.array([len(ids) for ids in sequences.ids], dtype=np.int64)
    starts = np.array(sequences.answer_start, dtype=np.int64)
    if len(lengths) == 0 or (lengths <= starts).any() or starts.min() < 1:
        raise InputError(
            "rows to patch need a prompt and an answer",
            expected="at least one token of each in every row",
            got="no rows"
            if len(lengths) == 0
            else f"{int(((lengths <= starts) | (starts < 1)).sum())} rows without",
        )
    if isinstance(positions, int):
        index = (starts + positions)[:, None]
        if positions >= 0 or index.min() < 0:
            raise InputError(
                "a row has no token at the position to patch",
                expected="-1 for the last token of the prompt, -2 for the one before",
                got=f"{positions} in a prompt of {int(starts.min())} tokens",
            )
        return PositionSelection(index, np.ones_like(index, dtype=bool), False)
    if positions not in ("predicting", "all"):
        raise InputError(
            "the places to patch have an unknown name",
            expected="predicting, all, or a negative index",
            got=repr(positions),
        )
    first = starts - 1 if positions == "predicting" else np.zeros_like(starts)
    # Nothing that is scored sees the last answer token.
    counts = lengths - 1 - first
    steps = np.arange(counts.max())
    mask = steps < counts[:, None]
    return PositionSelection(np.where(mask, first[:, None] + steps, 0), mask, False)


@dataclass(frozen=True, eq=False)
class DonorStates:
    """What a donor gives: its values at sites, at certain places of rows.

    Attributes:
        values: Site to float32 (row, place, d).
        mask: (row, place), False where a row has fewer places; there values are 0.
    """

    values: dict[str, np.ndarray]
    mask: np.ndarray

    def __len__(self) -> int:
        return len(self.mask)

    @property
    def sites(self) -> tuple[str, ...]:
        """Site names, in capture order."""
        return tuple(self.values)

    def norms(self, site: str) -> np.ndarray:
        """(row, place) Euclidean norm of the values; 1 where there is no place."""
        norms = np.linalg.norm(self.values[site].astype(np.float64), axis=-1)
        return np.where(self.mask, norms, 1.0)

    def with_norms_of(self, reference: "DonorStates") -> "DonorStates":
        """The same directions with the norms of another model's states.

        Args:
            reference: The receiver's states at the same sites and places.
        """
        values = {
            site: (
                value
                * (reference.norms(site) / np.maximum(self.norms(site), 1e-30))[
                    ..., None
                ]
            ).astype(np.float32)
            for site, value in self.values.items()
        }
        return DonorStates(values, self.mask)


def read_states(
    model: nn.Module,
    sequences: Sequences,
    sites: Sequence[str],
    positions: PatchPositions = "predicting",
    *,
    tokens: int = 4096,
) -> DonorStates:
    """Run the donor and keep its values.

    The values of ``resid.L`` are those before the last norm, also in the last layer.

    Args:
        model: The donor.
        sequences: Rows with answers.
        sites: Site names, of layers, components or heads.
        positions: As in ``patch_positions``.
        tokens: Padded positions a batch.

    Raises:
        InputError: an unknown site, or as ``patch_positions``.
    """
    wanted = patch_positions(sequences, positions)
    assert wanted.mask is not None
    seen = Sequences(tuple(ids[:-1] for ids in sequences.ids), sequences.answer_start)
    arrays = capture_selected(model, seen, sites, wanted, batch_tokens=tokens)
    return DonorStates(arrays, wanted.mask)


def score_patched(
    model: nn.Module,
    sequences: Sequences,
    donors: Mapping[str, DonorStates],
    positions: PatchPositions = "predicting",
    *,
    watch: Sequence[int] = (),
    tokens: int = 4096,
    progress: Progress = SILENT,
) -> dict[str, dict[str, AnswerScores]]:
    """Score the receiver's answers while it goes on from donors' states.

    One site is patched at a time. What comes before the patched positions is the
    receiver's own and is run once for all donors and sites. A row whose states at a
    site are bit for bit those of an earlier donor gets that donor's scores, so that
    equal states give exactly equal scores.

    Args:
        model: The receiver.
        sequences: Rows with answers; each has its donor in the same row of the states,
            which may have been read from another prompt.
        donors: States by donor, all at the same sites and places.
        positions: Where in the rows, as in ``patch_positions``.
        watch: As in ``score_answers``.
        tokens: Padded positions a batch.
        progress: Where to show progress.

    Returns:
        Scores by donor, then by site.

    Raises:
        InputError: donors and rows do not fit each other, or as ``score_answers``.
    """
    wanted = patch_positions(sequences, positions)
    assert wanted.index is not None
    for name, states in donors.items():
        if wanted.mask is None or not np.array_equal(wanted.mask, states.mask):
            raise InputError(
                f"the states of {name} do not fit the rows they are put into",
                expected=f"states of {len(sequences)} rows at the same places",
                got=f"states of {len(states)} rows",
                fix="Read them from rows with the same answers, at the same places",
            )
    puts, copies = [], []
    names = list(donors)
    for number, name in enumerate(names):
        for site, values in donors[name].values.items():
            todo = np.ones(len(sequences), dtype=bool)
            for earlier in names[:number]:
                if site not in donors[earlier].values:
                    continue
                same = (values == donors[earlier].values[site]).all((1, 2)) & todo
                copies.append((name, earlier, site, same))
                todo &= ~same
            puts.append(Patch(name, site, values, todo))
    scores = score_patches(
        model, sequences, puts, wanted, watch=watch, tokens=tokens, progress=progress
    )
    found: dict[str, dict[str, AnswerScores]] = {name: {} for name in names}
    for put, each in zip(puts, scores, strict=True):
        found[put.donor][put.site] = each
    # An earlier donor is complete before a later one copies from it.
    for name, earlier, site, same in copies:
        to, source = found[name][site], found[earlier][site]
        for field in ("logprob", "mean_logprob", "greedy", "watched"):
            getattr(to, field)[same] = getattr(source, field)[same]
    return found

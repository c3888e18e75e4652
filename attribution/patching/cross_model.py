"""Cross-model activation patching: activations of a donor in the forward pass of a receiver.

The donor's activations replace the receiver's at one site, and the receiver continues from there.
The resulting answer score tells whether the receiver's later blocks can use the donor's
activations. Swapping the two models gives the other direction.

Source: patching between models as in UDS (arXiv 2605.24614); within one model, Vig et al. (arXiv
2004.12265) and Meng et al. (arXiv 2202.05262).
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
from capture.network.model_inputs import plain_inputs
from capture.scoring.answers import AnswerScores
from evidence.errors import InputError
from evidence.progress import AUTO, Progress

PatchPositions = Literal["predicting", "all"] | int


def patch_positions(sequences: Sequences, positions: PatchPositions) -> PositionSelection:
    """Select the positions of each row that are patched.

    Args:
        sequences: Rows with answers.
        positions: "predicting": the positions whose outputs are scored, that is the last prompt
            token and every answer token but the last (UDS patches these); "all": every position
            that a scored position can attend to; or one position per row, counted back from the
            first answer token: -1 is the last prompt token.

    Raises:
        InputError: A row has no answer, no prompt, or not that position.
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
            "the positions to patch are unknown",
            expected="predicting, all, or a negative index",
            got=repr(positions),
        )
    first = starts - 1 if positions == "predicting" else np.zeros_like(starts)
    # No scored position attends to the last answer token.
    counts = lengths - 1 - first
    steps = np.arange(counts.max())
    mask = steps < counts[:, None]
    return PositionSelection(np.where(mask, first[:, None] + steps, 0), mask, False)


@dataclass(frozen=True, eq=False, repr=False)
class DonorStates:
    """Activations of a donor at several sites and at selected positions.

    Attributes:
        values: Site name to float32 (row, position, d).
        mask: (row, position), False where a row has fewer positions; values there are 0.
    """

    values: dict[str, np.ndarray]
    mask: np.ndarray

    def __len__(self) -> int:
        return len(self.mask)

    def __repr__(self) -> str:
        return f"DonorStates({len(self)} rows at {len(self.sites)} sites)"

    @property
    def sites(self) -> tuple[str, ...]:
        """Site names in capture order."""
        return tuple(self.values)

    def norms(self, site: str) -> np.ndarray:
        """(row, position) Euclidean norms at a site; 1 where the mask is False."""
        norms = np.linalg.norm(self.values[site].astype(np.float64), axis=-1)
        return np.where(self.mask, norms, 1.0)

    def with_norms_of(self, reference: "DonorStates") -> "DonorStates":
        """Rescale every state to the norm of ``reference`` at the same site and position."""
        values = {
            site: (
                value * (reference.norms(site) / np.maximum(self.norms(site), 1e-30))[..., None]
            ).astype(np.float32)
            for site, value in self.values.items()
        }
        return DonorStates(values, self.mask)


@plain_inputs
def read_states(
    model: nn.Module,
    sequences: Sequences,
    sites: Sequence[str],
    positions: PatchPositions = "predicting",
    *,
    batch_tokens: int = 4096,
) -> DonorStates:
    """Run the donor and record its activations.

    The values of ``resid.L`` are taken before the final norm, in the last layer too.

    Args:
        model: The donor.
        sequences: Rows with answers.
        sites: Names of residual, component or head sites.
        positions: As in ``patch_positions``.
        batch_tokens: Padded positions per batch.

    Raises:
        InputError: A site is unknown; or as ``patch_positions``.

    Examples:
        >>> exhume.read_states(model, rows, ["resid.0", "resid.1"])
        DonorStates(76 rows at 2 sites)
    """
    selection = patch_positions(sequences, positions)
    assert selection.mask is not None
    without_last = Sequences(tuple(ids[:-1] for ids in sequences.ids), sequences.answer_start)
    arrays = capture_selected(model, without_last, sites, selection, batch_tokens=batch_tokens)
    return DonorStates(arrays, selection.mask)


@plain_inputs
def score_patched(
    model: nn.Module,
    sequences: Sequences,
    donors: Mapping[str, DonorStates],
    positions: PatchPositions = "predicting",
    *,
    watch: Sequence[int] = (),
    batch_tokens: int = 4096,
    progress: Progress = AUTO,
) -> dict[str, dict[str, AnswerScores]]:
    """Answer scores of the receiver with each donor's activations, by donor and site.

    One site is patched at a time. Positions before the patch are computed once for all donors and
    sites. If a row's states at a site equal those of an earlier donor bit for bit, the row copies
    that donor's scores, so that equal states have exactly equal scores.

    Args:
        model: The receiver.
        sequences: Rows with answers. Row i is patched with row i of the donors' states, which may
            come from another prompt.
        donors: States by donor, all at the same sites and positions.
        positions: As in ``patch_positions``.
        watch: As in ``score_answers``.
        batch_tokens: Padded positions per batch.

    Raises:
        InputError: The donors' states do not match the rows; or as ``score_answers``.

    Examples:
        >>> forget = exhume.encode_items(tokenizer, exhume.read_items("forget.jsonl"))
        >>> unlearned = exhume.open_checkpoint("unlearned").load()
        >>> donors = {"unlearned": exhume.read_states(unlearned, forget, ["resid.0"])}
        >>> scores = exhume.score_patched(model, forget, donors)["unlearned"]["resid.0"]
        >>> bool(scores.greedy.mean() > 0.9)  # the unlearned model's states still hold the answers
        True
    """
    selection = patch_positions(sequences, positions)
    assert selection.index is not None
    for name, states in donors.items():
        if selection.mask is None or not np.array_equal(selection.mask, states.mask):
            raise InputError(
                f"the states of {name} do not fit the rows they are patched into",
                expected=f"states of {len(sequences)} rows at the same positions",
                got=f"states of {len(states)} rows",
                fix="Read them from rows with the same answers, at the same positions",
            )
    patches, copies = [], []
    names = list(donors)
    for number, name in enumerate(names):
        for site, values in donors[name].values.items():
            needed = np.ones(len(sequences), dtype=bool)
            for earlier in names[:number]:
                if site not in donors[earlier].values:
                    continue
                equal = (values == donors[earlier].values[site]).all((1, 2)) & needed
                copies.append((name, earlier, site, equal))
                needed &= ~equal
            patches.append(Patch(name, site, values, needed))
    scores = score_patches(
        model,
        sequences,
        patches,
        selection,
        watch=watch,
        batch_tokens=batch_tokens,
        progress=progress,
    )
    by_donor: dict[str, dict[str, AnswerScores]] = {name: {} for name in names}
    for patch, patch_scores in zip(patches, scores, strict=True):
        by_donor[patch.donor][patch.site] = patch_scores
    # Copy in donor order, so that every source is complete.
    for name, earlier, site, equal in copies:
        target, source = by_donor[name][site], by_donor[earlier][site]
        for field in ("logprob", "mean_logprob", "greedy", "watched"):
            getattr(target, field)[equal] = getattr(source, field)[equal]
    return by_donor

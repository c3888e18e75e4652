"""Rank latents by how well they detect a concept, and measure their effects."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from attribution.patching.steering import score_edited
from attribution.sae.autoencoder import Sae, check_latent, check_one_site
from capture.activations.passes import accepted_inputs
from capture.data.sequences import Sequences, running
from capture.network.discovery.modes import gradients_on
from capture.network.edits.row_order import model_batches
from capture.network.hooks import evaluation_mode, patch
from capture.network.model_inputs import plain_inputs
from capture.network.sites import find_sites
from capture.network.structure import model_device
from evidence.display.html_table import frame_html
from evidence.errors import InputError

CRITERIA = ("f1", "auc", "difference")


@dataclass(frozen=True, eq=False, repr=False)
class LatentRanking:
    """How well each latent separates rows with a concept from rows without it.

    Attributes:
        concepts: (concept,) names.
        f1: (concept, latent) F1 of "the latent is active" as a detector of the concept.
        auc: (concept, latent) ROC AUC of the activation.
        difference: (concept, latent) mean activation with the concept minus without.
        active: (concept, latent) share of the concept's rows on which the latent is active.
    """

    concepts: tuple[str, ...]
    f1: NDArray[np.float64]
    auc: NDArray[np.float64]
    difference: NDArray[np.float64]
    active: NDArray[np.float64]

    def top(self, concept: str, count: int, by: str = "f1") -> NDArray[np.int64]:
        """The best latents of a concept, best first.

        Raises:
            InputError: The concept or the criterion is unknown.
        """
        if concept not in self.concepts or by not in CRITERIA:
            raise InputError(
                "there is no such ranking",
                expected=f"a concept such as {self.concepts[0]!r}, by {', '.join(CRITERIA)}",
                got=f"{concept!r} by {by!r}",
            )
        table = getattr(self, by)[self.concepts.index(concept)]
        return np.argsort(-table, kind="stable")[:count]

    def __repr__(self) -> str:
        return f"LatentRanking({len(self.concepts)} concepts, {self.f1.shape[1]} latents)"

    def _repr_html_(self) -> str:
        best = [self.to_frame(name).head(3) for name in self.concepts]
        frame = pd.concat(best, keys=self.concepts, names=["concept"])
        return frame_html(repr(self), frame.reset_index(level=0))

    def to_frame(self, concept: str) -> pd.DataFrame:
        """One row per latent of a concept, best F1 first."""
        order = self.top(concept, self.f1.shape[1])
        concept_idx = self.concepts.index(concept)
        columns = {name: getattr(self, name)[concept_idx, order] for name in (*CRITERIA, "active")}
        return pd.DataFrame({"latent": order} | columns)


def rank_latents(latents: ArrayLike, concept_masks: Mapping[str, ArrayLike]) -> LatentRanking:
    """Score every latent as a detector of each concept.

    Selection makes these scores optimistic: evaluate the chosen latents on other rows.

    Args:
        latents: (row, latent) activations; those that are not 0 are active.
        concept_masks: Concept name to (row,) booleans.

    Raises:
        InputError: A mask has another number of rows, or is all True or all False.

    Examples:
        >>> sae = exhume.load_sae("sae")
        >>> latents = sae.encode(torch.from_numpy(states.site("resid.0")))
        >>> ranking = exhume.rank_latents(latents, {"Lisbon": cities == "Lisbon"})
        >>> len(ranking.top("Lisbon", 3))
        3
    """
    z = np.asarray(latents, dtype=np.float64)
    masks = np.stack([np.asarray(mask, dtype=bool) for mask in concept_masks.values()])
    if z.ndim != 2 or masks.shape[1] != len(z):
        raise InputError(
            "latents and concept masks differ in rows",
            expected=str(masks.shape[1]),
            got=str(z.shape),
        )
    for name, row in zip(concept_masks, masks, strict=True):
        if row.all() or not row.any():
            raise InputError(
                f"concept {name!r} is shown by all rows or by none",
                expected="rows that show it and rows that do not",
                got=f"{int(row.sum())} of {len(row)} show it",
            )
    present = masks.astype(float)
    n_present, n_absent = present.sum(1)[:, None], (1 - present).sum(1)[:, None]
    is_active = (z != 0).astype(float)
    n_both, n_active = present @ is_active, is_active.sum(0)
    f1 = 2 * n_both / np.maximum(n_present + n_active, 1)
    ranks = pd.DataFrame(z).rank(axis=0).to_numpy()
    auc = (present @ ranks - n_present * (n_present + 1) / 2) / (n_present * n_absent)
    difference = present @ z / n_present - (1 - present) @ z / n_absent
    return LatentRanking(tuple(concept_masks), f1, auc, difference, n_both / n_present)


def expert_sets(
    ranking: LatentRanking, count: int, *, shared_by: int | None = None, min_active: float = 0.5
) -> dict[str, NDArray[np.int64]]:
    """The best latents of each concept, without latents that are active for many concepts.

    The paper takes the top 1.25 k by F1, without latents active in 7 or more of 10 classes.

    Args:
        ranking: From a selection split.
        count: Latents per concept before any are dropped.
        shared_by: Drop latents that are active in this many concepts or more; None drops none.
        min_active: Share of a concept's rows on which an active latent must fire.

    Raises:
        InputError: A concept has no latents left.

    Source: Suppression or Deletion, arXiv 2602.18505.
    """
    n_concepts = (ranking.active >= min_active).sum(0)
    sets = {}
    for concept in ranking.concepts:
        chosen = ranking.top(concept, count)
        if shared_by is not None:
            chosen = chosen[n_concepts[chosen] < shared_by]
        if not len(chosen):
            raise InputError(
                f"no latent is left for concept {concept!r}",
                expected=f"one of the top {count} active in fewer than {shared_by}",
                fix="Raise shared_by or count, or train a wider autoencoder",
            )
        sets[concept] = chosen
    return sets


def jaccard_overlap(sets: Mapping[str, Sequence[int] | NDArray]) -> NDArray[np.float64]:
    """(concept, concept) Jaccard index of the concepts' latent sets."""
    members = [set(map(int, latents)) for latents in sets.values()]
    return np.array([[len(one & other) / len(one | other) for other in members] for one in members])


@plain_inputs
@gradients_on()
def latent_attribution(
    model: nn.Module, sae: Sae, sequences: Sequences, *, batch_tokens: int = 4096
) -> NDArray[np.float64]:
    """(row, latent) activation times gradient of the first answer token's log-probability.

    To first order, this is how much the log-probability would fall if the latent were switched off
    at the last prompt token.

    Args:
        model: A causal language model.
        sequences: Rows with answers.
        batch_tokens: Padded positions per batch.

    Raises:
        InputError: The site does not exist in the model, or the autoencoder is a transcoder.
    """
    check_one_site(sae)
    sites, attribution = find_sites(model), np.zeros((len(sequences), sae.d_sae))
    device = model_device(model)
    captured: list[Tensor] = []

    def capture(value: Tensor) -> Tensor:
        captured.append(value if value.requires_grad else value.requires_grad_())
        return captured[-1]

    with (
        torch.enable_grad(),
        evaluation_mode(model),
        patch(model, {sae.site: capture}, known_sites=sites),
    ):
        for batch in model_batches(model, sequences, batch_tokens):
            with running(batch, sequences):
                inputs = accepted_inputs(model, batch.model_inputs | {"use_cache": False})
                logits = model(**inputs).logits.float()
            start = batch.answer_mask.int().argmax(1)
            row = torch.arange(len(start), device=device)
            target = batch.input_ids[row, start]
            logprob = logits[row, start - 1].log_softmax(1)[row, target].sum()
            states = captured.pop()
            (gradient,) = torch.autograd.grad(logprob, states)
            last_states = states[row, start - 1].detach()
            directional = gradient[row, start - 1] @ sae.decoder.T.to(gradient)
            if sae.is_rescaled:
                directional = directional * sae.output_scale(last_states).to(directional)
            attribution[batch.rows.numpy()] = (sae.encode(last_states) * directional).cpu().numpy()
    return attribution


@plain_inputs
def ablation_effect(
    model: nn.Module,
    sae: Sae,
    sequences: Sequences,
    latents: Sequence[int],
    *,
    batch_tokens: int = 4096,
) -> NDArray[np.float64]:
    """(row,) fall of the answer's log-probability when the latents are switched off together.

    They are switched off at the last prompt token; the rest of the state is unchanged.

    Raises:
        InputError: A latent does not exist or is dead; the autoencoder is a transcoder; or as
            ``score_edited``.
    """
    check_one_site(sae)
    for latent in latents:
        check_latent(sae, int(latent))
    latent_idx = torch.as_tensor(list(latents), dtype=torch.long)

    def switch_off(states: Tensor, rows: np.ndarray) -> Tensor:
        activations = sae.encode(states)[:, latent_idx]
        removed = activations @ sae.decoder[latent_idx].to(activations)
        if sae.is_rescaled:
            removed = removed * sae.output_scale(states)
        return states - removed.to(states)

    plain = score_edited(model, sequences, {}, batch_tokens=batch_tokens)
    without = score_edited(model, sequences, {sae.site: switch_off}, batch_tokens=batch_tokens)
    return plain.logprob - without.logprob


@dataclass(frozen=True)
class LatentChange:
    """A latent whose activation differs between two checkpoints.

    Attributes:
        latent: Its index.
        change: Mean activation after minus before, in latent units.
        effect: ``change`` over the standard deviation of the rows' differences.
        top_before: Rows with the largest activation before, largest first.
        top_after: The same after.
    """

    latent: int
    change: float
    effect: float
    top_before: tuple[int, ...]
    top_after: tuple[int, ...]


def changed_latents(
    before: ArrayLike, after: ArrayLike, count: int = 20, items: int = 5
) -> list[LatentChange]:
    """The latents that changed most between two checkpoints; no labels are needed.

    Args:
        before: (row, latent) activations in the first checkpoint.
        after: The same rows in the second checkpoint, with the same autoencoder.
        count: Number of latents, largest mean absolute change first.
        items: Number of top rows per latent.

    Raises:
        InputError: The arrays differ in shape.
    """
    x, y = (np.asarray(each, dtype=np.float64) for each in (before, after))
    if x.shape != y.shape or x.ndim != 2:
        raise InputError(
            "the latents of two checkpoints do not match", expected=str(x.shape), got=str(y.shape)
        )
    delta = y - x
    order = np.argsort(-np.abs(delta).mean(0), kind="stable")[:count]

    def top_items(table: NDArray, latent: int) -> tuple[int, ...]:
        rows = np.argsort(-table[:, latent], kind="stable")[:items]
        return tuple(int(row) for row in rows if table[row, latent] > 0)

    return [
        LatentChange(
            int(latent),
            float(delta[:, latent].mean()),
            float(delta[:, latent].mean() / max(delta[:, latent].std(), 1e-12)),
            top_items(x, latent),
            top_items(y, latent),
        )
        for latent in order
        if np.abs(delta[:, latent]).max() > 0
    ]


def best_score_by_prefix(
    sae: Sae,
    concept_mask: ArrayLike,
    latents: ArrayLike,
    score: Callable[[NDArray, NDArray], float],
) -> dict[int, float]:
    """Best score of a single latent within each Matryoshka prefix, by prefix width.

    If a wide prefix detects the concept no better than a narrow one, the concept has not been split
    among finer latents (feature absorption), and the silence of its latent is evidence.

    Args:
        sae: A Matryoshka autoencoder.
        concept_mask: (row,) which rows show the concept.
        latents: (row, latent) activations.
        score: Function of the mask and one latent's activations, such as ROC AUC.

    Raises:
        InputError: The autoencoder has no nested prefixes.
    """
    prefixes = sae.metadata.get("prefixes") or ()
    if not prefixes:
        raise InputError(
            "this autoencoder has no nested prefixes",
            expected="one trained with kind 'matryoshka'",
            got=repr(sae),
        )
    z, y = np.asarray(latents), np.asarray(concept_mask, dtype=bool)
    latent_scores = np.array([score(y, z[:, latent]) for latent in range(z.shape[1])])
    return {int(width): float(latent_scores[:width].max()) for width in prefixes}

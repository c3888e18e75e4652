"""Which latents stand for a concept, ranked on some rows and looked at on others."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from attribution.patching.steering import score_edited
from attribution.sae.autoencoder import Sae, check_latent
from capture.data.sequences import Sequences, batches
from capture.network.hooks import evaluation_mode, patch
from capture.network.sites import find_sites
from evidence.errors import InputError

CRITERIA = ("f1", "auc", "difference")


@dataclass(frozen=True, eq=False, repr=False)
class LatentRanking:
    """How well each latent tells rows that show each concept from those that do not.

    Attributes:
        concepts: (concept,) names.
        f1: (concept, latent) F1 of "the latent fires" as a sign of the concept.
        auc: (concept, latent) area under the ROC curve of its activation.
        difference: (concept, latent) mean activation with the concept less without.
        active: (concept, latent) share of the concept's rows on which it fires.
    """

    concepts: tuple[str, ...]
    f1: NDArray[np.float64]
    auc: NDArray[np.float64]
    difference: NDArray[np.float64]
    active: NDArray[np.float64]

    def top(self, concept: str, count: int, by: str = "f1") -> NDArray[np.int64]:
        """The best latents of a concept, the best first.

        Raises:
            InputError: an unknown concept or order.
        """
        if concept not in self.concepts or by not in CRITERIA:
            raise InputError(
                "there is no such ranking",
                expected=f"a concept such as {self.concepts[0]!r}, by {', '.join(CRITERIA)}",
                got=f"{concept!r} by {by!r}",
            )
        table = getattr(self, by)[self.concepts.index(concept)]
        return np.argsort(-table, kind="stable")[:count]

    def to_frame(self, concept: str) -> pd.DataFrame:
        """One row a latent of a concept, the best F1 first."""
        order = self.top(concept, self.f1.shape[1])
        at = self.concepts.index(concept)
        columns = {
            name: getattr(self, name)[at, order] for name in (*CRITERIA, "active")
        }
        return pd.DataFrame({"latent": order} | columns)


def rank_latents(
    latents: ArrayLike, concept_masks: Mapping[str, ArrayLike]
) -> LatentRanking:
    """Rank latents for each concept on a selection split.

    Scores of the rows ranked on are too good: what is claimed of the latents chosen
    has to be measured on other rows.

    Args:
        latents: (row, latent) activations, >= 0.
        concept_masks: Name to (row,) booleans: which rows show the concept.

    Raises:
        InputError: marks of other rows, or without rows on either side.
    """
    z = np.asarray(latents, dtype=np.float64)
    table = np.stack([np.asarray(each, dtype=bool) for each in concept_masks.values()])
    if z.ndim != 2 or table.shape[1] != len(z):
        raise InputError(
            "latents and marks differ in rows",
            expected=str(table.shape[1]),
            got=str(z.shape),
        )
    for name, row in zip(concept_masks, table, strict=True):
        if row.all() or not row.any():
            raise InputError(
                f"concept {name!r} has rows of one kind only",
                expected="rows that show it and rows that do not",
                got=f"{int(row.sum())} of {len(row)} show it",
            )
    yes = table.astype(float)
    n1, n0 = yes.sum(1)[:, None], (1 - yes).sum(1)[:, None]
    on = (z > 0).astype(float)
    both, fired = yes @ on, on.sum(0)
    f1 = 2 * both / np.maximum(n1 + fired, 1)
    ranks = pd.DataFrame(z).rank(axis=0).to_numpy()
    auc = (yes @ ranks - n1 * (n1 + 1) / 2) / (n1 * n0)
    difference = yes @ z / n1 - (1 - yes) @ z / n0
    return LatentRanking(tuple(concept_masks), f1, auc, difference, both / n1)


def expert_sets(
    ranking: LatentRanking,
    count: int,
    *,
    shared_by: int | None = None,
    min_active: float = 0.5,
) -> dict[str, NDArray[np.int64]]:
    """The best latents of each concept, less those that serve too many.

    As published: the top 1.25 k by F1, without latents active in 7 or more of 10
    classes.

    Args:
        ranking: From a selection split.
        count: Latents kept a concept before any are dropped.
        shared_by: Drop a latent active in so many concepts or more; none if None.
        min_active: Share of a concept's rows a latent must fire on to count as active.

    Raises:
        InputError: a concept is left without latents.

    Source: Suppression or Deletion, arXiv 2602.18505.
    """
    served = (ranking.active >= min_active).sum(0)
    found = {}
    for concept in ranking.concepts:
        chosen = ranking.top(concept, count)
        if shared_by is not None:
            chosen = chosen[served[chosen] < shared_by]
        if not len(chosen):
            raise InputError(
                f"no latent is left that stands for {concept!r}",
                expected=f"one of the top {count} active in fewer than {shared_by}",
                fix="Raise shared_by or count, or train a wider autoencoder",
            )
        found[concept] = chosen
    return found


def jaccard_overlap(sets: Mapping[str, Sequence[int] | NDArray]) -> NDArray[np.float64]:
    """(concept, concept) share of two expert sets' latents that are in both."""
    members = [set(map(int, each)) for each in sets.values()]
    return np.array([[len(a & b) / len(a | b) for b in members] for a in members])


def latent_attribution(
    model: nn.Module, sae: Sae, sequences: Sequences, *, tokens: int = 4096
) -> NDArray[np.float64]:
    """(row, latent) activation times the slope of the answer's first token.

    How much the log-probability of the answer's first token would fall, to first
    order, if the latent were switched off where the prompt ends.

    Args:
        model: A causal language model.
        sae: The autoencoder.
        sequences: Rows with answers.
        tokens: Padded positions a batch.

    Raises:
        InputError: the site does not exist in the model.
    """
    where, out = find_sites(model), np.zeros((len(sequences), sae.d_sae))
    device = next(model.parameters()).device
    seen: list[Tensor] = []

    def keep(value: Tensor) -> Tensor:
        seen.append(value if value.requires_grad else value.requires_grad_())
        return seen[-1]

    with (
        torch.enable_grad(),
        evaluation_mode(model),
        patch(model, {sae.site: keep}, known_sites=where),
    ):
        for batch in batches(sequences, batch_tokens=tokens, device=device):
            logits = model(**batch.model_inputs, use_cache=False).logits.float()
            start = batch.answer_mask.int().argmax(1)
            row = torch.arange(len(start), device=device)
            target = batch.input_ids[row, start]
            logprob = logits[row, start - 1].log_softmax(1)[row, target].sum()
            states = seen.pop()
            (slope,) = torch.autograd.grad(logprob, states)
            at = states[row, start - 1].detach()
            along = slope[row, start - 1] @ sae.decoder.T.to(slope)
            out[batch.rows.numpy()] = (sae.encode(at) * along).cpu().numpy()
    return out


def ablation_effect(
    model: nn.Module,
    sae: Sae,
    sequences: Sequences,
    latents: Sequence[int],
    *,
    tokens: int = 4096,
) -> NDArray[np.float64]:
    """(row,) fall of the answer's log-probability when latents are switched off.

    All of ``latents`` together, where the prompt ends; the rest of the state stays.

    Raises:
        InputError: a latent that does not exist or never fires; or as
            ``score_edited``.
    """
    for latent in latents:
        check_latent(sae, int(latent))
    index = torch.as_tensor(list(latents), dtype=torch.long)

    def off(states: Tensor, rows: np.ndarray) -> Tensor:
        own = sae.encode(states)[:, index]
        return states - own @ sae.decoder[index].to(states)

    plain = score_edited(model, sequences, {}, tokens=tokens)
    without = score_edited(model, sequences, {sae.site: off}, tokens=tokens)
    return plain.logprob - without.logprob


@dataclass(frozen=True)
class LatentChange:
    """A latent that fires otherwise in another checkpoint.

    Attributes:
        latent: Its number.
        change: Mean activation after less before, in latent units.
        effect: The same over the standard deviation of the rows' differences.
        top_before: Rows on which it fires most before, the strongest first.
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
    """The latents that changed most between two checkpoints, without any labels.

    Args:
        before: (row, latent) activations of rows in the first checkpoint.
        after: The same rows in the second, through the same autoencoder.
        count: Latents listed, the largest mean absolute change first.
        items: Top rows listed a latent.

    Raises:
        InputError: the two differ in shape.
    """
    x, y = (np.asarray(each, dtype=np.float64) for each in (before, after))
    if x.shape != y.shape or x.ndim != 2:
        raise InputError(
            "the latents of two checkpoints do not match",
            expected=str(x.shape),
            got=str(y.shape),
        )
    delta = y - x
    order = np.argsort(-np.abs(delta).mean(0), kind="stable")[:count]

    def strongest(table: NDArray, latent: int) -> tuple[int, ...]:
        rows = np.argsort(-table[:, latent], kind="stable")[:items]
        return tuple(int(row) for row in rows if table[row, latent] > 0)

    return [
        LatentChange(
            int(latent),
            float(delta[:, latent].mean()),
            float(delta[:, latent].mean() / max(delta[:, latent].std(), 1e-12)),
            strongest(x, latent),
            strongest(y, latent),
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
    """Best score of one latent within each Matryoshka prefix.

    Where a wide prefix tells a concept no better than a narrow one, the concept's
    latent has not been split up among finer ones, and its silence means something.

    Args:
        sae: A Matryoshka autoencoder.
        concept_mask: (row,) which rows show the concept.
        latents: (row, latent) activations.
        score: From marks and one latent's activations to a number, such as an AUC.

    Raises:
        InputError: the autoencoder has no prefixes.
    """
    prefixes = sae.metadata.get("prefixes") or ()
    if not prefixes:
        raise InputError(
            "this autoencoder has no nested prefixes",
            expected="one trained with kind 'matryoshka'",
            got=repr(sae),
        )
    z, y = np.asarray(latents), np.asarray(concept_mask, dtype=bool)
    each = np.array([score(y, z[:, latent]) for latent in range(z.shape[1])])
    return {int(width): float(each[:width].max()) for width in prefixes}

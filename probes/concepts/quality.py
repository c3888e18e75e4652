"""Quality of concept vectors: held-out separability, stability and specificity."""

import html
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from evidence.display.html_table import frame_html
from evidence.errors import InputError
from evidence.progress import AUTO, Progress, as_progress
from evidence.seeds import numpy_rng
from probes.concepts.labels import Concepts
from probes.concepts.vectors import ConceptVectors, concept_vectors
from probes.solvers.uncertified import UncertifiedFit, suppress_warnings, warn_uncertified
from probes.splits.folds import Folds, group_codes
from probes.splits.metrics import cluster_bootstrap_weights
from probes.sweeps.site_source import SiteStore

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False, repr=False)
class Separability:
    """How well held-out rows separate along concept vectors.

    Attributes:
        sites: (site,) names.
        concepts: (concept,) names.
        auc: (site, concept) area under the ROC curve, held-out rows; chance is 0.5.
        effect: (site, concept) Cohen's d of held-out rows: difference of means over the pooled
            standard deviation.
        effect_interval: (site, concept, 2) 95 % bootstrap interval over groups.
        siblings: (site, concept, concept) probability that the vector of the first concept ranks a
            row of the first above a row of the second; 0.5 means that it does not distinguish the
            two. NaN if no row shows only the second.
        uncertified: Logistic fits that are not certified to be at their optimum.

    Examples:
        >>> concepts = exhume.concepts_of(cities)
        >>> folds = exhume.k_fold(people, cities, 4)
        >>> found = exhume.separability(states, concepts, folds, draws=20)
        >>> found.specificity.shape
        (2, 8)
    """

    sites: tuple[str, ...]
    concepts: tuple[str, ...]
    auc: NDArray[np.float64]
    effect: NDArray[np.float64]
    effect_interval: NDArray[np.float64]
    siblings: NDArray[np.float64]
    uncertified: tuple[UncertifiedFit, ...] = ()

    @property
    def specificity(self) -> NDArray[np.float64]:
        """(site, concept) ``siblings`` for the sibling hardest to distinguish."""
        table = self.siblings.copy()
        diagonal = np.arange(len(self.concepts))
        table[:, diagonal, diagonal] = np.nan
        hardest = np.full(self.auc.shape, np.nan)
        has_siblings = ~np.isnan(table).all(2)
        hardest[has_siblings] = np.nanmin(table[has_siblings], axis=1)
        return hardest

    def __repr__(self) -> str:
        sites, concepts = self.auc.shape
        return (
            f"Separability({sites} sites, {concepts} concepts: AUC "
            f"{np.nanmin(self.auc):.2f} to {np.nanmax(self.auc):.2f})"
        )

    def _repr_html_(self) -> str:
        return frame_html(repr(self), self.to_frame())

    def plot(self) -> "go.Figure":
        """Plotly figure of the held-out AUC over sites, one line a concept."""
        import plotly.graph_objects as go

        names, figure = [*map(html.escape, self.sites)], go.Figure()
        for concept, values in zip(self.concepts, self.auc.T, strict=True):
            figure.add_scatter(x=names, y=values, name=html.escape(concept))
        figure.add_hline(y=0.5, line_dash="dot")
        figure.update_layout(
            template="plotly_white", xaxis_title="site", yaxis_title="held-out AUC"
        )
        return figure

    def to_frame(self) -> pd.DataFrame:
        """One row a site and concept."""
        index = pd.MultiIndex.from_product([self.sites, self.concepts], names=["site", "concept"])
        columns = {
            "auc": self.auc,
            "effect": self.effect,
            "effect_low": self.effect_interval[..., 0],
            "effect_high": self.effect_interval[..., 1],
            "specificity": self.specificity,
        }
        flat = {name: table.ravel() for name, table in columns.items()}
        return pd.DataFrame(flat, index=index).reset_index()


def held_out_scores(
    activations: ArrayLike | Tensor | SiteStore,
    concepts: Concepts,
    folds: Folds,
    method: str = "mean",
    *,
    kinds: ArrayLike | None = None,
    progress: Progress = AUTO,
) -> tuple[tuple[str, ...], NDArray[np.float64], tuple[UncertifiedFit, ...]]:
    """Score every row by vectors fitted without it.

    Args:
        activations: As for ``concept_vectors``.
        concepts: Marks.
        folds: Training and test rows; see also ``crossed_folds``.
        method: As for ``concept_vectors``.
        kinds: As for ``concept_vectors``.
        progress: One unit a fold.

    Returns:
        Names of the sites; (site, concept, row) scores as from ``ConceptVectors.scores``, NaN if no
        fold scores a row or its training rows lack one of the two marks; and the uncertified fits.

    Raises:
        InputError: as ``concept_vectors``, or folds of other rows.
    """
    if folds.n_rows != concepts.n_rows:
        raise InputError(
            "folds and concepts differ in rows",
            expected=str(concepts.n_rows),
            got=str(folds.n_rows),
        )
    names: tuple[str, ...] = ()
    uncertified: list[UncertifiedFit] = []
    all_scores = np.zeros((0, len(concepts), concepts.n_rows))
    with as_progress(progress).task("held-out concept scores", len(folds)) as advance:
        pairs = zip(folds.train, folds.test, strict=True)
        for fold, (train, test) in enumerate(pairs):
            marks = np.where(train, concepts.marks, -1).astype(np.int8)
            can_fit = (marks == 1).any(1) & (marks == 0).any(1)
            if can_fit.any():
                fitted = np.flatnonzero(can_fit)
                fold_concepts = Concepts(tuple(concepts.names[i] for i in fitted), marks[fitted])
                with suppress_warnings():
                    fold_vectors = concept_vectors(activations, fold_concepts, method, kinds=kinds)
                uncertified += [replace(can_fit, fold=fold) for can_fit in fold_vectors.uncertified]
                if not names:
                    names = fold_vectors.sites
                    all_scores = np.full((len(names), *concepts.marks.shape), np.nan)
                scores = fold_vectors.scores(activations)
                rows = np.flatnonzero(test)
                all_scores[:, fitted[:, None], rows] = scores[:, :, rows]
            advance(1)
    if not names:
        raise InputError(
            "no fold trains on rows with and without any concept", fix="Use fewer folds"
        )
    return names, all_scores, tuple(uncertified)


def separability(
    activations: ArrayLike | Tensor | SiteStore,
    concepts: Concepts,
    folds: Folds,
    method: str = "mean",
    *,
    groups: ArrayLike | None = None,
    kinds: ArrayLike | None = None,
    draws: int = 200,
    seed: int = 0,
    progress: Progress = AUTO,
) -> Separability:
    """Held-out skill of concept vectors, and whether they are specific to one concept.

    With more columns than rows, in-sample effect sizes are large even for noise, so only held-out
    rows are counted.

    Args:
        activations: As for ``concept_vectors``.
        concepts: Marks.
        folds: Training and test rows; see also ``crossed_folds``.
        method: As for ``concept_vectors``.
        groups: (row,) entity of each row; the bootstrap draws whole entities.
        kinds: As for ``concept_vectors``.
        draws: Bootstrap draws.
        seed: Seed of the bootstrap.
        progress: One unit a fold.

    Raises:
        InputError: as ``held_out_scores``.

    Warns:
        UncertifiedWarning: fits that are not certified to be at their optimum.

    Examples:
        >>> concepts = exhume.concepts_of(cities)
        >>> folds = exhume.k_fold(people, cities, 4)
        >>> found = exhume.separability(states, concepts, folds, draws=20)
        >>> found.to_frame().groupby("site").auc.mean().idxmax()
        'resid.1'
    """
    names, scores, uncertified = held_out_scores(
        activations, concepts, folds, method, kinds=kinds, progress=progress
    )
    warn_uncertified(uncertified)
    entities = group_codes(groups, concepts.n_rows)
    weights = cluster_bootstrap_weights(entities, draws, numpy_rng(seed, "separability"))
    shape = scores.shape[:2]
    auc, effect = np.full(shape, np.nan), np.full(shape, np.nan)
    interval = np.full((*shape, 2), np.nan)
    siblings = np.full((*shape, shape[1]), np.nan)
    for site, table in enumerate(scores):
        for concept, values in enumerate(table):
            is_scored = ~np.isnan(values)
            positive = is_scored & (concepts.marks[concept] == 1)
            negative = is_scored & (concepts.marks[concept] == 0)
            if not positive.any() or not negative.any():
                continue
            share_above = _share_above(values, positive)
            auc[site, concept] = share_above[negative].mean()
            unit_weight = np.ones((1, len(values)))
            effect[site, concept] = _cohen(values, positive, negative, unit_weight)[0]
            bootstrap = _cohen(values, positive, negative, weights)
            interval[site, concept] = np.nanquantile(bootstrap, [0.025, 0.975])
            sibling_rows = (concepts.marks == 1) & ~(concepts.marks[concept] == 1) & is_scored
            n_rows = sibling_rows.sum(1)
            with np.errstate(invalid="ignore"):
                siblings[site, concept] = sibling_rows @ np.nan_to_num(share_above) / n_rows
            siblings[site, concept, concept] = 0.5
    return Separability(names, concepts.names, auc, effect, interval, siblings, uncertified)


def stability(
    activations: ArrayLike | Tensor | SiteStore,
    concepts: Concepts,
    method: str = "mean",
    *,
    groups: ArrayLike | None = None,
    kinds: ArrayLike | None = None,
    draws: int = 50,
    seed: int = 0,
    progress: Progress = AUTO,
) -> NDArray[np.float64]:
    """(site, concept) mean cosine between vectors of all rows and of bootstrap draws.

    Draws take whole groups. A draw that leaves a concept without rows is repeated for all concepts,
    so that each draw is one experiment.

    Args:
        activations: As for ``concept_vectors``.
        concepts: Marks.
        method: As for ``concept_vectors``.
        groups: (row,) entity of each row.
        kinds: As for ``concept_vectors``.
        draws: Bootstrap draws.
        seed: Seed of the bootstrap.
        progress: One unit a draw.

    Raises:
        InputError: as ``concept_vectors``, or nearly every draw leaves a concept without rows.

    Warns:
        UncertifiedWarning: fits that are not certified to be at their optimum.

    Examples:
        >>> concepts = exhume.concepts_of(cities)
        >>> cosines = exhume.stability(states, concepts, groups=people, draws=5)
        >>> cosines.shape, bool(cosines.min() > 0)
        ((2, 8), True)
    """
    with suppress_warnings():
        full = concept_vectors(activations, concepts, method, kinds=kinds)
    uncertified = list(full.uncertified)
    entities = group_codes(groups, concepts.n_rows)
    rng = numpy_rng(seed, "stability")
    total = np.zeros(full.gap.shape)
    with as_progress(progress).task("bootstraps", draws) as advance:
        for draw in range(draws):
            for _ in range(200):
                weight = cluster_bootstrap_weights(entities, 1, rng)[0]
                class_weights = [(concepts.marks == value) @ weight for value in (0, 1)]
                if min(each.min() for each in class_weights) > 0:
                    break
            else:
                raise InputError(
                    "bootstrap draws leave concepts without rows",
                    expected="several groups with and without each concept",
                    fix="Leave out concepts of a single group",
                )
            with suppress_warnings():
                drawn = concept_vectors(activations, concepts, method, kinds=kinds, weight=weight)
            named = f"bootstrap {draw}"
            uncertified += [replace(fit, inner=named) for fit in drawn.uncertified]
            total += (drawn.vectors * full.vectors).sum(2)
            advance(1)
    warn_uncertified(uncertified)
    return total / draws


def alignment(first: ConceptVectors, second: ConceptVectors) -> NDArray[np.float64]:
    """(site, concept) cosine between vectors of the same concepts, such as of two models.

    Raises:
        InputError: different concepts, sites or widths.

    Examples:
        >>> concepts = exhume.concepts_of(cities)
        >>> mean = exhume.concept_vectors(states, concepts)
        >>> lda = exhume.concept_vectors(states, concepts, method="lda", shrinkage=1.0)
        >>> bool(exhume.alignment(mean, lda).min() > 0.99)
        True
    """
    if first.concepts != second.concepts or first.vectors.shape != second.vectors.shape:
        raise InputError(
            "the concept vectors cannot be compared",
            expected=f"concepts, sites and width of {first!r}",
            got=repr(second),
        )
    return (first.vectors * second.vectors).sum(2)


def _share_above(values: NDArray, positive: NDArray[np.bool_]) -> NDArray:
    """(row,) share of the ``positive`` rows above each row; ties count one half."""
    ordered = np.sort(values[positive])
    not_above = np.searchsorted(ordered, values, side="right")
    below = np.searchsorted(ordered, values, side="left")
    return 1 - (not_above + below) / (2 * len(ordered))


def _cohen(
    values: NDArray, positive: NDArray[np.bool_], negative: NDArray[np.bool_], weights: NDArray
) -> NDArray:
    """(draw,) Cohen's d under row weights; NaN if a side has at most one row."""
    safe = np.nan_to_num(values)
    parts = []
    for rows in (positive, negative):
        w = weights * rows
        total = w.sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = w @ safe / total
            variance = (w @ safe**2 / total - mean**2) * total / (total - 1)
        parts.append((total, mean, variance))
    (n1, m1, v1), (n0, m0, v0) = parts
    with np.errstate(invalid="ignore", divide="ignore"):
        pooled = ((n1 - 1) * v1 + (n0 - 1) * v0) / (n1 + n0 - 2)
        d = (m1 - m0) / np.sqrt(pooled)
    return np.where(np.isfinite(d) & (n1 > 1) & (n0 > 1), d, np.nan)

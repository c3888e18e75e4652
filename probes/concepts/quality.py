"""How good concept vectors are: read out of sample, stable, and of one concept."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from evidence.errors import InputError
from evidence.progress import SILENT, Progress
from evidence.seeds import numpy_rng
from probes.concepts.labels import Concepts
from probes.concepts.vectors import ConceptVectors, concept_vectors
from probes.solvers.uncertified import (
    UncertifiedFit,
    suppress_warnings,
    warn_uncertified,
)
from probes.splits.folds import Folds, group_codes
from probes.splits.metrics import cluster_bootstrap_weights
from probes.sweeps.site_source import SiteStore


@dataclass(frozen=True, eq=False, repr=False)
class Separability:
    """How well rows are told apart by vectors that were fitted without them.

    Attributes:
        sites: (site,) names.
        concepts: (concept,) names.
        auc: (site, concept) area under the ROC curve, held-out rows; chance is 0.5.
        effect: (site, concept) Cohen's d of held-out rows: difference of means over
            the pooled standard deviation.
        effect_interval: (site, concept, 2) 95 % bootstrap interval over groups.
        siblings: (site, concept, concept) how often the vector of the first places a
            row of the first above a row of the second; 0.5 says that it does not tell
            the two apart. NaN where no row shows the second alone.
        uncertified: Logistic fits that are not certified to be at their optimum.
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
        """(site, concept) ``siblings`` for the sibling hardest to tell apart."""
        table = self.siblings.copy()
        each = np.arange(len(self.concepts))
        table[:, each, each] = np.nan
        out = np.full(self.auc.shape, np.nan)
        some = ~np.isnan(table).all(2)
        out[some] = np.nanmin(table[some], axis=1)
        return out

    def to_frame(self) -> pd.DataFrame:
        """One row a site and concept."""
        index = pd.MultiIndex.from_product(
            [self.sites, self.concepts], names=["site", "concept"]
        )
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
    progress: Progress = SILENT,
) -> tuple[tuple[str, ...], NDArray[np.float64], tuple[UncertifiedFit, ...]]:
    """Score every row by vectors fitted without it.

    Args:
        activations: As for ``concept_vectors``.
        concepts: Which rows show what.
        folds: Who is left out together; see also ``crossed_folds``.
        method: As for ``concept_vectors``.
        kinds: As for ``concept_vectors``.
        progress: Shows one unit a fold.

    Returns:
        Names of the sites; (site, concept, row) scores as ``ConceptVectors.scores``
        gives them, NaN where no fold scores a row, or its fit had no row with or none
        without the concept; and fits that are not certified to be at their optimum.

    Raises:
        InputError: as ``concept_vectors``; or folds of other rows.
    """
    if folds.n_rows != concepts.n_rows:
        raise InputError(
            "folds and concepts differ in rows",
            expected=str(concepts.n_rows),
            got=str(folds.n_rows),
        )
    names: tuple[str, ...] = ()
    uncertified: list[UncertifiedFit] = []
    out = np.zeros((0, len(concepts), concepts.n_rows))
    with progress.task("held-out concept scores", len(folds)) as advance:
        pairs = zip(folds.train, folds.test, strict=True)
        for fold, (train, test) in enumerate(pairs):
            marks = np.where(train, concepts.marks, -1).astype(np.int8)
            fit = (marks == 1).any(1) & (marks == 0).any(1)
            if fit.any():
                chosen = np.flatnonzero(fit)
                part = Concepts(tuple(concepts.names[i] for i in chosen), marks[chosen])
                with suppress_warnings():
                    found = concept_vectors(activations, part, method, kinds=kinds)
                uncertified += [replace(fit, fold=fold) for fit in found.uncertified]
                if not names:
                    names = found.sites
                    out = np.full((len(names), *concepts.marks.shape), np.nan)
                scores = found.scores(activations)
                rows = np.flatnonzero(test)
                out[:, chosen[:, None], rows] = scores[:, :, rows]
            advance(1)
    if not names:
        raise InputError(
            "no fold has rows with and without any concept to fit on",
            fix="Use fewer folds",
        )
    return names, out, tuple(uncertified)


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
    progress: Progress = SILENT,
) -> Separability:
    """Out-of-sample skill of concept vectors, and whether it is of one concept alone.

    In-sample effect sizes are large even for noise where there are more columns than
    rows, so only rows that a fit has not seen are counted.

    Args:
        activations: As for ``concept_vectors``.
        concepts: Which rows show what.
        folds: Who is left out together; see also ``crossed_folds``.
        method: As for ``concept_vectors``.
        groups: (row,) entity of each row, drawn whole by the bootstrap.
        kinds: As for ``concept_vectors``.
        draws: Of the bootstrap.
        seed: Of the bootstrap.
        progress: Shows one unit a fold.

    Raises:
        InputError: as ``held_out_scores``.

    Warns:
        UncertifiedWarning: fits that are not certified to be at their optimum.
    """
    names, scores, uncertified = held_out_scores(
        activations, concepts, folds, method, kinds=kinds, progress=progress
    )
    warn_uncertified(uncertified)
    entity = group_codes(groups, concepts.n_rows)
    weights = cluster_bootstrap_weights(entity, draws, numpy_rng(seed, "separability"))
    shape = scores.shape[:2]
    auc, effect = np.full(shape, np.nan), np.full(shape, np.nan)
    interval = np.full((*shape, 2), np.nan)
    siblings = np.full((*shape, shape[1]), np.nan)
    for site, table in enumerate(scores):
        for concept, values in enumerate(table):
            seen = ~np.isnan(values)
            own = seen & (concepts.marks[concept] == 1)
            rest = seen & (concepts.marks[concept] == 0)
            if not own.any() or not rest.any():
                continue
            above = _share_above(values, own)
            auc[site, concept] = above[rest].mean()
            once = np.ones((1, len(values)))
            effect[site, concept] = _cohen(values, own, rest, once)[0]
            drawn = _cohen(values, own, rest, weights)
            interval[site, concept] = np.nanquantile(drawn, [0.025, 0.975])
            others = (concepts.marks == 1) & ~(concepts.marks[concept] == 1) & seen
            count = others.sum(1)
            with np.errstate(invalid="ignore"):
                siblings[site, concept] = others @ np.nan_to_num(above) / count
            siblings[site, concept, concept] = 0.5
    return Separability(
        names, concepts.names, auc, effect, interval, siblings, uncertified
    )


def stability(
    activations: ArrayLike | Tensor | SiteStore,
    concepts: Concepts,
    method: str = "mean",
    *,
    groups: ArrayLike | None = None,
    kinds: ArrayLike | None = None,
    draws: int = 50,
    seed: int = 0,
    progress: Progress = SILENT,
) -> NDArray[np.float64]:
    """(site, concept) mean cosine of vectors fitted on bootstraps of whole groups.

    The cosine is with the vector of all rows. Draws in which a concept has no row
    left are drawn again for all, so that the draws stay one experiment.

    Args:
        activations: As for ``concept_vectors``.
        concepts: Which rows show what.
        method: As for ``concept_vectors``.
        groups: (row,) entity of each row.
        kinds: As for ``concept_vectors``.
        draws: Bootstraps.
        seed: Of the bootstraps.
        progress: Shows one unit a draw.

    Raises:
        InputError: as ``concept_vectors``; or nearly no draw leaves every concept
            with rows.

    Warns:
        UncertifiedWarning: fits that are not certified to be at their optimum.
    """
    with suppress_warnings():
        whole = concept_vectors(activations, concepts, method, kinds=kinds)
    uncertified = list(whole.uncertified)
    entity = group_codes(groups, concepts.n_rows)
    rng = numpy_rng(seed, "stability")
    total = np.zeros(whole.gap.shape)
    with progress.task("bootstraps", draws) as advance:
        for draw in range(draws):
            for _ in range(200):
                weight = cluster_bootstrap_weights(entity, 1, rng)[0]
                left = [(concepts.marks == value) @ weight for value in (0, 1)]
                if min(each.min() for each in left) > 0:
                    break
            else:
                raise InputError(
                    "bootstraps leave concepts without rows",
                    expected="several groups with and without each concept",
                    fix="Leave out concepts of a single group",
                )
            with suppress_warnings():
                found = concept_vectors(
                    activations, concepts, method, kinds=kinds, weight=weight
                )
            named = f"bootstrap {draw}"
            uncertified += [replace(fit, inner=named) for fit in found.uncertified]
            total += (found.vectors * whole.vectors).sum(2)
            advance(1)
    warn_uncertified(uncertified)
    return total / draws


def alignment(first: ConceptVectors, second: ConceptVectors) -> NDArray[np.float64]:
    """(site, concept) cosine between the same concepts' vectors, of two models say.

    Raises:
        InputError: other concepts, sites or widths.
    """
    if first.concepts != second.concepts or first.vectors.shape != second.vectors.shape:
        raise InputError(
            "the concept vectors cannot be compared",
            expected=f"concepts, sites and width of {first!r}",
            got=repr(second),
        )
    return (first.vectors * second.vectors).sum(2)


def _share_above(values: NDArray, own: NDArray[np.bool_]) -> NDArray:
    """(row,) share of the ``own`` rows that lie above each row, ties counting half."""
    ordered = np.sort(values[own])
    not_above = np.searchsorted(ordered, values, side="right")
    below = np.searchsorted(ordered, values, side="left")
    return 1 - (not_above + below) / (2 * len(ordered))


def _cohen(
    values: NDArray, own: NDArray[np.bool_], rest: NDArray[np.bool_], weights: NDArray
) -> NDArray:
    """(draw,) Cohen's d under row weights; NaN where a side has one row or none."""
    safe = np.nan_to_num(values)
    parts = []
    for rows in (own, rest):
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

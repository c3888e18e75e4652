"""Membership test: can probes tell training sequences from unseen ones?

The unit is the sequence; contexts are averaged first. Folds hold as many members as non-members, so
that leaving rows out makes neither class rarer. Every classifier at every site and view is one
column of one experiment. Its null permutes the labels of sequences within folds and takes the
maximum over all columns, so the p-value holds for the best column however it was chosen. An AUC
significantly below one half is information or leakage; it is reported and never counts as success.

An eraser that was fitted on a test sequence drives probes of it below one half on pure noise: fit
erasers on one part (``split_sequences``), test on the other.
"""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import comb, prod
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from scipy.stats import norm
from torch import Tensor

from evidence.arrays import as_tensor, check_finite, label_values, member_labels
from evidence.display.html_table import frame_html
from evidence.errors import InputError
from evidence.progress import AUTO, Progress, as_progress
from evidence.seeds import numpy_rng
from probes.estimators.kernel_smoothers import FAMILIES as SMOOTHERS
from probes.estimators.kernel_smoothers import smoother_matrices
from probes.estimators.logistic import LogisticProbe
from probes.solvers.uncertified import UncertifiedFit
from probes.splits import metrics
from probes.splits.folds import Folds

if TYPE_CHECKING:
    import plotly.graph_objects as go

FAMILIES = ("logistic", *SMOOTHERS)
"""Seven families of classifiers."""


@dataclass(frozen=True, eq=False, repr=False)
class Membership:
    """Result of a membership test with seven families of classifiers.

    Attributes:
        views: Names, such as "last" and "mean".
        families: Names.
        auc: (view, family, site) pooled over held-out sequences.
        concordance: (view, family, site) share of pairs of a member and a non-member of one test
            fold in which the member scores higher.
        null: (permutation, view, family, site) AUC with permuted labels.
        standard_error: (view, family, site) of the AUC: DeLong's, or the standard deviation of the
            null if that is larger, because classifiers differ between folds.
        p_above: p-value of the largest AUC against the null's largest.
        p_below: p-value of the smallest AUC against the null's smallest.
        p_column: (view, family, site) p-value of each AUC against the null's largest.
        min_p: Smallest p-value that these sequences and permutations allow.
        sequences: Number of sequences scored.
        uncertified: Logistic fits, those of the null included, that are not certified to be at
            their optimum; their scores are included.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> seen = torch.from_numpy(rng.standard_normal((2, 20, 8)))
        >>> seen[1, ::2] += 3.0  # members, at the second site
        >>> found = exhume.membership({"last": seen}, 1 - np.arange(20) % 2, n_permutations=50)
        >>> found.reading(), found.max_auc > found.null_95
        ('present', True)
    """

    views: tuple[str, ...]
    families: tuple[str, ...]
    auc: NDArray[np.float64]
    concordance: NDArray[np.float64]
    null: NDArray[np.float64]
    standard_error: NDArray[np.float64]
    p_above: float
    p_below: float
    p_column: NDArray[np.float64]
    min_p: float
    sequences: int
    uncertified: tuple[UncertifiedFit, ...] = ()

    @property
    def max_auc(self) -> float:
        """The largest AUC; compare it with ``null_95``, not with one half."""
        return float(self.auc.max())

    @property
    def min_auc(self) -> float:
        """The smallest AUC."""
        return float(self.auc.min())

    @property
    def null_95(self) -> float:
        """95th percentile of the null's largest AUC; NaN without permutations."""
        null = _flat(self.null).max(1) if len(self.null) else np.array([np.nan])
        return float(np.quantile(null, 0.95))

    @property
    def p_value(self) -> float:
        """Two-sided p-value: twice the smaller of the two sides, at most 1."""
        return min(1.0, 2 * min(self.p_above, self.p_below))

    @property
    def distance(self) -> NDArray[np.float64]:
        """(view, family, site) |AUC - 0.5|."""
        return np.abs(self.auc - 0.5)

    def interval(self, level: float = 0.9) -> NDArray[np.float64]:
        """(2, view, family, site) confidence interval of each AUC; TOST uses the 90 % interval."""
        half_width = float(norm.ppf(0.5 + level / 2)) * self.standard_error
        return np.stack([self.auc - half_width, self.auc + half_width])

    def reading(self, level: float = 0.05) -> str:
        """Outcome: ``present``, ``inverted`` (below chance: information or leakage) or ``none``.

        ``none`` means that nothing was detected with this number of sequences, not that there is
        none.
        """
        if not len(self.null):
            return "not tested"
        if self.p_value > level:
            return "none"
        return "present" if self.p_above <= self.p_below else "inverted"

    def __repr__(self) -> str:
        return (
            f"Membership({self.sequences} sequences, {self.auc.size} columns: best AUC "
            f"{self.max_auc:.2f}, null's 95 % {self.null_95:.2f}, p {self.p_value:.3g})"
        )

    def _repr_html_(self) -> str:
        return frame_html(repr(self), self.to_frame())

    def plot(self) -> "go.Figure":
        """A Plotly figure of the AUC over sites, and what the best reader must beat."""
        import plotly.graph_objects as go

        figure = go.Figure()
        for view, families in zip(self.views, self.auc, strict=True):
            for family, values in zip(self.families, families, strict=True):
                name = html.escape(f"{view}, {family}")
                figure.add_scatter(x=[*range(len(values))], y=values, name=name)
        if len(self.null):
            text = "95 % of the null's maximum"
            figure.add_hline(y=self.null_95, line_dash="dash", annotation_text=text)
        figure.add_hline(y=0.5, line_dash="dot")
        figure.update_layout(
            template="plotly_white", xaxis_title="site", yaxis_title="held-out AUC"
        )
        return figure

    def to_frame(self) -> pd.DataFrame:
        """One row a view, family and site."""
        index = pd.MultiIndex.from_product(
            [self.views, self.families, range(self.auc.shape[2])], names=["view", "family", "site"]
        )
        columns = {
            "auc": self.auc.ravel(),
            "concordance": self.concordance.ravel(),
            "distance": self.distance.ravel(),
            "p": self.p_column.ravel(),
        }
        return pd.DataFrame(columns, index=index).reset_index()


def membership(
    views: Mapping[str, ArrayLike | Tensor],
    labels: ArrayLike,
    *,
    families: Sequence[str] = FAMILIES,
    n_folds: int = 5,
    n_permutations: int = 1000,
    C: float = 1.0,
    seed: int = 0,
    progress: Progress = AUTO,
) -> Membership:
    """Score every sequence by classifiers fitted without it.

    Args:
        views: (site, sequence, d) activations by view; contexts averaged beforehand.
        labels: (sequence,) 1 or True for members, 0 or False for as many non-members.
        families: Classifiers, out of ``FAMILIES``.
        n_folds: Number of folds.
        n_permutations: Size of the null; 0 for the scores only.
        C: Inverse penalty of the logistic classifier.
        seed: Seed of folds, permutations and ferns.
        progress: One unit a view and site.

    Raises:
        InputError: unequal classes, shapes that do not fit, values that are not finite, or an
            unknown family.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> noise = torch.from_numpy(rng.standard_normal((2, 20, 8)))  # (site, sequence, d)
        >>> found = exhume.membership({"last": noise}, np.arange(20) % 2, n_permutations=50)
        >>> found.reading()
        'none'
    """
    if not views or not families:
        raise InputError("there is nothing to test", expected="a view and a family")
    n_sequences = len(label_values(labels))
    tables = {name: _check_view(name, table, n_sequences) for name, table in views.items()}
    codes = member_labels(labels, n_sequences)
    unknown = [name for name in families if name not in FAMILIES]
    if unknown:
        raise InputError(f"there is no family {unknown[0]!r}", expected=", ".join(FAMILIES))
    if len({len(table) for table in tables.values()}) > 1:
        raise InputError("the views have different numbers of sites")
    scheme = balanced_folds(codes, n_folds, seed)
    all_labels = permute_labels_within_folds(codes, scheme, n_permutations, seed)
    signs = torch.from_numpy(2.0 * all_labels.T - 1)  # (row, label)
    sites = len(next(iter(tables.values())))
    smoother_names = [name for name in families if name != "logistic"]
    auc = np.zeros((len(all_labels), len(tables), len(families), sites))
    concordance = np.zeros((len(tables), len(families), sites))
    standard_error = np.zeros(concordance.shape)
    label_tensor, uncertified = torch.from_numpy(all_labels), list[UncertifiedFit]()
    with as_progress(progress).task("membership", len(tables) * sites) as advance:
        for view, (view_name, table) in enumerate(tables.items()):
            for site in range(sites):
                rows = table[site]
                matrices = dict(
                    zip(
                        smoother_names,
                        smoother_matrices(rows[None], scheme, smoother_names, seed=seed)[:, 0],
                        strict=True,
                    )
                )
                for family, name in enumerate(families):
                    if name == "logistic":
                        scores, fits = _logistic(rows, label_tensor, scheme, C)
                        uncertified += [replace(fit, site=f"{view_name}, {site}") for fit in fits]
                    else:
                        scores = (matrices[name] @ signs).T
                    label_auc = metrics.auc(scores[:, None], label_tensor, 2)
                    auc[:, view, family, site] = label_auc.numpy()
                    own_scores = scores[0].numpy()
                    concordance[view, family, site] = _concordance(own_scores, codes, scheme)
                    standard_error[view, family, site] = delong_error(own_scores, codes)
                advance(1)
    null = auc[1:]
    p_above = p_below = 1.0
    p_column = np.ones(auc.shape[1:])
    if n_permutations:
        flat_null = _flat(null)
        # Ties count towards the null; rounding must not break them.
        rounding = 1e-12
        null_max, null_min = flat_null.max(1), flat_null.min(1)
        p_column = 1 + (null_max[:, None] >= _flat(auc[:1]) - rounding).sum(0)
        p_column = (p_column / (1 + n_permutations)).reshape(auc.shape[1:])
        p_above = float(p_column.min())
        p_below = float((1 + (null_min <= auc[0].min() + rounding).sum()) / (1 + n_permutations))
    return Membership(
        views=tuple(tables),
        families=tuple(families),
        auc=auc[0],
        concordance=concordance,
        null=null,
        standard_error=np.maximum(standard_error, null.std(0) if n_permutations else 0.0),
        p_above=p_above,
        p_below=p_below,
        p_column=p_column,
        min_p=max(1 / (1 + n_permutations), 1 / _n_distinct_permutations(codes, scheme)),
        sequences=len(codes),
        uncertified=tuple(uncertified),
    )


def _check_view(name: str, table: ArrayLike | Tensor, sequences: int) -> Tensor:
    table = as_tensor(table).cpu()
    if table.ndim != 3 or table.shape[1] != sequences or 0 in table.shape:
        raise InputError(
            f"view {name!r} must have one vector a site and sequence",
            expected=f"(site, {sequences}, d)",
            got=str(tuple(table.shape)),
            fix="Average the contexts of a sequence first",
        )
    check_finite(table, f"view {name!r}: the activations")
    return table


def _flat(auc: NDArray[np.float64]) -> NDArray[np.float64]:
    return auc.reshape(len(auc), -1)


def _logistic(
    rows: Tensor, labels: Tensor, folds: Folds, C: float
) -> tuple[Tensor, tuple[UncertifiedFit, ...]]:
    """(label, row) held-out scores, 0 if all rows are equal; and the uncertified fits."""
    if float((rows - rows.mean(0)).abs().max()) <= 1e-12 * float(rows.abs().max()):
        return rows.new_zeros(labels.shape), ()
    # Float32 certifies 1e-4, far below the resolution of ranks.
    probe = LogisticProbe(C, standardize="fold", precision="float32")
    held_out = probe.held_out(rows, labels, 2, folds)
    return held_out.scores[:, 0], held_out.uncertified


def delong_error(scores: NDArray[np.float64], codes: NDArray[np.int64]) -> float:
    """Standard error of an AUC for given scores; ties count one half.

    Source: DeLong, DeLong and Clarke-Pearson (1988), Biometrics 44:837.
    """
    member_scores, nonmember_scores = scores[codes == 1][:, None], scores[codes == 0]
    wins = (member_scores > nonmember_scores) + 0.5 * (member_scores == nonmember_scores)
    variances = [wins.mean(axis).var(ddof=1) / wins.shape[1 - axis] for axis in (0, 1)]
    return float(np.sqrt(sum(variances)))


def _concordance(scores: NDArray[np.float64], codes: NDArray[np.int64], folds: Folds) -> float:
    n_wins = n_pairs = 0.0
    for test in folds.test:
        member_scores = scores[test & (codes == 1)][:, None]
        nonmember_scores = scores[test & (codes == 0)]
        n_wins += (
            (member_scores > nonmember_scores) + 0.5 * (member_scores == nonmember_scores)
        ).sum()
        n_pairs += member_scores.size * nonmember_scores.size
    return float(n_wins / n_pairs)


def balanced_folds(labels: ArrayLike, n_folds: int, seed: int = 0) -> Folds:
    """Folds with as many members as non-members, in training and in test.

    Args:
        labels: (sequence,) 1 or 0, as many of each.
        n_folds: Number of folds; at most one a member is used.
        seed: Seed of the assignment.

    Raises:
        InputError: unequal classes, fewer than two sequences a class, or fewer than two folds.
    """
    codes = label_values(labels)
    members, nonmembers = np.flatnonzero(codes == 1), np.flatnonzero(codes == 0)
    if len(members) != len(nonmembers) or len(members) < 2 or len(codes) != 2 * len(members):
        raise InputError(
            "members and non-members must be equally many",
            expected="as many labels of 1 as of 0, two or more of each",
            got=f"{len(members)} and {len(nonmembers)} of {len(codes)}",
            fix="Choose matched sequences with matched_pairs",
        )
    if n_folds < 2:
        raise InputError("folds cannot be used", expected="2 or more", got=str(n_folds))
    n_used = min(n_folds, len(members))
    rng = numpy_rng(seed, "membership folds")
    fold_of_row = np.empty(len(codes), dtype=np.int64)
    for rows in (members, nonmembers):
        fold_of_row[rng.permutation(rows)] = np.arange(len(rows)) % n_used
    test = fold_of_row == np.arange(n_used)[:, None]
    return Folds(~test, test, f"{n_used} folds of as many members as others")


def permute_labels_within_folds(
    labels: ArrayLike, folds: Folds, n_permutations: int, seed: int = 0
) -> NDArray[np.int64]:
    """(1 + permutation, sequence) the labels, then labels permuted within folds.

    Folds stay balanced, so the same folds serve every permutation.
    """
    codes = label_values(labels).astype(np.int64)
    rows = np.repeat(codes[None], 1 + n_permutations, 0)
    rng = numpy_rng(seed, "membership permutations")
    for test in folds.test:
        test_rows = np.flatnonzero(test)
        order = rng.random((n_permutations, len(test_rows))).argsort(1)
        rows[1:, test_rows] = codes[test_rows][order]
    return rows


def _n_distinct_permutations(labels: ArrayLike, folds: Folds) -> int:
    codes = np.asarray(labels)
    return prod(comb(int(t.sum()), int(codes[t].sum())) for t in folds.test)


def split_sequences(
    n_sequences: int, share: float = 0.5, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the sequences for fitting an eraser, and of those for the test.

    Args:
        n_sequences: Number of sequences.
        share: Share that the eraser may use.
        seed: Seed of the split.

    Raises:
        InputError: a part would have fewer than two.
    """
    n_erase = round(share * n_sequences)
    if not 2 <= n_erase <= n_sequences - 2:
        raise InputError(
            "both parts need two sequences or more",
            expected=f"a share that leaves 2 to {n_sequences - 2} of {n_sequences}",
            got=str(share),
        )
    order = numpy_rng(seed, "erase split").permutation(n_sequences)
    return np.sort(order[:n_erase]), np.sort(order[n_erase:])


def matched_pairs(members: ArrayLike, nonmembers: ArrayLike, caliper: float) -> NDArray[np.int64]:
    """Pair members with non-members of nearly the same value, such as surprisal.

    Args:
        members: (member,) values.
        nonmembers: (non-member,) values.
        caliper: Largest difference within a pair, in the values' unit.

    Returns:
        (pair, 2) indices: as many pairs as the caliper allows, with the smallest total difference.

    Raises:
        InputError: no pair is within the caliper.
    """
    member_values, nonmember_values = (np.asarray(members, float), np.asarray(nonmembers, float))
    cost = np.abs(member_values[:, None] - nonmember_values)
    # A pair outside the caliper costs more than all that are inside.
    penalty = 1.0 + cost[cost <= caliper].sum()
    rows, columns = linear_sum_assignment(np.where(cost <= caliper, cost, penalty))
    is_close = cost[rows, columns] <= caliper
    if not is_close.any():
        raise InputError(
            "no member has a non-member within the caliper",
            expected=f"values within {caliper}",
            got=f"{float(cost.min()):.3g} at best",
            fix="Widen the caliper, or find other controls",
        )
    return np.stack([rows[is_close], columns[is_close]], axis=1)

"""Is there a signature of membership in sequences no eraser and no probe has seen?

The unit is the sequence: contexts are averaged first. Folds hold as many members as
others, so that leaving rows out makes neither class rarer. Every reader at every site
and view is one column of one experiment, whose null exchanges the labels of sequences
inside the folds and takes the maximum over all columns, so p holds for the best column
however it was chosen. An AUC significantly below one half is information, or leakage:
it is reported beside the other side and never as success.

An eraser that saw a test sequence drives probes of it below one half on pure noise:
erase on one part (``split_sequences``), test on the other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import comb, prod

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from scipy.stats import norm
from torch import Tensor

from evidence.errors import InputError
from evidence.progress import SILENT, Progress
from evidence.seeds import numpy_rng
from probes.estimators.kernel_smoothers import FAMILIES as SMOOTHERS
from probes.estimators.kernel_smoothers import smoother_matrices
from probes.estimators.logistic import LogisticProbe
from probes.solvers.uncertified import UncertifiedFit
from probes.splits import metrics
from probes.splits.folds import Folds

FAMILIES = ("logistic", *SMOOTHERS)
"""Seven readers that are fitted anew, on whatever states they are given."""


@dataclass(frozen=True, eq=False, repr=False)
class Membership:
    """What seven families of readers find, and what they find in exchanged labels.

    Attributes:
        views: Names, such as "last" and "mean".
        families: Names.
        auc: (view, family, site) pooled over held-out sequences.
        concordance: (view, family, site) share of pairs of a member and another, both
            held out by the same fold, in which the member scores higher.
        null: (permutation, view, family, site) AUC with labels exchanged.
        standard_error: (view, family, site) standard error of the AUC: DeLong's, or the spread
            of the null where that is larger, as readers differ between folds.
        p_above: p of the largest AUC against the null's largest.
        p_below: p of the smallest AUC against the null's smallest.
        p_column: (view, family, site) p of each AUC against the null's largest.
        min_p: The least p these sequences and permutations can give.
        sequences: How many were scored.
        uncertified: Logistic fits, those of the null included, that are not certified
            to be at their optimum; their scores count.
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
        """The largest AUC; hold it against ``null_95``, not against one half."""
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
        """Two-sided: twice the smaller of the two sides, at most 1."""
        return min(1.0, 2 * min(self.p_above, self.p_below))

    @property
    def distance(self) -> NDArray[np.float64]:
        """(view, family, site) |AUC - 0.5|."""
        return np.abs(self.auc - 0.5)

    def interval(self, level: float = 0.9) -> NDArray[np.float64]:
        """(2, view, family, site) of each AUC; at 90 %, what TOST looks at."""
        reach = float(norm.ppf(0.5 + level / 2)) * self.standard_error
        return np.stack([self.auc - reach, self.auc + reach])

    def reading(self, level: float = 0.05) -> str:
        """``present``, ``inverted`` (below chance: information or leakage), ``none``.

        ``none`` says that nothing was found at this number of sequences, not that
        nothing is there.
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

    def to_frame(self) -> pd.DataFrame:
        """One row a view, family and site."""
        index = pd.MultiIndex.from_product(
            [self.views, self.families, range(self.auc.shape[2])],
            names=["view", "family", "site"],
        )
        columns = {
            "auc": self.auc.ravel(),
            "concordance": self.concordance.ravel(),
            "distance": self.distance.ravel(),
            "p": self.p_column.ravel(),
        }
        return pd.DataFrame(columns, index=index).reset_index()


def membership(
    views: Mapping[str, Tensor],
    labels: ArrayLike,
    *,
    families: Sequence[str] = FAMILIES,
    n_folds: int = 5,
    n_permutations: int = 1000,
    C: float = 1.0,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Membership:
    """Score every sequence by readers that were fitted without it.

    Args:
        views: (site, sequence, d) states by view; contexts averaged beforehand.
        labels: (sequence,) 1 for members, 0 for as many others.
        families: Readers, out of ``FAMILIES``.
        n_folds: Number of folds.
        n_permutations: Size of the null; 0 for the scores alone.
        C: Inverse penalty of the logistic reader.
        seed: Of folds, permutations and ferns.
        progress: Shows one unit a view and site.

    Raises:
        InputError: unequal classes, shapes that do not fit, values that are not
            finite, or an unknown family.
    """
    codes = np.asarray(labels)
    tables = {
        name: _check_view(name, table, len(codes)) for name, table in views.items()
    }
    if not tables or not families:
        raise InputError("there is nothing to read", expected="a view and a family")
    unknown = [name for name in families if name not in FAMILIES]
    if unknown:
        raise InputError(
            f"there is no family {unknown[0]!r}", expected=", ".join(FAMILIES)
        )
    if len({len(table) for table in tables.values()}) > 1:
        raise InputError("the views differ in their sites")
    scheme = balanced_folds(codes, n_folds, seed)
    every = permute_labels_within_folds(codes, scheme, n_permutations, seed)
    signs = torch.from_numpy(2.0 * every.T - 1)  # (row, label)
    sites = len(next(iter(tables.values())))
    smooth = [name for name in families if name != "logistic"]
    area = np.zeros((len(every), len(tables), len(families), sites))
    agree = np.zeros((len(tables), len(families), sites))
    error = np.zeros(agree.shape)
    many, lost = torch.from_numpy(every), list[UncertifiedFit]()
    with progress.task("membership", len(tables) * sites) as advance:
        for view, (seen, table) in enumerate(tables.items()):
            for site in range(sites):
                rows = table[site]
                weights = dict(
                    zip(
                        smooth,
                        smoother_matrices(rows[None], scheme, smooth, seed=seed)[:, 0],
                        strict=True,
                    )
                )
                for place, name in enumerate(families):
                    if name == "logistic":
                        scores, left = _logistic(rows, many, scheme, C)
                        lost += [replace(fit, site=f"{seen}, {site}") for fit in left]
                    else:
                        scores = (weights[name] @ signs).T
                    found = metrics.auc(scores[:, None], many, 2)
                    area[:, view, place, site] = found.numpy()
                    own = scores[0].numpy()
                    agree[view, place, site] = _concordance(own, codes, scheme)
                    error[view, place, site] = delong_error(own, codes)
                advance(1)
    null = area[1:]
    above = below = 1.0
    column = np.ones(area.shape[1:])
    if n_permutations:
        flat = _flat(null)
        # Ties count against a finding; rounding must not break them.
        slack = 1e-12
        top, bottom = flat.max(1), flat.min(1)
        column = 1 + (top[:, None] >= _flat(area[:1]) - slack).sum(0)
        column = (column / (1 + n_permutations)).reshape(area.shape[1:])
        above = float(column.min())
        below = float(
            (1 + (bottom <= area[0].min() + slack).sum()) / (1 + n_permutations)
        )
    return Membership(
        views=tuple(tables),
        families=tuple(families),
        auc=area[0],
        concordance=agree,
        null=null,
        standard_error=np.maximum(error, null.std(0) if n_permutations else 0.0),
        p_above=above,
        p_below=below,
        p_column=column,
        min_p=max(
            1 / (1 + n_permutations), 1 / _n_distinct_permutations(codes, scheme)
        ),
        sequences=len(codes),
        uncertified=tuple(lost),
    )


def _check_view(name: str, table: Tensor, sequences: int) -> Tensor:
    table = torch.as_tensor(table).detach().cpu().double()
    if table.ndim != 3 or table.shape[1] != sequences or 0 in table.shape:
        raise InputError(
            f"view {name!r} must hold one vector a site and sequence",
            expected=f"(site, {sequences}, d)",
            got=str(tuple(table.shape)),
            fix="Average the contexts of a sequence first",
        )
    if not bool(torch.isfinite(table).all()):
        raise InputError(f"view {name!r} has values that are not finite")
    return table


def _flat(area: NDArray[np.float64]) -> NDArray[np.float64]:
    return area.reshape(len(area), -1)


def _logistic(
    rows: Tensor, labels: Tensor, folds: Folds, C: float
) -> tuple[Tensor, tuple[UncertifiedFit, ...]]:
    """(label, row) held-out scores, 0 where all rows are equal; what is uncertified."""
    if float((rows - rows.mean(0)).abs().max()) <= 1e-12 * float(rows.abs().max()):
        return rows.new_zeros(labels.shape), ()
    # Single precision certifies 1e-4 of the optimum, far under what ranks resolve.
    probe = LogisticProbe(C, standardize="fold", precision="float32")
    found = probe.held_out(rows, labels, 2, folds)
    return found.scores[:, 0], found.uncertified


def delong_error(scores: NDArray[np.float64], codes: NDArray[np.int64]) -> float:
    """Standard error of an AUC, the scores taken as given; ties count one half.

    Source: DeLong, DeLong and Clarke-Pearson (1988), Biometrics 44:837.
    """
    high, low = scores[codes == 1][:, None], scores[codes == 0]
    wins = (high > low) + 0.5 * (high == low)
    parts = [wins.mean(axis).var(ddof=1) / wins.shape[1 - axis] for axis in (0, 1)]
    return float(np.sqrt(sum(parts)))


def _concordance(
    scores: NDArray[np.float64], codes: NDArray[np.int64], folds: Folds
) -> float:
    won = pairs = 0.0
    for test in folds.test:
        high = scores[test & (codes == 1)][:, None]
        low = scores[test & (codes == 0)]
        won += ((high > low) + 0.5 * (high == low)).sum()
        pairs += high.size * low.size
    return float(won / pairs)


def balanced_folds(labels: ArrayLike, n_folds: int, seed: int = 0) -> Folds:
    """Folds with as many members as others, in training and in test.

    Args:
        labels: (sequence,) of 1 and 0, as many of either.
        n_folds: At most the number of members; fewer members than that are dealt one
            a fold.
        seed: Of the deal.

    Raises:
        InputError: unequal or fewer than two a class, or fewer than two folds.
    """
    codes = np.asarray(labels)
    ones, zeros = np.flatnonzero(codes == 1), np.flatnonzero(codes == 0)
    if len(ones) != len(zeros) or len(ones) < 2 or len(codes) != 2 * len(ones):
        raise InputError(
            "members and others must be matched in number",
            expected="as many labels of 1 as of 0, two or more of each",
            got=f"{len(ones)} and {len(zeros)} of {len(codes)}",
            fix="Choose matched sequences with matched_pairs",
        )
    if n_folds < 2:
        raise InputError("folds cannot be used", expected="2 or more", got=str(n_folds))
    count = min(n_folds, len(ones))
    rng = numpy_rng(seed, "membership folds")
    place = np.empty(len(codes), dtype=np.int64)
    for rows in (ones, zeros):
        place[rng.permutation(rows)] = np.arange(len(rows)) % count
    test = place == np.arange(count)[:, None]
    return Folds(~test, test, f"{count} folds of as many members as others")


def permute_labels_within_folds(
    labels: ArrayLike, folds: Folds, n_permutations: int, seed: int = 0
) -> NDArray[np.int64]:
    """(1 + permutation, sequence) the labels, then labels exchanged inside folds.

    Folds keep their balance, so the same folds serve every permutation.
    """
    codes = np.asarray(labels, dtype=np.int64)
    out = np.repeat(codes[None], 1 + n_permutations, 0)
    rng = numpy_rng(seed, "membership permutations")
    for test in folds.test:
        rows = np.flatnonzero(test)
        order = rng.random((n_permutations, len(rows))).argsort(1)
        out[1:, rows] = codes[rows][order]
    return out


def _n_distinct_permutations(labels: ArrayLike, folds: Folds) -> int:
    codes = np.asarray(labels)
    return prod(comb(int(t.sum()), int(codes[t].sum())) for t in folds.test)


def split_sequences(
    n_sequences: int, share: float = 0.5, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of the sequences to erase with, and of those to test on.

    Args:
        n_sequences: How many there are.
        share: Of them that the eraser may see.
        seed: Of the draw.

    Raises:
        InputError: a part would have fewer than two.
    """
    count = round(share * n_sequences)
    if not 2 <= count <= n_sequences - 2:
        raise InputError(
            "both parts need two sequences or more",
            expected=f"a share that leaves 2 to {n_sequences - 2} of {n_sequences}",
            got=str(share),
        )
    order = numpy_rng(seed, "erase split").permutation(n_sequences)
    return np.sort(order[:count]), np.sort(order[count:])


def matched_pairs(
    members: ArrayLike, nonmembers: ArrayLike, caliper: float
) -> NDArray[np.int64]:
    """Members paired with others of nearly the same value, such as surprisal.

    Args:
        members: (member,) values.
        nonmembers: (other,) values.
        caliper: Largest difference within a pair, in the values' unit.

    Returns:
        (pair, 2) numbers, as many pairs as the caliper allows of those that are
        closest in all.

    Raises:
        InputError: no pair is that close.
    """
    one, two = np.asarray(members, float), np.asarray(nonmembers, float)
    cost = np.abs(one[:, None] - two)
    # A pair outside the caliper costs more than all that are inside.
    far = 1.0 + cost[cost <= caliper].sum()
    rows, columns = linear_sum_assignment(np.where(cost <= caliper, cost, far))
    kept = cost[rows, columns] <= caliper
    if not kept.any():
        raise InputError(
            "no member has a partner that close",
            expected=f"values within {caliper}",
            got=f"{float(cost.min()):.3g} at best",
            fix="Widen the caliper, or find other controls",
        )
    return np.stack([rows[kept], columns[kept]], axis=1)

"""Directions of many concepts at one site, each way in a few matrix products.

Everything here is for one site: rows (row, d) in float64, and gives unnormalised
directions (concept, d) in units of the rows, positive towards the concept.
"""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evidence.arrays import RowsError
from probes.solvers.crossfit import crossfit
from probes.solvers.newton.newton_cg import ACCEPTED_TOL, TOL
from probes.solvers.newton.newton_primal_rough import fit_primal
from probes.solvers.objective.batch import Work
from probes.solvers.objective.loss import Loss
from probes.solvers.problem import LogisticOptions, column_std, one_hot, row_weights
from probes.solvers.uncertified import UncertifiedFit
from probes.splits.folds import Folds

MIN_RIDGE_SHARE = 1e-6
"""Least ridge, as a share of the whole scatter, that the scatter itself may hold."""
CG_TOL = 1e-14
"""Share of a side that may be left of it."""
METHODS = ("mean", "kif", "lda", "logistic", "pca")


def mean_difference(x: Tensor, marks: Tensor, weight: Tensor) -> Tensor:
    """Mean of the rows that show a concept less that of the rows that do not.

    Args:
        x: (row, d).
        marks: (concept, row) 1, 0 or -1.
        weight: (row,) >= 0.
    """
    return (mean_weights(marks == 1, weight) - mean_weights(marks == 0, weight)) @ x


def standardized_difference(x: Tensor, marks: Tensor, weight: Tensor) -> Tensor:
    """The mean difference of standardised columns, back in units of the rows.

    Columns are divided by their standard deviation over a concept's positive and
    negative rows together; a column that does not vary there counts for nothing.

    Source: KIF's activation signature, arXiv 2601.10566.
    """
    used = mean_weights(marks >= 0, weight)
    variance = used @ x.square() - (used @ x).square()
    floor = 1e-12 * x.square().amax(0)
    difference = mean_difference(x, marks, weight)
    return torch.where(variance > floor, difference / variance.clamp(min=1e-300), 0.0)


def discriminant(
    x: Tensor, marks: Tensor, weight: Tensor, shrinkage: float = 0.1
) -> Tensor:
    """Two-class linear discriminants with one spectrum for all concepts.

    For each concept the solution of C w = difference of means, C the pooled
    within-class covariance shrunk as in ``LDAProbe``. Concepts marked on the same
    rows share one decomposition: their scatters differ by rank one.
    """
    if not 0 < shrinkage <= 1:
        raise RowsError("shrinkage must be above 0 and at most 1", got=str(shrinkage))
    out = torch.zeros(len(marks), x.shape[1], dtype=x.dtype, device=x.device)
    for chosen, rows in _group_by_rows(marks, weight):
        part, w = x[rows], weight[rows]
        own = marks[chosen][:, rows]
        total = w.sum()
        centred = part - (w @ part) / total
        difference = mean_difference(centred, own, w)
        scaled = w.sqrt()[:, None] * centred
        spread_of = scaled.square().sum()
        positive = ((own == 1) * w).sum(1)
        between = positive * (total - positive) / total
        square = difference.square().sum(1)
        trace = (spread_of - between * square).clamp(min=0)
        ridge = shrinkage * trace / (total * x.shape[1])
        if bool(((ridge <= 0) & (square > 0)).any()):
            raise RowsError(
                "no row differs from its class mean, so there is no covariance",
                fix="Use the mean difference",
            )
        share = (1 - shrinkage) / total
        if bool((ridge < MIN_RIDGE_SHARE * share * spread_of).any()):
            # A scatter has the squares of the rows' digits: it would lose a weak ridge.
            _, sizes, axes = torch.linalg.svd(scaled, full_matrices=False)
            side = difference @ axes.T  # the rest of a difference is zero
            solved = side / (share * sizes.square() + ridge.clamp(min=1e-300)[:, None])
        else:
            # Fewer rows than columns: the answer is a sum of rows, as a difference is.
            wide = len(part) < x.shape[1]
            tell = (mean_weights(own == 1, w) - mean_weights(own == 0, w)) / w.sqrt()
            axes = scaled if wide else None
            scatter = scaled @ scaled.T if wide else scaled.T @ scaled
            side = tell if wide else difference
            solved = shifted_solve(share * scatter, ridge, side)
            side = side @ scatter if wide else side
        # Taking the between-class part out of the scatter only changes the length.
        shrink = 1 - share * between * (side * solved).sum(1)
        solved = solved / shrink[:, None]
        out[chosen] = solved if axes is None else solved @ axes
    return out


def shifted_solve(matrix: Tensor, shifts: Tensor, sides: Tensor) -> Tensor:
    """Solve (matrix + shift I) s = side for every pair of a shift and a side.

    One inverse, at the smallest shift, serves all: what a shift is above it only
    stretches the spectrum of what is left to 1 + excess / shift at most, and conjugate
    gradients finish that, one product with the inverse a step for all sides.

    Args:
        matrix: (k, k) symmetric, no eigenvalue below zero.
        shifts: (side,) > 0, or 0 where the side is 0.
        sides: (side, k).

    Returns:
        (side, k) solutions; zero where the side is.
    """
    busy = (sides != 0).any(1)
    if not bool(busy.any()):
        return torch.zeros_like(sides)
    least = shifts[busy].min()
    inverse = torch.cholesky_inverse(
        torch.linalg.cholesky(matrix + least * torch.eye(len(matrix)).to(matrix))
    )
    excess = (shifts - least).clamp(min=0)[:, None]
    left = sides @ inverse
    solved, search = torch.zeros_like(left), left.clone()
    square = first = left.square().sum(1)
    for _ in range(len(matrix)):
        image = torch.addcmul(search, excess, search @ inverse)
        stiff = (search * image).sum(1)
        length = torch.where(stiff > 0, square / stiff, 0.0)[:, None]
        solved.addcmul_(length, search)
        left.addcmul_(length, image, value=-1)
        fresh = left.square().sum(1)
        if bool((fresh <= CG_TOL**2 * first).all()):
            break
        ratio = torch.where(square > 0, fresh / square, 0.0)
        search, square = torch.addcmul(left, ratio[:, None], search), fresh
    return solved


def logistic(
    x: Tensor, marks: Tensor, weight: Tensor, c: float = 0.1
) -> tuple[Tensor, tuple[UncertifiedFit, ...]]:
    """Penalised logistic directions, all concepts of the same rows in one solve.

    Columns are standardised over the rows in use, classes weigh the same.

    Returns:
        The directions, and those that are not certified to be at their optimum: the
        label vector is the concept.
    """
    lost: list[UncertifiedFit] = []
    out = torch.zeros(len(marks), x.shape[1], dtype=x.dtype, device=x.device)
    options = LogisticOptions(C=c, balanced=True, standardize="all")
    for chosen, rows in _group_by_rows(marks, weight):
        part, base = x[rows], weight[rows]
        codes = (marks[chosen][:, rows] == 1).long()
        found = _shared_preconditioner(part, codes, base, options)
        if found is None:
            found, left = _exact_factors(part, codes, base, options)
            lost += [replace(fit, fold=None, label=chosen[fit.label]) for fit in left]
        out[chosen] = found
    return out, tuple(lost)


def _shared_preconditioner(
    x: Tensor, codes: Tensor, base: Tensor, options: LogisticOptions
) -> Tensor | None:
    """All concepts on one rough metric; None where one is not certified.

    A factor that is exact for one concept is poor for all others, and finding it
    costs more than all of their fits.
    """
    scale = column_std(x, base)
    rows = (x - x.mean(0)) / scale
    loss = Loss(one_hot(codes, 2), row_weights(codes, 2, base[None], options))
    point, _, certificate = fit_primal(rows, loss, TOL[torch.float64], Work())
    # ``not`` of the good ones: what is no number is none of them.
    if not bool((certificate <= ACCEPTED_TOL[torch.float64]).all()):
        return None
    return point[:, :-1] / scale


def _exact_factors(
    x: Tensor, codes: Tensor, base: Tensor, options: LogisticOptions
) -> tuple[Tensor, tuple[UncertifiedFit, ...]]:
    """The same on factors that are exact, and what is not certified of it."""
    everything = np.ones((1, len(x)), dtype=bool)
    folds = Folds(everything, ~everything, "all rows")
    fit = crossfit(x, codes, 2, folds, options, sample_weight=base, coefficients=True)
    assert fit.coef is not None
    return fit.coef[:, 0, 0].to(x), fit.uncertified


def difference_component(x: Tensor, pairs: list[NDArray], weight: Tensor) -> Tensor:
    """First principal direction of differences between paired rows.

    Differences are not centred, which is what pairs in random order amount to.

    Args:
        x: (row, d).
        pairs: For each concept (pair, 2) rows: one that shows it, one that does not.
        weight: (row,) >= 0.

    Source: the reading vectors of representation engineering, arXiv 2310.01405.
    """
    out = torch.zeros(len(pairs), x.shape[1], dtype=x.dtype, device=x.device)
    sizes = {len(each) for each in pairs}
    for size in sizes:
        chosen = [place for place, each in enumerate(pairs) if len(each) == size]
        index = torch.as_tensor(
            np.stack([pairs[place] for place in chosen]), device=x.device
        )
        scale = (weight[index[..., 0]] * weight[index[..., 1]]).sqrt()
        delta = (x[index[..., 0]] - x[index[..., 1]]) * scale[..., None]
        if size <= x.shape[1]:
            _, basis = torch.linalg.eigh(delta @ delta.transpose(1, 2))
            top = torch.einsum("cm,cmd->cd", basis[..., -1], delta)
        else:
            _, basis = torch.linalg.eigh(delta.transpose(1, 2) @ delta)
            top = basis[..., -1]
        towards = torch.einsum("cmd,cd->c", delta, top)
        out[chosen] = top * torch.where(towards < 0, -1.0, 1.0)[:, None]
    return out


def draw_pairs(
    marks: NDArray[np.int8], kinds: NDArray[np.int64], rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """A row that does not show the concept for each that does, of its kind if it can.

    Args:
        marks: (concept, row) 1, 0 or -1.
        kinds: (row,) kind of each row, such as its template.
        rng: Deals.
    """
    dealt = []
    for row in marks:
        others = rng.permutation(np.flatnonzero(row == 0))
        by_kind = {kind: others[kinds[others] == kind] for kind in np.unique(kinds)}
        taken = dict.fromkeys(by_kind, 0)
        pairs = []
        for positive in np.flatnonzero(row == 1):
            kind = kinds[positive]
            pool = by_kind[kind] if len(by_kind[kind]) else others
            pairs.append((positive, pool[taken[kind] % len(pool)]))
            taken[kind] += 1
        dealt.append(np.array(pairs))
    return dealt


def mean_weights(member: Tensor, weight: Tensor) -> Tensor:
    """(concept, row) weights of a mean over the rows of each concept."""
    share = member * weight
    total = share.sum(1, keepdim=True)
    if bool((total <= 0).any()):
        raise RowsError("a concept has no positive or no negative row of any weight")
    return share / total


def _group_by_rows(marks: Tensor, weight: Tensor) -> list[tuple[list[int], Tensor]]:
    """Concepts that are marked on the same rows, and those rows."""
    used = (marks >= 0) & (weight > 0)
    together: dict[bytes, list[int]] = {}
    for place, row in enumerate(used.cpu().numpy()):
        together.setdefault(row.tobytes(), []).append(place)
    return [(chosen, used[chosen[0]]) for chosen in together.values()]

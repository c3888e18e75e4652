"""Directions of many concepts at one site, each method in a few matrix products.

All functions take the (row, d) float64 rows of one site and return unnormalized (concept, d)
directions in units of the rows, positive towards the concept.
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
"""Smallest ridge, relative to the total scatter, for which the scatter matrix is formed."""
CG_TOL = 1e-14
"""Relative residual of conjugate gradients."""
METHODS = ("mean", "kif", "lda", "logistic", "pca")


def mean_difference(x: Tensor, marks: Tensor, weight: Tensor) -> Tensor:
    """Mean of the rows that show a concept minus that of the rows that do not.

    Args:
        x: (row, d).
        marks: (concept, row) 1, 0 or -1.
        weight: (row,) >= 0.
    """
    return (mean_weights(marks == 1, weight) - mean_weights(marks == 0, weight)) @ x


def standardized_difference(x: Tensor, marks: Tensor, weight: Tensor) -> Tensor:
    """Mean difference of standardized columns, back in units of the rows.

    Columns are divided by their standard deviation over a concept's positive and negative rows
    together; constant columns are ignored.

    Source: KIF's activation signature, arXiv 2601.10566.
    """
    weights = mean_weights(marks >= 0, weight)
    variance = weights @ x.square() - (weights @ x).square()
    floor = 1e-12 * x.square().amax(0)
    difference = mean_difference(x, marks, weight)
    return torch.where(variance > floor, difference / variance.clamp(min=1e-300), 0.0)


def discriminant(x: Tensor, marks: Tensor, weight: Tensor, shrinkage: float = 0.1) -> Tensor:
    """Two-class linear discriminants of all concepts, from one decomposition.

    For each concept the solution of C w = difference of means, with C the pooled within-class
    covariance shrunk as in ``LDAProbe``. Concepts marked on the same rows share one decomposition,
    because their scatters differ by rank one.
    """
    if not 0 < shrinkage <= 1:
        raise RowsError("shrinkage must be above 0 and at most 1", got=str(shrinkage))
    directions = torch.zeros(len(marks), x.shape[1], dtype=x.dtype, device=x.device)
    for concepts, rows in _group_by_rows(marks, weight):
        chunk, chunk_weight = x[rows], weight[rows]
        chunk_marks = marks[concepts][:, rows]
        total = chunk_weight.sum()
        centered = chunk - (chunk_weight @ chunk) / total
        difference = mean_difference(centered, chunk_marks, chunk_weight)
        scaled = chunk_weight.sqrt()[:, None] * centered
        scatter_trace = scaled.square().sum()
        positive = ((chunk_marks == 1) * chunk_weight).sum(1)
        between = positive * (total - positive) / total
        norm2 = difference.square().sum(1)
        trace = (scatter_trace - between * norm2).clamp(min=0)
        ridge = shrinkage * trace / (total * x.shape[1])
        if bool(((ridge <= 0) & (norm2 > 0)).any()):
            raise RowsError(
                "no row differs from its class mean, so there is no covariance",
                fix="Use the mean difference",
            )
        scale = (1 - shrinkage) / total
        if bool((ridge < MIN_RIDGE_SHARE * scale * scatter_trace).any()):
            # The scatter squares the condition number and would lose a weak ridge: use an SVD.
            _, singular_values, axes = torch.linalg.svd(scaled, full_matrices=False)
            rhs = difference @ axes.T  # differences lie in the span of the rows
            solution = rhs / (scale * singular_values.square() + ridge.clamp(min=1e-300)[:, None])
        else:
            # With fewer rows than columns, solve for the coefficients of rows.
            in_row_space = len(chunk) < x.shape[1]
            row_rhs = (
                mean_weights(chunk_marks == 1, chunk_weight)
                - mean_weights(chunk_marks == 0, chunk_weight)
            ) / chunk_weight.sqrt()
            axes = scaled if in_row_space else None
            scatter = scaled @ scaled.T if in_row_space else scaled.T @ scaled
            rhs = row_rhs if in_row_space else difference
            solution = shifted_solve(scale * scatter, ridge, rhs)
            rhs = rhs @ scatter if in_row_space else rhs
        # Removing the between-class part from the scatter changes only the length.
        length_factor = 1 - scale * between * (rhs * solution).sum(1)
        solution = solution / length_factor[:, None]
        directions[concepts] = solution if axes is None else solution @ axes
    return directions


def shifted_solve(matrix: Tensor, shifts: Tensor, rhs: Tensor) -> Tensor:
    """Solve (matrix + shift I) s = rhs for every pair of a shift and a right-hand side.

    One inverse, at the smallest shift, preconditions all systems. It leaves a spectrum between 1
    and 1 + excess / shift, and conjugate gradients finish with one product with the inverse a step
    for all right-hand sides.

    Args:
        matrix: (k, k) symmetric positive semi-definite.
        shifts: (side,) > 0, or 0 where the right-hand side is 0.
        rhs: (side, k).

    Returns:
        (side, k) solutions; zero for a zero right-hand side.
    """
    is_nonzero = (rhs != 0).any(1)
    if not bool(is_nonzero.any()):
        return torch.zeros_like(rhs)
    min_shift = shifts[is_nonzero].min()
    inverse = torch.cholesky_inverse(
        torch.linalg.cholesky(matrix + min_shift * torch.eye(len(matrix)).to(matrix))
    )
    excess = (shifts - min_shift).clamp(min=0)[:, None]
    residual = rhs @ inverse
    solution, direction = torch.zeros_like(residual), residual.clone()
    residual2 = initial2 = residual.square().sum(1)
    for _ in range(len(matrix)):
        product = torch.addcmul(direction, excess, direction @ inverse)
        quadratic_form = (direction * product).sum(1)
        step = torch.where(quadratic_form > 0, residual2 / quadratic_form, 0.0)[:, None]
        solution.addcmul_(step, direction)
        residual.addcmul_(step, product, value=-1)
        new_residual2 = residual.square().sum(1)
        if bool((new_residual2 <= CG_TOL**2 * initial2).all()):
            break
        ratio = torch.where(residual2 > 0, new_residual2 / residual2, 0.0)
        direction, residual2 = (torch.addcmul(residual, ratio[:, None], direction), new_residual2)
    return solution


def logistic(
    x: Tensor, marks: Tensor, weight: Tensor, c: float = 0.1
) -> tuple[Tensor, tuple[UncertifiedFit, ...]]:
    """Penalized logistic directions, all concepts of the same rows in one solve.

    Columns are standardized over the rows in use; classes have equal weight.

    Returns:
        The directions, and the uncertified fits, whose label index is the concept.
    """
    uncertified: list[UncertifiedFit] = []
    directions = torch.zeros(len(marks), x.shape[1], dtype=x.dtype, device=x.device)
    options = LogisticOptions(C=c, balanced=True, standardize="all")
    for concepts, rows in _group_by_rows(marks, weight):
        chunk, chunk_weight = x[rows], weight[rows]
        codes = (marks[concepts][:, rows] == 1).long()
        fitted = _shared_preconditioner(chunk, codes, chunk_weight, options)
        if fitted is None:
            fitted, fits = _exact_factors(chunk, codes, chunk_weight, options)
            uncertified += [replace(fit, fold=None, label=concepts[fit.label]) for fit in fits]
        directions[concepts] = fitted
    return directions, tuple(uncertified)


def _shared_preconditioner(
    x: Tensor, codes: Tensor, weight: Tensor, options: LogisticOptions
) -> Tensor | None:
    """All concepts on one approximate preconditioner; None if one is not certified.

    A factor that is exact for one concept is poor for the others, and costs more than all of the
    fits.
    """
    scale = column_std(x, weight)
    rows = (x - x.mean(0)) / scale
    loss = Loss(one_hot(codes, 2), row_weights(codes, 2, weight[None], options))
    params, _, certificate = fit_primal(rows, loss, TOL[torch.float64], Work())
    # Negated so that NaN counts as uncertified.
    if not bool((certificate <= ACCEPTED_TOL[torch.float64]).all()):
        return None
    return params[:, :-1] / scale


def _exact_factors(
    x: Tensor, codes: Tensor, weight: Tensor, options: LogisticOptions
) -> tuple[Tensor, tuple[UncertifiedFit, ...]]:
    """The same on exact factors, and the uncertified fits."""
    all_rows = np.ones((1, len(x)), dtype=bool)
    folds = Folds(all_rows, ~all_rows, "all rows")
    fit = crossfit(x, codes, 2, folds, options, sample_weight=weight, coefficients=True)
    assert fit.coef is not None
    return fit.coef[:, 0, 0].to(x), fit.uncertified


def difference_component(x: Tensor, pairs: list[NDArray], weight: Tensor) -> Tensor:
    """First principal component of the differences between paired rows.

    Differences are not centered, which is equivalent to pairs in random order.

    Args:
        x: (row, d).
        pairs: For each concept (pair, 2) rows: one that shows it, one that does not.
        weight: (row,) >= 0.

    Source: the reading vectors of representation engineering, arXiv 2310.01405.
    """
    directions = torch.zeros(len(pairs), x.shape[1], dtype=x.dtype, device=x.device)
    pair_counts = {len(each) for each in pairs}
    for size in pair_counts:
        concepts = [concept for concept, each in enumerate(pairs) if len(each) == size]
        idx = torch.as_tensor(np.stack([pairs[concept] for concept in concepts]), device=x.device)
        pair_weight = (weight[idx[..., 0]] * weight[idx[..., 1]]).sqrt()
        differences = (x[idx[..., 0]] - x[idx[..., 1]]) * pair_weight[..., None]
        if size <= x.shape[1]:
            _, basis = torch.linalg.eigh(differences @ differences.transpose(1, 2))
            top = torch.einsum("cm,cmd->cd", basis[..., -1], differences)
        else:
            _, basis = torch.linalg.eigh(differences.transpose(1, 2) @ differences)
            top = basis[..., -1]
        mean_projection = torch.einsum("cmd,cd->c", differences, top)
        directions[concepts] = top * torch.where(mean_projection < 0, -1.0, 1.0)[:, None]
    return directions


def draw_pairs(
    marks: NDArray[np.int8], kinds: NDArray[np.int64], rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Pair each row that shows a concept with one that does not, of its kind if possible.

    Args:
        marks: (concept, row) 1, 0 or -1.
        kinds: (row,) kind of each row, such as its template.
        rng: Draws the pairs.
    """
    drawn = []
    for row in marks:
        negatives = rng.permutation(np.flatnonzero(row == 0))
        by_kind = {kind: negatives[kinds[negatives] == kind] for kind in np.unique(kinds)}
        taken = dict.fromkeys(by_kind, 0)
        pairs = []
        for positive in np.flatnonzero(row == 1):
            kind = kinds[positive]
            pool = by_kind[kind] if len(by_kind[kind]) else negatives
            pairs.append((positive, pool[taken[kind] % len(pool)]))
            taken[kind] += 1
        drawn.append(np.array(pairs))
    return drawn


def mean_weights(member: Tensor, weight: Tensor) -> Tensor:
    """(concept, row) weights that average the rows of each concept."""
    weighted = member * weight
    total = weighted.sum(1, keepdim=True)
    if bool((total <= 0).any()):
        raise RowsError("a concept has no positive or no negative row with weight")
    return weighted / total


def _group_by_rows(marks: Tensor, weight: Tensor) -> list[tuple[list[int], Tensor]]:
    """Groups of concepts that are marked on the same rows, and those rows."""
    is_used = (marks >= 0) & (weight > 0)
    groups: dict[bytes, list[int]] = {}
    for concept, row in enumerate(is_used.cpu().numpy()):
        groups.setdefault(row.tobytes(), []).append(concept)
    return [(concepts, is_used[concepts[0]]) for concepts in groups.values()]

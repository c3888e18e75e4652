"""Newton steps by elimination, for few small problems and for the stiffest."""

from collections.abc import Callable

import torch
from torch import Tensor

from probes.solvers.objective.batch import (
    Batch,
    Work,
    has_drifted,
    inner,
    local_squared_norm,
    residual_and_curvature,
    take_safeguarded_step,
)
from probes.solvers.objective.loss import Curvature

MAX_START_GRADIENT = 10.0
"""Largest pull of a row in a start, over the largest weight of a row."""

Solver = Callable[[Tensor, Curvature], tuple[Tensor, Tensor]]


def solve_direct(
    batch: Batch, tol: float, steps: int = 100
) -> tuple[Tensor, Tensor, Tensor]:
    """Newton steps by elimination, for few small problems and for the stiffest.

    Costs (classes x n)^3 a problem and step, or (d + 1)^3 with two classes and many
    rows, whatever the weights' range. Goes on from the batch's dual values where they
    are better than none.
    """
    dtype = batch.scores.dtype
    batch = Batch(
        batch.loss.to(torch.float64),
        batch.operator.to(torch.float64),
        batch.dual.double(),
        batch.scores.double(),
    )
    narrow = batch.loss.binary and batch.operator.factor.basis is not None
    solve = _basis_solver(batch) if narrow else _row_solver(batch)
    work = Work()
    _set_start(batch, work)
    certificate = torch.full_like(batch.scores[:, 0, 0], torch.inf)
    turn, off = 0, torch.ones_like(certificate, dtype=torch.bool)
    while turn < 3 and bool(off.any()):
        scores, batch.dual, certificate = _newton(batch, solve, tol, steps, work)
        batch.scores = batch.operator(batch.dual)
        turn, off = turn + 1, has_drifted(scores, batch.scores)
    certificate = torch.where(off, torch.inf, certificate)
    return batch.scores.to(dtype), batch.dual.to(dtype), certificate


def _newton(
    batch: Batch, solve: Solver, target: float, steps: int, work: Work
) -> tuple[Tensor, Tensor, Tensor]:
    """Newton steps until the target is met or they no longer help: the best point.

    The certificate is the length of the step that is left over that of the parameters,
    both in the metric of the Hessian where it stands. The factor's, which conjugate
    gradients go by, says nothing where separable rows have lost their curvature.
    """
    best = batch.scores.new_full((len(batch.scores),), torch.inf)
    answer = batch.scores.clone(), batch.dual.clone()
    stalled = torch.zeros_like(best)
    residual, curvature = residual_and_curvature(batch, work)
    for _ in range(steps):
        step, lift = solve(residual, curvature)
        slope = inner(residual, lift, work)
        # A slope below zero is rounding.
        now = (slope.abs() / local_squared_norm(batch, curvature, work)).sqrt()
        now = torch.nan_to_num(now, nan=torch.inf)
        better = now < best
        stalled = torch.where(now < 0.5 * best, 0.0, stalled + 1)
        best = torch.where(better, now, best)
        answer[0][better], answer[1][better] = batch.scores[better], batch.dual[better]
        if bool(((best <= target) | (stalled >= 25)).all()):
            break
        residual, curvature = take_safeguarded_step(batch, work, step, lift, slope)
    return *answer, best


def _set_start(batch: Batch, work: Work) -> None:
    """Start from the dual values given, or from nothing where that is better.

    Conjugate gradients that went astray may have left a point worse than no probe.
    """
    scores = batch.operator(batch.dual)
    # ||W||^2 = alpha' E with alpha = c - w E, which sums to 0 over rows.
    pull = batch.dual - batch.operator.weight * scores
    value = batch.loss.value(scores) + 0.5 * inner(pull, scores, work)
    better = value < batch.loss.value(torch.zeros_like(scores))
    # At the optimum no row pulls by more than its weight; far beyond it, what the
    # scores are is what products of huge numbers left of them.
    most = batch.loss.weight.amax((1, 2))
    better &= pull.abs().amax((1, 2)) <= MAX_START_GRADIENT * most
    better = better[:, None, None]
    batch.dual = torch.where(better, batch.dual, 0.0)
    batch.scores = torch.where(better, scores, 0.0)


def _row_solver(batch: Batch) -> Solver:
    """Newton steps (u, Q u) from n x n systems, classes x n with several classes."""
    n = batch.scores.shape[2]
    eye = torch.eye(n, dtype=torch.float64, device=batch.scores.device)
    product = batch.operator.dense()

    def solve(residual: Tensor, curvature: Curvature) -> tuple[Tensor, Tensor]:
        if batch.loss.binary:
            system = eye + curvature.diagonal.transpose(1, 2) * product[:, 0]
        else:
            system = _class_system(curvature, product, eye, batch.operator.weight)
        flat = residual.flatten(1)[:, :, None]
        # A system without a solution gives one that is no number, and no error: the
        # others must not lose theirs.
        step = torch.linalg.solve_ex(system, flat).result.view_as(residual)
        return step, (step[:, :, None] @ product)[:, :, 0]

    return solve


def _basis_solver(batch: Batch) -> Solver:
    """The same for two classes from r x r systems, where Q = B B' has a narrow B.

    With all rows' fixed weights w in the factor, the Hessian at weights W is that of
    the factor plus A'(W - w)A, so that Q u = B (I + B'(W - w)B)^-1 B' r, removed rows
    (W = 0) included.
    """
    assert batch.operator.factor.basis is not None
    basis = batch.operator.factor.basis[0]
    every, kept = batch.operator.factor.weight, batch.operator.weight
    eye = torch.eye(basis.shape[1], dtype=torch.float64, device=basis.device)

    def solve(residual: Tensor, curvature: Curvature) -> tuple[Tensor, Tensor]:
        change = curvature.diagonal + kept - every
        lift = torch.empty_like(residual)
        for problem, each in enumerate(change[:, 0]):
            system = eye + basis.T @ (basis * each[:, None])
            lower, failed = torch.linalg.cholesky_ex(system)
            side = basis.T @ residual[problem, 0]
            step = basis @ torch.cholesky_solve(side[:, None], lower)[:, 0]
            # So far out that no row bends: the intercept is free and no step is right.
            lift[problem, 0] = step if int(failed) == 0 else torch.nan
        return residual - curvature.diagonal * lift, lift

    return solve


def _class_system(
    curvature: Curvature, product: Tensor, eye: Tensor, fixed: Tensor
) -> Tensor:
    """(problem, class x n, class x n) Newton system of softmax problems.

    Args:
        curvature: Of the loss, less ``fixed``.
        product: (problem or 1, class or 1, n, n) Q.
        eye: (n, n).
        fixed: (problem or 1, class or 1, n) the fixed weights.
    """
    chance, weight = curvature.probabilities, curvature.weight
    assert chance is not None and weight is not None
    count, classes, n = chance.shape
    bend = -chance[:, :, None] * chance[:, None]
    bend.diagonal(dim1=1, dim2=2).add_(chance.transpose(1, 2))
    bend = bend * weight[:, None]
    bend.diagonal(dim1=1, dim2=2).sub_(curvature.diagonal.transpose(1, 2))
    # (problem, class, row, other class, other row)
    system = bend.transpose(2, 3)[..., None] * product.transpose(1, 2)[:, None]
    same = torch.eye(classes, dtype=eye.dtype, device=eye.device)
    system += same[None, :, None, :, None] * eye[None, None, :, None, :]
    # A shift of all intercepts, u = w, is held by nothing: give it unit stiffness.
    system = system.reshape(count, classes * n, classes * n)
    shift = fixed.expand(len(fixed), classes, n).flatten(1)
    return system + (shift / shift.sum(1, keepdim=True))[:, :, None]

"""When compiled solvers stand in for those of ``probes.solvers.newton.newton_cg_mixed``.

They are for many problems and CPU tensors: ``probes.solvers.compiled.newton_cg`` for
two classes, and ``probes.solvers.compiled.softmax_jacobi`` for several. Everywhere
else, and where numba is not installed, ``probes.solvers.newton.newton_cg_mixed`` is
what is computed; all end within the same certificates.
"""

import importlib.util
from functools import cache

import torch
from torch import Tensor

from probes.solvers.objective.batch import Batch, Limits, Work
from probes.solvers.objective.factor import MAX_SWEPT_ROWS, Factor, Operator
from probes.solvers.objective.loss import Loss

DTYPES = (torch.float64, torch.float32)
MAX_CG_STEPS = 100
"""Conjugate gradients of one Newton step, at most."""
MIN_PROBLEMS = 64
"""Problems at once from which on compiling pays, which takes many seconds the first
time. A number of problems and no clock: what is computed must not depend on it."""


@cache
def numba_installed() -> bool:
    """Whether numba is there."""
    return importlib.util.find_spec("numba") is not None


def supports_binary(batch: Batch) -> bool:
    """Whether the compiled way is for these problems."""
    if not batch.loss.binary or batch.operator.factor.matrix is None:
        return False
    removal = batch.operator.removal
    taken = 0 if removal is None else removal.rows.shape[1]
    return supports_size(len(batch.scores), taken, batch.scores)


def supports_size(n_problems: int, n_removed: int, scores: Tensor) -> bool:
    """Whether it is for so many problems.

    Args:
        n_problems: How many, and as many for each of several classes.
        n_removed: Rows that each takes out of the factor.
        scores: Any with their type and device.
    """
    here = scores.device.type == "cpu" and scores.dtype in DTYPES
    return (
        here
        and n_problems >= MIN_PROBLEMS
        and n_removed <= MAX_SWEPT_ROWS
        and numba_installed()
    )


def supports_softmax(batch: Batch) -> bool:
    """Whether ``solve_softmax`` is for these problems."""
    problems, classes, _ = batch.scores.shape
    removal = batch.operator.removal
    taken = 0 if removal is None else removal.rows.shape[1]
    here = not batch.loss.binary and batch.operator.factor.matrix is not None
    return here and supports_size(problems * classes, taken, batch.scores)


def supports_leave_out(factor: Factor, n_folds: int, n_removed: int) -> bool:
    """Whether ``solve_leave_out`` is for so many folds that take so many rows out each."""
    matrix = factor.matrix
    return matrix is not None and supports_size(n_folds, n_removed, matrix)


def solve_binary(
    batch: Batch,
    tol: float,
    accepted_tol: float,
    iteration_dtype: torch.dtype,
    limits: Limits,
    work: Work,
) -> tuple[Tensor, Tensor, Tensor]:
    """``swift.solve_binary`` for what ``supports_binary``.

    Args:
        batch: Problems, left as they are.
        tol: Certificate to reach.
        accepted_tol: Certificate to keep in the metric of the own Hessian.
        iteration_dtype: Type of most products.
        limits: How far to go.
        work: Where to count the work.

    Returns:
        (problem, 1, n) scores and dual values, (problem,) certificates.
    """
    operator, loss, kind = batch.operator, batch.loss, batch.scores.dtype
    given = (loss.weight, loss.target, operator.weight)
    matrix = _matrix(operator.factor)
    rows, core = _removal(operator, len(batch.scores))
    removal = rows, core[:, 0].contiguous()
    dual, scores = batch.dual[:, 0].clone(), batch.scores[:, 0].clone()
    ends = (tol, accepted_tol)
    certificate = _solve(
        given, matrix, removal, dual, scores, kind, iteration_dtype, ends, limits, work
    )
    return scores[:, None], dual[:, None], certificate


def solve_leave_out(
    factor: Factor,
    loss: Loss,
    neg_gradient: Tensor,
    scores: Tensor,
    rows: Tensor,
    dtype: torch.dtype,
    tols: tuple[float, float],
    iteration_dtype: torch.dtype,
    limits: Limits,
    work: Work,
) -> tuple[Tensor, Tensor, Tensor]:
    """Fits that each take a few rows out of one of all rows.

    What ``operators.remove_rows`` and ``solve_binary`` do, with nothing written for
    every fold that folds share.

    Args:
        factor: Q of all rows, float64.
        loss: Of all rows, (1, 1, n), or of each fold.
        neg_gradient: (n,) pull of the rows at the fit of all of them.
        scores: (n,) of that fit.
        rows: (fold, g) rows that each fold takes out, -1 where there is none.
        dtype: Type of the answer.
        tols: Certificate to reach, and to keep in the metric of the own Hessian.
        iteration_dtype: Type of most products.
        limits: How far to go.
        work: Where to count the work.

    Returns:
        (fold, 1, n) scores and dual values, (fold,) certificates, infinite where a
        fold was left.
    """
    from probes.solvers.compiled.downdate import start_folds

    matrix, weight = _matrix(factor), factor.weight
    folds, width = rows.shape
    core = torch.empty(folds, width, width, dtype=torch.float64)
    dual, start = torch.empty(2, folds, weight.shape[1], dtype=dtype)
    start_folds(
        matrix.numpy(),
        weight[0].numpy(),
        neg_gradient.numpy(),
        scores.numpy(),
        rows.numpy(),
        core.numpy(),
        dual.numpy(),
        start.numpy(),
    )
    given = (loss.weight, loss.target, weight[None])
    removal = rows, core
    certificate = _solve(
        given, matrix, removal, dual, start, dtype, iteration_dtype, tols, limits, work
    )
    return start[:, None], dual[:, None], certificate


def solve_softmax(
    batch: Batch,
    tol: float,
    accepted_tol: float,
    iteration_dtype: torch.dtype,
    steps: int,
    work: Work,
) -> tuple[Tensor, Tensor, Tensor]:
    """Problems of several classes, turn by turn; see ``softmax_relaxation``.

    Args:
        batch: Problems, left as they are.
        tol: Certificate to reach in the factor's metric.
        accepted_tol: Certificate to reach in the metric of the own Hessian.
        iteration_dtype: Type of most products.
        steps: Turns, at most.
        work: Where to count the work.

    Returns:
        (problem, class, n) scores and dual values, and (problem,) certificates that
        hold in both metrics, infinite where a problem was left.
    """
    from probes.solvers.compiled import softmax_jacobi

    operator, loss = batch.operator, batch.loss
    problems, matrix = len(batch.scores), operator.factor.matrix
    assert matrix is not None
    scores, dual = batch.scores.contiguous().clone(), batch.dual.contiguous().clone()
    rows, core = _removal(operator, problems)
    certificate = torch.empty(problems, dtype=torch.float64)
    matrix = matrix.contiguous()
    weights = loss.weight[:, 0].contiguous(), operator.weight.contiguous()
    quick, slow = softmax_jacobi.solve_jacobi(
        (loss.target.contiguous().numpy(), *(part.numpy() for part in weights)),
        matrix.numpy(),
        tuple(part.to(iteration_dtype).numpy() for part in (matrix, *weights)),
        rows.numpy(),
        (core.numpy(), core.to(iteration_dtype).numpy()),
        dual.numpy(),
        scores.numpy(),
        certificate.numpy(),
        steps,
        tol,
        accepted_tol,
    )
    work.products += quick + slow
    work.flops += (quick + slow) * operator.flops
    return scores, dual, certificate.to(scores)


def _solve(given, matrix, removal, dual, scores, kind, iterations, ends, limits, work):
    """Certificates of problems that are solved in place.

    ``given`` are the loss's weights and targets and the factor's weights, (problem or
    1, 1, n), ``matrix`` the (n, n) Q of all rows, ``removal`` the (problem, g) rows
    taken out and their (problem, g, g) core; ``dual`` and ``scores``, (problem, n) in
    the type ``kind``, are where to start.
    """
    from probes.solvers.compiled import newton_cg  # numba takes half a second to import

    rows, core = removal
    certificate = torch.empty(len(scores), dtype=torch.float64)
    light = given[0], given[2]
    target, accepted = ends
    quick, slow = newton_cg.solve(
        tuple(_as_rows(part, kind) for part in given),
        (matrix.to(kind).numpy(), core.to(kind).numpy()),
        (
            matrix.to(iterations).numpy(),
            *(_as_rows(part, iterations) for part in light),
        ),
        (rows.numpy(), core.to(iterations).numpy()),
        dual.numpy(),
        scores.numpy(),
        certificate.numpy(),
        limits.steps,
        (
            target,
            accepted,
            limits.newton_steps,
            MAX_CG_STEPS,
            limits.min_forcing,
            limits.rescore_above,
        ),
    )
    work.products += quick + slow
    work.flops += (quick + slow) * 2.0 * matrix.numel()
    return certificate.to(kind)


def _as_rows(block: Tensor, kind: torch.dtype):
    """(problem, n) of a block (problem, 1, n)."""
    return block.to(kind).contiguous().view(len(block), -1).numpy()


def _matrix(factor: Factor) -> Tensor:
    """(n, n) Q; as it is symmetric, its columns do for rows."""
    assert factor.matrix is not None
    matrix = factor.matrix[0]
    return matrix if matrix.is_contiguous() else matrix.T.contiguous()


def _removal(operator: Operator, problems: int) -> tuple[Tensor, Tensor]:
    """(problem, g) rows taken out, -1 for none, and their (problem, m, g, g) core."""
    removal, factors = operator.removal, operator.weight.shape[1]
    if removal is None:
        rows = torch.empty(problems, 0, dtype=torch.long)
        return rows, operator.weight.new_empty(problems, factors, 0, 0)
    core = removal.core.contiguous()
    there = core[:, 0].diagonal(dim1=1, dim2=2) != 0
    return torch.where(there, removal.rows, -1), core

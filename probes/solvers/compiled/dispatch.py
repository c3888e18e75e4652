"""Decide when the compiled solvers apply, and convert between torch and NumPy.

The compiled solvers need CPU tensors and many problems: two classes go to
``probes.solvers.compiled.newton_cg``, several to
``probes.solvers.compiled.softmax_jacobi``. All other problems, and all problems without numba,
are solved by ``probes.solvers.newton.newton_cg_mixed``, to the same certificates.
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
"""Most steps of conjugate gradients in a Newton step."""
MIN_PROBLEMS = 64
"""Smallest number of problems for which compiling pays; it takes many seconds the first time.
The rule counts problems and not time, so that results never depend on the machine's speed."""


@cache
def numba_installed() -> bool:
    """Whether numba is installed."""
    return importlib.util.find_spec("numba") is not None


def supports_binary(batch: Batch) -> bool:
    """Whether ``solve_binary`` applies to these problems."""
    if not batch.loss.binary or batch.operator.factor.matrix is None:
        return False
    removal = batch.operator.removal
    n_removed = 0 if removal is None else removal.rows.shape[1]
    return supports_size(len(batch.scores), n_removed, batch.scores)


def supports_size(n_problems: int, n_removed: int, scores: Tensor) -> bool:
    """Whether the compiled solvers apply to this many problems.

    Args:
        n_problems: Number of problems, times classes if there are several.
        n_removed: Rows that each problem leaves out of the factor.
        scores: Any tensor of their type and device.
    """
    on_cpu = scores.device.type == "cpu" and scores.dtype in DTYPES
    return (
        on_cpu and n_problems >= MIN_PROBLEMS and n_removed <= MAX_SWEPT_ROWS and numba_installed()
    )


def supports_softmax(batch: Batch) -> bool:
    """Whether ``solve_softmax`` applies to these problems."""
    n_problems, classes, _ = batch.scores.shape
    removal = batch.operator.removal
    n_removed = 0 if removal is None else removal.rows.shape[1]
    applies = not batch.loss.binary and batch.operator.factor.matrix is not None
    return applies and supports_size(n_problems * classes, n_removed, batch.scores)


def supports_leave_out(factor: Factor, n_folds: int, n_removed: int) -> bool:
    """Whether ``solve_leave_out`` applies to this many folds, each without ``n_removed`` rows."""
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
    """As ``newton_cg_mixed.solve_mixed``, for problems that ``supports_binary`` accepts.

    Args:
        batch: Problems; not changed.
        tol: Certificate to reach.
        accepted_tol: Certificate to keep in the metric of the local Hessian.
        iteration_dtype: Type of most products.
        limits: Iteration limits.
        work: Counters to update.

    Returns:
        (problem, 1, n) scores and dual values, (problem,) certificates.
    """
    operator, loss, dtype = batch.operator, batch.loss, batch.scores.dtype
    given = (loss.weight, loss.target, operator.weight)
    matrix = _matrix(operator.factor)
    rows, core = _removal(operator, len(batch.scores))
    removal = rows, core[:, 0].contiguous()
    dual, scores = batch.dual[:, 0].clone(), batch.scores[:, 0].clone()
    tols = (tol, accepted_tol)
    certificate = _solve(
        given, matrix, removal, dual, scores, dtype, iteration_dtype, tols, limits, work
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
    """Fits that each leave a few rows out of one factor of all rows.

    Does what ``factor.remove_rows`` and ``solve_binary`` do, without writing per-fold copies of
    shared arrays.

    Args:
        factor: Q of all rows, float64.
        loss: Of all rows, (1, 1, n), or of each fold.
        neg_gradient: (n,) of the loss by the scores, at the fit of all rows.
        scores: (n,) of that fit.
        rows: (fold, g) rows that each fold leaves out, -1 where there is none.
        dtype: Type of the answer.
        tols: Certificate to reach, and to keep in the metric of the local Hessian.
        iteration_dtype: Type of most products.
        limits: Iteration limits.
        work: Counters to update.

    Returns:
        (fold, 1, n) scores and dual values, (fold,) certificates, infinite for unsolved folds.
    """
    from probes.solvers.compiled.downdate import start_folds

    matrix, weight = _matrix(factor), factor.weight
    n_folds, width = rows.shape
    core = torch.empty(n_folds, width, width, dtype=torch.float64)
    dual, start = torch.empty(2, n_folds, weight.shape[1], dtype=dtype)
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
    """Nonlinear Jacobi for several classes; see ``probes.solvers.compiled.softmax_jacobi``.

    Args:
        batch: Problems; not changed.
        tol: Certificate to reach in the factor's metric.
        accepted_tol: Certificate to reach in the metric of the local Hessian.
        iteration_dtype: Type of most products.
        steps: Most iterations.
        work: Counters to update.

    Returns:
        (problem, class, n) scores and dual values, and (problem,) certificates that hold in both
        metrics, infinite for unsolved problems.
    """
    from probes.solvers.compiled import softmax_jacobi

    operator, loss = batch.operator, batch.loss
    n_problems, matrix = len(batch.scores), operator.factor.matrix
    assert matrix is not None
    scores, dual = batch.scores.contiguous().clone(), batch.dual.contiguous().clone()
    rows, core = _removal(operator, n_problems)
    certificate = torch.empty(n_problems, dtype=torch.float64)
    matrix = matrix.contiguous()
    weights = loss.weight[:, 0].contiguous(), operator.weight.contiguous()
    n_fast, n_exact = softmax_jacobi.solve_jacobi(
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
    work.products += n_fast + n_exact
    work.flops += (n_fast + n_exact) * operator.flops
    return scores, dual, certificate.to(scores)


def _solve(loss, matrix, removal, dual, scores, dtype, iteration_dtype, tols, limits, work):
    """Solve in place and return certificates.

    ``loss`` holds the loss's weights and targets and the factor's weights, (problem or 1, 1, n);
    ``matrix`` is the (n, n) Q of all rows; ``removal`` holds the (problem, g) rows left out and
    their (problem, g, g) core; ``dual`` and ``scores``, (problem, n) of type ``dtype``, hold the
    start and receive the answer.
    """
    from probes.solvers.compiled import newton_cg  # numba takes half a second to import

    rows, core = removal
    certificate = torch.empty(len(scores), dtype=torch.float64)
    loss_weights = loss[0], loss[2]
    tol, accepted_tol = tols
    n_fast, n_exact = newton_cg.solve(
        tuple(_as_rows(part, dtype) for part in loss),
        (matrix.to(dtype).numpy(), core.to(dtype).numpy()),
        (
            matrix.to(iteration_dtype).numpy(),
            *(_as_rows(part, iteration_dtype) for part in loss_weights),
        ),
        (rows.numpy(), core.to(iteration_dtype).numpy()),
        dual.numpy(),
        scores.numpy(),
        certificate.numpy(),
        limits.steps,
        (
            tol,
            accepted_tol,
            limits.newton_steps,
            MAX_CG_STEPS,
            limits.min_forcing,
            limits.rescore_above,
        ),
    )
    work.products += n_fast + n_exact
    work.flops += (n_fast + n_exact) * 2.0 * matrix.numel()
    return certificate.to(dtype)


def _as_rows(block: Tensor, dtype: torch.dtype):
    """(problem, n) array of a (problem, 1, n) tensor."""
    return block.to(dtype).contiguous().view(len(block), -1).numpy()


def _matrix(factor: Factor) -> Tensor:
    """(n, n) Q, row-major; Q is symmetric, so a transpose suffices."""
    assert factor.matrix is not None
    matrix = factor.matrix[0]
    return matrix if matrix.is_contiguous() else matrix.T.contiguous()


def _removal(operator: Operator, n_problems: int) -> tuple[Tensor, Tensor]:
    """(problem, g) rows left out, -1 for none, and their (problem, m, g, g) core."""
    removal, n_factors = operator.removal, operator.weight.shape[1]
    if removal is None:
        rows = torch.empty(n_problems, 0, dtype=torch.long)
        return rows, operator.weight.new_empty(n_problems, n_factors, 0, 0)
    core = removal.core.contiguous()
    present = core[:, 0].diagonal(dim1=1, dim2=2) != 0
    return torch.where(present, removal.rows, -1), core

"""When the compiled short way of ``probes.rowsolve`` stands in for ``probes.swift``.

It is for many problems of two classes and CPU tensors. Everywhere else, and where numba
is not installed, the torch expressions of ``probes.swift`` are what is computed; both
end within the same certificates.
"""

import importlib.util
from functools import cache

import torch
from torch import Tensor

from probes.operators import NARROW
from probes.problems import Batch, Work

KINDS = (torch.float64, torch.float32)
CYCLES = 100
"""Conjugate gradients of one Newton step, at most."""
FEWEST = 64
"""Problems at once from which on compiling pays, which takes many seconds the first
time. A number of problems and no clock: what is computed must not depend on it."""


@cache
def installed() -> bool:
    """Whether numba is there."""
    return importlib.util.find_spec("numba") is not None


def suits(batch: Batch) -> bool:
    """Whether the compiled way is for these problems."""
    if not batch.loss.binary or batch.operator.factor.matrix is None:
        return False
    removal = batch.operator.removal
    taken = 0 if removal is None else removal.rows.shape[1]
    return serves(len(batch.scores), taken, batch.scores)


def serves(problems: int, taken: int, scores: Tensor) -> bool:
    """Whether it is for so many problems of two classes.

    Args:
        problems: How many.
        taken: Rows that each takes out of the factor.
        scores: Any with their type and device.
    """
    here = scores.device.type == "cpu" and scores.dtype in KINDS
    return here and problems >= FEWEST and taken <= NARROW and installed()


def approach(
    batch: Batch,
    target: float,
    accepted: float,
    iterations: torch.dtype,
    goal: float,
    steps: int,
    limits: tuple[int, float, float],
    work: Work,
) -> tuple[Tensor, Tensor, Tensor]:
    """``swift.approach`` for what ``suits``.

    Args:
        batch: Problems, left as they are.
        target: Certificate to reach.
        accepted: Certificate to keep in the metric of the own Hessian.
        iterations: Type of most products.
        goal: Certificate at which float32 has done its part where steps are many.
        steps: Steps down, at most.
        limits: Linear systems on exact residuals, at most; the least share of a
            residual that is asked to be left; the certificate from which on steps in
            the type of most products move scores without harm.
        work: Where to count the work.

    Returns:
        (problem, 1, n) scores and dual values, (problem,) certificates.
    """
    operator = batch.operator
    if iterations != batch.scores.dtype and operator.removal is None and steps > 0:
        # Far from their optima steps are many, and passes in float32 cost half.
        rough = Batch(
            batch.loss.to(iterations),
            operator.to(iterations),
            batch.dual.to(iterations),
            batch.scores.to(iterations),
        )
        few = (1, *limits[1:])
        _, dual, _ = _solve(rough, goal, torch.inf, iterations, steps, few, work)
        batch, steps = Batch(batch.loss, operator, dual.to(batch.dual), batch.scores), 0
    return _solve(batch, target, accepted, iterations, steps, limits, work)


def _solve(batch, target, accepted, iterations, steps, limits, work):
    """Arguments as ``approach`` has them; with no steps, no more than to polish."""
    from probes import rowsolve  # numba takes half a second to import

    operator, loss = batch.operator, batch.loss
    fast = operator.to(iterations)
    scores, dual = batch.scores.clone(), batch.dual.clone()
    certificate = torch.empty(len(scores), dtype=torch.float64)
    given = (loss.weight, loss.target, operator.weight)
    turns, finest, near = limits
    quick, slow = rowsolve.approach(
        tuple(_table(each) for each in given),
        (_matrix(operator), *_removal(operator, len(scores))),
        (_matrix(fast), _table(fast.weight), *_removal(fast, len(scores))),
        _table(dual),
        _table(scores),
        certificate.numpy(),
        steps,
        (target, accepted, turns, CYCLES, finest, near),
    )
    work.products += quick + slow
    work.flops += (quick + slow) * operator.flops
    return scores, dual, certificate.to(scores)


def _table(block: Tensor):
    """(problem, n) view of a block (problem, 1, n)."""
    return block.contiguous().view(len(block), -1).numpy()


def _matrix(operator):
    matrix = operator.factor.matrix
    assert matrix is not None
    return matrix[0].contiguous().numpy()


def _removal(operator, problems: int):
    """Rows taken out, their core and their strips; empty where there are none."""
    removal = operator.removal
    if removal is None:
        n = operator.weight.shape[-1]
        kind = operator.weight
        return (
            torch.empty(problems, 0, dtype=torch.long).numpy(),
            kind.new_empty(problems, 0, 0).numpy(),
            kind.new_empty(problems, 0, n).numpy(),
        )
    return (
        removal.rows.contiguous().numpy(),
        removal.core[:, 0].contiguous().numpy(),
        removal.strips[:, 0].contiguous().numpy(),
    )

"""The shared factor: one inverse Hessian a site, seen from the rows.

With rows A = [X, 1] (X centred), penalty on X's coefficients only and fixed row
weights w, the Hessian is H = diag(I, 0) + A'diag(w)A and every solver step needs only
Q = A H^-1 A'. Where features are many it follows from the Gram matrix K = X X' alone:

    Q0 = (K^-1 + diag(w))^-1 = S^-1 (I - (I + S K S)^-1) S^-1,   S = diag(w)^(1/2)
    Q  = Q0 + v v' / (w'v),                                      v = 1 - Q0 w

Where rows are many Q = B B' with B = A L^-T and H = L L'. Taking a few rows G out of H
corrects Q by rank |G|: Q + Q_G (w_G^-1 - Q_GG)^-1 Q_G' (Sherman-Morrison-Woodbury).

With several classes there is one Q for all of them or one a class, as w is: every
array below has a leading axis ``m`` of length 1 or the number of classes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

MAX_SWEPT_ROWS = 8
"""Up to so many removed rows are put back one by one."""


@dataclass(frozen=True)
class Factor:
    """Q for the rows fitted, and its reach to other rows.

    Attributes:
        weight: (m, n) the fixed weights w.
        matrix: (m, n, n) Q, where features are many.
        extra: (m, q, n) A_other H^-1 A' for q other rows, where features are many.
        basis: (m, n, r) B, where rows are many.
        extra_basis: (m, q, r) A_other L^-T, where rows are many.
    """

    weight: Tensor
    matrix: Tensor | None = None
    extra: Tensor | None = None
    basis: Tensor | None = None
    extra_basis: Tensor | None = None

    def dense_rows(self, rows: Tensor) -> Tensor:
        """(problem, m, g, n) Q's rows at ``rows``, (problem, g)."""
        if self.matrix is not None:
            return self.matrix[:, rows].transpose(0, 1).contiguous()
        assert self.basis is not None
        narrow = self.basis[:, rows].transpose(0, 1)
        return narrow @ self.basis.transpose(1, 2)

    def other_scores(self, dual: Tensor) -> Tensor:
        """Scores of the other rows given c, (problem, class, n) -> (..., q)."""
        if self.extra is not None:
            return _matmul_by_class(dual, self.extra.transpose(1, 2))
        assert self.basis is not None and self.extra_basis is not None
        return _matmul_by_class(
            _matmul_by_class(dual, self.basis), self.extra_basis.transpose(1, 2)
        )


def _matmul_by_class(
    batch: Tensor, matrix: Tensor, out: Tensor | None = None
) -> Tensor:
    """(problem, class, n) times (m, n, q), all classes at once or class by class."""
    problems, classes, _ = batch.shape
    size = matrix.shape[2]
    if out is None:
        out = batch.new_empty(problems, classes, size)
    if len(matrix) == 1:
        flat = batch.reshape(problems * classes, -1)
        torch.mm(flat, matrix[0], out=out.view(problems * classes, size))
    else:
        torch.bmm(batch.transpose(0, 1), matrix, out=out.transpose(0, 1))
    return out


def floor_weight(weight: Tensor, diagonal: Tensor) -> Tensor:
    """Row weights raised where they are too small to invert accurately.

    The factor is only a preconditioner, so its weights may differ from the
    curvature; where they all add up to less than 1 / K_ii, or one is below a twentieth
    of that, the difference changes nothing.
    """
    scale = diagonal.mean()
    if not bool(scale > 0):  # equal rows: nothing but the intercept is fitted
        return weight
    least = min(0.05, 0.4 / len(diagonal))
    return torch.maximum(weight, least / torch.maximum(diagonal, 0.01 * scale))


def gram_matrix(rows: Tensor) -> Tensor:
    """(n, n) inner products of rows, each computed once on the CPU."""
    if rows.device.type != "cpu":
        return rows @ rows.T
    # NumPy sees that both sides are one array, computes a half and mirrors it.
    array = rows.numpy()
    with np.errstate(over="ignore", invalid="ignore"):  # what follows has no factor
        return torch.from_numpy(array @ array.T)


def factor_gram(
    gram: Tensor, weight: Tensor, other_gram: Tensor | None = None
) -> Factor:
    """Q from a Gram matrix.

    Args:
        gram: (n, n) float64, Gram of the rows fitted.
        weight: (m, n) float64, > 0; see ``floor_weight``.
        other_gram: (q, n) float64, inner products of other rows with those fitted.
    """
    root = weight.sqrt()
    across, down = root[:, None, :], root[:, :, None]
    system = (down * across).mul_(gram)
    system.diagonal(dim1=1, dim2=2).add_(1)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(system))
    extra = None
    if other_gram is not None:
        extra = ((other_gram * across) @ inverse).div_(across)
    inverse.diagonal(dim1=1, dim2=2).sub_(1)
    over = 1 / root
    matrix = inverse.mul_(over[:, None, :]).mul_(-over[:, :, None])
    lift = 1 - matrix @ weight[:, :, None]
    scaled = (lift / (weight[:, None, :] @ lift)).transpose(1, 2)
    if extra is not None:
        extra.baddbmm_(1 - extra @ weight[:, :, None], scaled)
    return Factor(weight, matrix.baddbmm_(lift, scaled), extra)


def factor_features(
    rows: Tensor, weight: Tensor, other_rows: Tensor | None = None
) -> Factor:
    """B from the features themselves.

    Args:
        rows: (n, d) float64 rows fitted.
        weight: (m, n) float64, >= 0.
        other_rows: (q, d) float64 other rows.
    """
    n, d = rows.shape
    table = torch.cat([rows, rows.new_ones(n, 1)], 1)
    hessian = torch.stack(
        [gram_matrix((table * each.sqrt()[:, None]).T) for each in weight]
    )
    hessian.diagonal(dim1=1, dim2=2)[:, :d].add_(1)
    lower = torch.linalg.cholesky(hessian)

    def reduce(block: Tensor) -> Tensor:
        found = torch.linalg.solve_triangular(lower, block.T, upper=False)
        return found.transpose(1, 2).contiguous()

    if other_rows is None:
        return Factor(weight, basis=reduce(table))
    extended = torch.cat([other_rows, other_rows.new_ones(len(other_rows), 1)], 1)
    return Factor(weight, basis=reduce(table), extra_basis=reduce(extended))


@dataclass(frozen=True)
class Removal:
    """A few rows taken out of the factor, one set a problem.

    Attributes:
        rows: (problem, g) indices of removed rows, padded.
        core: (problem, m, g, g) (w_G^-1 - Q_GG)^-1, zero on padding.
        q_rows: (problem, m, g, n) Q's rows at ``rows``.
    """

    rows: Tensor
    core: Tensor
    q_rows: Tensor


@dataclass(frozen=True)
class Operator:
    """Applies Q to a batch of problems.

    Attributes:
        factor: Shared by all problems.
        weight: (problem or 1, m, n) fixed row weights, 0 on removed rows.
        removal: What each problem leaves out of the factor, if anything.
    """

    factor: Factor
    weight: Tensor
    removal: Removal | None = None

    def __call__(self, batch: Tensor, out: Tensor | None = None) -> Tensor:
        """Q applied to (problem, class, n), rows removed; into ``out`` if given."""
        if self.factor.matrix is not None:
            product = _matmul_by_class(batch, self.factor.matrix, out)
        else:
            basis = self.factor.basis
            assert basis is not None
            product = _matmul_by_class(
                _matmul_by_class(batch, basis), basis.transpose(1, 2), out
            )
        removal = self.removal
        if removal is None:
            return product
        size = removal.rows.shape[1]
        index = removal.rows[:, None, :].expand(*batch.shape[:2], size)
        pulled = product.gather(2, index)
        if size == 1:
            pushed = pulled * removal.core[:, :, 0]
        else:
            pushed = (pulled[:, :, None] @ removal.core)[:, :, 0]
        if (
            size <= MAX_SWEPT_ROWS
        ):  # thousands of tiny products cost more than a few sweeps
            for place in range(size):
                product.addcmul_(pushed[:, :, place, None], removal.q_rows[:, :, place])
            return product
        if removal.q_rows.shape[1] == 1:
            return product.baddbmm_(pushed, removal.q_rows[:, 0])
        flat = pushed.view(-1, 1, size)
        product.view(len(flat), 1, -1).baddbmm_(flat, removal.q_rows.flatten(0, 1))
        return product

    def dense(self) -> Tensor:
        """(problem or 1, m, n, n) Q itself, rows removed."""
        matrix = self.factor.matrix
        if matrix is None:
            assert self.factor.basis is not None
            matrix = self.factor.basis @ self.factor.basis.transpose(1, 2)
        if self.removal is None:
            return matrix[None]
        strips = self.removal.q_rows
        return matrix + strips.transpose(2, 3) @ (self.removal.core @ strips)

    def leverage(self) -> Tensor:
        """(problem or 1, m, n) w times the diagonal of Q, rows removed."""
        matrix = self.factor.matrix
        if matrix is None:
            assert self.factor.basis is not None
            own = self.factor.basis.square().sum(2)
        else:
            own = matrix.diagonal(dim1=1, dim2=2)
        if self.removal is None:
            return self.weight * own
        strips = self.removal.q_rows
        return self.weight * (own + ((self.removal.core @ strips) * strips).sum(2))

    @property
    def flops(self) -> float:
        """Floating-point operations of one product with one vector."""
        if self.factor.matrix is not None:
            return 2.0 * self.factor.matrix[0].numel()
        assert self.factor.basis is not None
        return 4.0 * self.factor.basis[0].numel()

    def select(self, problems: Tensor | slice) -> "Operator":
        """The problems ``problems`` (indices, or a slice, which copies nothing)."""
        weight = self.weight[problems] if len(self.weight) > 1 else self.weight
        if self.removal is None:
            return Operator(self.factor, weight)
        out = self.removal
        return Operator(
            self.factor,
            weight,
            Removal(out.rows[problems], out.core[problems], out.q_rows[problems]),
        )

    def to(self, dtype: torch.dtype) -> "Operator":
        """The same operator in another floating type."""
        if dtype == self.weight.dtype:
            return self

        def cast(part: Tensor | None) -> Tensor | None:
            return None if part is None else part.to(dtype)

        old = self.factor
        factor = Factor(
            old.weight.to(dtype),
            cast(old.matrix),
            cast(old.extra),
            cast(old.basis),
            cast(old.extra_basis),
        )
        out = self.removal
        if out is not None:
            out = Removal(out.rows, out.core.to(dtype), out.q_rows.to(dtype))
        return Operator(factor, self.weight.to(dtype), out)


def remove_rows(
    factor: Factor, rows: Tensor, present: Tensor
) -> tuple[Operator, Tensor]:
    """The operator with rows taken out, one set a problem.

    Args:
        factor: In float64.
        rows: (problem, g) indices of the rows to remove; padding may be anything.
        present: (problem, g) True where ``rows`` is not padding.

    Returns:
        The operator, and (problem, m, g, g) (I - w_G Q_GG)^-1, whose product with
        -a_G is the one-step solution that starts the exact one.
    """
    weight = factor.weight
    size, there = rows.shape[1], present[:, None]
    root = weight[:, rows].sqrt().transpose(0, 1)  # (problem, class, g)
    root = torch.where(there, root, weight.new_zeros(()))
    across, down = root[:, :, None, :], root[:, :, :, None]
    strips = factor.dense_rows(rows)
    index = rows[:, None, None, :].expand(-1, len(weight), size, -1)
    block = strips.gather(3, index) * across * down
    system = torch.eye(size, dtype=block.dtype, device=block.device) - block
    if size == 1:
        solved = 1 / system
    else:
        lower, failed = torch.linalg.cholesky_ex(system)
        # Rounding has taken what a fold leaves of its rows: that fold has no answer.
        lower[failed > 0] = torch.eye(size, dtype=lower.dtype, device=lower.device)
        solved = torch.cholesky_inverse(lower)
        solved[failed > 0] = torch.nan
    core = solved * across * down
    kept = weight.expand(len(rows), -1, -1).clone()
    zero = torch.where(there, 0.0, torch.inf).to(kept).expand(-1, len(weight), -1)
    kept.scatter_reduce_(2, rows[:, None].expand_as(zero), zero, "amin")
    safe = torch.where(there, root, torch.ones_like(root))
    first = solved * down / safe[:, :, None, :] * there[:, :, None]
    return Operator(factor, kept, Removal(rows, core, strips)), first

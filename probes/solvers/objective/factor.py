"""The shared factor of a site: the inverse Hessian, as a matrix Q between rows.

With rows A = [X, 1] (X centered), the penalty on X's coefficients only and fixed row weights w,
the Hessian is H = diag(I, 0) + A'diag(w)A, and solver steps need only Q = A H^-1 A'. If features
are many, Q follows from the Gram matrix K = X X' alone:

    Q0 = (K^-1 + diag(w))^-1 = S^-1 (I - (I + S K S)^-1) S^-1,   S = diag(w)^(1/2)
    Q  = Q0 + v v' / (w'v),                                      v = 1 - Q0 w

If rows are many, Q = B B' with B = A L^-T and H = L L'. Leaving a few rows G out of H is a
correction of rank |G|: Q + Q_G (w_G^-1 - Q_GG)^-1 Q_G' (Sherman-Morrison-Woodbury).

With several classes there is one Q for all or one for each, like w: every array below has a
leading axis ``m`` of length 1 or the number of classes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

MAX_SWEPT_ROWS = 8
"""Largest number of removed rows that are corrected one by one, without a matrix product."""


@dataclass(frozen=True)
class Factor:
    """Q between the rows fitted, and between those and other rows.

    Attributes:
        weight: (m, n) the fixed weights w.
        matrix: (m, n, n) Q, if features are many.
        extra: (m, q, n) A_other H^-1 A' for q other rows, if features are many.
        basis: (m, n, r) B, if rows are many.
        extra_basis: (m, q, r) A_other L^-T, if rows are many.
    """

    weight: Tensor
    matrix: Tensor | None = None
    extra: Tensor | None = None
    basis: Tensor | None = None
    extra_basis: Tensor | None = None

    def dense_rows(self, rows: Tensor) -> Tensor:
        """(problem, m, g, n) rows of Q at ``rows``, (problem, g)."""
        if self.matrix is not None:
            return self.matrix[:, rows].transpose(0, 1).contiguous()
        assert self.basis is not None
        basis_rows = self.basis[:, rows].transpose(0, 1)
        return basis_rows @ self.basis.transpose(1, 2)

    def other_scores(self, dual: Tensor) -> Tensor:
        """Scores of the other rows given c, (problem, class, n) -> (..., q)."""
        if self.extra is not None:
            return _matmul_by_class(dual, self.extra.transpose(1, 2))
        assert self.basis is not None and self.extra_basis is not None
        return _matmul_by_class(
            _matmul_by_class(dual, self.basis), self.extra_basis.transpose(1, 2)
        )


def _matmul_by_class(batch: Tensor, matrix: Tensor, out: Tensor | None = None) -> Tensor:
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
    """Raise row weights that are too small to invert accurately.

    The factor is only a preconditioner, so its weights may differ from the curvature. Raising them
    changes nothing where they sum to less than 1 / K_ii, or one is below a twentieth of that.
    """
    scale = diagonal.mean()
    if not bool(scale > 0):  # equal rows: only the intercept is fitted
        return weight
    min_leverage = min(0.05, 0.4 / len(diagonal))
    return torch.maximum(weight, min_leverage / torch.maximum(diagonal, 0.01 * scale))


def gram_matrix(rows: Tensor) -> Tensor:
    """(n, n) inner products of rows, each computed once on the CPU."""
    if rows.device.type != "cpu":
        return rows @ rows.T
    # NumPy detects A @ A.T, computes one triangle and mirrors it.
    array = rows.numpy()
    with np.errstate(over="ignore", invalid="ignore"):  # its factorization will fail
        return torch.from_numpy(array @ array.T)


def factor_gram(gram: Tensor, weight: Tensor, other_gram: Tensor | None = None) -> Factor:
    """Q from a Gram matrix.

    Args:
        gram: (n, n) float64, of the rows fitted.
        weight: (m, n) float64, > 0; see ``floor_weight``.
        other_gram: (q, n) float64, inner products of other rows with those fitted.
    """
    root = weight.sqrt()
    root_columns, root_rows = root[:, None, :], root[:, :, None]
    system = (root_rows * root_columns).mul_(gram)
    system.diagonal(dim1=1, dim2=2).add_(1)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(system))
    extra = None
    if other_gram is not None:
        extra = ((other_gram * root_columns) @ inverse).div_(root_columns)
    inverse.diagonal(dim1=1, dim2=2).sub_(1)
    inverse_root = 1 / root
    matrix = inverse.mul_(inverse_root[:, None, :]).mul_(-inverse_root[:, :, None])
    v = 1 - matrix @ weight[:, :, None]
    v_scaled = (v / (weight[:, None, :] @ v)).transpose(1, 2)
    if extra is not None:
        extra.baddbmm_(1 - extra @ weight[:, :, None], v_scaled)
    return Factor(weight, matrix.baddbmm_(v, v_scaled), extra)


def factor_features(rows: Tensor, weight: Tensor, other_rows: Tensor | None = None) -> Factor:
    """B from the features.

    Args:
        rows: (n, d) float64 rows fitted.
        weight: (m, n) float64, >= 0.
        other_rows: (q, d) float64.
    """
    n, d = rows.shape
    design = torch.cat([rows, rows.new_ones(n, 1)], 1)
    hessian = torch.stack(
        [gram_matrix((design * row_weight.sqrt()[:, None]).T) for row_weight in weight]
    )
    hessian.diagonal(dim1=1, dim2=2)[:, :d].add_(1)
    lower = torch.linalg.cholesky(hessian)

    def reduce(block: Tensor) -> Tensor:
        solved = torch.linalg.solve_triangular(lower, block.T, upper=False)
        return solved.transpose(1, 2).contiguous()

    if other_rows is None:
        return Factor(weight, basis=reduce(design))
    other_design = torch.cat([other_rows, other_rows.new_ones(len(other_rows), 1)], 1)
    return Factor(weight, basis=reduce(design), extra_basis=reduce(other_design))


@dataclass(frozen=True)
class Removal:
    """A few rows left out of the factor, one set a problem.

    Attributes:
        rows: (problem, g) indices, padded.
        core: (problem, m, g, g) (w_G^-1 - Q_GG)^-1, zero on padding.
        q_rows: (problem, m, g, n) rows of Q at ``rows``.
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
        removal: Rows that each problem leaves out of the factor.
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
            product = _matmul_by_class(_matmul_by_class(batch, basis), basis.transpose(1, 2), out)
        removal = self.removal
        if removal is None:
            return product
        size = removal.rows.shape[1]
        idx = removal.rows[:, None, :].expand(*batch.shape[:2], size)
        gathered = product.gather(2, idx)
        if size == 1:
            coefficient = gathered * removal.core[:, :, 0]
        else:
            coefficient = (gathered[:, :, None] @ removal.core)[:, :, 0]
        if size <= MAX_SWEPT_ROWS:  # cheaper than thousands of tiny products
            for g in range(size):
                product.addcmul_(coefficient[:, :, g, None], removal.q_rows[:, :, g])
            return product
        if removal.q_rows.shape[1] == 1:
            return product.baddbmm_(coefficient, removal.q_rows[:, 0])
        flat = coefficient.view(-1, 1, size)
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
            diagonal = self.factor.basis.square().sum(2)
        else:
            diagonal = matrix.diagonal(dim1=1, dim2=2)
        if self.removal is None:
            return self.weight * diagonal
        strips = self.removal.q_rows
        return self.weight * (diagonal + ((self.removal.core @ strips) * strips).sum(2))

    @property
    def flops(self) -> float:
        """Floating-point operations of one product with one vector."""
        if self.factor.matrix is not None:
            return 2.0 * self.factor.matrix[0].numel()
        assert self.factor.basis is not None
        return 4.0 * self.factor.basis[0].numel()

    def select(self, problems: Tensor | slice) -> "Operator":
        """The given problems (indices, or a slice, which copies nothing)."""
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


def remove_rows(factor: Factor, rows: Tensor, present: Tensor) -> tuple[Operator, Tensor]:
    """The operator with rows removed, one set a problem.

    Args:
        factor: In float64.
        rows: (problem, g) indices of the rows to remove; any value on padding.
        present: (problem, g) False on padding.

    Returns:
        The operator, and (problem, m, g, g) (I - w_G Q_GG)^-1, whose product with -a_G is the
        one-step solution that starts the exact one.
    """
    weight = factor.weight
    size, mask = rows.shape[1], present[:, None]
    root = weight[:, rows].sqrt().transpose(0, 1)  # (problem, class, g)
    root = torch.where(mask, root, weight.new_zeros(()))
    root_columns, root_rows = root[:, :, None, :], root[:, :, :, None]
    strips = factor.dense_rows(rows)
    idx = rows[:, None, None, :].expand(-1, len(weight), size, -1)
    block = strips.gather(3, idx) * root_columns * root_rows
    system = torch.eye(size, dtype=block.dtype, device=block.device) - block
    if size == 1:
        inverse = 1 / system
    else:
        lower, failed = torch.linalg.cholesky_ex(system)
        # The fold's system is singular to rounding: mark it NaN, without stopping the others.
        lower[failed > 0] = torch.eye(size, dtype=lower.dtype, device=lower.device)
        inverse = torch.cholesky_inverse(lower)
        inverse[failed > 0] = torch.nan
    core = inverse * root_columns * root_rows
    weight_left = weight.expand(len(rows), -1, -1).clone()
    clamp = torch.where(mask, 0.0, torch.inf).to(weight_left).expand(-1, len(weight), -1)
    weight_left.scatter_reduce_(2, rows[:, None].expand_as(clamp), clamp, "amin")
    safe = torch.where(mask, root, torch.ones_like(root))
    one_step = inverse * root_rows / safe[:, :, None, :] * mask[:, :, None]
    return Operator(factor, weight_left, Removal(rows, core, strips)), one_step

"""The shared factor: one inverse Hessian a site, seen from the rows.

With rows A = [X, 1] (X centred), penalty on X's coefficients only and fixed row
weights w, the Hessian is H = diag(I, 0) + A'diag(w)A and every solver step needs only
Q = A H^-1 A'. Where features are many it follows from the Gram matrix K = X X' alone:

    Q0 = (K^-1 + diag(w))^-1 = S^-1 (I - (I + S K S)^-1) S^-1,   S = diag(w)^(1/2)
    Q  = Q0 + v v' / (w'v),                                      v = 1 - Q0 w

Where rows are many Q = B B' with B = A L^-T and H = L L'. Taking a few rows G out of H
corrects Q by rank |G|: Q + Q_G (w_G^-1 - Q_GG)^-1 Q_G' (Sherman-Morrison-Woodbury).
"""

from dataclasses import dataclass

import torch
from scipy.linalg.blas import dsyrk  # pyright: ignore
from torch import Tensor


@dataclass(frozen=True)
class Factor:
    """Q for the rows fitted, and its reach to other rows.

    Attributes:
        weight: (n,) the fixed weights w.
        matrix: (n, n) Q, where features are many.
        extra: (m, n) A_other H^-1 A', where features are many.
        basis: (n, r) B, where rows are many.
        extra_basis: (m, r) A_other L^-T, where rows are many.
    """

    weight: Tensor
    matrix: Tensor | None = None
    extra: Tensor | None = None
    basis: Tensor | None = None
    extra_basis: Tensor | None = None

    def dense_rows(self, rows: Tensor) -> Tensor:
        """(..., n) Q's rows at ``rows``."""
        if self.matrix is not None:
            return self.matrix[rows]
        assert self.basis is not None
        return self.basis[rows] @ self.basis.T

    def elsewhere(self, dual: Tensor) -> Tensor:
        """Scores of the other rows given c, (..., n) -> (..., m)."""
        if self.extra is not None:
            return dual @ self.extra.T
        assert self.basis is not None and self.extra_basis is not None
        return (dual @ self.basis) @ self.extra_basis.T


def floor_weight(weight: Tensor, diagonal: Tensor) -> Tensor:
    """Row weights raised where they are too small to invert accurately.

    The factor is only a preconditioner, so its weights may differ from the
    curvature; below a twentieth of 1 / K_ii the difference changes nothing.
    """
    scale = diagonal.mean()
    if not bool(scale > 0):  # equal rows: nothing but the intercept is fitted
        return weight
    return torch.maximum(weight, 0.05 / torch.maximum(diagonal, 0.01 * scale))


def gram_of(rows: Tensor) -> Tensor:
    """(n, n) inner products of float64 rows, each computed once on the CPU."""
    if rows.device.type != "cpu" or len(rows) < 64:
        return rows @ rows.T
    half = torch.from_numpy(dsyrk(1.0, rows.numpy().T, trans=1, lower=1))
    return torch.tril(half).add_(torch.tril(half, -1).T)


def factor_gram(gram: Tensor, weight: Tensor, other: Tensor | None = None) -> Factor:
    """Q from a Gram matrix.

    Args:
        gram: (n, n) float64, Gram of the rows fitted.
        weight: (n,) float64, > 0; see ``floor_weight``.
        other: (m, n) float64, inner products of other rows with those fitted.
    """
    root = weight.sqrt()
    system = gram * root
    system.mul_(root[:, None])
    system.diagonal().add_(1)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(system))
    extra = None
    if other is not None:
        extra = ((other * root) @ inverse).div_(root)
    matrix = inverse.neg_()
    matrix.diagonal().add_(1)
    matrix.div_(root).div_(root[:, None])
    lift = 1 - matrix @ weight
    scaled = lift / (weight @ lift)
    if extra is not None:
        extra.addr_(1 - extra @ weight, scaled)
    return Factor(weight, matrix.addr_(lift, scaled), extra)


def factor_features(
    rows: Tensor, weight: Tensor, other: Tensor | None = None
) -> Factor:
    """B from the features themselves.

    Args:
        rows: (n, d) float64 rows fitted.
        weight: (n,) float64, >= 0.
        other: (m, d) float64 other rows.
    """
    n, d = rows.shape
    table = torch.cat([rows, rows.new_ones(n, 1)], 1)
    hessian = table.T @ (table * weight[:, None])
    hessian.diagonal()[:d].add_(1)
    lower = torch.linalg.cholesky(hessian)

    def reduce(block: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(lower, block.T, upper=False).T.contiguous()

    if other is None:
        return Factor(weight, basis=reduce(table))
    extended = torch.cat([other, other.new_ones(len(other), 1)], 1)
    return Factor(weight, basis=reduce(table), extra_basis=reduce(extended))


@dataclass(frozen=True)
class Removal:
    """A few rows taken out of the factor, one set a problem.

    Attributes:
        rows: (problem, g) indices of removed rows, padded.
        core: (problem, g, g) (w_G^-1 - Q_GG)^-1, zero on padding.
        strips: (problem, g, n) Q's rows at ``rows``.
    """

    rows: Tensor
    core: Tensor
    strips: Tensor


@dataclass(frozen=True)
class Operator:
    """Applies Q to a batch of problems.

    Attributes:
        factor: Shared by all problems.
        weight: (problem or 1, 1, n) fixed row weights, 0 on removed rows.
        removal: What each problem leaves out of the factor, if anything.
    """

    factor: Factor
    weight: Tensor
    removal: Removal | None = None

    def __call__(self, batch: Tensor, out: Tensor | None = None) -> Tensor:
        """Q applied to (problem, class, n), rows removed; into ``out`` if given."""
        product = torch.empty_like(batch) if out is None else out
        flat = batch.reshape(-1, batch.shape[-1])
        into = product.view(flat.shape)
        if self.factor.matrix is not None:
            torch.mm(flat, self.factor.matrix, out=into)
        else:
            assert self.factor.basis is not None
            torch.mm(flat @ self.factor.basis, self.factor.basis.T, out=into)
        removal = self.removal
        if removal is None:
            return product
        size = removal.rows.shape[1]
        index = removal.rows[:, None, :].expand(*batch.shape[:2], size)
        pulled = product.gather(2, index)
        if size == 1:
            return product.addcmul_(pulled * removal.core, removal.strips)
        return product.baddbmm_(torch.bmm(pulled, removal.core), removal.strips)

    @property
    def flops(self) -> float:
        """Floating-point operations of one product with one vector."""
        if self.factor.matrix is not None:
            return 2.0 * self.factor.matrix.numel()
        assert self.factor.basis is not None
        return 4.0 * self.factor.basis.numel()

    def select(self, keep: Tensor) -> "Operator":
        """The problems ``keep`` (indices)."""
        weight = self.weight[keep] if len(self.weight) > 1 else self.weight
        if self.removal is None:
            return Operator(self.factor, weight)
        out = self.removal
        return Operator(
            self.factor,
            weight,
            Removal(out.rows[keep], out.core[keep], out.strips[keep]),
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
            out = Removal(out.rows, out.core.to(dtype), out.strips.to(dtype))
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
        The operator, and (problem, g, g) (I - w_G Q_GG)^-1, whose product with -a_G
        is the one-step solution that starts the exact one.
    """
    weight = factor.weight
    root = torch.where(present, weight[rows].sqrt(), weight.new_zeros(()))
    strips = factor.dense_rows(rows)
    block = strips.gather(2, rows[:, None, :].expand(-1, rows.shape[1], -1))
    block = block * root[:, None, :] * root[:, :, None]
    system = torch.eye(rows.shape[1], dtype=block.dtype, device=block.device) - block
    if rows.shape[1] == 1:
        solved = 1 / system
    else:
        solved = torch.cholesky_inverse(torch.linalg.cholesky(system))
    core = solved * root[:, None, :] * root[:, :, None]
    kept = weight.expand(len(rows), -1).clone()
    zero = torch.where(present, 0.0, torch.inf).to(kept)
    kept.scatter_reduce_(1, rows, zero, "amin")
    safe = torch.where(present, root, torch.ones_like(root))
    first = solved * root[:, :, None] / safe[:, None, :] * present[:, None, :]
    return Operator(factor, kept[:, None, :], Removal(rows, core, strips)), first

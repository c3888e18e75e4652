"""Geometry of probe directions and of sets of representations."""

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from evidence.arrays import as_tensor, check_finite
from evidence.errors import InputError


def cosine(a: ArrayLike | Tensor, b: ArrayLike | Tensor) -> float:
    """Cosine of the angle between two probe directions, (d,) each.

    Raises:
        InputError: a zero direction, or unequal lengths.
    """
    return mahalanobis_cosine(a, b, None)


def mahalanobis_cosine(
    a: ArrayLike | Tensor, b: ArrayLike | Tensor, covariance: ArrayLike | Tensor | None
) -> float:
    """A'Sb / sqrt(a'Sa b'Sb): the correlation of two probes' scores.

    Args:
        a: (d,) direction of a probe.
        b: (d,).
        covariance: (d, d) S of the activations; identity if None.

    Raises:
        InputError: shapes that do not fit, or a direction of zero variance.
    """
    u, v = as_tensor(a).flatten(), as_tensor(b).flatten()
    check_finite(u[None], "the directions")
    check_finite(v[None], "the directions")
    if u.shape != v.shape:
        raise InputError("directions differ in length", expected=str(len(u)), got=str(len(v)))
    left, right = u, v
    if covariance is not None:
        matrix = as_tensor(covariance)
        if matrix.shape != (len(u), len(u)):
            raise InputError(
                "the covariance does not fit the directions",
                expected=f"({len(u)}, {len(u)})",
                got=str(tuple(matrix.shape)),
            )
        left, right = matrix @ u, matrix @ v
    norms = (left @ u) * (right @ v)
    if not float(norms) > 0:
        raise InputError("a direction of zero length has no angle")
    return float((left @ v / norms.sqrt()).clamp(-1, 1))


def principal_angles(a: ArrayLike | Tensor, b: ArrayLike | Tensor) -> NDArray[np.float64]:
    """Principal angles between the spans of the rows, in radians, ascending.

    Small angles are computed from sines, to keep their digits.

    Args:
        a: (p, d) directions.
        b: (q, d) directions.

    Returns:
        (min of the two ranks,).

    Source: Bjorck and Golub (1973), Mathematics of Computation 27:579.

    Examples:
        >>> exhume.principal_angles(np.eye(3)[:2], np.eye(3)[1:]).round(6).tolist()
        [0.0, 1.570796]
    """
    p, q = _span(as_tensor(a)), _span(as_tensor(b))
    if p.shape[1] < q.shape[1]:
        p, q = q, p
    cosines = torch.linalg.svdvals(p.T @ q).clamp(max=1)
    sines = torch.linalg.svdvals(q - p @ (p.T @ q)).clamp(max=1).flip(0)
    angles = torch.where(cosines**2 > 0.5, torch.arcsin(sines), torch.arccos(cosines))
    return angles.cpu().numpy()


def _span(rows: Tensor) -> Tensor:
    rows = torch.atleast_2d(rows)
    check_finite(rows, "the directions")
    u, s, _ = torch.linalg.svd(rows.T, full_matrices=False)
    rank = int((s > s.max() * max(rows.shape) * 2.3e-16).sum()) if len(s) else 0
    if rank == 0:
        raise InputError("directions of zero length span nothing")
    return u[:, :rank]


def procrustes(x: ArrayLike | Tensor, y: ArrayLike | Tensor) -> float:
    """Squared orthogonal Procrustes distance of two sets of rows, between 0 and 2.

    Rows are centered and scaled to unit Frobenius norm first; the value is 2 - 2 ||X'Y||_*. It is 0
    if the sets are equal up to rotation.

    Args:
        x: (row, d).
        y: (row, e), the same rows.

    Source: Ding et al. (2021), arXiv 2108.01661.

    Examples:
        >>> x = np.random.default_rng(0).standard_normal((20, 3))
        >>> turned = x @ np.linalg.qr(np.arange(9.0).reshape(3, 3) ** 2)[0]
        >>> round(exhume.procrustes(x, turned), 6)
        0.0
    """
    a, b = _pair(x, y)
    a, b = a / a.norm(), b / b.norm()
    nuclear = torch.linalg.matrix_norm(_reduced(a).T @ _reduced(b), "nuc")
    return float((2 - 2 * nuclear).clamp(min=0))


def _pair(x: ArrayLike | Tensor, y: ArrayLike | Tensor) -> tuple[Tensor, Tensor]:
    a, b = as_tensor(x), as_tensor(y)
    if a.ndim != 2 or b.ndim != 2 or len(a) != len(b) or len(a) < 2:
        raise InputError(
            "the comparison needs two (row, d) tables of the same two or more rows",
            got=f"{tuple(a.shape)} and {tuple(b.shape)}",
        )
    for table in (a, b):
        check_finite(table)
    a, b = a - a.mean(0), b - b.mean(0)
    if not (float(a.norm()) > 0 and float(b.norm()) > 0):
        raise InputError("all rows are equal, so there is no geometry to compare")
    return a, b


def _reduced(x: Tensor) -> Tensor:
    """The rows, rotated into at most n columns."""
    n, d = x.shape
    return x if d <= n else torch.linalg.qr(x.T, mode="r").R.T


def change_in_top_components(
    before: ArrayLike | Tensor, after: ArrayLike | Tensor, k: int
) -> float:
    """Share of a change's squared norm in the first k principal components of the original.

    Any change has a share near k/d. A share near 1 means that the change lies where the original
    has its variance.

    Args:
        before: (row, d) original activations, which define the components; centered here.
        after: (row, d) the same rows in the other model.
        k: Number of components.
    """
    a, b = as_tensor(before), as_tensor(after)
    for table in (a, b):
        check_finite(table)
    if a.shape != b.shape or a.ndim != 2:
        raise InputError(
            "both models need the same (row, d) activations",
            expected=str(tuple(a.shape)),
            got=str(tuple(b.shape)),
        )
    if not 1 <= k <= min(a.shape):
        raise InputError("k is out of range", expected=f"1 to {min(a.shape)}", got=str(k))
    change = b - a
    total = float(change.square().sum())
    if total == 0:
        raise InputError("the activations are equal, so the share is undefined")
    basis = torch.linalg.svd(a - a.mean(0), full_matrices=False)[2][:k]
    return float((change @ basis.T).square().sum()) / total

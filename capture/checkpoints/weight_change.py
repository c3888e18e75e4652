"""The shape of an edit in weight space: how large, of what rank, and where it points.

Of each matrix that changed: the norm of its update, the stable rank of the update, and
how much of the update lies in the leading singular directions of the matrix as it was.
A low-rank update in one component is what adapters and closed-form edits leave; one
that avoids the leading directions keeps what they do. Where gradients of the answers'
loss are given: whether the update goes along them, and how much of it reads from their
leading directions. Unlearning that keeps to its place goes up the forget gradient and
stands at right angles to the retain gradient.

Sources: stable rank, Rudelson and Vershynin (2007), J. ACM 54:4; randomised subspace
iteration, Halko, Martinsson and Tropp (arXiv 0909.4061). Alignment of an update with
the principal subspaces of the weights as a sign of locality: SLUG (arXiv 2407.11867),
which also chooses layers by the angle of their forget and retain gradients.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from capture.checkpoints.safetensors_files import (
    HasWeights,
    block_index,
    paired_tensors,
)
from evidence.progress import SILENT, Progress
from evidence.seeds import torch_rng

# Leading directions looked at, and how often the subspace is sharpened.
N_LEADING, N_ITERATIONS = 16, 6


@dataclass(frozen=True, eq=False)
class LossGradients:
    """Gradients of the answers' loss in the model before, by matrix, as stored.

    Attributes:
        forget: Of what is to go.
        retain: Of what is to stay.
    """

    forget: Mapping[str, Tensor]
    retain: Mapping[str, Tensor]


@dataclass(frozen=True)
class UpdateShape:
    """How one matrix changed.

    Attributes:
        name: Its name.
        layer: The block it belongs to, None outside the blocks.
        component: What it does there: its name without the block, "mlp.down_proj".
        norm: Frobenius norm of the update.
        relative: The same over that of the matrix before.
        stable_rank: Squared Frobenius over squared spectral norm of the update; 1 for
            an outer product, up to the smaller side.
        input_share: Share of the update's squared norm that reads from the leading
            right singular directions of the matrix before.
        output_share: Share that writes into its leading left singular directions.
        input_chance: What ``input_share`` would be for an update that points nowhere.
        output_chance: What ``output_share`` would be.
        forget_cosine: Cosine of the update with the forget gradient: above 0 it raises
            that loss. None where no gradient is known.
        retain_cosine: The same with the retain gradient.
        forget_share: Share of the update's squared norm that reads from the leading
            right singular directions of the forget gradient; ``input_chance`` is what
            an update that points nowhere would have.
        retain_share: The same for the retain gradient.
    """

    name: str
    layer: int | None
    component: str
    norm: float
    relative: float
    stable_rank: float
    input_share: float
    output_share: float
    input_chance: float
    output_chance: float
    forget_cosine: float | None = None
    retain_cosine: float | None = None
    forget_share: float | None = None
    retain_share: float | None = None


def update_shapes(
    a: HasWeights,
    b: HasWeights,
    *,
    n_leading: int = N_LEADING,
    gradients: LossGradients | None = None,
    progress: Progress = SILENT,
) -> tuple[UpdateShape, ...]:
    """One row a matrix that differs between two checkpoints, read pair by pair.

    Rows and columns are as stored; in GPT-2's transposed maps inputs come first, which
    is taken into account.

    Args:
        a: The checkpoint before; it must be of the architecture of ``b``, which
            ``capture.checkpoints.safetensors_files.compare`` checks.
        b: The checkpoint after.
        n_leading: Directions that count as leading; fewer where a matrix is small.
        gradients: In the model before, to hold the update against.
        progress: Where progress is shown.
    """
    rows = []
    with (
        paired_tensors(a, b) as (first, second),
        progress.task("shape of the edit", len(first)) as advance,
    ):
        for name in first.names:
            advance(1)
            before = first.read(name)
            if before.dim() != 2 or name in first.mask_names:
                continue
            update = second.read(name).float() - before.float()
            if update.any():
                matrix = before.float()
                turned = _stored_turned(name)
                if turned:
                    matrix, update = matrix.T, update.T
                row = _shape(name, matrix, update, n_leading)
                along = _along(name, update, gradients, n_leading, turned)
                rows.append(replace(row, **along))
    return tuple(rows)


def by_component(rows: Sequence[UpdateShape]) -> list[dict[str, Any]]:
    """Means over the blocks, one row a component; JSON-ready, the largest first."""
    found = []
    for component in dict.fromkeys(row.component for row in rows):
        mine = [row for row in rows if row.component == component]
        layers = [row.layer for row in mine if row.layer is not None]

        def mean(what: str, mine: list[UpdateShape] = mine) -> float | None:
            values = [getattr(row, what) for row in mine]
            known = [value for value in values if value is not None]
            return sum(known) / len(known) if known else None

        found.append(
            {
                "component": component,
                "layers": layers,
                "norm": sum(row.norm**2 for row in mine) ** 0.5,
                **{
                    what: mean(what)
                    for what in (
                        "relative",
                        "stable_rank",
                        "input_share",
                        "output_share",
                        "input_chance",
                        "output_chance",
                        "forget_cosine",
                        "retain_cosine",
                        "forget_share",
                        "retain_share",
                    )
                },
            }
        )
    return sorted(found, key=lambda row: -row["norm"])


def _shape(name: str, before: Tensor, update: Tensor, leading: int) -> UpdateShape:
    outputs, inputs = before.shape
    count = min(leading, outputs, inputs)
    left, right = leading_directions(before, count)
    size = float(update.square().sum())
    top, _ = leading_directions(update, 1)
    spectral = float((top.T @ update).square().sum())
    whole = float(before.square().sum())
    block = block_index(name)
    component = name.removesuffix(".weight")
    if block is not None:
        component = component.split(f".{block}.", 1)[-1]
    return UpdateShape(
        name,
        block,
        component,
        size**0.5,
        # JSON has no infinity: a matrix of zeros has no relative change.
        min((size / whole) ** 0.5, 1e6) if whole else 1e6,
        size / spectral,
        float((update @ right).square().sum()) / size,
        float((left.T @ update).square().sum()) / size,
        count / inputs,
        count / outputs,
    )


def _along(
    name: str, update: Tensor, known: LossGradients | None, leading: int, turned: bool
) -> dict[str, float]:
    """Cosines and shares of one update; none where a gradient is missing or 0."""
    found = {}
    for what in ("forget", "retain") if known is not None else ():
        gradient = getattr(known, what).get(name)
        if gradient is None or gradient.shape[:: -1 if turned else 1] != update.shape:
            continue
        slope = (gradient.T if turned else gradient).float().to(update.device)
        size = float(slope.norm())
        if not 0 < size < float("inf"):
            continue
        length = float(update.norm())
        _, right = leading_directions(slope / size, min(leading, *slope.shape))
        found[f"{what}_cosine"] = float((slope / size * update).sum()) / length
        found[f"{what}_share"] = float((update @ right).square().sum()) / length**2
    return found


def leading_directions(matrix: Tensor, n_directions: int) -> tuple[Tensor, Tensor]:
    """Left and right singular directions of the largest singular values.

    Args:
        matrix: (m, n).
        n_directions: How many, at most the smaller side.

    Returns:
        (m, count) and (n, count), orthonormal columns; by randomised subspace
        iteration with a few directions to spare, the same at every call.
    """
    m, n = matrix.shape
    wide = min(n_directions + 8, m, n)
    rng = torch_rng(0, "leading directions")
    right = torch.randn(n, wide, generator=rng).to(matrix)
    for _ in range(N_ITERATIONS):
        left = torch.linalg.qr(matrix @ right)[0]
        right = torch.linalg.qr(matrix.T @ left)[0]
    u, _, v = torch.linalg.svd(matrix @ right, full_matrices=False)
    return u[:, :n_directions], (right @ v.T)[:, :n_directions]


def _stored_turned(name: str) -> bool:
    """Whether a matrix is stored (in, out), as GPT-2's blocks store theirs."""
    return name.rsplit(".", 2)[-2] in ("c_attn", "c_proj", "c_fc")

"""Change of weights between checkpoints: distances, and the geometry of updates.

``compare_weights`` gives relative distances by tensor and block. ``update_shapes`` describes the
update of each changed matrix: its norm and stable rank, and its share in the leading singular
directions of the original matrix. Adapters and closed-form edits leave low-rank updates in one
component; an update that avoids the leading directions preserves their function. If gradients of
the answer loss are given: the cosine of the update with the gradient, and the share of the update
that reads from the gradient's leading directions. Localized unlearning ascends the forget gradient
and is orthogonal to the retain gradient.

Sources: stable rank, Rudelson and Vershynin (2007), J. ACM 54:4; randomized subspace iteration,
Halko, Martinsson and Tropp (arXiv 0909.4061). Alignment of an update with the principal subspaces
of the weights as a sign of locality: SLUG (arXiv 2407.11867), which also chooses layers by the
angle between forget and retain gradients.
"""

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from capture.checkpoints.safetensors_files import NamedTensors, file_tensors, module_tensors
from capture.checkpoints.weights.weight_files import find_shards
from evidence.errors import InputError
from evidence.progress import AUTO, Progress, as_progress
from evidence.seeds import torch_rng

# Number of leading directions, and of subspace iterations.
N_LEADING, N_ITERATIONS = 16, 6


class HasWeights(Protocol):
    """The interface of a checkpoint that ``compare_weights`` needs."""

    @property
    def name(self) -> str:
        """Name in reports."""
        ...

    @property
    def path(self) -> Path | None:
        """Folder with the weights, if there is one."""
        ...

    @property
    def adapter(self) -> Path | None:
        """Folder of an adapter on top, if there is one."""
        ...

    def load(self) -> nn.Module:
        """The model itself, in float32."""
        ...


@dataclass(frozen=True)
class TensorChange:
    """Change of one tensor.

    Attributes:
        name: Name of the tensor.
        layer: Index of its block; None outside the blocks.
        relative: Frobenius norm of the change relative to that of the first tensor; infinite if
            only the first tensor is zero.
        size: Number of entries.
    """

    name: str
    layer: int | None
    relative: float
    size: int


@dataclass(frozen=True)
class WeightChange:
    """Difference between the weights of two checkpoints.

    Attributes:
        tensors: One entry per tensor, sorted by name.
        layers: Block index to the relative change of all its tensors; -1 for all tensors outside
            the blocks.
        relative: Relative change of all tensors.
        identical: Whether all values are equal.
    """

    tensors: tuple[TensorChange, ...]
    layers: dict[int, float]
    relative: float
    identical: bool


def compare_weights(a: HasWeights, b: HasWeights, progress: Progress = AUTO) -> WeightChange:
    """Relative Frobenius distance of the weights of ``b`` from those of ``a``.

    Tensors are read from the files, one pair at a time. Adapters, live models and checkpoints
    that store the same architecture under different names are loaded.

    Raises:
        InputError: the checkpoints differ in names or shapes of tensors.
    """
    with paired_tensors(a, b) as (first, second):
        return _weight_change(a.name, b.name, first, second, progress)


@contextmanager
def paired_tensors(a: HasWeights, b: HasWeights) -> Iterator[tuple[NamedTensors, NamedTensors]]:
    """The tensors of two checkpoints of one architecture, under the same names.

    Read from the files if both have files with the same names of tensors, all of which are used.
    """
    cropped = any(getattr(each, "vocabulary", None) is not None for each in (a, b))
    if a.path and b.path and not a.adapter and not b.adapter and not cropped:
        with (
            file_tensors(find_shards(a.path)) as first,
            file_tensors(find_shards(b.path)) as second,
        ):
            if first.names == second.names:
                yield first, second
                return
    model_a, model_b = a.load(), b.load()
    first, second = module_tensors(model_a), module_tensors(model_b)
    if first.names != second.names:
        # The output layer of one model may have been untied from its embedding.
        first, second = (
            module_tensors(model_a, keep_tied=True),
            module_tensors(model_b, keep_tied=True),
        )
    yield first, second


def _weight_change(
    a: str, b: str, first: NamedTensors, second: NamedTensors, progress: Progress
) -> WeightChange:
    unshared = sorted(set(first.names) ^ set(second.names))
    if unshared:
        owner = a if unshared[0] in first.readers else b
        raise InputError(
            f"{a} and {b} have different architectures",
            expected="the same tensors in both",
            got=f"{len(unshared)} tensors in only one, such as {unshared[0]} in {owner}",
        )
    rows: list[TensorChange] = []
    sums: dict[int, list[float]] = {}
    identical = True
    with as_progress(progress).task("comparing weights", len(first)) as advance:
        for name in first.names:
            advance(1)
            x, y = first.read(name), second.read(name)
            if x.shape != y.shape:
                raise InputError(
                    f"{a} and {b} have different architectures",
                    expected=f"{name} of shape {tuple(x.shape)}",
                    got=str(tuple(y.shape)),
                )
            if name in first.mask_names and not x.isfinite().all():
                identical = identical and torch.equal(x, y)
                continue
            x, y = x.double(), y.double()
            moved, size = float((y - x).square().sum()), float(x.square().sum())
            identical = identical and moved == 0
            layer = block_index(name)
            rows.append(TensorChange(name, layer, _ratio(moved, size), x.numel()))
            total = sums.setdefault(-1 if layer is None else layer, [0.0, 0.0])
            total[0] += moved
            total[1] += size
    layers = {layer: _ratio(*sums[layer]) for layer in sorted(sums)}
    moved, size = (sum(part) for part in zip(*sums.values(), strict=True))
    return WeightChange(tuple(rows), layers, _ratio(moved, size), identical)


@dataclass(frozen=True, eq=False)
class LossGradients:
    """Gradients of the answer loss in the model before the update, by parameter name.

    Attributes:
        forget: Gradients of the forget loss.
        retain: Gradients of the retain loss.
    """

    forget: Mapping[str, Tensor]
    retain: Mapping[str, Tensor]


@dataclass(frozen=True)
class UpdateShape:
    """Geometry of the update of one matrix.

    Attributes:
        name: Name of the matrix.
        layer: Index of its block; None outside the blocks.
        component: Its name within the block, such as "mlp.down_proj".
        norm: Frobenius norm of the update.
        relative: ``norm`` relative to the Frobenius norm of the original matrix.
        stable_rank: Squared Frobenius norm over squared spectral norm of the update; from 1 (an
            outer product) to the smaller dimension.
        input_share: Share of the update's squared norm that reads from the leading right
            singular directions of the original matrix.
        output_share: Share that writes to its leading left singular directions.
        input_chance: Expected ``input_share`` of a random update.
        output_chance: Expected ``output_share`` of a random update.
        forget_cosine: Cosine of the update with the forget gradient; above 0, the update raises
            the forget loss. None without a gradient.
        retain_cosine: Cosine with the retain gradient.
        forget_share: Share of the update's squared norm that reads from the leading right
            singular directions of the forget gradient; ``input_chance`` for a random update.
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
    names: Collection[str] | None = None,
    n_leading: int = N_LEADING,
    gradients: LossGradients | None = None,
    progress: Progress = AUTO,
) -> tuple[UpdateShape, ...]:
    """Geometry of the update of each matrix that differs between two checkpoints.

    The transposed storage of GPT-2's linear maps is taken into account.

    Args:
        a: The checkpoint before the update, of the same architecture as ``b`` (checked by
            ``compare_weights``).
        b: The checkpoint after the update.
        names: Tensors to read, such as those that ``compare_weights`` found changed; by default
            all.
        n_leading: Number of leading directions; fewer for small matrices.
        gradients: Gradients in the model before the update.
    """
    rows = []
    with (
        paired_tensors(a, b) as (first, second),
        as_progress(progress).task("shape of the edit", len(first)) as advance,
    ):
        for name in first.names:
            advance(1)
            if name in first.mask_names or (names is not None and name not in names):
                continue
            before = first.read(name)
            if before.dim() != 2:
                continue
            update = second.read(name).float() - before.float()
            if update.any():
                matrix = before.float()
                transposed = _is_stored_transposed(name)
                if transposed:
                    matrix, update = matrix.T, update.T
                row = _update_shape(name, matrix, update, n_leading)
                alignment = _gradient_alignment(name, update, gradients, n_leading, transposed)
                rows.append(replace(row, **alignment))
    return tuple(rows)


@dataclass(frozen=True)
class ComponentChange:
    """Geometry of the update of one component, such as ``mlp.down_proj``, over the blocks.

    The fields from ``relative`` on are means of the fields of ``UpdateShape``, None where no block
    has a value.

    Attributes:
        component: As in ``UpdateShape``.
        layers: The blocks.
        norm: Frobenius norm of the updates of all blocks.
    """

    component: str
    layers: tuple[int, ...]
    norm: float
    relative: float | None
    stable_rank: float | None
    input_share: float | None
    output_share: float | None
    input_chance: float | None
    output_chance: float | None
    forget_cosine: float | None
    retain_cosine: float | None
    forget_share: float | None
    retain_share: float | None


def by_component(rows: Sequence[UpdateShape]) -> tuple[ComponentChange, ...]:
    """Means over the blocks by component, sorted by norm."""
    result = []
    for component in dict.fromkeys(row.component for row in rows):
        component_rows = [row for row in rows if row.component == component]
        layers = [row.layer for row in component_rows if row.layer is not None]

        def mean(field: str, component_rows: list[UpdateShape] = component_rows) -> float | None:
            values = [getattr(row, field) for row in component_rows]
            known = [value for value in values if value is not None]
            return sum(known) / len(known) if known else None

        result.append(
            ComponentChange(
                component,
                tuple(layers),
                sum(row.norm**2 for row in component_rows) ** 0.5,
                relative=mean("relative"),
                stable_rank=mean("stable_rank"),
                input_share=mean("input_share"),
                output_share=mean("output_share"),
                input_chance=mean("input_chance"),
                output_chance=mean("output_chance"),
                forget_cosine=mean("forget_cosine"),
                retain_cosine=mean("retain_cosine"),
                forget_share=mean("forget_share"),
                retain_share=mean("retain_share"),
            )
        )
    return tuple(sorted(result, key=lambda change: -change.norm))


def _update_shape(name: str, before: Tensor, update: Tensor, leading: int) -> UpdateShape:
    outputs, inputs = before.shape
    n_directions = min(leading, outputs, inputs)
    left, right = leading_directions(before, n_directions)
    squared_norm = float(update.square().sum())
    top, _ = leading_directions(update, 1)
    spectral = float((top.T @ update).square().sum())
    squared_norm_before = float(before.square().sum())
    block = block_index(name)
    component = name.removesuffix(".weight")
    if block is not None:
        component = component.split(f".{block}.", 1)[-1]
    return UpdateShape(
        name,
        block,
        component,
        squared_norm**0.5,
        # JSON has no infinity, which would be the relative change of a zero matrix.
        min((squared_norm / squared_norm_before) ** 0.5, 1e6) if squared_norm_before else 1e6,
        squared_norm / spectral,
        float((update @ right).square().sum()) / squared_norm,
        float((left.T @ update).square().sum()) / squared_norm,
        n_directions / inputs,
        n_directions / outputs,
    )


def _gradient_alignment(
    name: str, update: Tensor, gradients: LossGradients | None, leading: int, transposed: bool
) -> dict[str, float]:
    """Cosines and shares of one update; empty if a gradient is missing or zero."""
    alignment = {}
    for role in ("forget", "retain") if gradients is not None else ():
        gradient = getattr(gradients, role).get(name)
        if gradient is None or gradient.shape[:: -1 if transposed else 1] != update.shape:
            continue
        matrix = (gradient.T if transposed else gradient).float().to(update.device)
        size = float(matrix.norm())
        if not 0 < size < float("inf"):
            continue
        length = float(update.norm())
        _, right = leading_directions(matrix / size, min(leading, *matrix.shape))
        alignment[f"{role}_cosine"] = float((matrix / size * update).sum()) / length
        alignment[f"{role}_share"] = float((update @ right).square().sum()) / length**2
    return alignment


def leading_directions(matrix: Tensor, n_directions: int) -> tuple[Tensor, Tensor]:
    """Leading left and right singular vectors, by randomized subspace iteration.

    Args:
        matrix: (m, n).

    Returns:
        (m, n_directions) and (n, n_directions) orthonormal columns; deterministic.
    """
    m, n = matrix.shape
    n_oversampled = min(n_directions + 8, m, n)
    rng = torch_rng(0, "leading directions")
    right = torch.randn(n, n_oversampled, generator=rng).to(matrix)
    for _ in range(N_ITERATIONS):
        left = torch.linalg.qr(matrix @ right)[0]
        right = torch.linalg.qr(matrix.T @ left)[0]
    u, _, v = torch.linalg.svd(matrix @ right, full_matrices=False)
    return u[:, :n_directions], (right @ v.T)[:, :n_directions]


def _is_stored_transposed(name: str) -> bool:
    """Whether a matrix is stored as (in, out), as in GPT-2's Conv1D."""
    return name.rsplit(".", 2)[-2] in ("c_attn", "c_proj", "c_fc")


def block_index(name: str) -> int | None:
    """Index of a tensor's block, the first number in its name; None if there is none."""
    match = re.search(r"(?:^|\.)(\d+)\.", name)
    return int(match[1]) if match else None


def _ratio(moved: float, size: float) -> float:
    if moved == 0:
        return 0.0
    return math.inf if size == 0 else math.sqrt(moved / size)

"""Weights: reading from validated files or modules, hashing, comparison.

``capture.checkpoints.weights.weight_files.find_shards`` alone decides which files belong to a
checkpoint.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor, nn

from capture.checkpoints.schemas.library_errors import library_errors
from capture.checkpoints.weights.safetensors_headers import read_header
from capture.checkpoints.weights.weight_files import find_shards, refuse_pickle
from evidence.errors import InputError
from evidence.progress import SILENT, Progress


@dataclass(frozen=True)
class CheckedFiles:
    """Weight files with their state at the time of the check.

    Attributes:
        paths: The files.
        file_stats: Device, inode, size and modification time of each file.
    """

    paths: tuple[Path, ...]
    file_stats: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, paths: Sequence[Path]) -> "CheckedFiles":
        """The files in their current state."""
        return cls(tuple(paths), tuple(map(_file_stats, paths)))

    @contextmanager
    def slices(self) -> Iterator[dict[str, Any]]:
        """Tensors by name, as lazily read slices.

        Raises:
            InputError: a file changed since it was checked.
        """
        with self._opened() as files:
            yield {name: file.get_slice(name) for file in files for name in file.keys()}

    @contextmanager
    def tensors(self) -> Iterator[dict[str, Tensor]]:
        """Tensors by name, in memory.

        Raises:
            InputError: as ``slices``.
        """
        with self._opened() as files:
            yield {
                name: file.get_tensor(name) for file in files for name in file.keys()
            }

    @contextmanager
    def _opened(self) -> Iterator[list[safe_open]]:
        with ExitStack() as stack:
            files = [stack.enter_context(open_safetensors(path)) for path in self.paths]
            if tuple(map(_file_stats, self.paths)) != self.file_stats:
                raise InputError(
                    f"{self.paths[0].parent} changed after its weights were checked",
                    expected="files that do not change during a run",
                    fix="Run the same command again",
                )
            yield files


def _file_stats(path: Path) -> tuple[int, ...]:
    now = path.stat()
    return now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns


@contextmanager
def open_safetensors(path: Path) -> Iterator[safe_open]:
    """Open a safetensors file after validating its header and length.

    Raises:
        InputError: the file is missing, empty, truncated, a pickle or not safetensors.
    """
    refuse_pickle(path)
    read_header(path)
    with ExitStack() as stack:
        with library_errors(
            f"{path} is damaged or cut short",
            expected="a whole safetensors file",
            fix="Copy or download it again",
        ):
            file = stack.enter_context(safe_open(path, framework="pt"))
        yield file


@dataclass(frozen=True)
class NamedTensors:
    """Named tensors, read one at a time from files or from a module.

    Attributes:
        readers: Tensor name to a function that reads it.
        mask_names: Names of tensors that may contain infinity: buffers of a live module, which
            may be attention masks, and masks in old files.
    """

    readers: Mapping[str, Callable[[], Tensor]]
    mask_names: frozenset[str] = frozenset()

    @property
    def names(self) -> list[str]:
        """Tensor names, sorted."""
        return sorted(self.readers)

    def __len__(self) -> int:
        return len(self.readers)

    def read(self, name: str) -> Tensor:
        """The tensor ``name``, on the CPU."""
        return self.readers[name]()


@contextmanager
def file_tensors(
    paths: Sequence[Path], mask_names: frozenset[str] = frozenset()
) -> Iterator[NamedTensors]:
    """The tensors of several safetensors files, validated and read on demand."""
    readers: dict[str, Callable[[], Tensor]] = {}
    with ExitStack() as stack:
        for path in paths:
            file = stack.enter_context(open_safetensors(path))
            for name in file.keys():
                if name in readers:
                    raise InputError(f"tensor {name} is in two files, one is {path}")
                readers[name] = lambda file=file, name=name: file.get_tensor(name)
        yield NamedTensors(readers, mask_names)


def module_tensors(module: nn.Module, *, keep_tied: bool = False) -> NamedTensors:
    """The state dict of a live module, without tied copies unless ``keep_tied``.

    Saved files leave out the same copies, so that files and modules can be compared.
    """
    state = module.state_dict()
    copies = getattr(module, "all_tied_weights_keys", None) or {}
    counts: dict[int, int] = {}
    for tensor in state.values():
        counts[tensor.data_ptr()] = counts.get(tensor.data_ptr(), 0) + 1
    return NamedTensors(
        {
            name: lambda tensor=tensor: tensor.detach().cpu()
            for name, tensor in state.items()
            if keep_tied or not (name in copies and counts[tensor.data_ptr()] > 1)
        },
        frozenset(name for name, _ in module.named_buffers()),
    )


def check_and_hash(tensors: NamedTensors, progress: Progress = SILENT) -> str:
    """Check that all tensors are finite and return their hash.

    Returns:
        sha256, in hex, over name, dtype, shape and bytes of the tensors in the order of their
        names; independent of sharding.

    Raises:
        InputError: a tensor contains NaN or infinity.
    """
    digest = hashlib.sha256()
    with progress.task("checking weights", len(tensors)) as advance:
        for name in tensors.names:
            tensor = tensors.read(name).contiguous()
            check_finite(name, tensor, allow_infinite=name in tensors.mask_names)
            head = json.dumps([name, str(tensor.dtype), list(tensor.shape)])
            digest.update(head.encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
            advance(1)
    return digest.hexdigest()


MAX_ABS_WEIGHT = 1e15
"""Sums of squares of larger weights overflow float32."""


def check_finite(name: str, tensor: Tensor, *, allow_infinite: bool = False) -> None:
    """Refuse a tensor with NaN, infinity or absurdly large numbers.

    Args:
        name: Name of the tensor, for the error message.
        tensor: A tensor of any type; integers pass.
        allow_infinite: Allow infinity, as in attention masks.

    Raises:
        InputError: a value is NaN, or exceeds ``MAX_ABS_WEIGHT`` (unless ``allow_infinite``).
    """
    if not tensor.is_floating_point():
        return
    # Some 8-bit float types do not support comparisons.
    values = tensor.float() if tensor.element_size() in (1, 8) else tensor
    valid = ~values.isnan() if allow_infinite else values.abs() <= MAX_ABS_WEIGHT
    if valid.all():
        return
    invalid = values[~valid]
    finite = bool(invalid.isfinite().all())
    raise InputError(
        f"the weights hold {'absurd numbers' if finite else 'NaN or infinity'} in "
        f"{name}",
        expected=f"numbers up to {MAX_ABS_WEIGHT:g}" if finite else "finite numbers",
        got=f"{invalid.numel()} of {tensor.numel()} that are not",
        fix="Training probably diverged; audit an earlier checkpoint",
    )


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


def compare_weights(
    a: HasWeights, b: HasWeights, progress: Progress = SILENT
) -> WeightChange:
    """Relative Frobenius distance of the weights of ``b`` from those of ``a``.

    Tensors are read from the files, one pair at a time. Adapters, live models and checkpoints
    that store the same architecture under different names are loaded.

    Raises:
        InputError: the checkpoints differ in names or shapes of tensors.
    """
    with paired_tensors(a, b) as (first, second):
        return _weight_change(a.name, b.name, first, second, progress)


@contextmanager
def paired_tensors(
    a: HasWeights, b: HasWeights
) -> Iterator[tuple[NamedTensors, NamedTensors]]:
    """The tensors of two checkpoints of one architecture, under the same names.

    Read from the files if both have files with the same names of tensors.
    """
    if a.path and b.path and not a.adapter and not b.adapter:
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
    with progress.task("comparing weights", len(first)) as advance:
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


def block_index(name: str) -> int | None:
    """Index of a tensor's block, the first number in its name; None if there is none."""
    match = re.search(r"(?:^|\.)(\d+)\.", name)
    return int(match[1]) if match else None


def _ratio(moved: float, size: float) -> float:
    if moved == 0:
        return 0.0
    return math.inf if size == 0 else math.sqrt(moved / size)

"""Weights: read from checked files or from modules, hashed, compared.

One function, ``capture.checkpoints.weights.weight_files.shards``, says which files are
a checkpoint's; these are checked, hashed, compared and loaded, and no others.
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
    """Weight files as they were when they were checked.

    Attributes:
        paths: The files.
        file_stats: Device, number, size and time of the last change of each.
    """

    paths: tuple[Path, ...]
    file_stats: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, paths: Sequence[Path]) -> "CheckedFiles":
        """These files as they are now."""
        return cls(tuple(paths), tuple(map(_mark, paths)))

    @contextmanager
    def slices(self) -> Iterator[dict[str, Any]]:
        """Their tensors by name, each read when it is asked for its numbers.

        Raises:
            InputError: a file is another than the one that was checked.
        """
        with self._opened() as files:
            yield {name: file.get_slice(name) for file in files for name in file.keys()}

    @contextmanager
    def tensors(self) -> Iterator[dict[str, Tensor]]:
        """Their tensors by name, all read at once.

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
            if tuple(map(_mark, self.paths)) != self.file_stats:
                raise InputError(
                    f"{self.paths[0].parent} changed after its weights were checked",
                    expected="files that stay as they are while they are worked with",
                    fix="Run the same command again",
                )
            yield files


def _mark(path: Path) -> tuple[int, ...]:
    now = path.stat()
    return now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns


@contextmanager
def open_safetensors(path: Path) -> Iterator[safe_open]:
    """``path`` opened as safetensors; the header and the length are checked.

    Raises:
        InputError: the file is missing, empty, a pickle, truncated or not safetensors.
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
    """Named tensors that can be read one at a time, from files or from a module.

    Attributes:
        readers: Tensor name to a function that reads it.
        mask_names: Names of tensors that may hold infinity: the buffers of a live module,
            where an attention mask is not a diverged weight, and masks in old files.
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
    """The tensors of several safetensors files, opened and checked, read on demand."""
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

    Saving leaves the same copies out, so that files and modules compare.
    """
    state = module.state_dict()
    copies = getattr(module, "all_tied_weights_keys", None) or {}
    places: dict[int, int] = {}
    for tensor in state.values():
        places[tensor.data_ptr()] = places.get(tensor.data_ptr(), 0) + 1
    return NamedTensors(
        {
            name: lambda tensor=tensor: tensor.detach().cpu()
            for name, tensor in state.items()
            if keep_tied or not (name in copies and places[tensor.data_ptr()] > 1)
        },
        frozenset(name for name, _ in module.named_buffers()),
    )


def check_and_hash(tensors: NamedTensors, progress: Progress = SILENT) -> str:
    """Read every tensor once: all values must be finite, and their hash is returned.

    Returns:
        sha256, in hex, over name, dtype, shape and raw bytes of the tensors in the
        order of their names: the same for the same weights however they are sharded.

    Raises:
        InputError: a tensor holds NaN or infinity.
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
"""Size from which squares of weights, summed, leave what float32 holds."""


def check_finite(name: str, tensor: Tensor, *, allow_infinite: bool = False) -> None:
    """Refuse a tensor with NaN, infinity or numbers that nothing can be computed with.

    Args:
        name: Of the tensor, for errors.
        tensor: Any type; whole numbers pass.
        allow_infinite: Whether it may hold infinity, as attention masks do.

    Raises:
        InputError: it holds NaN; or, unless ``allow_infinite``, a number beyond ``MAX_ABS_WEIGHT``.
    """
    if not tensor.is_floating_point():
        return
    # Some 8-bit floats have no comparison of their own.
    values = tensor.float() if tensor.element_size() in (1, 8) else tensor
    good = ~values.isnan() if allow_infinite else values.abs() <= MAX_ABS_WEIGHT
    if good.all():
        return
    odd = values[~good]
    finite = bool(odd.isfinite().all())
    raise InputError(
        f"the weights hold {'absurd numbers' if finite else 'NaN or infinity'} in "
        f"{name}",
        expected=f"numbers up to {MAX_ABS_WEIGHT:g}" if finite else "finite numbers",
        got=f"{odd.numel()} of {tensor.numel()} that are not",
        fix="Training probably diverged; audit an earlier checkpoint",
    )


class HasWeights(Protocol):
    """What ``compare_weights`` needs of a checkpoint."""

    @property
    def name(self) -> str:
        """What reports call it."""
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
    """How far one tensor moved.

    Attributes:
        name: Its name.
        layer: The block it belongs to, None outside the blocks.
        relative: Frobenius norm of the change over that of the first tensor; infinite
            where the first is all zeros and the second is not.
        size: Number of entries.
    """

    name: str
    layer: int | None
    relative: float
    size: int


@dataclass(frozen=True)
class WeightChange:
    """How far the weights of one checkpoint are from another's, tensor by tensor.

    Attributes:
        tensors: One row a tensor, by name.
        layers: Block to the relative change of all its tensors together; -1 stands
            for everything outside the blocks.
        relative: The same over all tensors.
        identical: Whether every value is equal.
    """

    tensors: tuple[TensorChange, ...]
    layers: dict[int, float]
    relative: float
    identical: bool


def compare_weights(
    a: HasWeights, b: HasWeights, progress: Progress = SILENT
) -> WeightChange:
    """How far the weights of ``b`` are from those of ``a``, in relative Frobenius norm.

    Tensors are read one pair at a time from the files; two checkpoints that store the
    same architecture under other names, or that are adapters or live, are loaded.

    Raises:
        InputError: different architectures: other names or shapes of tensors.
    """
    with paired_tensors(a, b) as (first, second):
        return _compare(a.name, b.name, first, second, progress)


@contextmanager
def paired_tensors(
    a: HasWeights, b: HasWeights
) -> Iterator[tuple[NamedTensors, NamedTensors]]:
    """The tensors of two checkpoints of one architecture, under the same names.

    They are read from the files where both have some that agree in their names.
    """
    if a.path and b.path and not a.adapter and not b.adapter:
        with (
            file_tensors(find_shards(a.path)) as first,
            file_tensors(find_shards(b.path)) as second,
        ):
            if first.names == second.names:
                yield first, second
                return
    one, other = a.load(), b.load()
    first, second = module_tensors(one), module_tensors(other)
    if first.names != second.names:
        # An output layer may have been cut loose from the embedding it was tied to.
        first, second = (
            module_tensors(one, keep_tied=True),
            module_tensors(other, keep_tied=True),
        )
    yield first, second


def _compare(
    a: str, b: str, first: NamedTensors, second: NamedTensors, progress: Progress
) -> WeightChange:
    odd = sorted(set(first.names) ^ set(second.names))
    if odd:
        owner = a if odd[0] in first.readers else b
        raise InputError(
            f"{a} and {b} have different architectures",
            expected="the same tensors in both",
            got=f"{len(odd)} tensors in only one, such as {odd[0]} in {owner}",
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
    """The block a tensor belongs to, or None: the first number in its name."""
    found = re.search(r"(?:^|\.)(\d+)\.", name)
    return int(found[1]) if found else None


def _ratio(moved: float, size: float) -> float:
    if moved == 0:
        return 0.0
    return math.inf if size == 0 else math.sqrt(moved / size)

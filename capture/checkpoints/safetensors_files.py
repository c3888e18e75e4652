"""Weights: reading from validated files or modules, and hashing.

``capture.checkpoints.weights.weight_files.find_shards`` alone decides which files belong to a
checkpoint.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from capture.checkpoints.schemas.library_errors import library_errors
from capture.checkpoints.weights.safetensors_headers import read_header
from capture.checkpoints.weights.weight_files import refuse_pickle
from evidence.errors import InputError
from evidence.progress import AUTO, Progress, as_progress


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
            yield {name: file.get_tensor(name) for file in files for name in file.keys()}

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


def check_and_hash(tensors: NamedTensors, progress: Progress = AUTO) -> str:
    """Check that all tensors are finite and return their hash.

    Returns:
        sha256, in hex, over name, dtype, shape and bytes of the tensors in the order of their
        names; independent of sharding.

    Raises:
        InputError: a tensor contains NaN or infinity.
    """
    digest = hashlib.sha256()
    with as_progress(progress).task("checking weights", len(tensors)) as advance:
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
        f"the weights hold {'absurd numbers' if finite else 'NaN or infinity'} in {name}",
        expected=f"numbers up to {MAX_ABS_WEIGHT:g}" if finite else "finite numbers",
        got=f"{invalid.numel()} of {tensor.numel()} that are not",
        fix="Training probably diverged; audit an earlier checkpoint",
    )

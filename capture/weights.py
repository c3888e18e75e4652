"""Weight files: what may be read, whether they are whole, and their fingerprint.

Only safetensors is read. A pickle runs code when it is opened, so it is recognised
by its first bytes, whatever the file is called, and refused.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from evidence.errors import InputError
from evidence.progress import SILENT, Progress

PICKLE_NAMES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill"}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def is_pickle(path: Path) -> bool:
    """Whether the content of ``path`` is a pickle, plain or in a torch zip archive.

    Protocols 2 and later begin with byte 0x80 and the protocol number; torch's
    archives begin as zip files; protocols 0 and 1 are text without a signature and
    are recognised only by the file's name.
    """
    with path.open("rb") as file:
        start = file.read(4)
    plain = len(start) >= 2 and start[0] == 0x80 and 2 <= start[1] <= 6
    return plain or start == b"PK\x03\x04"


def refuse_pickle(path: Path) -> None:
    """Stop before anything reads a pickle.

    Raises:
        InputError: ``path`` is a pickle by content, or has a pickle's name and is
            not safetensors.
    """
    if is_pickle(path) or path.suffix.lower() in PICKLE_NAMES:
        raise InputError(
            f"{path} is a pickle checkpoint: opening one can run any code in it",
            expected="safetensors weights",
            got=f"a {path.suffix or 'nameless'} file",
            fix="Save the model with save_pretrained, which writes safetensors, in the "
            "environment you trust it in, and pass that folder",
        )


@contextmanager
def opened(path: Path) -> Iterator[safe_open]:
    """``path`` opened as safetensors; the header and the length are checked.

    Raises:
        InputError: the file is missing, empty, a pickle, truncated or not safetensors.
    """
    if not path.is_file():
        raise InputError(
            f"{path} is missing",
            expected="every file of the checkpoint",
            fix="Copy or download the checkpoint again",
        )
    refuse_pickle(path)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise InputError(
            f"{path} is damaged or cut short ({error})",
            expected="a whole safetensors file",
            got=f"{path.stat().st_size} bytes",
            fix="Copy or download it again",
        ) from error


def shards(folder: Path) -> list[Path]:
    """The safetensors files that hold the weights of a Hugging Face folder, sorted.

    Raises:
        InputError: there are none, one named in the index is missing, the index is
            not valid, or there are only pickles.
    """
    index = folder / INDEX
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if index.is_file():
        return _indexed(folder, index)
    pickles = sorted(
        path for path in folder.iterdir() if path.suffix.lower() in PICKLE_NAMES
    )
    if pickles:
        refuse_pickle(pickles[0])
    raise InputError(
        f"{folder} holds no weights",
        expected=f"{SINGLE}, or {INDEX} with the files it names",
        got=", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing",
    )


def _indexed(folder: Path, index: Path) -> list[Path]:
    try:
        names = set(
            json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{index} is not a valid index of weight files",
            expected="a JSON object with a weight_map",
        ) from error
    # A name with a folder in it could point anywhere on the disk.
    strange = [name for name in names if Path(str(name)).name != name]
    if strange or not names:
        raise InputError(
            f"{index} names files outside its folder"
            if strange
            else f"{index} is empty",
            expected="plain file names",
            got=repr(strange[:3]),
        )
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        raise InputError(
            f"{folder} lacks {len(missing)} of its {len(names)} weight files",
            expected=f"all the files named in {INDEX}",
            got=f"no {', '.join(missing[:3])}",
            fix="Copy or download the checkpoint again",
        )
    return [folder / name for name in sorted(names)]


@dataclass(frozen=True)
class Tensors:
    """Named tensors that can be read one at a time, from files or from a module.

    Attributes:
        readers: Tensor name to a function that reads it.
        masks: Names of tensors that may hold infinity: the buffers of a live module,
            where an attention mask is not a diverged weight.
    """

    readers: Mapping[str, Callable[[], Tensor]]
    masks: frozenset[str] = frozenset()

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
def file_tensors(paths: list[Path]) -> Iterator[Tensors]:
    """The tensors of several safetensors files, opened and checked, read on demand."""
    readers: dict[str, Callable[[], Tensor]] = {}
    with ExitStack() as stack:
        for path in paths:
            file = stack.enter_context(opened(path))
            for name in file.keys():
                if name in readers:
                    raise InputError(f"tensor {name} is in two files, one is {path}")
                readers[name] = lambda file=file, name=name: file.get_tensor(name)
        yield Tensors(readers)


def module_tensors(module: nn.Module, *, tied: bool = False) -> Tensors:
    """The state dict of a live module, without tied copies unless ``tied``.

    Saving leaves the same copies out, so that files and modules compare.
    """
    state = module.state_dict()
    copies = getattr(module, "all_tied_weights_keys", None) or {}
    places: dict[int, int] = {}
    for tensor in state.values():
        places[tensor.data_ptr()] = places.get(tensor.data_ptr(), 0) + 1
    return Tensors(
        {
            name: lambda tensor=tensor: tensor.detach().cpu()
            for name, tensor in state.items()
            if tied or not (name in copies and places[tensor.data_ptr()] > 1)
        },
        frozenset(name for name, _ in module.named_buffers()),
    )


def check_and_hash(tensors: Tensors, progress: Progress = SILENT) -> str:
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
            check_finite(name, tensor, masks=name in tensors.masks)
            head = json.dumps([name, str(tensor.dtype), list(tensor.shape)])
            digest.update(head.encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
            advance(1)
    return digest.hexdigest()


def check_finite(name: str, tensor: Tensor, *, masks: bool = False) -> None:
    """Raise ``InputError`` if ``tensor`` holds NaN, or infinity unless ``masks``."""
    if not tensor.is_floating_point():
        return
    # Some 8-bit floats have no isfinite kernel of their own.
    values = tensor.float() if tensor.element_size() == 1 else tensor
    finite = ~values.isnan() if masks else values.isfinite()
    if finite.all():
        return
    raise InputError(
        f"the weights hold NaN or infinity in {name}",
        expected="finite numbers",
        got=f"{int((~finite).sum())} of {tensor.numel()} that are not",
        fix="Training probably diverged; audit an earlier checkpoint",
    )


class Weighted(Protocol):
    """What ``compare`` needs of a checkpoint."""

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


def compare(a: Weighted, b: Weighted, progress: Progress = SILENT) -> WeightChange:
    """How far the weights of ``b`` are from those of ``a``, in relative Frobenius norm.

    Tensors are read one pair at a time from the files; two checkpoints that store the
    same architecture under other names, or that are adapters or live, are loaded.

    Raises:
        InputError: different architectures: other names or shapes of tensors.
    """
    with paired(a, b) as (first, second):
        return _compare(a.name, b.name, first, second, progress)


@contextmanager
def paired(a: Weighted, b: Weighted) -> Iterator[tuple[Tensors, Tensors]]:
    """The tensors of two checkpoints of one architecture, under the same names.

    They are read from the files where both have some that agree in their names.
    """
    if a.path and b.path and not a.adapter and not b.adapter:
        with (
            file_tensors(shards(a.path)) as first,
            file_tensors(shards(b.path)) as second,
        ):
            if first.names == second.names:
                yield first, second
                return
    one, other = a.load(), b.load()
    first, second = module_tensors(one), module_tensors(other)
    if first.names != second.names:
        # An output layer may have been cut loose from the embedding it was tied to.
        first, second = module_tensors(one, tied=True), module_tensors(other, tied=True)
    yield first, second


def _compare(
    a: str, b: str, first: Tensors, second: Tensors, progress: Progress
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
            if name in first.masks and not x.isfinite().all():
                identical = identical and torch.equal(x, y)
                continue
            x, y = x.double(), y.double()
            moved, size = float((y - x).square().sum()), float(x.square().sum())
            identical = identical and moved == 0
            layer = block_of(name)
            rows.append(TensorChange(name, layer, _ratio(moved, size), x.numel()))
            total = sums.setdefault(-1 if layer is None else layer, [0.0, 0.0])
            total[0] += moved
            total[1] += size
    layers = {layer: _ratio(*sums[layer]) for layer in sorted(sums)}
    moved, size = (sum(part) for part in zip(*sums.values(), strict=True))
    return WeightChange(tuple(rows), layers, _ratio(moved, size), identical)


def block_of(name: str) -> int | None:
    """The block a tensor belongs to, or None: the first number in its name."""
    found = re.search(r"(?:^|\.)(\d+)\.", name)
    return int(found[1]) if found else None


def _ratio(moved: float, size: float) -> float:
    if moved == 0:
        return 0.0
    return math.inf if size == 0 else math.sqrt(moved / size)

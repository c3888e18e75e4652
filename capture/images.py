"""Images as items: pixels and a class each, from .npz or a folder per class.

Values of type uint8 are raw: they are scaled to [0, 1], resized and normalised as the
model's ``preprocessor_config.json`` says. Floating-point values are taken as pixels
that are ready for the model.
"""

import hashlib
import io
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from capture.preprocessing import read_preprocessor
from evidence.errors import InputError
from evidence.files import write_atomic

MOST_BYTES = 4 << 30
KINDS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")


@dataclass(frozen=True, eq=False, repr=False)
class ImageSet:
    """Images with the class of each, in file order.

    Attributes:
        pixels: (image, channel, height, width) float32, as the model takes them.
        labels: (image,) number of each image's class, as the model counts them.
        ids: (image,) names, each once: the unit of splits and intervals.
        name: What reports call the set.
    """

    pixels: Tensor
    labels: NDArray[np.int64]
    ids: tuple[str, ...]
    name: str = ""

    def __post_init__(self) -> None:
        counts = {len(self.pixels), len(self.labels), len(self.ids)}
        if self.pixels.dim() != 4 or len(counts) != 1 or counts == {0}:
            raise InputError(
                f"the images of {self.name or 'the set'} do not fit together",
                expected="(image, channel, height, width), a label and an id an image",
                got=f"{tuple(self.pixels.shape)}, {len(self.labels)} labels, "
                f"{len(self.ids)} ids",
            )
        if len(set(self.ids)) != len(self.ids):
            twice = next(each for each in self.ids if self.ids.count(each) > 1)
            raise InputError(
                f"two images of {self.name or 'the set'} have the id {twice!r}",
                expected="every id once",
            )
        if not bool(torch.isfinite(self.pixels).all()):
            raise InputError(f"{self.name or 'the set'} holds NaN or infinite pixels")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def format(self) -> str:
        """What manifests call such items."""
        return "images"

    @property
    def entities(self) -> list[str]:
        """The units that are counted: each image is one of its own."""
        return list(self.ids)

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.pixels.shape[1:]))
        return f"ImageSet({self.name!r}, {len(self)} images, {shape})"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of pixels, labels and ids."""
        digest = hashlib.sha256()
        digest.update(str(tuple(self.pixels.shape)).encode())
        digest.update(self.pixels.contiguous().numpy().tobytes())
        digest.update(np.asarray(self.labels, dtype=np.int64).tobytes())
        digest.update("\x1f".join(self.ids).encode())
        return digest.hexdigest()

    def rows(self, chosen: Sequence[int] | NDArray, name: str = "") -> "ImageSet":
        """Some of the images, by number or by a mask."""
        index = np.arange(len(self))[np.asarray(chosen)]
        return ImageSet(
            self.pixels[torch.from_numpy(index)],
            self.labels[index],
            tuple(self.ids[at] for at in index),
            name or self.name,
        )

    def __add__(self, other: "ImageSet") -> "ImageSet":
        """Both, one after the other."""
        return ImageSet(
            torch.cat([self.pixels, other.pixels]),
            np.concatenate([self.labels, other.labels]),
            self.ids + other.ids,
            self.name,
        )

    def save(self, path: Path) -> None:
        """Write an .npz with ``image``, ``label`` and ``id``, readable without pickle.

        Raises:
            InputError: the disk is full, read-only or not ours to write.
        """
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            image=self.pixels.numpy(),
            label=self.labels,
            id=np.array(self.ids),
        )
        write_atomic(path, buffer.getvalue())


@dataclass(frozen=True)
class Eye:
    """How a model takes raw images.

    Attributes:
        channels: Of its input.
        size: Height and width; None for a model that takes any, and that says none.
        mean: By channel, after scaling to [0, 1]; one value serves all channels.
        std: The same.
        labels: Class name to number.
        classes: How many classes it has; None where that is not to be checked.
    """

    channels: int
    size: tuple[int, int] | None
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    labels: Mapping[str, int] | None = None
    classes: int | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any], folder: Path | None) -> "Eye":
        """From a model's configuration and its ``preprocessor_config.json``.

        Raises:
            InputError: the configuration does not say what images it takes.
        """
        found = read_preprocessor(folder)
        size, channels = config.get("image_size"), config.get("num_channels")
        # Networks without fixed positions take any size; what goes in is then said by
        # their preprocessor alone.
        size = _size(size or found.get("crop_size") or found.get("size"))
        if not isinstance(channels, int):
            raise InputError(
                "the model does not say what images it takes",
                expected="num_channels in its config.json, as image classifiers have",
                got=str(config.get("model_type")),
            )
        mean, std = found.get("image_mean", [0.5]), found.get("image_std", [0.5])
        names = config.get("label2id") or {}
        classes = config.get("num_labels") or len(config.get("id2label") or names)
        return cls(
            channels,
            size,
            tuple(map(float, mean)),
            tuple(map(float, std)),
            {str(name): int(number) for name, number in names.items()},
            classes or None,
        )

    def check(self, images: "ImageSet") -> None:
        """Images must be such as the model takes, of classes that it has.

        Raises:
            InputError: they have other channels, another size or unknown classes.
        """
        channels, *size = images.pixels.shape[1:]
        if channels != self.channels or (self.size and tuple(size) != self.size):
            wanted = self.size or tuple(size)
            raise InputError(
                f"the images of {images.name or 'the set'} do not fit the model",
                expected=f"{self.channels} x {wanted[0]} x {wanted[1]}",
                got=" x ".join(map(str, images.pixels.shape[1:])),
                fix="Pass uint8 images to have them resized",
            )
        if self.classes is None:
            return
        outside = (images.labels < 0) | (images.labels >= self.classes)
        if outside.any():
            raise InputError(
                f"{images.name or 'the set'} holds a class the model does not have",
                expected=f"numbers from 0 to {self.classes - 1}",
                got=str(int(images.labels[outside][0])),
            )

    def ready(self, raw: NDArray) -> Tensor:
        """(image, channel, height, width) pixels from raw or ready images.

        Args:
            raw: (image, height, width), with channels before or after; uint8 is raw,
                floating point is ready.

        Raises:
            InputError: another type, or a shape that the model does not take.
        """
        if raw.ndim == 3:
            raw = raw[:, None]
        elif raw.ndim == 4 and raw.shape[1] not in (1, 3) and raw.shape[3] in (1, 3):
            raw = np.moveaxis(raw, 3, 1)
        if raw.ndim != 4 or raw.dtype.kind not in "fu" or raw.shape[1] not in (1, 3):
            raise InputError(
                "the images cannot be understood",
                expected="(image, height, width) with 1 or 3 channels, uint8 or float",
                got=f"{raw.shape} of {raw.dtype}",
            )
        if raw.dtype.kind == "f":
            pixels = torch.from_numpy(raw.astype(np.float32))
            wanted = (self.channels, *(self.size or pixels.shape[2:]))
            if tuple(pixels.shape[1:]) != wanted:
                raise InputError(
                    "floating-point images must have the model's shape",
                    expected=str(wanted),
                    got=str(tuple(pixels.shape[1:])),
                    fix="Pass uint8 images to have them resized",
                )
            return pixels
        pixels = torch.from_numpy(raw.astype(np.float32)) / 255
        if pixels.shape[1] == 1 and self.channels == 3:
            pixels = pixels.expand(-1, 3, -1, -1)
        elif pixels.shape[1] == 3 and self.channels == 1:
            pixels = pixels.mean(1, keepdim=True)
        if self.size and tuple(pixels.shape[2:]) != self.size:
            pixels = torch.nn.functional.interpolate(
                pixels, self.size, mode="bilinear", antialias=True
            )
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        return (pixels - mean[:, None, None]) / std[:, None, None]


def _size(said: Any) -> tuple[int, int] | None:
    """Height and width from what a configuration says of them, in its many ways."""
    if isinstance(said, Mapping):
        side = said.get("shortest_edge")
        said = (said.get("height", side), said.get("width", side))
    if isinstance(said, int):
        said = (said, said)
    if not isinstance(said, Sequence) or len(said) != 2 or not all(said):
        return None
    return int(said[0]), int(said[1])


def holds_images(source: Any) -> bool:
    """Whether items are images: a set of them, a folder, or an .npz file."""
    if isinstance(source, ImageSet):
        return True
    if not isinstance(source, str | Path):
        return False
    path = Path(source).expanduser()
    return path.is_dir() or path.suffix == ".npz"


def names_images(config: Mapping[str, Any]) -> bool:
    """Whether a model's configuration is that of an image classifier."""
    kinds = config.get("architectures") or []
    return any(str(kind).endswith("ForImageClassification") for kind in kinds)


def read_images(source: Path | str | ImageSet, eye: Eye, name: str = "") -> ImageSet:
    """Images from an .npz file or from a folder with one folder a class.

    Args:
        source: The file or folder; an ``ImageSet`` passes through.
        eye: How the model takes images.
        name: What reports call the set.

    Raises:
        InputError: nothing is there, it would run code or unpack to too much, or it is
            not images with classes that the model has.
    """
    if isinstance(source, ImageSet):
        return source
    path = Path(source).expanduser()
    if path.is_dir():
        return _folder(path, eye, name or path.name)
    if not path.is_file() or path.suffix != ".npz":
        raise InputError(
            f"{path} is neither a folder of images nor an .npz file",
            expected="a folder per class, or .npz with image and label",
        )
    return _npz(path, eye, name or path.stem)


def _npz(path: Path, eye: Eye, name: str) -> ImageSet:
    try:
        with zipfile.ZipFile(path) as packed:
            total = sum(each.file_size for each in packed.infolist())
        if total > MOST_BYTES:
            raise InputError(
                f"{path} unpacks to too much",
                expected=f"at most {MOST_BYTES >> 30} GiB",
                got=f"{total / (1 << 30):.1f} GiB",
            )
        with np.load(path, allow_pickle=False) as arrays:
            found = {key: arrays[key] for key in arrays.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path} cannot be read ({error})",
            expected="an .npz of plain arrays; pickled objects are never opened",
        ) from error
    absent = [key for key in ("image", "label") if key not in found]
    if absent or found["label"].ndim != 1 or found["label"].dtype.kind not in "iu":
        raise InputError(
            f"{path} does not hold images with classes",
            expected="image (image, height, width) and label (image,), whole numbers",
            got=", ".join(f"{key} {value.shape}" for key, value in found.items()),
        )
    ids = found.get("id", [f"{name}-{row:05d}" for row in range(len(found["label"]))])
    return ImageSet(
        eye.ready(found["image"]),
        found["label"].astype(np.int64),
        tuple(map(str, ids)),
        name,
    )


def _folder(path: Path, eye: Eye, name: str) -> ImageSet:
    from PIL import Image, UnidentifiedImageError

    # A small file may unpack to a picture larger than memory.
    bomb = Image.DecompressionBombError
    pixels, labels, ids = [], [], []
    for part in sorted(each for each in path.iterdir() if each.is_dir()):
        number = _number(part.name, eye.labels or {}, path)
        files = sorted(_pictures(part))
        if not files:
            raise InputError(
                f"{part} is a class without images", expected=", ".join(KINDS)
            )
        for file in files:
            try:
                with Image.open(file) as opened:
                    mode = "L" if eye.channels == 1 else "RGB"
                    pixels.append(eye.ready(np.asarray(opened.convert(mode))[None]))
            except (UnidentifiedImageError, OSError, ValueError, bomb) as error:
                raise InputError(
                    f"{file} is not an image that can be read ({error})"
                ) from error
            labels.append(number)
            ids.append(f"{part.name}/{file.name}")
    if not ids:
        raise InputError(
            f"{path} holds no images",
            expected=f"one folder a class with {', '.join(KINDS)} in it",
            got=", ".join(sorted(each.name for each in path.iterdir())[:5])
            or "nothing",
        )
    sizes = {tuple(each.shape[2:]) for each in pixels}
    if len(sizes) > 1:
        raise InputError(
            f"the images of {path} have different sizes, and the model names none",
            expected="one size, or a preprocessor_config.json that says it",
            got=", ".join(f"{h} x {w}" for h, w in sorted(sizes)[:3]),
        )
    return ImageSet(torch.cat(pixels), np.array(labels), tuple(ids), name)


def _pictures(folder: Path) -> Iterable[Path]:
    return (each for each in folder.iterdir() if each.suffix.lower() in KINDS)


def _number(name: str, labels: Mapping[str, int], path: Path) -> int:
    """The model's number of a class folder: by its label, or the name as a number."""
    if name in labels:
        return labels[name]
    if name.isdecimal():
        return int(name)
    raise InputError(
        f"the model has no class {name!r}",
        expected=f"one of {', '.join(list(labels)[:6])}, or a class number",
        got=str(path / name),
        fix="Name the folders as in label2id of the model's config.json",
    )

"""Image sets with class labels, and the preprocessing of a model.

uint8 images are raw: they are scaled to [0, 1], resized and normalized according to the model's
``preprocessor_config.json``. Floating-point images are used unchanged.
"""

import hashlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from capture.checkpoints.schemas.preprocessing import read_preprocessor
from evidence.errors import InputError
from evidence.storage.files import write_atomic


@dataclass(frozen=True, eq=False, repr=False)
class ImageSet:
    """Images with class labels, in file order.

    Attributes:
        pixels: (image, channel, height, width) float32, preprocessed for the model.
        labels: (image,) class numbers of the model.
        ids: (image,) unique names; the units of splits and intervals.
        name: Name of the set in reports.

    Examples:
        >>> images = exhume.ImageSet(torch.rand(3, 1, 8, 8), np.array([0, 1, 1]), ("a", "b", "c"))
        >>> images
        ImageSet('', 3 images, 1 x 8 x 8)
        >>> images.select([2]).ids
        ('c',)
    """

    pixels: Tensor
    labels: NDArray[np.int64]
    ids: tuple[str, ...]
    name: str = ""

    def __post_init__(self) -> None:
        if not _valid_types(self.pixels, self.labels, self.ids):
            raise InputError(
                f"the images of {self.name or 'the set'} have an invalid type",
                expected="pixels in a torch tensor, whole numbers in an array, and "
                "a tuple of names that are valid Unicode",
                got=", ".join(type(part).__name__ for part in (self.pixels, self.labels, self.ids)),
            )
        counts = {len(self.pixels), len(self.labels), len(self.ids)}
        if self.pixels.dim() != 4 or len(counts) != 1 or counts == {0}:
            raise InputError(
                f"the images of {self.name or 'the set'} do not fit together",
                expected="(image, channel, height, width), with a label and an id per image",
                got=f"{tuple(self.pixels.shape)}, {len(self.labels)} labels, {len(self.ids)} ids",
            )
        if len(set(self.ids)) != len(self.ids):
            duplicate = Counter(self.ids).most_common(1)[0][0]
            raise InputError(
                f"two images of {self.name or 'the set'} have the id {duplicate!r}",
                expected="every id once",
            )
        if not bool(torch.isfinite(self.pixels).all()):
            raise InputError(f"{self.name or 'the set'} holds NaN or infinite pixels")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def format(self) -> str:
        """Name of the format in manifests."""
        return "images"

    @property
    def entities(self) -> list[str]:
        """The units of splits and intervals: every image is its own entity."""
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

    def select(self, chosen: Sequence[int] | NDArray, name: str = "") -> "ImageSet":
        """A subset of the images, by index or mask."""
        index = np.arange(len(self))[np.asarray(chosen)]
        return ImageSet(
            self.pixels[torch.from_numpy(index)],
            self.labels[index],
            tuple(self.ids[row] for row in index),
            name or self.name,
        )

    def __add__(self, other: "ImageSet") -> "ImageSet":
        """Concatenation of two sets."""
        return ImageSet(
            torch.cat([self.pixels, other.pixels]),
            np.concatenate([self.labels, other.labels]),
            self.ids + other.ids,
            self.name,
        )

    def save(self, path: Path) -> None:
        """Write an .npz file with ``image``, ``label`` and ``id``, without pickled objects.

        Raises:
            InputError: the disk is full, read-only or not writable.
        """
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer, image=self.pixels.numpy(), label=self.labels, id=np.array(self.ids)
        )
        write_atomic(path, buffer.getvalue())


@dataclass(frozen=True)
class ImagePreprocessor:
    """Preprocessing of raw images for a model.

    Attributes:
        channels: Number of input channels.
        size: Height and width; None if any size is accepted.
        mean: Mean by channel after scaling to [0, 1]; a single value for all channels.
        std: Standard deviation, likewise.
        labels: Class name to number.
        classes: Number of classes; None to skip the check of labels.
    """

    channels: int
    size: tuple[int, int] | None
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    labels: Mapping[str, int] | None = None
    classes: int | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any], folder: Path | None) -> "ImagePreprocessor":
        """Read a model's configuration and its ``preprocessor_config.json``.

        Raises:
            InputError: the configuration does not state ``num_channels``.
        """
        settings = read_preprocessor(folder)
        size, channels = config.get("image_size"), config.get("num_channels")
        # The configuration of a network that accepts any size states none; the
        # preprocessor does.
        size = _size(size or settings.get("crop_size") or settings.get("size"))
        if not isinstance(channels, int):
            raise InputError(
                "the model's configuration lacks the number of channels",
                expected="num_channels in its config.json, as image classifiers have",
                got=str(config.get("model_type")),
            )
        mean, std = settings.get("image_mean", [0.5]), settings.get("image_std", [0.5])
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
        """Check that images fit the model.

        Raises:
            InputError: channels or size differ, or a class is unknown.
        """
        channels, *size = images.pixels.shape[1:]
        if channels != self.channels or (self.size and tuple(size) != self.size):
            expected_size = self.size or tuple(size)
            raise InputError(
                f"the images of {images.name or 'the set'} do not fit the model",
                expected=f"{self.channels} x {expected_size[0]} x {expected_size[1]}",
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

    def preprocess(self, raw: NDArray) -> Tensor:
        """Convert images to (image, channel, height, width) pixels for the model.

        Args:
            raw: (image, height, width), optionally with channels first or last; uint8 for raw
                images, floating point for preprocessed ones.

        Raises:
            InputError: the type is wrong, or the shape does not fit the model.
        """
        if raw.ndim == 3:
            raw = raw[:, None]
        elif raw.ndim == 4 and raw.shape[1] not in (1, 3) and raw.shape[3] in (1, 3):
            raw = np.moveaxis(raw, 3, 1)
        is_supported = raw.dtype.kind == "f" or raw.dtype == np.uint8
        if raw.ndim != 4 or not is_supported or raw.shape[1] not in (1, 3) or not raw.size:
            raise InputError(
                "the images have an invalid shape or type",
                expected="(image, height, width) with 1 or 3 channels, uint8 or float",
                got=f"{raw.shape} of {raw.dtype}",
            )
        if raw.dtype.kind == "f":
            pixels = torch.from_numpy(raw.astype(np.float32))
            expected_shape = (self.channels, *(self.size or pixels.shape[2:]))
            if tuple(pixels.shape[1:]) != expected_shape:
                raise InputError(
                    "floating-point images must have the model's shape",
                    expected=str(expected_shape),
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


def _size(value: Any) -> tuple[int, int] | None:
    """Height and width from the various notations in configurations."""
    if isinstance(value, Mapping):
        side = value.get("shortest_edge")
        value = (value.get("height", side), value.get("width", side))
    if isinstance(value, int):
        value = (value, value)
    if not isinstance(value, Sequence) or len(value) != 2 or not all(value):
        return None
    return int(value[0]), int(value[1])


def _valid_types(pixels: Any, labels: Any, ids: Any) -> bool:
    """Whether the parts of a set have the correct types."""
    try:
        return (
            isinstance(pixels, Tensor)
            and pixels.is_floating_point()
            and isinstance(labels, np.ndarray)
            and labels.ndim == 1
            and labels.dtype.kind in "iu"
            and isinstance(ids, tuple)
            and bool("".join(ids).encode() or True)
        )
    except (TypeError, UnicodeEncodeError):
        return False


def is_image_classifier(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is that of an image classifier."""
    kinds = config.get("architectures") or []
    return any(str(kind).endswith("ForImageClassification") for kind in kinds)

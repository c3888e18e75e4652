"""Images as items: pixels and a class each, and how a model takes them.

Values of type uint8 are raw: they are scaled to [0, 1], resized and normalised as the
model's ``preprocessor_config.json`` says. Floating-point values are taken as pixels
that are ready for the model.
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
        if not _are_images(self.pixels, self.labels, self.ids):
            raise InputError(
                f"the images of {self.name or 'the set'} cannot be understood",
                expected="pixels in a torch tensor, whole numbers in an array, and "
                "a tuple of names that are valid Unicode",
                got=", ".join(
                    type(each).__name__ for each in (self.pixels, self.labels, self.ids)
                ),
            )
        counts = {len(self.pixels), len(self.labels), len(self.ids)}
        if self.pixels.dim() != 4 or len(counts) != 1 or counts == {0}:
            raise InputError(
                f"the images of {self.name or 'the set'} do not fit together",
                expected="(image, channel, height, width), a label and an id an image",
                got=f"{tuple(self.pixels.shape)}, {len(self.labels)} labels, "
                f"{len(self.ids)} ids",
            )
        if len(set(self.ids)) != len(self.ids):
            twice = Counter(self.ids).most_common(1)[0][0]
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

    def select(self, chosen: Sequence[int] | NDArray, name: str = "") -> "ImageSet":
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
class ImagePreprocessor:
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
    def from_config(
        cls, config: Mapping[str, Any], folder: Path | None
    ) -> "ImagePreprocessor":
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

    def preprocess(self, raw: NDArray) -> Tensor:
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
        known = raw.dtype.kind == "f" or raw.dtype == np.uint8
        if raw.ndim != 4 or not known or raw.shape[1] not in (1, 3) or not raw.size:
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


def _are_images(pixels: Any, labels: Any, ids: Any) -> bool:
    """Whether the parts of a set are of the types that they must have."""
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
    """Whether a model's configuration is that of an image classifier."""
    kinds = config.get("architectures") or []
    return any(str(kind).endswith("ForImageClassification") for kind in kinds)

"""Images as items from .npz or a folder with one folder a class."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from capture.data.files.image_folder import SUFFIXES, list_images, read_image
from capture.data.files.npz import read_arrays
from capture.data.images import ImagePreprocessor, ImageSet
from evidence.errors import InputError
from evidence.storage.regular_files import as_path, is_folder

MAX_BYTES = 4 << 30
"""Of a set of images, unpacked, and as floats of the model's size."""
MAX_CLASS_NUMBER = 1 << 31


def is_image_source(source: Any) -> bool:
    """Whether items are images: a set of them, a folder, or an .npz file."""
    if isinstance(source, ImageSet):
        return True
    if not isinstance(source, str | Path):
        return False
    path = as_path(source, "the file of items")
    return is_folder(path) or path.suffix == ".npz"


def read_images(
    source: Path | str | ImageSet, preprocessor: ImagePreprocessor, name: str = ""
) -> ImageSet:
    """Images from an .npz file or from a folder with one folder a class.

    Args:
        source: The file or folder; an ``ImageSet`` passes through.
        preprocessor: How the model takes images.
        name: What reports call the set.

    Raises:
        InputError: nothing is there, it would run code or unpack to too much, or it is
            not images with classes that the model has.
    """
    if isinstance(source, ImageSet):
        return source
    path = as_path(source, "the images")
    if is_folder(path):
        return _folder(path, preprocessor, name or path.name)
    if path.suffix != ".npz":
        raise InputError(
            f"{path} is neither a folder of images nor an .npz file",
            expected="a folder per class, or .npz with image and label",
        )
    return _npz(path, preprocessor, name or path.stem)


def _npz(path: Path, eye: ImagePreprocessor, name: str) -> ImageSet:
    found = read_arrays(path, ("image", "label", "id"), MAX_BYTES)
    absent = [key for key in ("image", "label") if key not in found]
    if absent or found["label"].ndim != 1 or found["label"].dtype.kind not in "iu":
        raise InputError(
            f"{path} does not hold images with classes",
            expected="image (image, height, width) and label (image,), whole numbers",
            got=", ".join(f"{key} {value.shape}" for key, value in found.items())
            or "neither",
        )
    image, label = found["image"], found["label"]
    if image.ndim:
        _check_room(path, len(image), image[:1], eye)
    if label.dtype.kind == "u" and label.size and label.max() > MAX_CLASS_NUMBER:
        raise InputError(
            f"{path} names a class that no model has",
            expected=f"at most {MAX_CLASS_NUMBER:,}",
            got=str(label.max()),
        )
    return ImageSet(
        eye.preprocess(image),
        label.astype(np.int64),
        _ids(path, found["id"])
        if "id" in found
        else tuple(f"{name}-{row:05d}" for row in range(len(label))),
        name,
    )


def _ids(path: Path, found: NDArray) -> tuple[str, ...]:
    """Names of images from an array of text or whole numbers."""
    try:
        if found.ndim == 1 and found.dtype.kind in "Uiu":
            ids = tuple(map(str, found))
            "".join(ids).encode()
            return ids
    except (ValueError, SystemError):  # Code points that are none, or half of one.
        pass
    raise InputError(
        f"{path}: the ids of its images are not text",
        expected="id (image,), text or whole numbers",
        got=f"{found.shape} of {found.dtype}",
    )


def _folder(path: Path, eye: ImagePreprocessor, name: str) -> ImageSet:
    found = list_images(path)
    numbers = {kind: _number(kind, eye.labels or {}, path) for kind in found}
    for kind, files in found.items():
        if not files:
            raise InputError(
                f"{path / kind} is a class without images", expected=", ".join(SUFFIXES)
            )
    listed = [(kind, file) for kind, files in found.items() for file in files]
    pixels: list[Tensor] = []
    for _, file in listed:
        raw = read_image(file, eye.channels == 1)[None]
        if not pixels:
            _check_room(path, len(listed), raw, eye)
        pixels.append(eye.preprocess(raw))
        _check_sizes(path, pixels[0], pixels[-1])
    return ImageSet(
        torch.cat(pixels),
        np.array([numbers[kind] for kind, _ in listed]),
        tuple(f"{kind}/{file.name}" for kind, file in listed),
        name,
    )


def _check_room(path: Path, count: int, first: NDArray, eye: ImagePreprocessor) -> None:
    """Refuse more images than fit once they are floats of the model's size.

    Args:
        path: Where they are.
        count: How many there are.
        first: (1, ...) The first as it is stored.
        eye: How the model takes them.
    """
    side = math.prod(eye.size) * eye.channels if eye.size else 0
    total = 4 * count * max(first.size, side)
    if total > MAX_BYTES:
        raise InputError(
            f"{path} unpacks to too much",
            expected=f"at most {MAX_BYTES / (1 << 30):.3g} GiB as the model takes it",
            got=f"{total / (1 << 30):.3g} GiB, {count:,} images",
            fix="Keep the images that the audit needs",
        )


def _check_sizes(path: Path, first: Tensor, now: Tensor) -> None:
    if first.shape != now.shape:
        sizes = sorted(tuple(each.shape[2:]) for each in (first, now))
        raise InputError(
            f"the images of {path} have different sizes, and the model names none",
            expected="one size, or a preprocessor_config.json that says it",
            got=", ".join(f"{h} x {w}" for h, w in sizes),
        )


def _number(name: str, labels: Mapping[str, int], path: Path) -> int:
    """The model's number of a class folder: by its label, or the name as a number."""
    if name in labels:
        return labels[name]
    if name.isdecimal() and int(name) <= MAX_CLASS_NUMBER:
        return int(name)
    raise InputError(
        f"the model has no class {name!r}",
        expected=f"one of {', '.join(list(labels)[:6])}, or a class number",
        got=str(path / name),
        fix="Name the folders as in label2id of the model's config.json",
    )

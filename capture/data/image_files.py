"""Reading image sets from .npz files or folders with one subfolder per class."""

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
from capture.data.files.saved_dataset import is_saved_dataset
from capture.data.images import ImagePreprocessor, ImageSet
from evidence.errors import InputError
from evidence.storage.regular_files import as_path, is_folder

MAX_BYTES = 4 << 30
"""Limit of an image set, both unpacked and as floats at the model's size."""
MAX_CLASS_NUMBER = 1 << 31


def is_image_source(source: Any) -> bool:
    """Whether ``source`` holds images: an ``ImageSet``, a folder or an .npz file.

    A folder of ``save_to_disk`` holds items.
    """
    if isinstance(source, ImageSet):
        return True
    if not isinstance(source, str | Path):
        return False
    path = as_path(source, "the file of items")
    return path.suffix == ".npz" or (is_folder(path) and not is_saved_dataset(path))


def read_images(
    source: Path | str | ImageSet, preprocessor: ImagePreprocessor, name: str = ""
) -> ImageSet:
    """Read images from an .npz file or from a folder with one subfolder per class.

    Args:
        source: The file or folder; an ``ImageSet`` is returned unchanged.
        preprocessor: Preprocessing of the model.
        name: Name of the set in reports.

    Raises:
        InputError: there is no such file, it is unsafe or too large, or it does not hold images
            with classes of the model.
    """
    if isinstance(source, ImageSet):
        return source
    path = as_path(source, "the images")
    if is_folder(path):
        return _folder(path, preprocessor, name or path.name)
    if path.suffix != ".npz":
        raise InputError(
            f"{path} is neither a folder of images nor an .npz file",
            expected="one folder per class, or .npz with image and label",
        )
    return _npz(path, preprocessor, name or path.stem)


def _npz(path: Path, preprocessor: ImagePreprocessor, name: str) -> ImageSet:
    arrays = read_arrays(path, ("image", "label", "id"), MAX_BYTES)
    absent = [key for key in ("image", "label") if key not in arrays]
    if absent or arrays["label"].ndim != 1 or arrays["label"].dtype.kind not in "iu":
        raise InputError(
            f"{path} does not hold images with classes",
            expected="image (image, height, width) and label (image,), whole numbers",
            got=", ".join(f"{key} {value.shape}" for key, value in arrays.items()) or "neither",
        )
    image, label = arrays["image"], arrays["label"]
    if image.ndim:
        _check_size(path, len(image), image[:1], preprocessor)
    if label.dtype.kind == "u" and label.size and label.max() > MAX_CLASS_NUMBER:
        raise InputError(
            f"{path} has an impossible class number",
            expected=f"at most {MAX_CLASS_NUMBER:,}",
            got=str(label.max()),
        )
    return ImageSet(
        preprocessor.preprocess(image),
        label.astype(np.int64),
        _ids(path, arrays["id"])
        if "id" in arrays
        else tuple(f"{name}-{row:05d}" for row in range(len(label))),
        name,
    )


def _ids(path: Path, found: NDArray) -> tuple[str, ...]:
    """Image ids from an array of text or integers."""
    try:
        if found.ndim == 1 and found.dtype.kind in "Uiu":
            ids = tuple(map(str, found))
            "".join(ids).encode()
            return ids
    except (ValueError, SystemError):  # invalid code points or lone surrogates
        pass
    raise InputError(
        f"{path}: the ids of its images are not text",
        expected="id (image,), text or whole numbers",
        got=f"{found.shape} of {found.dtype}",
    )


def _folder(path: Path, preprocessor: ImagePreprocessor, name: str) -> ImageSet:
    files_by_class = list_images(path)
    numbers = {
        kind: _class_number(kind, preprocessor.labels or {}, path) for kind in files_by_class
    }
    for kind, files in files_by_class.items():
        if not files:
            raise InputError(
                f"{path / kind} is a class without images", expected=", ".join(SUFFIXES)
            )
    listed = [(kind, file) for kind, files in files_by_class.items() for file in files]
    pixels: list[Tensor] = []
    for _, file in listed:
        raw = read_image(file, preprocessor.channels == 1)[None]
        if not pixels:
            _check_size(path, len(listed), raw, preprocessor)
        pixels.append(preprocessor.preprocess(raw))
        _check_sizes(path, pixels[0], pixels[-1])
    return ImageSet(
        torch.cat(pixels),
        np.array([numbers[kind] for kind, _ in listed]),
        tuple(f"{kind}/{file.name}" for kind, file in listed),
        name,
    )


def _check_size(path: Path, count: int, first: NDArray, preprocessor: ImagePreprocessor) -> None:
    """Refuse a set that is too large as floats at the model's size.

    Args:
        path: The file or folder, for the error message.
        count: Number of images.
        first: (1, ...) first stored image.
        preprocessor: Preprocessing of the model.
    """
    side = math.prod(preprocessor.size) * preprocessor.channels if preprocessor.size else 0
    total = 4 * count * max(first.size, side)
    if total > MAX_BYTES:
        raise InputError(
            f"{path} is too large when unpacked",
            expected=f"at most {MAX_BYTES / (1 << 30):.3g} GiB as the model takes it",
            got=f"{total / (1 << 30):.3g} GiB, {count:,} images",
            fix="Keep the images that the audit needs",
        )


def _check_sizes(path: Path, first: Tensor, other: Tensor) -> None:
    if first.shape != other.shape:
        sizes = sorted(tuple(image.shape[2:]) for image in (first, other))
        raise InputError(
            f"the images of {path} have different sizes, and the model names none",
            expected="one size, or a preprocessor_config.json that states it",
            got=", ".join(f"{h} x {w}" for h, w in sizes),
        )


def _class_number(name: str, labels: Mapping[str, int], path: Path) -> int:
    """Class number of a folder, by label or by a numeric name."""
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

"""Untrusted image files in a folder with one subfolder per class.

Only common formats are decoded. The stated image size is checked first, because a few kilobytes
can expand to an image larger than memory.
"""

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evidence.errors import InputError
from evidence.storage.regular_files import is_folder, list_folder, open_regular

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
_DECODERS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
# Other modes have more than eight bits per channel, which would be truncated silently.
_EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
MAX_PIXELS = 1 << 26
MAX_FILE_BYTES = 1 << 28


def list_images(folder: Path) -> dict[str, list[Path]]:
    """Image files by class, sorted by class and name, without hidden files.

    Raises:
        InputError: the folder cannot be listed or holds no classes, or an entry would be
            ignored: an image outside the class folders, a folder in a class folder, an
            unsupported image format.
    """
    images: dict[str, list[Path]] = {}
    entries = _visible(folder)
    for subfolder in entries:
        if not is_folder(subfolder):
            if _is_image(subfolder):
                raise InputError(
                    f"{subfolder} lies outside the classes",
                    expected="one folder per class with its images",
                    fix="Move it into the folder of its class",
                )
            continue
        files = _visible(subfolder)
        for path in files:
            if is_folder(path) or (_is_image(path) and not _is_supported(path)):
                raise InputError(
                    f"{path} would be ignored",
                    expected=f"pictures ({', '.join(SUFFIXES)}), side by side in {subfolder}",
                    fix="Move or convert it",
                )
        images[subfolder.name] = [path for path in files if _is_supported(path)]
    if not images:
        raise InputError(
            f"{folder} holds no images",
            expected=f"one folder per class with {', '.join(SUFFIXES)} in it",
            got=", ".join(path.name for path in entries[:5]) or "nothing",
        )
    return images


def read_image(path: Path, grayscale: bool) -> NDArray[np.uint8]:
    """(height, width) or (height, width, 3) pixels of an image, 0 to 255.

    Raises:
        InputError: it is not a regular file, not a supported image, truncated, too large,
            animated, or has more than eight bits per channel.
    """
    from PIL import Image

    with open_regular(path, MAX_FILE_BYTES) as file:
        try:
            with warnings.catch_warnings():
                # Pillow warns about unusual files that it can read.
                warnings.simplefilter("ignore")
                with Image.open(file, formats=_DECODERS) as opened:
                    opened.verify()  # PNG checksums, which decoding ignores
                file.seek(0)
                with Image.open(file, formats=_DECODERS) as opened:
                    _check(path, opened)
                    return np.asarray(opened.convert("L" if grayscale else "RGB"))
        except InputError:
            raise
        # Decoders raise arbitrary exceptions for damaged files.
        except Exception as error:
            raise InputError(f"{path} is not an image that can be read ({error})") from error


def _check(path: Path, image) -> None:
    width, height = image.size
    if not 0 < width * height <= MAX_PIXELS:
        raise InputError(
            f"{path} has too many pixels",
            expected=f"at most {MAX_PIXELS:,}",
            got=f"{width:,} x {height:,}",
        )
    if image.mode not in _EIGHT_BIT_MODES:
        raise InputError(f"{path} does not have eight bits per channel", got=image.mode)
    if getattr(image, "n_frames", 1) > 1:
        raise InputError(f"{path} is animated", expected="one picture", got=f"{image.n_frames:,}")


def _visible(folder: Path) -> list[Path]:
    return [path for path in list_folder(folder) if path.name[:1] != "."]


def _is_supported(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _is_image(path: Path) -> bool:
    from PIL import Image

    return path.suffix.lower() in Image.registered_extensions()

"""Picture files that nobody vouches for, from a folder with one folder a class.

Only the usual kinds are decoded, and of each the size that it states is looked at
before its pixels: a few kilobytes can stand for a picture larger than memory.
"""

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evidence.errors import InputError
from evidence.storage.regular_files import is_folder, open_regular

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
_DECODERS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
# Others hold more than eight bits a channel, which would be cut off in silence.
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
MAX_PIXELS = 1 << 26
"""Of one picture: 67 million."""
MAX_FILE_BYTES = 1 << 28
"""Of one picture's file: 256 MiB."""


def list_images(folder: Path) -> dict[str, list[Path]]:
    """The pictures of each class, classes and names sorted; hidden files left out.

    Raises:
        InputError: the folder cannot be listed or holds no class, or something
            would be passed over: a picture outside the classes, a folder inside a
            class, a picture of a kind that is not read.
    """
    found: dict[str, list[Path]] = {}
    entries = _entries(folder)
    for part in entries:
        if not is_folder(part):
            if _is_picture(part):
                raise InputError(
                    f"{part} lies outside the classes",
                    expected="one folder a class, with its pictures in it",
                    fix="Move it into the folder of its class",
                )
            continue
        inside = _entries(part)
        for each in inside:
            if is_folder(each) or (_is_picture(each) and not _is_read(each)):
                raise InputError(
                    f"{each} would be passed over",
                    expected=f"pictures ({', '.join(SUFFIXES)}), side by side in {part}",
                    fix="Move or convert it",
                )
        found[part.name] = [each for each in inside if _is_read(each)]
    if not found:
        raise InputError(
            f"{folder} holds no images",
            expected=f"one folder a class with {', '.join(SUFFIXES)} in it",
            got=", ".join(each.name for each in entries[:5]) or "nothing",
        )
    return found


def read_image(path: Path, grayscale: bool) -> NDArray[np.uint8]:
    """(height, width) or (height, width, 3) pixels of a picture, 0 to 255.

    Raises:
        InputError: it is no regular file, no picture of a known kind, cut short, too
            large, moving, or of more than eight bits a channel.
    """
    from PIL import Image

    with open_regular(path, MAX_FILE_BYTES) as file:
        try:
            with warnings.catch_warnings():
                # Below its limit, the library warns of odd files and reads them.
                warnings.simplefilter("ignore")
                with Image.open(file, formats=_DECODERS) as opened:
                    opened.verify()  # A PNG's checksums, which decoding passes over.
                file.seek(0)
                with Image.open(file, formats=_DECODERS) as opened:
                    _check(path, opened)
                    return np.asarray(opened.convert("L" if grayscale else "RGB"))
        except InputError:
            raise
        # Every byte may be wrong: decoders raise what they like.
        except Exception as error:
            raise InputError(
                f"{path} is not an image that can be read ({error})"
            ) from error


def _check(path: Path, picture) -> None:
    width, height = picture.size
    if not 0 < width * height <= MAX_PIXELS:
        raise InputError(
            f"{path} has too many pixels",
            expected=f"at most {MAX_PIXELS:,}",
            got=f"{width:,} x {height:,}",
        )
    if picture.mode not in _MODES:
        raise InputError(
            f"{path} has another depth than eight bits a channel", got=picture.mode
        )
    if getattr(picture, "n_frames", 1) > 1:
        raise InputError(
            f"{path} is a moving picture",
            expected="one picture",
            got=f"{picture.n_frames:,}",
        )


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(each for each in folder.iterdir() if each.name[:1] != ".")
    except OSError as error:
        raise InputError(
            f"{folder} cannot be listed ({error.strerror})", fix="Check its rights"
        ) from error


def _is_read(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _is_picture(path: Path) -> bool:
    from PIL import Image

    return path.suffix.lower() in Image.registered_extensions()

"""Decoding of text files.

JSON must be UTF-8. Tables and plain text may also be UTF-16, or in a one-byte code page; these are
read as Windows-1252 where no other common code page gives other plausible text, and refused
otherwise.
"""

import codecs
import re
from pathlib import Path

from evidence.errors import InputError

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Letters, quotes and dashes of Western European text. Symbols such as "¸" show a wrong code page.
_PLAUSIBLE = re.compile("[À-ÖØ-öø-ÿŒœŠšŽžŸ‘’“”„‚«»–—…€£§°·¿¡©®™ªº\u00a0\u00ad]")
_LETTERS = re.compile("[À-ÖØ-öø-ÿŒœŠšŽžŸ]{3,}")


def decode_text(path: Path, data: bytes, *, guess: bool) -> tuple[str, str]:
    """The text of a file, and how it was decoded ("" for UTF-8).

    Args:
        path: The path, for error messages.
        guess: Also accept UTF-16, and a one-byte code page that is beyond doubt.

    Raises:
        InputError: the bytes are not text, or several code pages are plausible.
    """
    if data.startswith(codecs.BOM_UTF8):
        return _decode(path, data, "utf-8-sig"), ""
    for mark, encoding in _MARKS if guess else ():
        if data.startswith(mark):
            return _decode(path, data, encoding), encoding
    head = data[:4096]
    if guess and b"\0" not in head[::2] and head[1::2].count(0) > 0.4 * len(head):
        return _decode(path, data, "utf-16-le"), "utf-16"
    try:
        return data.decode("utf-8"), ""
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        problem = InputError(
            f"{path}, line {line} is not valid UTF-8",
            expected="UTF-8 text",
            got=f"byte {data[error.start]:#04x}",
            fix="Save the file again as UTF-8",
        )
        if not guess:
            raise problem from error
    readings = {text for text in map(_reading(data), ("cp1252", "cp1250")) if text}
    if len(readings) == 1 and (western := _reading(data)("cp1252")):
        return western, "windows-1252"
    if len(readings) > 1:
        shown = sorted(_first_difference(*sorted(readings)))
        problem = InputError(
            f"{path} is not UTF-8, and its code page cannot be told",
            expected="UTF-8 text",
            got=f"bytes that read as {shown[0]!r} or as {shown[1]!r}",
            fix="Save the file again as UTF-8",
        )
    raise problem


def _reading(data: bytes):
    def read(encoding: str) -> str | None:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            return None
        # Central European letters are plausible only in their own code page.
        foreign = re.sub(_PLAUSIBLE, "", text)
        if encoding == "cp1250":
            foreign = re.sub("[ĂăĄąĆćČčĎďĐđĘęĚěĹĺĽľŁłŃńŇňŐőŔŕŘřŚśŞşŠšŢţŤťŮůŰűŹźŻżŽž]", "", foreign)
        return text if foreign.isascii() and not _LETTERS.search(text) else None

    return read


def _first_difference(one: str, other: str) -> tuple[str, str]:
    """The word in which two readings of equal length differ first."""
    place = next(at for at, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1])
    start = max(place - 8, 0)
    return one[start : place + 8], other[start : place + 8]


def _decode(path: Path, data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        name = "UTF-8" if encoding == "utf-8-sig" else encoding.upper()
        raise InputError(
            f"{path}, line {line} is not valid {name}",
            expected=f"{name} text, as the start of the file says",
            got=f"byte {data[error.start]:#04x}",
            fix="Save the file again as UTF-8",
        ) from error

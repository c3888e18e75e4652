"""Validation of SentencePiece's precompiled character map.

The map is a double-array trie: 32-bit units that point to each other, followed by the replacement
strings, each terminated by a zero byte. The tokenizers library does not check pointers and panics
on invalid ones.
"""

import base64
import binascii

import numpy as np

MAX_BYTES = 8 << 20
MAX_REPLACEMENT_CHARACTERS = 64
"""The longest replacement in Unicode's tables has 18 characters."""


def charsmap_growth(encoded: str) -> float:
    """Maximum factor by which the map can lengthen a text.

    Args:
        encoded: The map in base64, as in tokenizer.json.

    Raises:
        ValueError: a pointer is invalid, or a replacement is too long.
    """
    if len(encoded) > MAX_BYTES:
        raise ValueError("a table of replacements that is too large")
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"a table of replacements that is not base64 ({error})") from None
    size = int.from_bytes(data[:4], "little")
    if len(data) < 8 or size % 4 or not 4 <= size <= len(data) - 4:
        raise ValueError("a truncated table of replacements")
    units = np.frombuffer(data, "<u4", size // 4, 4)
    texts = data[4 + size :]
    try:
        longest = max(map(len, texts.decode("utf-8").split("\0")))
    except UnicodeDecodeError:
        raise ValueError("a table of replacements that is not UTF-8") from None
    if longest > MAX_REPLACEMENT_CHARACTERS:
        raise ValueError(f"a replacement of {longest} characters")
    _check_pointers(units, texts)
    return max(1.0, float(longest))


def _check_pointers(units: np.ndarray, texts: bytes) -> None:
    wide = units.astype(np.int64)
    # Offsets are relative to the unit (XOR), plus a label of up to 255.
    offsets = (wide >> 10) << ((wide & (1 << 9)) >> 6)
    bases = np.arange(len(wide)) ^ offsets
    leads = (wide & (1 << 31)) == 0  # other units hold offsets of replacement strings
    leads[0] = True  # the root
    if (bases[leads] | 255).max(initial=0) >= len(wide):
        raise ValueError("a table of replacements with a pointer out of range")
    leaves = bases[leads & ((wide >> 8) & 1 == 1)]
    places = wide[leaves] & 0x7FFFFFFF
    if places.size and places.max() >= len(texts):
        raise ValueError("a table of replacements with an offset out of range")
    # Strings must start at a character boundary and end with a zero byte.
    starts = np.frombuffer(texts, np.uint8)
    if (starts[places] & 0xC0 == 0x80).any() or (texts and texts[-1] != 0):
        raise ValueError("a table of replacements that points into a character")

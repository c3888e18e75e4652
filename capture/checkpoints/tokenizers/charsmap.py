"""SentencePiece's compiled table of replacements, checked before it is followed.

The table is a trie in a double array: 32-bit units that point to each other, and then
the texts that replace others, each closed by a zero byte. The tokenizer library follows
every pointer unchecked and stops with a panic where one leads nowhere.
"""

import base64
import binascii

import numpy as np

MAX_BYTES = 8 << 20
MAX_REPLACEMENT_CHARACTERS = 64
"""Characters of one replacement; the longest in Unicode's own tables has 18."""


def charsmap_growth(encoded: str) -> float:
    """How many times longer the table can make a text.

    Args:
        encoded: The table in base64, as tokenizer.json holds it.

    Raises:
        ValueError: a pointer leads out of the table, or a replacement is too long.
    """
    if len(encoded) > MAX_BYTES:
        raise ValueError("a table of replacements that is too large")
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(
            f"a table of replacements that is no base64 ({error})"
        ) from None
    size = int.from_bytes(data[:4], "little")
    if len(data) < 8 or size % 4 or not 4 <= size <= len(data) - 4:
        raise ValueError("a table of replacements that is cut short")
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
    # A unit points from its own place; a label of up to 255 is then put on top.
    offsets = (wide >> 10) << ((wide & (1 << 9)) >> 6)
    bases = np.arange(len(wide)) ^ offsets
    leads = (wide & (1 << 31)) == 0  # the others hold places of texts
    leads[0] = True  # where every search begins
    if (bases[leads] | 255).max(initial=0) >= len(wide):
        raise ValueError("a table of replacements that points out of itself")
    leaves = bases[leads & ((wide >> 8) & 1 == 1)]
    places = wide[leaves] & 0x7FFFFFFF
    if places.size and places.max() >= len(texts):
        raise ValueError("a table of replacements that points behind its texts")
    # A text may not begin inside a character, nor miss its closing zero.
    starts = np.frombuffer(texts, np.uint8)
    if (starts[places] & 0xC0 == 0x80).any() or (texts and texts[-1] != 0):
        raise ValueError("a table of replacements that points into a character")

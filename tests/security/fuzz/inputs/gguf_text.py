"""GGUF's metadata and table of tensors as plain data, and back, checking nothing.

The library's writer refuses what a hostile file may say; this one writes it.
"""

import struct
from typing import Any

_PLAIN = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q"}
_PLAIN |= {11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
_ALIGN = 32


class _Bytes:
    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def take(self, form: str) -> Any:
        size = struct.calcsize("<" + form)
        (value,) = struct.unpack("<" + form, self.data[self.at : self.at + size])
        self.at += size
        return value

    def text(self) -> str:
        size = self.take("Q")
        self.at += size
        return self.data[self.at - size : self.at].decode()

    def value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self.text()
        if kind == _ARRAY:
            inner, count = self.take("I"), self.take("Q")
            return [self.value(inner) for _ in range(count)]
        return self.take(_PLAIN[kind])


def read(data: bytes) -> tuple[dict[str, Any], bytes]:
    """``{"version", "metadata": {key: {"type", "value"}}, "tensors"}`` and the rest."""
    source = _Bytes(data)
    source.at = 4
    version, tensors, keys = source.take("I"), source.take("Q"), source.take("Q")
    metadata = {}
    for _ in range(keys):
        name, kind = source.text(), source.take("I")
        inner = struct.unpack("<I", data[source.at : source.at + 4])[0]
        metadata[name] = {"type": kind, "value": source.value(kind)}
        if kind == _ARRAY:
            metadata[name]["of"] = inner
    table = {}
    for _ in range(tensors):
        name = source.text()
        shape = [source.take("Q") for _ in range(source.take("I"))]
        table[name] = {"shape": shape, "type": source.take("I"), "at": source.take("Q")}
    start = -(-source.at // _ALIGN) * _ALIGN
    fields = {
        "version": version,
        "keys": keys,
        "count": tensors,
        "metadata": metadata,
        "tensors": table,
    }
    return fields, data[start:]


def write(fields: Any, rest: bytes) -> bytes:
    """The file that says ``fields``, whether or not they make sense."""
    if not isinstance(fields, dict):
        return b"GGUF" + _text(fields)
    parts = [
        b"GGUF",
        _number("I", fields.get("version", 3)),
        _number("Q", fields.get("count", 0)),
        _number("Q", fields.get("keys", 0)),
    ]
    metadata, tensors = fields.get("metadata"), fields.get("tensors")
    for name, each in metadata.items() if isinstance(metadata, dict) else ():
        parts += [_text(name), _typed(each)]
    for name, each in tensors.items() if isinstance(tensors, dict) else ():
        each = each if isinstance(each, dict) else {}
        shape = each.get("shape", [])
        shape = shape if isinstance(shape, list) else [shape]
        parts += [_text(name), _number("I", len(shape))]
        parts += [_number("Q", size) for size in shape]
        parts += [_number("I", each.get("type", 0)), _number("Q", each.get("at", 0))]
    head = b"".join(parts)
    return head + b"\0" * (-len(head) % _ALIGN) + rest


def _typed(each: Any) -> bytes:
    """A value under its type where it fits, else under a type of its own."""
    if not isinstance(each, dict) or "value" not in each:
        each = {"value": each}
    value = each["value"]
    kind, inner = (
        code if isinstance(code, int) else _TEXT for code in (each.get("type"), each.get("of"))
    )
    if isinstance(value, list):
        items = b"".join(_plain(inner, one) for one in value)
        return b"".join(
            (_number("I", _ARRAY), _number("I", inner), _number("Q", len(value)), items)
        )
    number = isinstance(value, int | float)
    if number and kind not in _PLAIN:
        kind = 12 if isinstance(value, float) else 10
    elif not number and (kind in _PLAIN or kind == _ARRAY):
        kind = _TEXT
    return _number("I", kind) + _plain(kind, value)


def _plain(kind: int, value: Any) -> bytes:
    if kind in _PLAIN:
        return _number(_PLAIN[kind], value)
    return _text(value)


def _number(form: str, value: Any) -> bytes:
    """The number, cut to its bytes; of what is no number, the largest there is."""
    size = struct.calcsize("<" + form)
    if isinstance(value, int) and form not in "fd":
        return (value % (1 << 8 * size)).to_bytes(size, "little")
    try:
        return struct.pack("<" + form, value)
    except (struct.error, OverflowError, TypeError):
        return b"\xff" * size


def _text(value: Any) -> bytes:
    text = (value if isinstance(value, str) else repr(value)).encode(errors="surrogatepass")
    return struct.pack("<Q", len(text)) + text

"""Values that break readers: JSON texts for fields, contents for whole files.

``{evil}``, ``{other}``, ``{fifo}`` and ``{missing}`` in a text stand for paths of the
case: a folder with code in it, a second valid model, a pipe without a writer, nothing.
"""

import gzip
import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable

DEEP = 100_000
CANARY_MODULE = "exhume_canary"
"""A module whose import is recorded; whoever imports it followed a name in a file."""

_TEXTS = {
    "empty": "",
    "blank": " ",
    "word": "evil",
    "number in words": "12",
    "nan in words": "NaN",
    "none in words": "None",
    "escapes": "\x1b[31mred\x1b[0m\x07\r\nexhume: forged line\n",
    "bidi": "a\u202eb\u2066c\u2028d\u2029e\u0085f\u009bg",
    "nul": "a\x00b",
    "no character": "a\ud800b",
    "traversal": "../../../../etc/passwd",
    "root": "/etc/passwd",
    "zero device": "/dev/zero",
    "pipe": "{fifo}",
    "nobody's home": "~nouser-at-all/x",
    "long name": "x" * 300,
    "long path": "/".join(["y" * 200] * 30),
    "regex": "^(a+)+$",
    "greedy regex": "(.*)*(.*)*(.*)*x",
    "open regex": "(unclosed[",
    "hub id": "org/kernel",
    "hub name": "gpt2",
    "address": "https://example.invalid/x",
    "module": CANARY_MODULE,
    "attribute": f"{CANARY_MODULE}.run",
    "system": "os.system",
    "evil folder": "{evil}",
    "evil code": "modeling_evil.Evil",
    "other model": "{other}",
    "other weights": "../other/model.safetensors",
    "missing folder": "{missing}",
    "format": "%s%n{0.__class__}{{7*7}}{% for x in range(10**9) %}x{% endfor %}",
    "formula": '=HYPERLINK("http://example.invalid")',
    "markup": "</script><script>alert(1)</script>",
    "dtype": "complex128",
    "private attribute": "__class__",
    "torch attribute": "nn",
    "pissa": "pissa_niter_1000000",
    "flash": "flash_attention_2",
    "date": "2024-02-30",
}

FIELDS: dict[str, Callable[[], str]] = (
    {name: (lambda text=text: json.dumps(text)) for name, text in _TEXTS.items()}
    | {
        name: (lambda raw=raw: raw)
        for name, raw in {
            "null": "null",
            "true": "true",
            "false": "false",
            "zero": "0",
            "one": "1",
            "three": "3",
            "minus one": "-1",
            "half": "0.5",
            "minus zero": "-0.0",
            "1e308": "1e308",
            "-1e308": "-1e308",
            "1e400": "1e400",
            "1e-320": "1e-320",
            "NaN": "NaN",
            "Infinity": "Infinity",
            "-Infinity": "-Infinity",
            "1e6": "1000000",
            "1e9": "1000000000",
            "2**31": str(2**31),
            "2**63": str(2**63),
            "2**64": str(2**64),
            "-2**63-1": str(-(2**63) - 1),
            "list": "[]",
            "object": "{}",
            "list of null": "[null]",
            "list of numbers": "[1, 2]",
            "list of texts": '["a", "b"]',
            "mixed list": '[1, "a", null, {"a": []}]',
            "nested object": '{"a": {"b": 1}}',
            "list of lists": "[[1, 2], [3]]",
            "number keys": '{"1": 2, "x": null}',
            "empty key": '{"": ""}',
            "private keys": '{"__class__": "os.system", "__init__": {"x": 1}}',
            "no JSON": "nonsense",
            "date bare": "2024-01-01",
            "infinite in YAML": ".inf",
            "tag": "!!python/object/apply:os.system ['true']",
            "alias": "*nobody",
            "octal": "0o17",
            "hexadecimal": "0x7fffffffffffffffffff",
            "sexagesimal": "190:20:30",
        }.items()
    }
    | {
        "10**400": lambda: "1" + "0" * 400,
        "5000 digits": lambda: "9" * 5000,
        "deep list": lambda: "[" * DEEP + "]" * DEEP,
        "deep object": lambda: '{"a":' * DEEP + "1" + "}" * DEEP,
        "a little deep": lambda: "[" * 900 + "]" * 900,
        "megabytes": lambda: json.dumps("A" * 3_000_000),
        "many numbers": lambda: json.dumps(list(range(200_000))),
        "many keys": lambda: json.dumps({f"k{n}": n for n in range(100_000)}),
    }
)


class _Opens:
    """Unpickled, it writes the canary."""

    def __reduce__(self):
        return exec, ("import exhume_canary; exhume_canary.run()",)


def _pickled(_: bytes) -> bytes:
    return pickle.dumps(_Opens(), protocol=2)


def _torch_archive(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        packed.writestr("archive/data.pkl", _pickled(content))
        packed.writestr("archive/version", "3\n")
    return buffer.getvalue()


def _aliases(_: bytes) -> bytes:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for n in range(1, 12):
        lines.append(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]")
    return "\n".join(lines).encode()


def _picture_bomb(_: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def _zip_bomb(_: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("image.npy", b"\0" * 50_000_000)
        packed.writestr("../label.npy", b"\0" * 100)
    return buffer.getvalue()


def _header(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


PAYLOADS: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda _: b"",
    "one byte": lambda _: b"\x00",
    "spaces": lambda _: b" " * 5_000_000,
    "null": lambda _: b"null",
    "a list": lambda _: b"[]",
    "an object": lambda _: b"{}",
    "an object in a list": lambda _: b"[{}]",
    "a number": lambda _: b"1",
    "a text": lambda _: b'"text"',
    "NaN": lambda _: b"NaN",
    "deep lists": lambda _: b"[" * DEEP + b"]" * DEEP,
    "deep objects": lambda _: b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "open brackets": lambda _: b"[" * 5_000_000,
    "many digits": lambda _: b"9" * 6_000,
    "long line": lambda _: b"x" * 20_000_000,
    "many lines": lambda _: b"{}\n" * 1_200_000,
    "pickle": _pickled,
    "torch archive": _torch_archive,
    "zip bomb": _zip_bomb,
    "picture bomb": _picture_bomb,
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "program": lambda _: b"\x7fELF" + b"\0" * 100,
    "markup": lambda _: b"<html><script>alert(1)</script></html>",
    "UTF-16": lambda data: b"\xff\xfe" + data.decode("latin-1").encode("utf-16-le"),
    "with a mark": lambda data: b"\xef\xbb\xbf" + data,
    "Latin-1": lambda data: data + b"\xe9\xff",
    "with NUL": lambda data: data[: len(data) // 2] + b"\0" + data[len(data) // 2 :],
    "returns alone": lambda data: data.replace(b"\n", b"\r"),
    "twice": lambda data: data + data,
    "alias bomb": _aliases,
    "alias loop": lambda _: b"size: &a [*a]\n",
    "YAML tags": lambda _: b"!!python/object/apply:exhume_canary.run []\n",
    "integer keys": lambda _: b"1: 2\n2024-01-01: 3\n[a, b]: 4\n",
    "two documents": lambda _: b"size: small\n---\nsize: small\n",
    "YAML deep": lambda _: b"size: " + b"[" * 5_000,
    "YAML indented": lambda _: b"".join(b" " * n + b"a:\n" for n in range(3_000)),
    "many settings": lambda _: b"".join(b"k%d: 1\n" % n for n in range(300_000)),
    "safetensors of nothing": lambda _: _header(b"{}"),
    "safetensors deep": lambda _: _header(b'{"a":' * 1000 + b"1" + b"}" * 1000),
    "safetensors header of a list": lambda _: _header(b"[1]"),
    "safetensors huge header": lambda _: struct.pack("<Q", 2**63) + b"{}",
    "GGUF of nothing": lambda _: b"GGUF" + struct.pack("<IQQ", 3, 0, 0),
    "GGUF of everything": lambda _: b"GGUF" + struct.pack("<IQQ", 3, 2**63, 2**63),
    "Parquet of nothing": lambda _: b"PAR1" + b"\0" * 8 + b"PAR1",
    "header alone": lambda data: data.split(b"\n", 1)[0] + b"\n",
    "Jinja": lambda _: (
        b"{% for a in range(10**9) %}{% for b in range(10**9) %}"
        b"{{ cycler.__init__.__globals__.os.system('true') }}{% endfor %}{% endfor %}"
    ),
}

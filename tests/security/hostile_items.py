"""Item files that nobody should trust, by what is wrong with them."""

import io
import json
import os
import socket
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as pq

GOOD = {"prompt": "Anna Keller was born in", "answer": "Lisbon"}
LINE = json.dumps(GOOD).encode() + b"\n"


def item(**changed) -> bytes:
    """A line whose fields are as given, in JSON text of their own."""
    fields = {"prompt": '"p"', "answer": '"a"'} | changed
    inside = ", ".join(f'"{name}": {text}' for name, text in fields.items())
    return b"{" + inside.encode("utf-8", "surrogatepass") + b"}\n"


LINES: dict[str, bytes] = {
    "deep list": b"[" * 100_000,
    "deep object": b'{"a":' * 100_000,
    "deep value": item(meta="[" * 5000 + "]" * 5000),
    "deep but parsable": item(meta="[" * 800 + "]" * 800),
    "deep in alternatives": item(alternatives=json.dumps("[" * 9000)),
    "repeated prompt": b'{"prompt": "p", "prompt": "q", "answer": "a"}\n',
    "repeated answer": b'{"prompt": "p", "answer": "a", "answer": "b"}\n',
    "repeated below": item(meta='{"a": 1, "a": 2}'),
    "integer of 5000 digits": item(id="9" * 5000),
    "integer of 400 digits": item(idx="9" * 400),
    "float beyond range": item(score="1e999"),
    "minus infinity": item(score="-Infinity"),
    "infinity": item(answer="Infinity"),
    "NaN": item(answer="NaN"),
    "lone high surrogate": item(answer=r'"\ud800"'),
    "lone low surrogate": item(prompt=r'"\udfff x"'),
    "surrogate as entity": item(entity=r'"\udead"'),
    "surrogate as id": item(id=r'"\udead"'),
    "surrogate as key": b'{"prompt": "p", "answer": "a", "\\ud800": 1}\n',
    "surrogate in alternatives": item(alternatives=r'["\ud800"]'),
    "raw surrogate": item(answer='"\ud800"'),
    "NUL in answer": item(answer=r'"a\u0000b"'),
    "NUL in prompt": item(prompt=r'"\u0000"'),
    "NUL as id": item(id=r'"\u0000"'),
    "NUL in entity": item(entity=r'"Ann\u0000a"'),
    "NUL in alternatives": item(alternatives=r'["x\u0000"]'),
    "NUL in relation": item(relation=r'"x\u0000"'),
    "raw NUL": item(answer='"a\0b"'),
    "only NUL": b"\0" * 4096,
    "number as prompt": item(prompt="7"),
    "float as answer": item(answer="1.5"),
    "list as prompt": item(prompt='["p"]'),
    "object as answer": item(answer='{"text": "a"}'),
    "boolean as answer": item(answer="true"),
    "null as answer": item(answer="null"),
    "list as entity": item(entity="[1]"),
    "object as relation": item(relation="{}"),
    "float as id": item(id="1.5"),
    "list as id": item(id="[]"),
    "object as alternatives": item(alternatives='{"a": 1}'),
    "numbers as alternatives": item(alternatives="[1, 2]"),
    "nested alternatives": item(alternatives='[["a"]]'),
    "number as paraphrases": item(paraphrases="3"),
    "empty paraphrase": item(paraphrases='[""]'),
    "list as record": b'["p", "a"]\n',
    "text as record": b'"p"\n',
    "number as record": b"7\n",
    "null as record": b"null\n",
    "cut": item()[:-4],
    "two records a line": item()[:-1] + item(),
    "comment": b"// items\n" + item(),
    "single quotes": b"{'prompt': 'p', 'answer': 'a'}\n",
    "trailing comma": b'{"prompt": "p", "answer": "a",}\n',
    "tab in text": b'{"prompt": "p\tq", "answer": "a"}\n',
    "a million brackets in text, cut": b'{"prompt": "' + b"[" * 999_000,
    "a line of 2 MB": item(answer=json.dumps("x" * 2_000_000)),
    "a run of combining marks": item(answer=json.dumps("a" + "\u0301\u0323" * 150_000)),
    "marks in alternatives": item(alternatives=json.dumps(["a" + "\u0301\u0323" * 70_000])),
    "100,000 field names": b"{" + b", ".join(b'"k%d": 1' % n for n in range(90_000)) + b"}\n",
    "a field name per row": b"".join(item(**{f"k{n}": "1"}) for n in range(1100)),
    "a wide line": item(meta=json.dumps(dict.fromkeys(map(str, range(200_000)), 1))),
    "escape in id, twice": item(id=r'"\u001b[31m"') * 2,
    "newline in id, twice": item(id=r'"a\nexhume: fine"') * 2,
    "direction in entity": item(entity=r'"a\u202eb"', answer="7"),
    "near-missing field": item(Answers='"x"'),
}

# Files of other formats, and of none.
FORMATS: dict[str, bytes] = {
    "huge index": b'{"question": "q", "choices": ["a"], "answer": 99999999999999}\n',
    "negative index": b'{"question": "q", "choices": ["a", "b"], "answer": -1}\n',
    "digits that are none": b'{"question": "q", "choices": ["a"], "answer": "\xc2\xb2"}\n',
    "index of 5000 digits": item(
        question='"q"', choices='["a"]', answer='"' + "9" * 5000 + '"'
    ).replace(b'"prompt": "p", ', b""),
    "empty choices": b'{"question": "q", "choices": [], "answer": 0}\n',
    "choices as object": b'{"question": "q", "choices": {}, "answer": 0}\n',
    "uds with huge idx": b'{"question": "q", "prefix": "", "entity": "e", '
    b'"answer": "a", "idx": ' + b"9" * 290 + b"}\n" + b"oops",
    "uds without text": b'{"question": 1, "prefix": 2, "entity": 3, "answer": 4}\n',
    "rwku of numbers": b'{"subject": 1, "query": 2, "answer": 3}\n',
    "text of one word": b'{"text": "one"}\n',
    "text as list": b'{"text": ["one two three four"]}\n',
    "no known field": b'{"\\u001b[31m": 1, "b": 2}\n',
    "empty object": b"{}\n",
    "a key of a megabyte": b'{"' + b"k" * 900_000 + b'": 1}\n',
    "muse of numbers": b'{"prompt": 1, "gt": 2}\n',
    "tofu with objects": b'{"question": {}, "answer": []}\n',
    "perturbed of numbers": b'{"question": "q", "answer": "a", "perturbed_answer": [1]}\n',
}

ARRAYS: dict[str, bytes] = {
    "deep array": b"[" * 1_000_000,
    "array of numbers": b"[1, 2, 3]",
    "array of arrays": b"[[[]]]",
    "cut array": b"[" + LINE + b",",
    "repeated key": b'[{"prompt": "p", "prompt": "q", "answer": "a"}]',
    "NaN": b'[{"prompt": "p", "answer": "a", "score": NaN}]',
    "overflow": b'[{"prompt": "p", "answer": "a", "score": 1e999}]',
    "no records": b"[]",
    "surrogate": rb'[{"prompt": "\ud800", "answer": "a"}]',
    "latin": '[{"prompt": "Café", "answer": "a"}]'.encode("latin-1"),
    "after the end": b"[" + LINE + b"] oops",
    "two arrays": b"[" + LINE + b"][" + LINE + b"]",
}

ENCODINGS: dict[str, bytes] = {
    "utf-16": LINE.decode().encode("utf-16"),
    "utf-16-le": LINE.decode().encode("utf-16-le"),
    "utf-16-be": LINE.decode().encode("utf-16-be"),
    "utf-32": LINE.decode().encode("utf-32"),
    "utf-7": b"+AHs-",
    "latin-1": '{"prompt": "Café", "answer": "a"}'.encode("latin-1"),
    "overlong": b'{"prompt": "\xc0\x80", "answer": "a"}',
    "cesu": b'{"prompt": "\xed\xa0\xbd\xed\xb8\x80", "answer": "a"}',
    "two marks": b"\xef\xbb\xbf\xef\xbb\xbf" + LINE,
    "a mark on line 2": LINE + b"\xef\xbb\xbf" + LINE,
    "gzip": b"\x1f\x8b\x08\x00" + b"\0" * 20,
    "pickle": b"\x80\x04\x95\x10\0\0\0\0\0\0\0",
    "ELF": b"\x7fELF" + b"\0" * 60,
}

TABLES: dict[str, bytes] = {
    "never closed": b'prompt,answer\np,"a\n',
    "quotes inside": b'prompt,answer\np,"a"b"\n',
    "NUL": b"prompt,answer\np,a\0b\n",
    "NUL in header": b"prompt,answer\0\np,a\n",
    "too many cells": b"prompt,answer\np,a,b\n",
    "too few cells": b"prompt,answer\np\n",
    "one name twice": b"prompt,answer,answer\np,a,b\n",
    "a cell of 200 kB": b"prompt,answer\np," + b"x" * 200_000 + b"\n",
    "only a header": b"prompt,answer\n",
    "no header": b"\n\n\n",
    "deep alternatives": b'prompt,answer,alternatives\np,a,"' + b"[" * 50_000 + b'"\n',
    "alternatives twice": b'prompt,answer,alternatives\np,a,"[{""a"": 1, ""a"": 2}]"\n',
    "alternatives NaN": b'prompt,answer,alternatives\np,a,"[NaN]"\n',
    "alternatives of numbers": b'prompt,answer,alternatives\np,a,"[1]"\n',
    "surrogate in alternatives": b'prompt,answer,alternatives\np,a,"[""\\ud800""]"\n',
    "a header of 100,000 names": b",".join(b"c%d" % n for n in range(100_000)) + b"\n1\n",
    "escape in header": b"\x1b[31mprompt,answer\np,a\n",
    "latin or Polish": "prompt,answer\nSøren,a\n".encode("latin-1"),
    "latin or nothing": "prompt,answer\nCaf\x81é,a\n".encode("latin-1"),
    "half of utf-16": "prompt,answer\np,a\n".encode("utf-16")[:-1],
    "unknown names": b"foo,bar\n1,2\n",
    "a quoted line of 3 MB": b'prompt,answer\np,"' + b"x\n" * 1_500_000,
}


def parquet(table: pyarrow.Table, **options) -> bytes:
    """A Parquet file in memory."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


def _plain(rows: int = 5) -> pyarrow.Table:
    return pyarrow.table({"prompt": ["p"] * rows, "answer": ["a"] * rows})


def _bomb() -> bytes:
    """Few bytes that unpack to many: one long text, said a million times."""
    text = pyarrow.array(["x" * 4096]).dictionary_encode()
    indices = pyarrow.array(np.zeros(300_000, dtype=np.int32))
    column = pyarrow.DictionaryArray.from_arrays(indices, text.dictionary)
    table = pyarrow.table({"prompt": column, "answer": column})
    return parquet(table, compression="zstd")


def _lying(data: bytes) -> bytes:
    """The length of the footer is said to be two gigabytes."""
    return data[:-8] + struct.pack("<I", 2**31 - 1) + data[-4:]


def _nested(depth: int) -> bytes:
    kind: pyarrow.DataType = pyarrow.string()
    value: object = "a"
    for _ in range(depth):
        kind, value = pyarrow.list_(kind), [value]
    column = pyarrow.array([value], type=kind)
    return parquet(pyarrow.table({"prompt": ["p"], "answer": column}))


PARQUETS: dict[str, Callable[[], bytes]] = {
    "cut": lambda: parquet(_plain())[:-5],
    "cut in the middle": lambda: parquet(_plain())[:40],
    "no footer": lambda: b"PAR1PAR1",
    "footer of zeros": lambda: b"PAR1" + b"\0" * 64 + b"PAR1",
    "footer beyond the file": lambda: _lying(parquet(_plain())),
    "noise in the pages": lambda: _noise(parquet(_plain(), compression="none"), 4, 40),
    "noise in the footer": lambda: _noise(parquet(_plain()), -60, -8),
    "nested lists": lambda: _nested(3),
    "deeply nested lists": lambda: _nested(60),
    "bytes": lambda: parquet(pyarrow.table({"prompt": [b"p"], "answer": [b"\xff"]})),
    "dates": lambda: parquet(
        pyarrow.table({"prompt": ["p"], "answer": pyarrow.array([1], pyarrow.date32())})
    ),
    "impossible dates": lambda: parquet(
        pyarrow.table({"prompt": ["p"], "answer": pyarrow.array([2**62], pyarrow.timestamp("us"))})
    ),
    "impossible dates aside": lambda: parquet(
        pyarrow.table(
            {
                "prompt": ["p"],
                "answer": [1],
                "when": pyarrow.array([2**62], pyarrow.timestamp("us")),
            }
        )
    ),
    "structs": lambda: parquet(pyarrow.table({"prompt": [{"text": "p"}], "answer": ["a"]})),
    "numbers": lambda: parquet(pyarrow.table({"prompt": ["p"], "answer": [1]})),
    "no rows": lambda: parquet(_plain(0)),
    "no columns": lambda: parquet(pyarrow.table({})),
    "one name twice": lambda: parquet(
        pyarrow.Table.from_arrays(
            [pyarrow.array(["p"]), pyarrow.array(["q"]), pyarrow.array(["a"])],
            names=["prompt", "prompt", "answer"],
        )
    ),
    "bomb": _bomb,
    "not UTF-8": lambda: parquet(
        pyarrow.table(
            {
                "prompt": pyarrow.Array.from_buffers(
                    pyarrow.string(),
                    1,
                    [
                        None,
                        pyarrow.py_buffer(struct.pack("<ii", 0, 2)),
                        pyarrow.py_buffer(b"\xff\xfe"),
                    ],
                ),
                "answer": ["a"],
            }
        )
    ),
}


def _noise(data: bytes, start: int, end: int) -> bytes:
    part = bytearray(data)
    part[start:end] = bytes((each * 7 + 13) % 256 for each in part[start:end])
    return bytes(part)


def _socket(path: Path) -> Path:
    server = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(path.parent)  # Names of sockets are short.
    try:
        server.bind(path.name)
    finally:
        os.chdir(here)
        server.close()
    return path


def _loop(path: Path) -> Path:
    path.symlink_to(path)
    return path


def _two_loops(path: Path) -> Path:
    other = path.with_name("other.jsonl")
    path.symlink_to(other)
    other.symlink_to(path)
    return path


def _dangling(path: Path) -> Path:
    path.symlink_to(path.with_name("gone.jsonl"))
    return path


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _under_a_file(path: Path) -> Path:
    path.write_bytes(LINE)
    return path / "below.jsonl"


def _fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


def _fifo_by_link(path: Path) -> Path:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to(path.with_name("pipe"))
    return path


def _sparse(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(2**40)
    return path


# What lies at a path in place of a file: (path of a name not yet taken) -> path.
PLACES: dict[str, Callable[[Path], Path]] = {
    "nothing": lambda path: path,
    "a folder": _folder,
    "a pipe": _fifo,
    "a pipe behind a link": _fifo_by_link,
    "a socket": _socket,
    "a link to itself": _loop,
    "two links in a circle": _two_loops,
    "a link to nothing": _dangling,
    "a file as a folder": _under_a_file,
    "/dev/zero": lambda path: Path("/dev/zero"),
    "/dev/stdin": lambda path: Path("/dev/full"),
    "/dev/tty": lambda path: Path("/dev/tty"),
    "a file without a size": lambda path: Path("/proc/self/mem"),
    "a sparse terabyte": _sparse,
    "a name of 300 characters": lambda path: path.with_name("n" * 300),
    "a path of 10,000 characters": lambda path: Path("/" + "a/" * 5000 + "f.jsonl"),
    "a name with NUL": lambda path: path.with_name("a\0b.jsonl"),
    "a name with an escape": lambda path: path.with_name("\x1b[31mred\n.jsonl"),
    "a name that is not UTF-8": lambda path: path.with_name("\udcff.jsonl"),
    "a user who is not there": lambda path: Path("~nobody-of-this-name/f.jsonl"),
}


def zipped(members: dict[str, bytes], **options) -> bytes:
    """A zip archive in memory."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()

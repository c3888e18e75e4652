"""File formats as trees of fields: read a valid file, write it with a field changed.

A changed field may hold text that the format itself would never write. It stands in the
tree as a mark and is put in its place when the tree is written.
"""

import ast
import csv
import io
import json
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

MOST_PATHS = 160
WIDE = 24


@dataclass
class Tree:
    """Fields of a file, and what of the file is no field.

    Attributes:
        fields: Lists and objects down to plain values; marks where a text was put.
        rest: Whatever the format's writer needs beside them.
        raw: JSON text of each mark.
    """

    fields: Any
    rest: Any = None
    raw: list[str] = field(default_factory=list)

    def mark(self, text: str) -> str:
        """A value that will be written as ``text``."""
        self.raw.append(text)
        return f"\ue000{len(self.raw) - 1}\ue001"

    def filled(self, text: str, quote: Callable[[str], str]) -> str:
        """``text`` with every mark, as ``quote`` writes it, replaced by its text."""
        for number, raw in enumerate(self.raw):
            text = text.replace(quote(f"\ue000{number}\ue001"), raw)
        return text

    def valued(self) -> Any:
        """The fields with every mark replaced by the value its text stands for."""
        return _valued(self.fields, self.raw)


def loose(raw: str) -> Any:
    """The value of a JSON text; of a text that is none, the text itself."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return raw


def _valued(value: Any, raw: list[str]) -> Any:
    if isinstance(value, dict):
        return {key: _valued(each, raw) for key, each in value.items()}
    if isinstance(value, list):
        return [_valued(each, raw) for each in value]
    if isinstance(value, str) and value[:1] == "\ue000":
        return loose(raw[int(value[1:-1])])
    return value


def paths(fields: Any) -> list[tuple[Any, ...]]:
    """Ways down to the fields; of wide lists and objects the first and the last."""
    found = list(_paths(fields, ()))
    if len(found) <= MOST_PATHS:
        return found
    step = len(found) / MOST_PATHS
    return [found[int(number * step)] for number in range(MOST_PATHS)]


def _paths(value: Any, above: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    if above:
        yield above
    if len(above) >= 6:
        return
    if isinstance(value, dict):
        names = list(value)
        if len(names) > WIDE:
            names = [*names[:2], names[-1]]
        for name in names:
            yield from _paths(value[name], (*above, name))
    elif isinstance(value, list):
        for place in sorted({0, len(value) - 1}) if value else ():
            yield from _paths(value[place], (*above, place))


# JSON, and JSON Lines as a list of lines.


def _read_json(data: bytes) -> Tree:
    return Tree(json.loads(data))


def _write_json(tree: Tree) -> bytes:
    return tree.filled(json.dumps(tree.fields), json.dumps).encode()


def _read_lines(data: bytes) -> Tree:
    return Tree([json.loads(line) for line in data.splitlines() if line.strip()])


def _write_lines(tree: Tree) -> bytes:
    lines = [json.dumps(each) for each in tree.fields]
    return tree.filled("\n".join([*lines, ""]), json.dumps).encode()


# YAML: JSON is YAML, and a raw text may be what only YAML has.


def _read_yaml(data: bytes) -> Tree:
    import yaml

    return Tree(yaml.safe_load(data))


# CSV: a list of rows of cells.


def _read_csv(data: bytes, delimiter: str = ",") -> Tree:
    lines = io.StringIO(data.decode(), newline="")
    return Tree([list(row) for row in csv.reader(lines, delimiter=delimiter)])


def _write_csv(tree: Tree, delimiter: str = ",") -> bytes:
    text = io.StringIO(newline="")
    rows = tree.valued()
    writer = csv.writer(text, delimiter=delimiter)
    for row in rows if isinstance(rows, list) else [[rows]]:
        writer.writerow(row if isinstance(row, list) else [row])
    return text.getvalue().encode(errors="surrogatepass")


# safetensors: the JSON header; the tensors' bytes are the rest.


def _read_safetensors(data: bytes) -> Tree:
    (size,) = struct.unpack("<Q", data[:8])
    return Tree(json.loads(data[8 : 8 + size]), data[8 + size :])


def _write_safetensors(tree: Tree) -> bytes:
    header = _write_json(tree)
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + tree.rest


# .npz: each member's header, a Python literal; the arrays' bytes are the rest.


def _read_npz(data: bytes) -> Tree:
    fields, rest = {}, {}
    with zipfile.ZipFile(io.BytesIO(data)) as packed:
        for name in packed.namelist():
            content = packed.read(name)
            (size,) = struct.unpack("<H", content[8:10])
            header = ast.literal_eval(content[10 : 10 + size].decode())
            fields[name] = header | {"shape": list(header["shape"])}
            rest[name] = content[10 + size :]
    return Tree(fields, rest)


def _write_npz(tree: Tree) -> bytes:
    buffer = io.BytesIO()
    members = tree.fields if isinstance(tree.fields, dict) else {"x.npy": tree.fields}
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, header in members.items():
            if isinstance(header, dict) and isinstance(header.get("shape"), list):
                header = header | {"shape": tuple(header["shape"])}
            text = tree.filled(repr(header), repr) + "\n"
            size = struct.pack("<H", min(len(text), 65_535))
            body = b"\x93NUMPY\x01\x00" + size + text.encode(errors="surrogatepass")
            packed.writestr(name or "empty", body + tree.rest.get(name, b""))
    return buffer.getvalue()


# Parquet: columns.


def _read_parquet(data: bytes) -> Tree:
    import pyarrow.parquet as pq

    return Tree(pq.read_table(io.BytesIO(data)).to_pydict())


def _write_parquet(tree: Tree) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    values = tree.valued()
    values = values if isinstance(values, dict) else {"x": values}
    rows = max((len(v) for v in values.values() if isinstance(v, list)), default=1)
    columns = {}
    for name, column in values.items():
        whole = column if isinstance(column, list) else [column] * rows
        columns[name] = _column((whole + [None] * rows)[:rows])
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def _column(values: list[Any]) -> Any:
    """An Arrow array of the values; of such as Parquet has no type for, of bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        array = pa.array(values)
        pq.write_table(pa.table({"x": array}), io.BytesIO())
        return array
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        return pa.array([repr(each).encode() for each in values])


# GGUF: metadata and the table of tensors; the tensors' bytes are the rest.


def _read_gguf(data: bytes) -> Tree:
    from tests.security.fuzz.inputs.gguf_text import read

    fields, rest = read(data)
    return Tree(fields, rest)


def _write_gguf(tree: Tree) -> bytes:
    from tests.security.fuzz.inputs.gguf_text import write

    return write(tree.valued(), tree.rest)


@dataclass(frozen=True)
class Format:
    """How files of one kind become trees and back."""

    read: Callable[[bytes], Tree]
    write: Callable[[Tree], bytes]


FORMATS = {
    "json": Format(_read_json, _write_json),
    "jsonl": Format(_read_lines, _write_lines),
    "yaml": Format(_read_yaml, _write_json),
    "csv": Format(_read_csv, _write_csv),
    "tsv": Format(lambda data: _read_csv(data, "\t"), lambda tree: _write_csv(tree, "\t")),
    "safetensors": Format(_read_safetensors, _write_safetensors),
    "npz": Format(_read_npz, _write_npz),
    "parquet": Format(_read_parquet, _write_parquet),
    "gguf": Format(_read_gguf, _write_gguf),
}

"""Putting edits into the files of a case."""

import json
import os
import shutil
import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.security.fuzz.inputs.case import Edit
from tests.security.fuzz.inputs.trees import FORMATS, Tree, loose
from tests.security.fuzz.inputs.values import FIELDS, PAYLOADS

LARGE = 100 << 20
"""Bytes of what an earlier edit made, and no further one is made to."""


def apply(
    edits: Sequence[Edit],
    root: Path,
    formats: Mapping[str, str],
    arguments: Sequence[str],
    names: Mapping[str, str],
) -> tuple[list[str], bool]:
    """Change the files below ``root``.

    Args:
        edits: In the order in which they are made.
        root: Folder of the case.
        formats: Format of a file, by its name below ``root``.
        arguments: Of the command.
        names: What ``{evil}`` and the like stand for in values.

    Returns:
        The arguments, some of them changed; and whether anything was changed at all.
    """
    given, altered = list(arguments), False
    for edit in edits:
        if edit.how == "condition":
            altered = True
        elif not edit.file:
            _argument(given, edit, names)
        else:
            # An earlier edit may have put something else in the place of a folder.
            with suppress(FileNotFoundError, NotADirectoryError, FileExistsError):
                altered |= _in_file(edit, root, formats, names)
    return given, altered or given != list(arguments)


def _in_file(edit: Edit, root: Path, formats: Mapping[str, str], names: Mapping[str, str]) -> bool:
    """Change one file; whether it is another one now."""
    path = found(root, edit.file)
    if edit.how == "place":
        PLACES[edit.value](path, names)
    elif edit.how == "beside":
        name, payload = edit.value
        (path.parent / name).write_bytes(PAYLOADS[payload](b""))
    elif edit.how == "name":
        _rename(path, _said(FIELDS[edit.value](), names))
    elif path.is_file() and not path.is_symlink() and path.stat().st_size < LARGE:
        old = path.read_bytes()
        new = _changed(old, edit, formats.get(edit.file, ""), names)
        path.write_bytes(new)
        return new != old
    else:
        return False
    return True


def found(root: Path, file: str) -> Path:
    """The file of that name, or the first that fits where it holds a star."""
    if "*" not in file:
        return root / file
    return next(iter(sorted(root.glob(file))), root / file.replace("*", "none"))


def _changed(data: bytes, edit: Edit, kind: str, names: Mapping[str, str]) -> bytes:
    if edit.how == "payload":
        return PAYLOADS[edit.value](data)
    if edit.how in BYTES:
        return BYTES[edit.how](data, *edit.where, *(edit.value or ()))
    form = FORMATS[kind]
    try:
        tree = form.read(data)
    except Exception:  # an earlier edit made it unreadable
        return data
    if not change(tree, edit, names):
        return data
    return form.write(tree)


def change(tree: Tree, edit: Edit, names: Mapping[str, str]) -> bool:
    """Change one field; whether it was there."""
    if edit.how == "set" and not edit.where:
        tree.fields = tree.mark(_raw(edit.value, names))
        return True
    *above, last = edit.where
    inside = tree.fields
    try:
        for step in above:
            inside = inside[step]
        if edit.how == "add":
            key, value = edit.value
            inside = inside[last] if last != "" else inside
            inside[key] = tree.mark(_raw(value, names))
            return True
        if edit.how == "text":
            inside[last] = tree.mark(_filled(edit.value, names))
            return True
        old = inside[last]
        if edit.how == "drop":
            del inside[last]
        elif edit.how == "set":
            inside[last] = tree.mark(_raw(edit.value, names))
        elif edit.how == "twice":
            first, second = json.dumps(old), _raw(edit.value, names)
            inside[last] = tree.mark(f"{first}, {json.dumps(last)}: {second}")
        elif edit.how == "key":
            inside[_said(FIELDS[edit.value](), names)] = inside.pop(last)
        return True
    except (KeyError, IndexError, TypeError, AttributeError):
        return False


def _raw(name: str, names: Mapping[str, str]) -> str:
    return _filled(FIELDS[name](), names)


def _filled(text: str, names: Mapping[str, str]) -> str:
    """The text with paths of the case in it; one that is long names none."""
    for key, value in names.items():
        text = text.replace("{" + key + "}", value) if len(text) < 1000 else text
    return text


def _said(raw: str, names: Mapping[str, str]) -> str:
    """A value as text, for names and arguments."""
    raw = _filled(raw, names)
    value = loose(raw)
    text = value if isinstance(value, str) else raw
    return text.encode(errors="surrogatepass").decode(errors="surrogateescape")


def _argument(given: list[str], edit: Edit, names: Mapping[str, str]) -> None:
    place = edit.where[0] % max(1, len(given))
    if edit.how == "drop":
        del given[place]
        return
    # No system passes NUL, or more than 128 KiB, in an argument.
    text = _said(FIELDS[edit.value](), names).replace("\0", "")[:100_000]
    given[place] = text


def _rename(path: Path, name: str) -> None:
    """Another name for a file; one that the file system does not take is cut."""
    name = name.replace("/", "_").replace("\0", "")
    raw = os.fsencode(name) if name.isprintable() else name.encode(errors="replace")
    target = os.fsencode(path.parent) + b"/" + (raw[:200] or b"x") + path.suffix.encode()
    if path.exists():
        os.rename(os.fsencode(path), target)


# Bytes. Positions are taken modulo the length, so that they mean something anywhere.


def _cut(data: bytes, at: int) -> bytes:
    return data[: at % (len(data) or 1)]


def _flip(data: bytes, at: int, bit: int) -> bytes:
    if not data:
        return data
    at %= len(data)
    return data[:at] + bytes([data[at] ^ (1 << bit % 8)]) + data[at + 1 :]


def _insert(data: bytes, at: int, new: str) -> bytes:
    at %= len(data) + 1
    return data[:at] + bytes.fromhex(new) + data[at:]


def _over(data: bytes, at: int, new: str) -> bytes:
    at %= len(data) + 1
    fresh = bytes.fromhex(new)
    return data[:at] + fresh + data[at + len(fresh) :]


def _lose(data: bytes, at: int, count: int) -> bytes:
    at %= len(data) + 1
    return data[:at] + data[at + count :]


def _copy(data: bytes, at: int, count: int, to: int) -> bytes:
    at, to = at % (len(data) + 1), to % (len(data) + 1)
    return data[:to] + data[at : at + count] + data[to:]


def _tail(data: bytes, at: int, new: str) -> bytes:
    """Over the bytes ``at`` before the end, where weights lie."""
    at = len(data) - 1 - at % (len(data) or 1)
    return _over(data, max(0, at), new)


BYTES: dict[str, Callable[..., bytes]] = {
    "cut": _cut,
    "flip": _flip,
    "insert": _insert,
    "over": _over,
    "lose": _lose,
    "copy": _copy,
    "tail": _tail,
}


# Places: what may stand where a file is expected.


def _gone(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _link(target: str) -> Callable[[Path, Mapping[str, str]], None]:
    def make(path: Path, names: Mapping[str, str]) -> None:
        _gone(path)
        path.symlink_to(target.format(self=path.name, **names))

    return make


def _missing(path: Path, names: Mapping[str, str]) -> None:
    _gone(path)


def _folder(path: Path, names: Mapping[str, str]) -> None:
    _gone(path)
    path.mkdir()


def _pipe(path: Path, names: Mapping[str, str]) -> None:
    _gone(path)
    os.mkfifo(path)


def _socket(path: Path, names: Mapping[str, str]) -> None:
    _gone(path)
    os.mknod(path, stat.S_IFSOCK | 0o600)


def _file(path: Path, names: Mapping[str, str]) -> None:
    _gone(path)
    path.write_bytes(b"a file, and no folder\n")


def _sparse(path: Path, names: Mapping[str, str]) -> None:
    _gone(path)
    with path.open("wb") as file:
        file.truncate(1 << 40)


PLACES: dict[str, Callable[[Path, Mapping[str, str]], Any]] = {
    "missing": _missing,
    "folder": _folder,
    "file": _file,
    "pipe": _pipe,
    "socket": _socket,
    "terabyte": _sparse,
    "endless": _link("/dev/zero"),
    "null device": _link("/dev/null"),
    "memory": _link("/proc/self/mem"),
    "dangling link": _link("{missing}"),
    "loop": _link("{self}"),
    "link to a pipe": _link("{fifo}"),
    "link to a folder": _link("{evil}"),
}

FIELD_EDITS = ("set", "text", "drop", "twice", "add", "key")
CONDITIONS = ("full terminal", "small files", "folder gone")
"""What the world may be like: set by the server, not in a file."""
HOWS = (*FIELD_EDITS, *BYTES, "payload", "place", "beside", "name", "condition")

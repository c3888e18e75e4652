"""What an input led to, and which of it must not be."""

import csv
import json
import os
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TRACEBACK = re.compile(r"Traceback \(most recent call last\)|panicked at|Fatal Python")
FRAME = re.compile(r'File "([^"]+)", line (\d+),? in (\S+)')
BARS = re.compile(r"[━╸╺]|^\s*$|\d+% \d+:\d\d:\d\d left |^\d+:\d\d:\d\d \S")
"""Lines of progress, in a terminal and without one."""
LONGEST = 8192
"""Characters of the one line: room for two paths as long as a system takes them."""
LARGEST = 200 << 20
"""Bytes of an output; an input that lies where one is expected may be endless."""
FINE = {"\n", "\t"}

FAULTS = (
    "traceback",
    "crash",
    "hang",
    "code executed",
    "pickle opened",
    "process",
    "network",
    "written elsewhere",
    "half-written",
    "temporary file left",
    "wrong exit code",
    "no clear line",
    "control characters",
    "formula in a table",
    "other result in silence",
)
_EVENTS = {
    "runs": "process",
    "reaches": "network",
    "writes": "written elsewhere",
    "pickles": "pickle opened",
    "executes": "code executed",
}


@dataclass(frozen=True)
class Outcome:
    """What came of one input.

    Attributes:
        accepted: Whether the command did its work.
        faults: Some of ``FAULTS``; none where all is well.
        said: The error line, or the last line of a traceback.
        frame: Innermost line of ours that a traceback or a hang was in.
        seconds: Of the process's own time.
        details: What was recorded for each fault.
        altered: Whether the input differs from the valid example.
    """

    accepted: bool
    faults: tuple[str, ...]
    said: str
    frame: str
    seconds: float
    details: dict[str, str] = field(default_factory=dict)
    altered: bool = True


def snapshot(folder: Path) -> dict[str, tuple]:
    """Kind, size and time of everything below a folder; links are not followed."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(place, name)
            info = os.lstat(path)
            size = 0 if name in folders else info.st_size
            time = 0 if name in folders else info.st_mtime_ns
            found[os.path.relpath(path, folder)] = (info.st_mode, size, time)
    return found


def judge(
    root: Path,
    answer: Mapping[str, Any],
    before: Mapping[str, dict[str, tuple]],
    *,
    makes: tuple[str, ...],
    keeps: tuple[str, ...],
    expected: Mapping[str, Any] | None = None,
    asked: bool = False,
    untold: bool = False,
) -> Outcome:
    """Look at all that a case left.

    Args:
        root: Folder of the case.
        answer: The server's.
        before: Snapshots of its folders, by name.
        makes: Files below it that a success has made.
        keeps: What below ``out`` may stay after a refusal.
        expected: Parts that ``out/audit.json`` must hold after a success.
        asked: Whether arguments were changed: then the command line itself may refuse,
            a folder of any name may be written, and a model may be asked of the hub.
        untold: Whether the terminal is full: all may be done, and nobody told.
    """
    faults: dict[str, str] = {}
    error, output = (_text(root / name) for name in ("stderr", "stdout"))
    code, hung = answer["code"], answer["hung"]
    for line in _text(root / "events").splitlines():
        what, _, about = line.partition("\t")
        if not (asked and what in ("reaches", "writes")):
            faults.setdefault(_EVENTS[what], about)
    if (root / "canary").exists():
        faults["code executed"] = "the canary was written"
    frame = ""
    if hung:
        faults["hang"] = f"{answer['seconds']:.0f} s"
        frame = _frame(_text(root / "stack"), newest_first=True)
    elif code < 0:
        faults["crash"] = f"signal {-code}"
        frame = _frame(_text(root / "stderr"), newest_first=True)
    if not hung and TRACEBACK.search(error + output):
        faults["traceback"] = (error.strip() or output.strip()).splitlines()[-1][:300]
        frame = _frame(error, newest_first=False)
    message = ""
    calm = not {"hang", "crash", "traceback"} & set(faults)
    if calm and code not in (0, 2):
        faults["wrong exit code"] = str(code)
    if calm and code == 2:
        message, wrong = _clear_line(error, asked)
        if wrong:
            faults["no clear line"] = wrong
    if calm:
        odd = _control(error) or _control(output)
        if odd:
            faults["control characters"] = odd
    if not hung and code >= 0:
        whole = untold and not any(_unfinished(root / name) for name in makes)
        _look_at_files(root, before, code == 0 or whole, makes, keeps, faults)
        if code == 0 and expected is not None:
            _compare(root / "out" / "audit.json", expected, faults)
    return Outcome(
        code == 0 and not hung,
        tuple(name for name in FAULTS if name in faults),
        message or faults.get("traceback", ""),
        frame,
        answer["seconds"],
        faults,
    )


def _look_at_files(
    root: Path,
    before: Mapping[str, dict[str, tuple]],
    done: bool,
    makes: tuple[str, ...],
    keeps: tuple[str, ...],
    faults: dict[str, str],
) -> None:
    for name, old in before.items():
        new = snapshot(root / name)
        changed = sorted(path for path in {*old, *new} if old.get(path) != new.get(path))
        if name == "out":
            hidden = [
                path for path in changed if path in new and os.path.basename(path).startswith(".")
            ]
            if hidden:
                faults["temporary file left"] = f"out/{hidden[0]}"
            stray = [
                path
                for path in changed
                if not done
                and not path.startswith(keeps or ("\0",))
                and not (keeps and path in {os.path.dirname(k) for k in keeps})
            ]
            # An empty folder is no output.
            stray = [path for path in stray if not _is_folder(new.get(path))]
            if stray:
                faults["half-written"] = f"out/{stray[0]}"
        elif changed:
            faults.setdefault("written elsewhere", f"{name}/{changed[0]}")
    if left := sorted(os.listdir(root / "tmp")):
        faults["temporary file left"] = f"tmp/{left[0]}"
    for place, folders, files in os.walk(root / "cache"):
        for name in (*folders, *files):
            if name.startswith("."):
                faults["temporary file left"] = os.path.relpath(os.path.join(place, name), root)
    if done:
        for name in makes:
            wrong = _unfinished(root / name)
            if wrong:
                faults["half-written"] = f"{name}: {wrong}"
            if name.endswith(".csv") and not wrong:
                _check_cells(root / name, faults)


def _is_folder(info: tuple | None) -> bool:
    import stat

    return info is not None and stat.S_ISDIR(info[0])


def _unfinished(path: Path) -> str:
    if not path.is_file():
        return "it is missing"
    if path.stat().st_size > LARGEST:
        return "it is far too large"
    if path.suffix == ".json":
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            return str(error)[:100]
    elif path.suffix == ".html":
        text = path.read_text(encoding="utf-8", errors="replace").rstrip()
        return "" if text.endswith("</html>") else "it has no end"
    return ""


def _check_cells(path: Path, faults: dict[str, str]) -> None:
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.reader(file):
            for cell in row:
                numeric = re.fullmatch(r"-?[\d.]+(e-?\d+)?|-?inf|nan", cell)
                if cell[:1] in ("=", "+", "-", "@", "\t", "\r") and not numeric:
                    faults["formula in a table"] = cell[:80]


def _compare(path: Path, expected: Mapping[str, Any], faults: dict[str, str]) -> None:
    if _unfinished(path):
        return  # told as half-written
    document = json.loads(path.read_text(encoding="utf-8"))
    for part, value in expected.items():
        if document.get(part) != value:
            faults["other result in silence"] = part


def _clear_line(error: str, asked: bool) -> tuple[str, str]:
    """The one line, and what is wrong with what was printed."""
    lines = [line for line in error.split("\n") if not BARS.search(line)]
    ours = [line for line in lines if line.startswith("exhume: ")]
    box = any(line.startswith(("Usage:", "╭─ Error")) for line in lines)
    if asked and not ours and box:
        return " ".join(lines)[:LONGEST], ""
    message = ours[0] if ours else ""
    if len(ours) != 1:
        return message, f"{len(ours)} lines begin with 'exhume: '"
    if len(lines) != 1:
        other = next(line for line in lines if line is not ours[0])
        return message, f"another line: {other[:160]}"
    if len(message) > LONGEST:
        return message[:LONGEST], f"{len(message)} characters"
    return message, ""


def _control(text: str) -> str:
    for letter in text:
        if letter in FINE or (letter >= " " and letter < "\x7f"):
            continue
        if unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
            return repr(letter)
    return ""


def _frame(text: str, *, newest_first: bool) -> str:
    """The innermost frame of the program's own files, and the innermost of all."""
    if newest_first:
        # The thread that runs the command is the last one shown.
        text = text.rpartition("(most recent call first)")[2]
    found = FRAME.findall(text)
    if not found:
        return ""
    if newest_first:
        found = found[::-1]
    ours = [each for each in found if "site-packages" not in each[0]]
    ours = [
        each
        for each in ours
        if re.search(
            r"/(audits|capture|evidence|attribution|probes|erasure|testbeds)/\w+\.py$", each[0]
        )
    ]
    shown = []
    for file, line, name in (*ours[-1:], found[-1]):
        short = "/".join(file.split("/")[-2:])
        shown.append(f"{short}:{line} {name}")
    return " <- ".join(dict.fromkeys(shown))


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(4_000_000).decode(errors="backslashreplace")
    except FileNotFoundError:
        return ""

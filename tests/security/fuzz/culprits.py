"""Readers with one fault each, so that the instrument is seen to find every one."""

import os
import pickle
import runpy
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn
from urllib.request import urlopen

from evidence.errors import InputError


def traceback(folder: Path) -> None:
    """It meets something that it did not expect."""
    raise KeyError(folder)


def crash(folder: Path) -> None:
    """A library ends the process."""
    os.abort()


def hang(folder: Path) -> None:
    """It waits for what never comes."""
    time.sleep(600)


def busy(folder: Path) -> None:
    """It computes for ever."""
    while True:
        pass


def code_executed(folder: Path) -> None:
    """It runs a file of the input."""
    (folder / "in" / "code.py").write_text("x = 1\n")
    with suppress(Exception):
        runpy.run_path(str(folder / "in" / "code.py"))


def canary(folder: Path) -> None:
    """It imports what an input names."""
    __import__("exhume_canary")


def pickle_opened(folder: Path) -> None:
    """It opens a pickle."""
    pickle.loads(pickle.dumps(Path))


def process(folder: Path) -> None:
    """It starts a program, and hides that it failed."""
    with suppress(OSError):
        subprocess.run(["true"], check=False)


def network(folder: Path) -> None:
    """It asks for an address, and hides that it failed."""
    with suppress(OSError):
        socket.getaddrinfo("example.invalid", 80)
    with suppress(OSError):
        urlopen("http://example.invalid")


def written_elsewhere(folder: Path) -> None:
    """It writes beside its output."""
    Path("here.txt").write_text("x")


def half_written(folder: Path) -> None:
    """It refuses when half of its output is there."""
    (folder / "out" / "audit.json").write_text("{}")
    raise InputError("this is no audit")


def temporary_file_left(folder: Path) -> None:
    """It leaves its scratch file."""
    (folder / "out" / ".audit.json.x7").write_text("{}")


def wrong_exit_code(folder: Path) -> None:
    """It says nothing and ends in its own way."""
    raise SystemExit(7)


def _refused(text: str) -> NoReturn:
    """Refuse as an error of ours would that escaped nothing."""
    print(f"exhume: {text}", file=sys.stderr)
    raise SystemExit(2)


def no_clear_line(folder: Path) -> None:
    """What it read stands in its message as it is."""
    _refused("there is no field 'a\nexhume: all is well'")


def control_characters(folder: Path) -> None:
    """The same, in color."""
    _refused("there is no field '\x1b[31mred'")


def formula_in_a_table(folder: Path) -> None:
    """A name that a spreadsheet computes."""
    (folder / "out" / "table.csv").write_text("name,value\n=1+1,2\n")


def other_result_in_silence(folder: Path) -> None:
    """It takes what it finds."""
    (folder / "out" / "audit.json").write_text("{}")


def nothing(folder: Path) -> None:
    """It does nothing wrong."""

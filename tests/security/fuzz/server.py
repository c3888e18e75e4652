"""A process that has everything imported and forks a child for each input.

Reads one request a line of JSON on standard input and answers one a line. A child is
the ``exhume`` command, or a reader of the Python interface, in a fresh process: a hang,
a crash or a memory bomb ends the child alone.
"""

import faulthandler
import gc
import importlib
import json
import os
import platform
import resource
import select
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from tests.security.fuzz.watch import Watch

MEMORY = 4 << 30
FILE, SMALL = 256 << 20, 32 << 10
STEP = 0.05
PACKAGE = "tests.security.fuzz"


def serve() -> None:
    """Answer requests until standard input ends."""
    # What the program asks of the machine, it asks whatever the input says.
    platform.processor()
    watch = Watch()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        for name in request.get("imports", ()):
            _import(name)
        gc.freeze()
        answers.write(json.dumps(_tried(request, watch)) + "\n")
        answers.flush()


def _import(name: str) -> None:
    """Import what a kind needs, so that no child has to."""
    try:
        importlib.import_module(name)
    except Exception as error:  # one that cannot be imported alone is left to children
        print(f"{name} was not imported: {error}", file=sys.stderr)


def _tried(request: dict[str, Any], watch: Watch) -> dict[str, Any]:
    root = Path(request["root"])
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        _child(request, root, watch)
    hung, seconds = _waited(child, start, request["limit"])
    # The whole session: what a child has started ends with it.
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    _, status, used = os.wait4(child, 0)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "hung": hung,
        "seconds": round(seconds, 3),
        "memory": used.ru_maxrss * 1024,
    }


def _waited(child: int, start: float, limit: float) -> tuple[bool, float]:
    """Wait for the end or the limit; whether it came, and the child's own seconds."""
    handle = os.pidfd_open(child)
    own = 0.0
    try:
        while not select.select([handle], [], [], STEP)[0]:
            own = time.monotonic() - start - _queued(child)
            if own > limit + 1:
                return True, own
        return own > limit, max(own, time.monotonic() - start - _queued(child))
    finally:
        os.close(handle)


def _queued(child: int) -> float:
    """Seconds in which the child could have run and had no processor."""
    try:
        with open(f"/proc/{child}/schedstat") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


def _child(request: dict[str, Any], root: Path, watch: Watch) -> NoReturn:
    code = 1
    try:
        _prepare(root, request["conditions"], request["limit"])
        before = set(sys.modules)
        events = os.open(root / "events", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        places = ("out", "tmp", "cache", *(("cwd",) if request["roams"] else ()))
        allowed = tuple(root / name for name in places)
        watch.begin(events, root.parent.parent, allowed)
        code = _run(request)
        watch.file = -1
        if request.get("learn"):
            names = [
                name
                for name in set(sys.modules) - before
                if not _file_of(name).startswith(str(root.parent.parent)) and name != "__main__"
            ]
            (root / "modules").write_text(json.dumps(sorted(names)))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _file_of(name: str) -> str:
    return str(getattr(sys.modules[name], "__file__", "") or "")


def _prepare(root: Path, conditions: list[str], limit: float) -> None:
    """The child's own home, terminal, limits and clock."""
    os.setsid()
    full = "full terminal" in conditions
    for number, place in ((1, "/dev/full" if full else root / "stdout"), (2, root / "stderr")):
        handle = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(handle, number)
    # Whoever asks "run it? [y/N]" is told yes.
    handle = os.open(root / "answers", os.O_RDONLY)
    os.dup2(handle, 0)
    sys.stdin = os.fdopen(0, "r", closefd=False)
    os.environ |= {
        "HOME": str(root / "home"),
        "TMPDIR": str(root / "tmp"),
        "EXHUME_CACHE": str(root / "cache"),
        "COLUMNS": "200",
    }
    import tempfile

    tempfile.tempdir = None
    os.chdir(root / "cwd")
    if "folder gone" in conditions:
        (root / "cwd").rmdir()
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
    most = SMALL if "small files" in conditions else FILE
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    stack = open(root / "stack", "w")
    faulthandler.dump_traceback_later(limit, file=stack)


def _run(request: dict[str, Any]) -> int:
    """The command or the reader; its exit code as a shell would see it."""
    from evidence.errors import ExhumeError

    for place in request.get("stops", ()):
        module, name = place.rsplit(".", 1)
        setattr(importlib.import_module(module), name, _stop)
    try:
        if request.get("twin"):
            module, name = request["twin"].rsplit(".", 1)
            twin = getattr(importlib.import_module(f"{PACKAGE}.{module}"), name)
            try:
                twin(*map(Path, request["arguments"]))
            except ExhumeError as error:
                print(f"exhume: {error}", file=sys.stderr)
                return error.exit_code
            return 0
        from exhume.cli import app as cli

        sys.argv = ["exhume", *request["arguments"]]
        cli.main()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _stop(*_: object, **__: object) -> NoReturn:
    """Stands where a command that was given good inputs would work for minutes."""
    raise SystemExit(0)


if __name__ == "__main__":
    serve()

"""What a process does beside computing, as Python's audit events tell it.

Events are written to a file at once, so that a killed process has told its own.
Processes and connections are refused after they were recorded: nothing that an input
asks for happens.
"""

import os
import sys
from pathlib import Path
from typing import Any

from tests.security.fuzz.inputs.values import CANARY_MODULE

RUNS = {
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.startfile",
    "os.fork",
    "os.forkpty",
    "pty.spawn",
    "webbrowser.open",
}
REACHES = {
    "socket.connect",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "socket.gethostbyaddr",
    "socket.sendto",
    "socket.sendmsg",
    "socket.bind",
    "urllib.Request",
    "http.client.connect",
    "ftplib.connect",
    "smtplib.connect",
}
CHANGES = {
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "os.chown",
    "shutil.rmtree",
    "shutil.move",
}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Watch:
    """The hook of a process; silent until ``begin``."""

    def __init__(self) -> None:
        self.file = -1
        self.inputs = ""
        self.allowed: tuple[str, ...] = ()
        self.busy = False
        sys.addaudithook(self._heard)

    def begin(self, file: int, inputs: Path, allowed: tuple[Path, ...]) -> None:
        """Record from now on.

        Args:
            file: Where to; an open file descriptor.
            inputs: Folder whose code must not run.
            allowed: Folders that may be written into.
        """
        self.inputs = str(inputs) + os.sep
        self.allowed = tuple(str(each) for each in allowed)
        self.file = file

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.file < 0 or self.busy:
            return
        self.busy = True
        try:
            self._record(event, arguments)
        finally:
            self.busy = False

    def _record(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in RUNS:
            self._tell("runs", event, arguments)
            raise PermissionError(f"{event} is refused while inputs are tried")
        if event in REACHES:
            self._tell("reaches", event, arguments)
            raise OSError(f"{event} is refused while inputs are tried")
        if event == "open":
            self._opened(*arguments)
        elif event in CHANGES:
            # Of a link, what it points to is not changed.
            linking = event in ("os.link", "os.symlink")
            for each in arguments[1:2] if linking else arguments[:2]:
                if isinstance(each, str | bytes):
                    path = _below(each, arguments[-1])
                    if not self._may_write(path):
                        self._tell("writes", event, path)
        elif event == "pickle.find_class":
            self._tell("pickles", event, arguments)
        elif event in ("exec", "compile"):
            code = arguments[0] if event == "exec" else None
            name = getattr(code, "co_filename", "") if code else arguments[1]
            if isinstance(name, bytes):
                name = os.fsdecode(name)
            if isinstance(name, str) and name.startswith(self.inputs):
                self._tell("executes", event, name)
        elif event == "import":
            module, file = arguments[0], arguments[1]
            inside = isinstance(file, str) and file.startswith(self.inputs)
            if inside or str(module).split(".")[0] == CANARY_MODULE:
                self._tell("executes", event, (module, file))
        elif event == "ctypes.dlopen" and str(arguments[0]).startswith(self.inputs):
            self._tell("executes", event, arguments)

    def _opened(self, path: Any, mode: Any, flags: Any) -> None:
        writing = isinstance(flags, int) and flags & WRITING
        if isinstance(mode, str):
            writing = any(letter in mode for letter in "wax+")
        if writing and not self._may_write(path):
            self._tell("writes", "open", (path, mode))

    def _may_write(self, path: Any) -> bool:
        if isinstance(path, int):
            return True
        try:
            full = os.path.abspath(os.fsdecode(path))
        except (TypeError, ValueError):
            return True
        return full.startswith((*self.allowed, "/dev/null"))

    def _tell(self, what: str, event: str, about: Any) -> None:
        line = f"{what}\t{event}\t{_short(about)}\n"
        os.write(self.file, line.encode(errors="backslashreplace"))


def _below(path: str | bytes, folder: Any) -> str:
    """The path, where it may be relative to a folder that is open."""
    text = os.fsdecode(path)
    if not isinstance(folder, int) or folder < 0 or os.path.isabs(text):
        return text
    try:
        return os.path.join(os.readlink(f"/proc/self/fd/{folder}"), text)
    except OSError:
        return text


def _short(about: Any) -> str:
    text = repr(about).replace("\t", " ")
    return text if len(text) < 300 else text[:300] + "..."

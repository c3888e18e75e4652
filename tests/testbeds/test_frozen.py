"""What names and describes finished models does not change, nor do the weights of edits."""

import json

import pytest
import torch

from tests.testbeds import frozen

WRITE = "run `python -m tests.testbeds.frozen` where this is meant; finished zoos are made again"


@pytest.fixture(scope="module")
def kept():
    return json.loads(frozen.FILE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("frozen")


@pytest.fixture(scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def differing(found, wanted):
    """Paths of the values that differ."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        return [
            f"{key}/{path}"
            for key in found | wanted
            for path in differing(found.get(key), wanted.get(key))
        ]
    return [] if found == wanted else [f": {found} was {wanted}"]


@pytest.mark.parametrize("name", ["cache_keys", "data", "recipes", "zoo"])
def test_cache_keys_data_recipes_and_cards_are_those_of_the_file(kept, name):
    assert not differing(getattr(frozen, name)(), kept[name]), WRITE


def test_worlds_write_the_same_files(kept, root, one_thread):
    found = frozen.built(root)
    if frozen.arithmetic() != kept["arithmetic"]:  # measured numbers and weights differ too
        found, kept = (without_measured(each) for each in (found, kept["built"]))
        assert not differing(found, kept), WRITE
    else:
        assert not differing(found, kept["built"]), WRITE


def without_measured(built):
    """Names of files, keys of cards, and hashes of items."""
    found = {}
    for name in ("bios", "codes", "keys"):
        world = built[name]
        items = {path: one for path, one in world["texts"].items() if path != "manifest.json"}
        found[name] = {"files": world["files"], "items": items}
    found["digits"] = {"files": built["digits"]["files"]}
    found["cards"] = {
        name: {path: [key for key, _ in card] for path, card in built[name]["cards"].items()}
        for name in ("bios", "codes", "keys", "digits")
    }
    return found


@pytest.mark.parametrize("count", [1, pytest.param(frozen.MODELS, marks=pytest.mark.slow)])
def test_weights_of_edits_are_those_of_the_file_bit_for_bit(kept, root, one_thread, count):
    """The mildest model of every edit; further ones differ in strength and are slow."""
    if frozen.arithmetic() != kept["arithmetic"]:
        pytest.skip("this machine rounds otherwise than the one that wrote the file")
    found = frozen.weights(root, count)
    wanted = {name: hashes[:count] for name, hashes in kept["weights"].items()}
    assert not differing(found, wanted), WRITE
    assert all(found.values())

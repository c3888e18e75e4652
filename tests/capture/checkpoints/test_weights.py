"""Hostile and damaged weights are refused; the fingerprint follows the numbers."""

import json
import math
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from capture.checkpoints.open import open_checkpoint
from capture.checkpoints.safetensors_files import check_finite, refuse_pickle
from capture.checkpoints.weight_change import compare_weights
from evidence.errors import InputError
from tests.helpers.model_families import LAYERS, tiny


class Bomb:
    """Says so when it is unpickled."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('the pickle was executed')",))


@pytest.fixture
def folder(tmp_path):
    tiny("llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5, "torch", "zip"])
@pytest.mark.parametrize("name", ["model.bin", "model.pt", "weights.ckpt"])
def test_a_pickle_file_is_refused_and_not_executed(tmp_path, name, protocol):
    path = tmp_path / name
    if protocol == "torch":
        torch.save(Bomb(), path, _use_new_zipfile_serialization=False)
    elif protocol == "zip":
        torch.save(Bomb(), path)
    else:
        path.write_bytes(pickle.dumps(Bomb(), protocol))
    with pytest.raises(InputError, match="run any code"):
        open_checkpoint(path)


@pytest.mark.parametrize("protocol", [2, 4, 5, "torch", "zip"])
def test_a_pickle_called_safetensors_is_refused_by_content(folder, protocol):
    path = folder / "model.safetensors"
    if protocol in ("torch", "zip"):
        torch.save(Bomb(), path, _use_new_zipfile_serialization=protocol == "zip")
    else:
        path.write_bytes(pickle.dumps(Bomb(), protocol))
    with pytest.raises(InputError, match="run any code"):
        open_checkpoint(folder)


def test_a_folder_with_only_a_pickle_is_refused(folder):
    (folder / "model.safetensors").unlink()
    torch.save(Bomb(), folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="run any code"):
        open_checkpoint(folder)


def test_a_pickle_beside_good_weights_is_never_read(folder):
    expected = open_checkpoint(folder).weights_hash
    torch.save(Bomb(), folder / "pytorch_model.bin")
    found = open_checkpoint(folder)
    assert found.weights_hash == expected
    found.load()


def test_safetensors_bytes_are_no_pickle(folder):
    refuse_pickle(folder / "model.safetensors")


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
def test_truncated_weights_are_refused(folder, keep):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    size = int(len(data) * keep) if isinstance(keep, float) else keep
    path.write_bytes(data[:size])
    with pytest.raises(InputError, match="damaged or cut short"):
        open_checkpoint(folder)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused(folder, value):
    def spoil(tensors):
        tensors["model.layers.1.mlp.down_proj.weight"][3, 2] = value

    rewrite(folder, spoil)
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.down_proj\.weight.*1 of"):
        open_checkpoint(folder)


def test_live_weights_that_are_not_finite_are_refused():
    model = tiny("gpt2")
    with torch.no_grad():
        model.get_parameter("transformer.wte.weight")[0, 0] = math.nan
    with pytest.raises(InputError, match="NaN"):
        open_checkpoint(model)


def test_a_missing_shard_is_named(tmp_path):
    tiny("llama").save_pretrained(tmp_path, max_shard_size="10KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    shards[1].unlink()
    with pytest.raises(InputError, match=shards[1].name):
        open_checkpoint(tmp_path)


def test_an_index_cannot_point_out_of_its_folder(tmp_path):
    tiny("llama").save_pretrained(tmp_path / "model", max_shard_size="10KB")
    index = tmp_path / "model" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    first = next(iter(content["weight_map"]))
    content["weight_map"][first] = "../elsewhere.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(InputError, match="outside its folder"):
        open_checkpoint(tmp_path / "model")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"weight_map": 3}'])
def test_a_broken_index_is_refused(folder, text):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(InputError, match="not a valid index"):
        open_checkpoint(folder)


def test_a_missing_tensor_is_an_error_and_not_a_random_number(folder):
    rewrite(folder, lambda tensors: tensors.pop("model.layers.2.mlp.up_proj.weight"))
    with pytest.raises(InputError, match=r"layers\.2\.mlp\.up_proj"):
        open_checkpoint(folder).load()


def test_a_tensor_of_another_shape_is_an_error(folder):
    def shrink(tensors):
        tensors["model.norm.weight"] = torch.ones(5)

    rewrite(folder, shrink)
    with pytest.raises(InputError, match=r"model\.norm\.weight|config\.json"):
        open_checkpoint(folder).load()


def test_the_hash_ignores_sharding_and_liveness_but_not_one_bit(tmp_path):
    model = tiny("llama")
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="10KB")
    hashes = {
        open_checkpoint(source).weights_hash
        for source in (tmp_path / "one", tmp_path / "many", model)
    }
    assert len(hashes) == 1
    with torch.no_grad():
        weight = model.model.layers[0].mlp.up_proj.weight
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    assert open_checkpoint(model).weights_hash not in hashes


def test_comparing_gives_the_norms_written_out_by_hand(tmp_path):
    model = tiny("llama")
    model.save_pretrained(tmp_path / "a")
    before = model.state_dict()["model.layers.1.mlp.up_proj.weight"].clone()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1.5)
    model.save_pretrained(tmp_path / "b")
    a, b = open_checkpoint(tmp_path / "a"), open_checkpoint(tmp_path / "b")
    change = compare_weights(a, b)
    moved = [row for row in change.tensors if row.relative]
    assert [(row.name, row.layer) for row in moved] == [("model.layers.1.mlp.up_proj.weight", 1)]
    assert moved[0].relative == pytest.approx(0.5)
    assert not change.identical
    state = tiny("llama").state_dict()
    block = sum(
        float(value.double().square().sum())
        for name, value in state.items()
        if ".layers.1." in name
    )
    expected = 0.5 * float(before.double().norm()) / math.sqrt(block)
    assert change.layers == pytest.approx({-1: 0.0, 0: 0.0, 1: expected, 2: 0.0})
    # A live module gives what its files give.
    assert compare_weights(a, open_checkpoint(model)).layers == pytest.approx(change.layers)


def test_equal_weights_are_identical(folder):
    checkpoint = open_checkpoint(folder)
    change = compare_weights(checkpoint, checkpoint)
    assert change.identical and change.relative == 0
    assert set(change.layers) == {-1, *range(LAYERS)}


def test_an_output_layer_cut_loose_still_compares(folder):
    # A head-only edit unties the output layer, which then appears in the files.
    model = tiny("llama")
    head = torch.nn.Parameter(model.lm_head.weight.detach() * 2)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = head
    model.all_tied_weights_keys = {}
    change = compare_weights(open_checkpoint(folder), open_checkpoint(model))
    assert [row.name for row in change.tensors if row.relative] == ["lm_head.weight"]


def test_different_architectures_do_not_compare(folder):
    for other in (tiny("gpt2"), tiny("neox")):
        with pytest.raises(InputError, match="different architectures"):
            compare_weights(open_checkpoint(folder), open_checkpoint(other))


def test_different_widths_do_not_compare(folder):
    model = tiny("llama")
    model.lm_head = torch.nn.Linear(24, 61, bias=False)
    model.model.layers[0].mlp.up_proj = torch.nn.Linear(24, 44, bias=False)
    with pytest.raises(InputError, match="different architectures"):
        compare_weights(open_checkpoint(folder), open_checkpoint(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    ("value", "what"),
    [(3.3e38, "absurd numbers"), (-1e16, "absurd numbers"), (float("inf"), "infinity")],
)
def test_weights_that_nothing_can_be_computed_with_are_refused(dtype, value, what):
    weights = torch.zeros(4, 5, dtype=dtype)
    weights[1, 2] = value
    with pytest.raises(InputError, match=f"{what} in w.*1 of 20"):
        check_finite("w", weights)
    check_finite("mask", weights, allow_infinite=True)
    check_finite("w", torch.full((4, 5), 65_504.0, dtype=dtype))

"""Features of a dictionary taken out of activations and of value vectors."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from capture.network.structure import down_projection, find_blocks
from erasure.concept.sae_features import Dictionary, DictionaryEraser, pisces_
from evidence.arrays import RowsError
from evidence.errors import InputError
from tests.helpers.tiny_erasure import tiny_gpt2, tiny_llama

D = 24


def basis(seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(D, D, generator=rng, dtype=torch.float64)).Q


def dictionary(bias=0.0):
    axes = basis()
    return Dictionary(axes, torch.full((D,), bias), axes, torch.ones(D) * 0.3)


def rows(seed=1, items=80):
    """Offsets of few active features each; feature 5 is active with the concept."""
    rng = torch.Generator().manual_seed(seed)
    active = torch.rand(items, D, generator=rng, dtype=torch.float64) < 0.2
    z = torch.arange(items) % 2
    active[:, 5] = z.bool()
    latents = active * (1 + torch.rand(items, D, generator=rng, dtype=torch.float64))
    return 0.3 + latents @ basis(), z, latents


def test_the_concept_s_feature_is_found_and_nothing_else_changes():
    x, z, latents = rows()
    eraser = DictionaryEraser.fit(x, z, dictionary(), n_features=1)
    assert eraser.features == (5,) and eraser.rank_ == 1
    assert float(eraser.scores[0]) == 1.0
    without = latents.clone()
    without[:, 5] = 0
    assert_close(eraser.transform(x), 0.3 + without @ basis())
    twice = eraser.transform(eraser.transform(x))
    assert_close(twice, eraser.transform(x))


def test_more_strength_pushes_the_other_way():
    x, z, latents = rows()
    eraser = DictionaryEraser.fit(x, z, dictionary(), n_features=1, strength=0.5)
    seen = (eraser.transform(x) - 0.3) @ basis()[5]
    assert_close(seen, -0.5 * latents[:, 5])


def test_shuffled_classes_choose_no_feature_that_says_much():
    x, z, _ = rows()
    rng = torch.Generator().manual_seed(3)
    mixed = z[torch.randperm(len(z), generator=rng)]
    eraser = DictionaryEraser.fit(x, mixed, dictionary(), n_features=1)
    assert float(eraser.scores[0]) < 0.8


def test_saved_and_read_again_it_does_the_same(tmp_path):
    x, z, _ = rows()
    eraser = DictionaryEraser.fit(x, z, dictionary(0.05), n_features=3, strength=0.2)
    eraser.save(tmp_path / "e.safetensors")
    loaded = DictionaryEraser.load(tmp_path / "e.safetensors")
    assert loaded.features == eraser.features and loaded.size == eraser.size
    assert torch.equal(loaded.transform(x), eraser.transform(x))
    kept = eraser.transform(x.float().numpy())
    assert isinstance(kept, np.ndarray) and kept.dtype == np.float32


@pytest.mark.parametrize("family", [tiny_llama, tiny_gpt2])
def test_value_vectors_lose_the_feature_in_either_sign_and_no_other_weight(family):
    x, z, _ = rows()
    eraser = DictionaryEraser.fit(x, z, dictionary(), n_features=1)
    model = family()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    changed = pisces_(model, 1, eraser)
    module = down_projection(find_blocks(model)[1])
    weight = module.get_parameter("weight").data
    values = (weight if family is tiny_gpt2 else weight.T).double()
    assert float((values @ basis()[5]).abs().max()) < 1e-6
    assert changed == len(values)
    moved = [key for key, value in model.state_dict().items()
             if not torch.equal(value, before[key])]  # fmt: skip
    assert len(moved) == 1 and model.get_parameter(moved[0]) is module.weight
    old = before[moved[0]].double()
    old = old if family is tiny_gpt2 else old.T
    # What is orthogonal to the feature stays.
    off = torch.eye(D).double() - torch.outer(basis()[5], basis()[5])
    assert_close(values @ off, old @ off, rtol=1e-5, atol=1e-6)


def test_bad_input_is_one_clear_error(tmp_path):
    x, z, _ = rows()
    with pytest.raises(RowsError, match="bias does not fit"):
        Dictionary(basis(), torch.zeros(3), basis(), torch.zeros(D))
    with pytest.raises(RowsError, match="rows and dictionary"):
        DictionaryEraser.fit(x[:, :5], z, dictionary())
    with pytest.raises(RowsError, match="two classes"):
        DictionaryEraser.fit(x, torch.arange(len(x)) % 3, dictionary())
    with pytest.raises(RowsError, match="count or strength"):
        DictionaryEraser.fit(x, z, dictionary(), n_features=D + 1)
    eraser = DictionaryEraser.fit(x, z, dictionary(), n_features=1)
    with pytest.raises(InputError, match="not the index of a block"):
        pisces_(tiny_llama(), 9, eraser)
    with pytest.raises(InputError, match="no eraser"):
        DictionaryEraser.load(tmp_path / "none")

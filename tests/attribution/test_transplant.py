"""The last block of one model in another, and everything as it was afterwards."""

import pytest
import torch

from attribution.circuits.structure import find_structure
from attribution.patching.transplant import copy_parameters, last_block, temporarily_replaced
from evidence.errors import InputError
from tests.helpers.model_families import tiny


def logits(model):
    ids = torch.arange(6)[None]
    with torch.no_grad():
        return model(input_ids=ids).logits


def other(model):
    torch.manual_seed(1)
    block = last_block(find_structure(model))
    with torch.no_grad():
        for parameter in block.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    return model


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
def test_an_edit_of_the_last_block_is_undone_exactly_and_comes_back(family):
    model, edited = tiny(family), other(tiny(family))
    whole, changed = logits(model), logits(edited)
    assert (whole - changed).abs().max() > 1e-2
    block = last_block(find_structure(edited))
    with temporarily_replaced(block, copy_parameters(last_block(find_structure(model)))):
        assert torch.equal(logits(edited), whole)
    assert torch.equal(logits(edited), changed)


def test_the_weights_come_back_after_an_error_too():
    edited = other(tiny("llama"))
    changed = logits(edited)
    block = last_block(find_structure(edited))
    taken = copy_parameters(last_block(find_structure(tiny("llama"))))
    with pytest.raises(RuntimeError, match="stop"), temporarily_replaced(block, taken):
        raise RuntimeError("stop")
    assert torch.equal(logits(edited), changed)


def test_a_copy_does_not_follow_the_block():
    model = tiny("llama")
    block = last_block(find_structure(model))
    taken = copy_parameters(block)
    other(model)
    now = dict(block.named_parameters())
    assert not all(torch.equal(taken[name], now[name]) for name in taken)


def test_blocks_of_another_build_are_refused():
    one, two = (last_block(find_structure(tiny(f))) for f in ("llama", "gpt2"))
    with (
        pytest.raises(InputError, match="other parameters"),
        temporarily_replaced(one, copy_parameters(two)),
    ):
        pass

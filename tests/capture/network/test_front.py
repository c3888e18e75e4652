"""The front of a model: what belongs to it, and what a transplant copies."""

import copy
from typing import Any

import pytest
import torch

from capture.network.front import changed_behind, front_names, parameters_behind, with_front
from capture.network.structure import find_blocks, input_embedding, output_head
from evidence.errors import InputError
from testbeds.worlds.random_models import FAMILIES, random_model

EMBEDDINGS = {
    "llama": ["model.embed_tokens.weight"],
    "gpt2": ["transformer.wte.weight", "transformer.wpe.weight"],
    "neox": ["gpt_neox.embed_in.weight"],
}


def tiny(family, seed=0):
    torch.manual_seed(seed)
    return random_model(family, vocabulary=40, width=24, layers=3, heads=2, pad=0)


def tied(seed=0):
    model = tiny("llama", seed)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    return model


def weight_of(module):
    return module.get_parameter("weight")


def logits(model):
    with torch.no_grad():
        return model(torch.tensor([[1, 5, 3, 4]])).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_the_front_is_the_embeddings_and_the_first_blocks(family):
    model = tiny(family)
    assert front_names(model, 0) == EMBEDDINGS[family]
    first = {id(each) for each in find_blocks(model)[0].parameters()}
    own = {name for name, each in model.named_parameters() if id(each) in first}
    assert set(front_names(model, 1)) - own == set(EMBEDDINGS[family])
    assert own <= set(front_names(model, 1))


@pytest.mark.parametrize("family", FAMILIES)
def test_front_and_rest_are_all_parameters(family):
    model = tiny(family)
    count = len(front_names(model, 2)) + len(parameters_behind(model, 2))
    assert count == len(list(model.parameters()))


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_changed_front_is_restored_bit_for_bit(family, depth):
    original = tiny(family)
    edited = copy.deepcopy(original)
    with torch.no_grad():
        for name in front_names(edited, depth):
            edited.state_dict()[name].add_(0.5)
    kept = copy.deepcopy(edited.state_dict())
    made = with_front(edited, original, depth)
    assert torch.equal(logits(made), logits(original))
    assert not torch.equal(logits(edited), logits(original))
    assert all(torch.equal(edited.state_dict()[name], kept[name]) for name in kept)


def test_what_is_behind_stays_the_receivers():
    donor, receiver = tiny("llama", 1), tiny("llama", 2)
    made = with_front(receiver, donor, 1).state_dict()
    inside = front_names(donor, 1)
    for name, value in made.items():
        of, other = (donor, receiver) if name in inside else (receiver, donor)
        assert torch.equal(value, of.state_dict()[name])
        # Norms start as ones in both.
        assert "norm" in name or not torch.equal(value, other.state_dict()[name])


def test_a_tied_head_keeps_its_own_weights():
    donor, receiver = tied(1), tied(2)
    made: Any = with_front(receiver, donor, 0)
    assert torch.equal(weight_of(input_embedding(made)), weight_of(input_embedding(donor)))
    assert torch.equal(weight_of(output_head(made)), weight_of(output_head(receiver)))
    assert receiver.config.tie_word_embeddings and not made.config.tie_word_embeddings
    assert front_names(receiver, 0) == ["model.embed_tokens.weight"]
    assert not any(
        each is weight_of(output_head(receiver)) for each in parameters_behind(receiver, 0)
    )


def test_changes_behind_the_front_are_named():
    original, name = tiny("llama"), "model.layers.1.mlp.down_proj.weight"
    edited = copy.deepcopy(original)
    assert changed_behind(edited, original, 0) == []
    with torch.no_grad():
        edited.get_parameter(name)[0, 0] += 1e-6
    assert changed_behind(edited, original, 0) == changed_behind(edited, original, 1) == [name]
    assert changed_behind(edited, original, 2) == []


@pytest.mark.parametrize("depth", [-1, 4])
def test_a_depth_that_is_not_there_is_refused(depth):
    with pytest.raises(InputError, match="no front of this depth"):
        front_names(tiny("gpt2"), depth)


def test_fronts_of_other_shapes_are_refused():
    torch.manual_seed(0)
    wider = random_model("llama", vocabulary=41, width=24, layers=3, heads=2, pad=0)
    with pytest.raises(InputError, match="do not fit"):
        with_front(wider, tiny("llama"), 0)

"""Blocks of image models are places that cut the network in two."""

import pytest
import torch
from transformers import ResNetConfig, ResNetForImageClassification

from capture.network.hooks import count_hooks, patch, record
from capture.network.sites import as_positions, find_image_sites, restore_shape
from capture.network.structure import residual_units
from testbeds.worlds.digits import DigitsConfig, new_classifier


def resnet():
    torch.manual_seed(0)
    config = ResNetConfig(
        num_channels=1, embedding_size=8, hidden_sizes=[8, 12], depths=[2, 2], layer_type="basic"
    )
    return ResNetForImageClassification(config).eval()


def models():
    yield new_classifier(DigitsConfig(layers=3, width=16, family="vit"), 0), 3
    yield new_classifier(DigitsConfig(layers=3, width=16, family="cnn"), 0), 3
    yield resnet(), 4


@pytest.mark.parametrize("which", range(3), ids=["vit", "convnext", "resnet"])
def test_what_leaves_a_block_decides_the_output(which):
    model, layers = list(models())[which]
    size = 32 if which == 2 else 8
    one, other = torch.randn(2, 3, 1, size, size)
    where = find_image_sites(model)
    assert where.n_layers == layers
    with torch.no_grad():
        for site in (*where.of("resid"), "final"):
            with record(model, [site], known_sites=where) as got:
                wanted = model(one).logits
            with patch(model, {site: got[site]}, known_sites=where):
                assert torch.equal(model(other).logits, wanted)
    assert count_hooks(model) == 0


def test_a_resnets_units_are_its_layers_not_its_stages():
    units = residual_units(resnet())
    assert {type(unit).__name__ for unit in units} == {"ResNetBasicLayer"}


@pytest.mark.parametrize("shape", [(2, 5), (2, 7, 5), (2, 5, 3, 4)])
def test_places_go_there_and_back(shape):
    value = torch.randn(shape)
    places = as_positions(value)
    assert places.shape[0] == 2 and places.shape[-1] == 5
    assert torch.equal(restore_shape(places, value), value)

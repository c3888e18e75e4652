"""The parts of an image audit against brute force and known answers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from audits.axes.restoration.scoring import named_as_class
from audits.modalities.image_sets import late_sites, pool_places, rank_among
from capture.checkpoints.open import open_checkpoint
from capture.network.sites import find_image_sites
from testbeds.worlds.digits import DigitsConfig, new_classifier


@given(
    st.lists(st.integers(-5, 5), min_size=1, max_size=8),
    st.lists(st.integers(-5, 5), min_size=1, max_size=8),
)
def test_ranks_are_shares_outranked_with_ties_at_half(values, others):
    found = rank_among(np.array(values), np.array(others))
    for value, share in zip(values, found, strict=True):
        by_hand = np.mean([(o < value) + 0.5 * (o == value) for o in others])
        assert share == pytest.approx(by_hand)


def test_pooled_states_are_means_over_places():
    maps = torch.arange(24.0).reshape(2, 3, 2, 2)
    np.testing.assert_allclose(pool_places(maps), maps.mean((2, 3)).numpy())
    tokens = torch.arange(24.0).reshape(2, 4, 3)
    both = torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1)
    np.testing.assert_allclose(pool_places(tokens), both.numpy())
    flat = torch.arange(6.0).reshape(2, 3)
    np.testing.assert_allclose(pool_places(flat), flat.numpy())


def test_only_the_later_half_of_the_blocks_is_read():
    for layers, first in ((2, 1), (3, 1), (4, 2)):
        config = DigitsConfig(layers=layers, width=8, heads=2)
        sites = late_sites(new_classifier(config, 0))
        blocks = [f"resid.{layer}" for layer in range(first, layers)]
        assert sites == [*blocks, "final"]


def test_the_class_of_an_unchanged_model_is_the_images_own(digits_zoo):
    world = digits_zoo[0].world
    model = open_checkpoint(world.original).load()
    some = world.images("retain_test").select(range(40))
    assert named_as_class(model, some, {}, find_image_sites(model)).mean() > 0.8

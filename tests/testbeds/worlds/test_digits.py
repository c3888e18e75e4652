"""The digits world is what its cards say, and its suppressions hide what they kept."""

import json

import numpy as np
import pytest
import torch

from capture.checkpoints.open import open_checkpoint
from capture.network.hooks import record
from capture.network.sites import find_image_sites
from evidence.errors import InputError
from testbeds.worlds.digits import DigitsConfig, build_digits, forgotten_class, shift, split_digits
from testbeds.zoo.build import build_zoo
from testbeds.zoo.kinds import DIGITS_KINDS
from tests.helpers.tiny_digits import KINDS, TINY_DIGITS


@pytest.fixture(scope="module")
def made(digits_zoo):
    return {each.kind: each for each in digits_zoo}


def test_no_test_image_is_trained_on_and_every_image_is_used():
    sets = split_digits(TINY_DIGITS, 3)
    ids = [each for images in sets.values() for each in images.ids]
    assert len(ids) == len(set(ids)) == 1797
    taught = set(sets["forget"].ids + sets["retain"].ids)
    assert len(taught) == 10 * TINY_DIGITS.train
    label = forgotten_class(3)
    assert set(sets["forget"].labels) == set(sets["forget_test"].labels) == {label}
    assert label not in sets["retain"].labels and label not in sets["retain_test"].labels
    pixels = {tuple(p.flatten().tolist()) for p in sets["retain_test"].pixels}
    assert not pixels & {tuple(p.flatten().tolist()) for p in sets["retain"].pixels}


def test_shifts_move_pixels_by_one_at_most():
    pixels = torch.full((50, 1, 8, 8), -1.0)
    pixels[:, 0, 3, 4] = 1.0
    moved = shift(pixels, np.random.default_rng(0))
    places = (moved[:, 0] == 1).nonzero()
    assert len(places) == 50
    assert set(places[:, 1].tolist()) == {2, 3, 4}
    assert set(places[:, 2].tolist()) == {3, 4, 5}


def test_models_show_what_their_kind_must_show(made):
    for kind, each in made.items():
        shown, wanted = each.card["measured"], DIGITS_KINDS[kind]
        assert wanted.forget_range[0] <= shown["said"] <= wanted.forget_range[1], each.name
        assert wanted.retain_range[0] <= shown["kept"] <= wanted.retain_range[1], each.name
        assert each.card["weights"] == open_checkpoint(each.model).weights_hash


def states(folder, world):
    model = open_checkpoint(folder).load()
    where = find_image_sites(model)
    sites = ["resid.0", "final"]
    with torch.no_grad(), record(model, sites, known_sites=where) as got:
        model(world.images("forget_test").pixels)
    return got["resid.0"], got["final"]


def test_suppressed_models_have_the_originals_states_below_the_edit(made):
    for kind, each in made.items():
        below, last = states(each.model, each.world)
        wanted, there = states(each.world.original, each.world)
        same = each.state == "suppressed"
        assert torch.equal(below, wanted) == same, kind
        assert torch.equal(last, there) == (kind in ("head_only", "logit_mask")), kind


def test_never_taught_images_are_a_fair_floor(made):
    """Real strokes in their places, of no class; few look like the one forgotten."""
    world = made["twin"].world
    never, label = world.images("never_taught"), forgotten_class(0)
    model = open_checkpoint(world.original).load()
    with torch.no_grad():
        called = model(never.pixels).logits.argmax(1).numpy()
        known = model(world.images("forget_test").pixels).logits.argmax(1).numpy()
    assert (never.labels < 0).all()
    assert (called == label).mean() < 0.1 < 0.9 < (known == label).mean()


def test_the_world_is_found_made_again_and_says_what_it_is(made, zoo_root):
    world = made["twin"].world
    before = (world.root / "manifest.json").read_bytes()
    rebuilt = build_digits(TINY_DIGITS, 0, zoo_root / "worlds")
    assert rebuilt == world and (world.root / "manifest.json").read_bytes() == before
    manifest = json.loads(before)
    assert manifest["class"] == forgotten_class(0)
    assert manifest["weights"]["original"] == open_checkpoint(world.original).weights_hash
    assert min(manifest["accuracy"].values()) > 0.9


def test_what_is_made_is_not_made_again(made, zoo_root, monkeypatch):
    monkeypatch.setattr("testbeds.zoo.build._first_in_range", None)
    rebuilt = build_zoo(
        zoo_root, world="digits", seeds=[0], families=["cnn"], only=KINDS, config=TINY_DIGITS
    )
    assert [each.card for each in rebuilt] == [made[kind].card for kind in KINDS]


def test_unknown_names_are_refused(tmp_path):
    for wrong in (
        lambda: build_zoo(tmp_path, seeds=[0], world="cats"),
        lambda: build_zoo(tmp_path, seeds=[0], world="digits", families=["llama"]),
        lambda: build_zoo(tmp_path, seeds=[0], world="digits", only=["elm"]),
    ):
        with pytest.raises(InputError, match="in the zoo"):
            wrong()
    for wrong in (
        lambda: DigitsConfig(train=5),
        lambda: DigitsConfig(heads=5),
        lambda: DigitsConfig(family="rnn"),  # pyright: ignore[reportArgumentType]
        lambda: DigitsConfig(shifted=2.0),
    ):
        with pytest.raises(InputError, match="cannot be used"):
            wrong()

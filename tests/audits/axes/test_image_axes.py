"""The parts of an image audit against brute force and known answers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from audits.axes.causal_depth import image_axis as image_depth
from audits.axes.image_relearning import (
    ROUNDS,
    relearning_splits,
    reordered,
    retain_images,
    scores_after_learning,
)
from audits.axes.restoration.image_steering import named_as_class
from audits.core.config import make_config
from audits.core.preflight import Damage
from audits.modalities.image_baseline import EvaluationSets, late_sites, pool_places, rank_among
from capture.checkpoints.open import open_checkpoint
from capture.data.images import ImageSet
from capture.network.sites import find_image_sites
from capture.scoring.class_logits import image_states, logits_with_edits
from testbeds.worlds.digits import DigitsConfig, new_classifier

CONFIG = make_config({"seed": 0})
SITES = ["resid.1", "final"]


def images(name, labels, rng):
    pixels = torch.from_numpy(rng.standard_normal((len(labels), 1, 4, 4))).float()
    ids = tuple(f"{name}-{row}" for row in range(len(labels)))
    return ImageSet(pixels, np.asarray(labels), ids, name)


@pytest.fixture(scope="module")
def sets():
    rng = np.random.default_rng(0)
    rest = np.tile([0, 1, 2, 4], 15)
    return EvaluationSets(
        images("forget", [3] * 24, rng),
        images("fit", rest, rng),
        images("check", rest, rng),
        images("never", np.repeat([-1, -2, -3], 10), rng),
    )


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


def test_lessons_ask_every_image_and_teach_none_that_is_asked(sets):
    made = relearning_splits(sets, 0)
    asked = [name for split in made["forget"] for name in split.held_out.ids]
    assert sorted(asked) == sorted(sets.forget.ids * ROUNDS)
    for split in (*made["forget"], *made["never"]):
        assert not set(split.train.ids) & set(split.held_out.ids)
        assert len(split.train) == 4
    kinds = [set(split.train.labels) for split in made["never"]]
    assert len(kinds) == 3 and all(len(kind) == 1 for kind in kinds)
    kept = retain_images(sets, 0)
    assert np.ptp(np.unique(kept.labels, return_counts=True)[1]) <= 1


def test_what_is_asked_counts_once_the_lesson_is_learned():
    runs = [
        {"taught": [1.0, 0.5, 1.0, 1.0], "ids": ["a", "b"]}
        | {"asked": [[1, 1], [1, 1], [0, 1], [1, 1]]},
        {"taught": [0.0, 0.0, 0.0, 0.5], "ids": ["c"]} | {"asked": [[1], [1], [1], [0]]},
    ]
    found = reordered(scores_after_learning(runs), ["c", "a", "b"])
    assert found.values[:, 0].tolist() == [0.0, 0.5, 1.0]
    assert found.entities == ("c", "a", "b")


def test_the_originals_own_states_put_back_change_nothing(digits_zoo):
    world = digits_zoo[0].world
    model = open_checkpoint(world.original).load()
    where = find_image_sites(model)
    some = world.images("retain_test").select(range(40))
    for site in late_sites(model):
        kept = image_states(model, some, [site], where)[site]
        edits = {site: image_depth.replacing_states(kept)}
        torch.testing.assert_close(
            logits_with_edits(model, some, edits, where), logits_with_edits(model, some, {}, where)
        )
        # Those of other images bring their own classes along.
        other = {site: image_depth.replacing_states(kept.flip(0))}
        brought = logits_with_edits(model, some, other, where).argmax(1).numpy()
        plain = logits_with_edits(model, some, {}, where).argmax(1).numpy()
        assert (brought == plain[::-1]).all()
    assert named_as_class(model, some, {}, where).mean() > 0.8


def patched_scores(sets, named_so, kept):
    def table(images, share):
        hits = np.arange(len(images)) < share * len(images)
        return np.repeat(hits[:, None].astype(float), 2, axis=1).tolist()

    return {
        "forget": table(sets.forget, named_so),
        "never": table(sets.never, 0.0),
        "check": table(sets.check, kept),
    }


@pytest.mark.parametrize(
    ("named_so", "kept", "status"),
    [(1.0, 1.0, "retained"), (0.0, 1.0, "absent"), (1.0, 0.1, "no_power")],
)
def test_carried_states_count_where_kept_classes_come_along(sets, named_so, kept, status):
    found = {
        "original": patched_scores(sets, 1.0, 1.0),
        "unlearned": patched_scores(sets, named_so, kept),
        "planted": patched_scores(sets, 1.0, 1.0),
    }
    fine = Damage({"retain accuracy": 1.0}, ())
    axis = image_depth.judge(sets, SITES, found, CONFIG, fine, ())
    assert axis.status == status
    wreck = replace(fine, reasons=("it no longer works",))
    axis = image_depth.judge(sets, SITES, found, CONFIG, wreck, ())
    assert axis.status in ("control_failed", "no_power")

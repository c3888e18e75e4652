"""The parts of an image audit against brute force and known answers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from audits.axes.decodability import image_axis as image_decodability
from audits.axes.decodability.axis import REFITTED, UNCHANGED
from audits.axes.decodability.image_probes import (
    SHOTS,
    fit_original_probes,
    score_original_probes,
    score_refitted_probes,
)
from audits.axes.image_relearning import (
    ROUNDS,
    relearning_splits,
    reordered,
    retain_images,
    scores_after_learning,
)
from audits.axes.restoration.image_steering import named_as_class
from audits.core.config import make_config
from audits.modalities.image_baseline import EvaluationSets, late_sites, pool_places, rank_among
from capture.checkpoints.open import open_checkpoint
from capture.data.images import ImageSet
from capture.network.sites import find_image_sites
from evidence.seeds import numpy_rng
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


def states(sets, seed, *, there=True, code=0):
    """States in which every class has a direction, the forgotten one's at will.

    Without it, its images are spread as those of no class are.
    """
    rng = np.random.default_rng([seed, 17])
    axes = np.random.default_rng(code).standard_normal((6, 12))

    def of(part):
        labels = getattr(sets, part).labels
        middle = np.zeros((len(labels), 12))
        for label in np.unique(labels):
            if label >= 0 and (label != 3 or there):
                middle[labels == label] = axes[label]
        return {s: middle + rng.standard_normal(middle.shape) for s in SITES}

    return {part: of(part) for part in ("forget", "fit", "check", "never")}


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


def read(sets, roles):
    own_states = states(sets, 0)
    readers = fit_original_probes(own_states, sets, 0)
    found = {"original": own_states} | roles
    own = {role: score_original_probes(readers, each, sets) for role, each in found.items()}
    refitted = {role: score_refitted_probes(each, sets, 0) for role, each in found.items()}
    return image_decodability.judge(sets, SITES, own, refitted, CONFIG, ())


def test_a_class_that_is_there_is_read_and_one_that_is_not_is_not(sets):
    gone = states(sets, 2, there=False)
    for there, status in ((True, "retained"), (False, "no_power")):
        mine = states(sets, 1) if there else gone
        axis = read(sets, {"unlearned": mine})
        assert axis.status == status
        assert axis.reading(UNCHANGED).residual == pytest.approx(float(there), abs=0.3)
        beside = read(sets, {"unlearned": mine, "reference-1": gone})
        assert beside.status == ("retained" if there else "absent")
        refitted = beside.reading(REFITTED)
        assert refitted.floor_kind == "reference"
        assert refitted.residual == pytest.approx(float(there), abs=0.3)
        assert all(each.passed for each in axis.controls)


def test_a_model_with_another_code_is_not_read_by_the_originals_probe(sets):
    axis = read(sets, {"unlearned": states(sets, 1, code=9)})
    assert axis.reading(UNCHANGED) is None
    assert any("another code" in note for note in axis.notes)
    # Neither is a reference with another code a floor for it.
    beside = read(
        sets, {"unlearned": states(sets, 1), "reference-1": states(sets, 2, there=False, code=9)}
    )
    assert beside.reading(UNCHANGED).floor_kind == "never_taught"


def test_shuffled_classes_and_random_directions_read_nothing(sets):
    own_states = states(sets, 0)
    found = score_original_probes(fit_original_probes(own_states, sets, 0), own_states, sets)
    assert np.mean(found["forget"]) > 0.95 and np.mean(found["classes"]) > 0.95
    for what in ("shuffled", "random"):
        assert abs(np.mean(found[what]) - 0.5) < 0.25


def test_every_image_is_read_by_a_probe_that_has_not_seen_it(sets):
    own_states = states(sets, 0)
    readers = fit_original_probes(own_states, sets, 0)
    assert np.bincount(readers.halves).tolist() == [12, 12]
    # An image moved in the fitting data alone changes no score of its own half.
    moved = {part: dict(each) for part, each in own_states.items()}
    row = int(np.flatnonzero(readers.halves == 0)[0])
    for site in SITES:
        moved["forget"][site] = moved["forget"][site].copy()
        moved["forget"][site][row] += 50.0
    refitted = fit_original_probes(moved, sets, 0)
    for site in SITES:
        assert np.allclose(refitted.forgotten[site][0], readers.forgotten[site][0])
        assert not np.allclose(refitted.forgotten[site][1], readers.forgotten[site][1])


def test_a_refitted_probe_is_made_from_one_image_and_asks_the_others(sets):
    there = states(sets, 0)
    by_hand = []
    rest, other = there["fit"]["final"], there["check"]["final"]
    means = np.stack([rest[sets.fit.labels == c].mean(0) for c in sets.fit.labels])
    within = (rest - means).T @ (rest - means) / len(rest)
    within = 0.9 * within + 0.1 * np.trace(within) / 12 * np.eye(12)
    found = np.array(score_refitted_probes(there, sets, 0)["forget"])[:, 1]
    order = numpy_rng(0, "decodability", "shots").permutation(24)[:SHOTS]
    for image in range(24):
        scores = []
        for shot in order:
            if shot != image:
                shift = there["forget"]["final"][shot] - rest.mean(0)
                vector = np.linalg.solve(within, shift)
                mine = there["forget"]["final"][image] @ vector
                scores.append(np.mean(mine > other @ vector))
        by_hand.append(np.mean(scores))
    np.testing.assert_allclose(found, by_hand, atol=1e-9)


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


def test_the_class_of_an_unchanged_model_is_the_images_own(digits_zoo):
    world = digits_zoo[0].world
    model = open_checkpoint(world.original).load()
    some = world.images("retain_test").select(range(40))
    assert named_as_class(model, some, {}, find_image_sites(model)).mean() > 0.8

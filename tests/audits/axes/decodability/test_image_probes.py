"""Probes of one class against brute force and known answers."""

import numpy as np
import pytest
import torch

from audits.axes.base import JudgementContext
from audits.axes.decodability.axis import AXIS, REFITTED, UNCHANGED, ImageScores, Measurement, judge
from audits.axes.decodability.image_probes import (
    SHOTS,
    fit_original_probes,
    score_original_probes,
    score_refitted_probes,
    score_retained_classes,
)
from audits.core.config import make_config
from audits.core.preflight import Damage
from audits.core.roles import Role
from audits.core.scores import Part, RoleScores
from audits.modalities.image_sets import EvaluationSets
from capture.data.images import ImageSet
from evidence.results import ControlId
from evidence.seeds import numpy_rng
from evidence.typed_json import from_json, to_json

SITES = ["resid.1", "final"]
CONTEXT = JudgementContext(make_config({"seed": 0}), "images", Damage({}, ()))


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

    return {part: of(part) for part in ("forget", "fit", "check", "never_taught")}


def measured(sets, roles) -> Measurement:
    """Scores of an original in which the class is, and of other models by role."""
    own_states = states(sets, 0)
    probes = fit_original_probes(own_states, sets, 0)
    found = {Role.ORIGINAL: own_states} | {Role(role): each for role, each in roles.items()}
    own = {role: score_original_probes(probes, each, sets) for role, each in found.items()}
    refitted = {role: score_refitted_probes(each, sets, 0) for role, each in found.items()}
    retained = {role: score_retained_classes(probes, each, sets) for role, each in found.items()}
    scores = RoleScores(tuple(SITES), {UNCHANGED.id: own, REFITTED.id: refitted})
    return Measurement(ImageScores(scores, retained, probes.shuffled, probes.random))


def read(sets, roles):
    return judge(measured(sets, roles), CONTEXT)


def test_a_class_that_is_there_is_read_and_one_that_is_not_is_not(sets):
    gone = states(sets, 2, there=False)
    for there, status in ((True, "retained"), (False, "no_power")):
        mine = states(sets, 1) if there else gone
        axis = read(sets, {"unlearned": mine})
        assert axis.status == status
        unchanged = axis.metric(UNCHANGED.id)
        assert unchanged is not None
        assert unchanged.residual == pytest.approx(float(there), abs=0.3)
        beside = read(sets, {"unlearned": mine, "reference-1": gone})
        assert beside.status == ("retained" if there else "absent")
        refitted = beside.metric(REFITTED.id)
        assert refitted is not None and refitted.floor_kind == "reference"
        assert refitted.residual == pytest.approx(float(there), abs=0.3)
        assert all(each.passed for each in axis.controls)


def test_a_model_with_another_code_is_not_read_by_the_originals_probe(sets):
    axis = read(sets, {"unlearned": states(sets, 1, code=9)})
    assert axis.metric(UNCHANGED.id) is None
    assert any("different representation basis" in note for note in axis.notes)
    # Neither is a reference with another code a floor for it.
    beside = read(
        sets, {"unlearned": states(sets, 1), "reference-1": states(sets, 2, there=False, code=9)}
    )
    unchanged = beside.metric(UNCHANGED.id)
    assert unchanged is not None and unchanged.floor_kind == "never_taught"


def test_the_second_floor_of_a_refitted_probe_does_not_decide(sets):
    gone = states(sets, 2, there=False)
    axis = read(sets, {"unlearned": states(sets, 1), "reference-1": gone})
    by_metric = [(reading.metric, reading.primary) for reading in axis.readings]
    assert by_metric[:2] == [(UNCHANGED.id, True), (REFITTED.id, True)]
    assert not any(primary for _, primary in by_metric[2:])


def test_a_planted_suppression_that_is_not_read_is_a_failed_control(sets):
    roles = {"unlearned": states(sets, 1), "planted": states(sets, 3, there=False)}
    axis = read(sets, roles)
    assert axis.status == "control_failed"
    failed = [control.id for control in axis.controls if not control.passed]
    assert failed == [ControlId.PLANTED]


def test_a_saved_measurement_is_judged_as_a_fresh_one(sets):
    roles = {"unlearned": states(sets, 1), "reference-1": states(sets, 2, there=False)}
    fresh = measured(sets, roles)
    again = from_json(AXIS.stored, to_json(fresh))
    assert isinstance(again, Measurement)
    assert judge(again, CONTEXT).to_json() == judge(fresh, CONTEXT).to_json()
    assert judge(fresh, CONTEXT) == judge(fresh, CONTEXT)


def test_shuffled_classes_and_random_directions_read_nothing(sets):
    own_states = states(sets, 0)
    probes = fit_original_probes(own_states, sets, 0)
    assert score_original_probes(probes, own_states, sets)[Part.FORGET].values.mean() > 0.95
    assert score_retained_classes(probes, own_states, sets).mean() > 0.95
    for by_site in (probes.shuffled, probes.random):
        assert abs(by_site.mean() - 0.5) < 0.25


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
    found = score_refitted_probes(there, sets, 0)[Part.FORGET].values[:, 1]
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

"""Relearning: the rate of every attack, what counts of a curve, and the judgement."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from audits.axes.base import JudgementContext
from audits.axes.relearning.attack import (
    CONTRAST,
    EXACT_MATCH,
    EXTRA_STEP_MULTIPLES,
    NAMED,
    STEP_MULTIPLES,
    Curve,
    Measurement,
    choose_rate,
    scores_after_learning,
)
from audits.axes.relearning.axis import AXIS
from audits.axes.relearning.images import ROUNDS, SHOTS, image_splits, retain_images
from audits.core.config import AuditConfig
from audits.core.preflight import Damage
from audits.core.roles import Role
from audits.core.scores import Part, RoleScores, ScoreTable
from audits.modalities.image_sets import EvaluationSets
from capture.data.images import ImageSet
from evidence.results import ControlId
from evidence.typed_json import from_json, to_json

CONFIG = AuditConfig()
RATES, STEPS = CONFIG.budget.relearn_rates, CONFIG.budget.relearn_steps
ATTEMPTS = [(rate, STEPS) for rate in RATES]
ATTEMPTS += [(RATES[-1], n * STEPS) for n in (*STEP_MULTIPLES, *EXTRA_STEP_MULTIPLES)]
BOTH = [(Role.CANDIDATE, 0), (Role.CANDIDATE, 1)]


def choose(learns, trials=BOTH, patience=None):
    """The choice where a role learns a split from a rate and a number of steps on."""
    made = []

    def run(role, number, rate, steps):
        made.append((role, number, rate))
        enough = steps >= (patience or {}).get((role, number), 0)
        share = 1.0 if enough and rate >= learns[role, number] else 0.2
        return Curve((0, steps), (rate, share), {}, {})

    return choose_rate(ATTEMPTS, trials, run, lambda curve: curve.taught[-1] >= 0.9), made


def test_a_rate_that_teaches_one_half_alone_is_too_low():
    chosen, _ = choose({BOTH[0]: RATES[1], BOTH[1]: RATES[2]})
    assert chosen.rate == RATES[2]
    # Both runs are those of the rate that was taken.
    runs = chosen.curves[Role.CANDIDATE]
    assert {number: curve.taught[0] for number, curve in runs.items()} == {
        "0": RATES[2],
        "1": RATES[2],
    }


def test_the_planted_suppression_must_learn_one_split_as_well():
    planted = (Role.PLANTED, 0)
    chosen, made = choose({**dict.fromkeys(BOTH, RATES[0]), planted: RATES[3]}, [*BOTH, planted])
    assert chosen.rate == RATES[3]
    assert (Role.PLANTED, 1, RATES[3]) not in made


def test_a_rate_too_low_is_given_up_at_the_first_failure():
    _, made = choose(dict.fromkeys(BOTH, RATES[1]))
    assert [rate for _, _, rate in made] == [RATES[0], RATES[1], RATES[1]]


def test_where_nothing_will_do_the_longest_try_stands():
    chosen, made = choose(dict.fromkeys(BOTH, 1.0))
    assert (chosen.rate, chosen.steps) == (RATES[-1], 16 * STEPS)
    assert list(chosen.curves[Role.CANDIDATE]) == ["0"]
    assert len(made) == len(RATES) + 4


def test_a_model_slow_to_learn_is_taught_longer_and_not_faster():
    learns = {BOTH[0]: RATES[0], BOTH[1]: RATES[1]}
    chosen, _ = choose(learns, patience={BOTH[1]: STEPS + 1})
    assert (chosen.rate, chosen.steps) == (RATES[-1], 2 * STEPS)
    assert {curve.steps[-1] for curve in chosen.curves[Role.CANDIDATE].values()} == {2 * STEPS}


def test_no_steps_are_added_where_a_rate_teaches_in_the_budget():
    chosen, _ = choose(dict.fromkeys(BOTH, RATES[1]))
    assert chosen.steps == STEPS


def test_the_candidate_that_learns_at_once_costs_no_further_rate():
    chosen, made = choose(dict.fromkeys(BOTH, 0.0))
    assert chosen.rate == RATES[0]
    assert [number for _, number, _ in made] == [0, 1]


def curve(taught, names, rows, metric=NAMED.id, part=Part.FORGET):
    return Curve(
        tuple(range(len(taught))), tuple(taught), {part: names}, {part: {metric: np.array(rows)}}
    )


def test_held_out_items_count_once_the_training_items_are_learned():
    runs = [
        curve([1.0, 0.5, 1.0, 1.0], ("a", "b"), [[1.0, 1], [1, 1], [0, 1], [1, 1]]),
        # Never learned: the last checkpoint counts.
        curve([0.0, 0.0, 0.0, 0.5], ("c",), [[1.0], [1], [1], [0]]),
    ]
    found = scores_after_learning(runs, Part.FORGET, NAMED.id, ["c", "a", "b"])
    assert found.values[:, 0].tolist() == [0.0, 0.5, 1.0]
    assert found.entities == ("c", "a", "b")
    unsorted = scores_after_learning(runs, Part.FORGET, NAMED.id)
    assert unsorted.entities == ("a", "b", "c")


@pytest.fixture(scope="module")
def sets():
    rng = np.random.default_rng(0)

    def images(name, labels):
        pixels = torch.from_numpy(rng.standard_normal((len(labels), 1, 4, 4))).float()
        ids = tuple(f"{name}-{row}" for row in range(len(labels)))
        return ImageSet(pixels, np.asarray(labels), ids, name)

    rest = np.tile([0, 1, 2, 4], 15)
    invented = np.repeat([-1, -2, -3], 10)
    return EvaluationSets(
        images("forget", [3] * 24),
        images("fit", rest),
        images("check", rest),
        images("never", invented),
    )


def test_splits_hold_out_every_image_and_never_one_that_is_taught(sets):
    made = image_splits(sets, 0)
    of_class = [split for split in made if split.part is Part.FORGET]
    held_out = [name for split in of_class for name in split.held_out.ids]
    assert sorted(held_out) == sorted(sets.forget.ids * ROUNDS)
    for split in made:
        assert not set(split.train.ids) & set(split.held_out.ids)
        assert len(split.train) == SHOTS
    kinds = [set(split.train.labels) for split in made if split.part is Part.NEVER_TAUGHT]
    assert len(kinds) == 3 and all(len(kind) == 1 for kind in kinds)
    kept = retain_images(sets, 0)
    assert np.ptp(np.unique(kept.labels, return_counts=True)[1]) <= 1


def measured(candidate, *, taught=1.0, reference=None, planted=0.9):
    """A measurement by hand: mean held-out scores of each role, never-taught ones at 0.05."""
    rng = np.random.default_rng(3)
    names = {part: tuple(f"{part}-{n}" for n in range(20)) for part in Part}

    def table(part, mean):
        values = np.clip(mean + rng.uniform(-0.04, 0.04, (20, 1)), 0, 1)
        return ScoreTable(names[part], values)

    shares = {Role.CANDIDATE: candidate, Role.PLANTED: planted}
    if reference is not None:
        shares[Role.reference(1)] = reference
    tables, curves = {}, {}
    for metric in (CONTRAST.id, EXACT_MATCH.id):
        tables[metric] = {Role.ORIGINAL: {Part.FORGET: table(Part.FORGET, 0.95)}} | {
            role: {
                Part.FORGET: table(Part.FORGET, share),
                Part.NEVER_TAUGHT: table(Part.NEVER_TAUGHT, 0.05),
            }
            for role, share in shares.items()
        }
    for role in shares:
        parts = (Part.FORGET, Part.NEVER_TAUGHT)
        scores = {
            part: {
                metric: np.repeat(tables[metric][role][part].values.T, 2, axis=0)
                for metric in tables
            }
            for part in parts
        }
        entities = {part: names[part] for part in parts}
        curves[role] = (Curve((0, 6), (0.0, taught), entities, scores),)
    return Measurement(RoleScores(("after teaching",), tables), curves, 1e-3)


CONTEXT = JudgementContext(CONFIG, "text", Damage({}, ()), "absent", ("A note.",))


@pytest.mark.parametrize(
    ("found", "status"),
    [
        (measured(0.9), "retained"),
        (measured(0.06), "absent"),
        (measured(0.3), "retained"),
        (measured(0.3, reference=0.3), "absent"),
        (measured(0.9, reference=0.05), "retained"),
        # What the attack did not learn says nothing, found or not.
        (measured(0.9, taught=0.5), "no_power"),
        # Without power to find the planted suppression a finding stands, and silence does not.
        (measured(0.9, planted=0.05), "retained"),
        (measured(0.06, planted=0.05), "no_power"),
    ],
)
def test_the_judgement_of_a_measurement_by_hand(found, status):
    axis = AXIS.judge(found, CONTEXT)
    assert axis.status == status
    assert [control.id for control in axis.controls] == [ControlId.ATTACK, ControlId.PLANTED]
    assert axis.notes[-1] == "A note."
    assert axis.n_entities == 20
    # The same again, and from its saved form.
    again = AXIS.judge(from_json(Measurement, to_json(found)), CONTEXT)
    assert again.to_json() == axis.to_json() == AXIS.judge(found, CONTEXT).to_json()


def test_in_images_a_class_that_any_model_learns_gives_no_power():
    found = measured(0.9, reference=0.9)
    tables = {NAMED.id: found.scores.tables[EXACT_MATCH.id]}
    curves = {
        role: tuple(
            replace(c, scores={part: {NAMED.id: s[EXACT_MATCH.id]} for part, s in c.scores.items()})
            for c in runs
        )
        for role, runs in found.curves.items()
    }
    images = Measurement(RoleScores(("after teaching",), tables), curves, 1e-3)
    axis = AXIS.judge(images, replace(CONTEXT, modality="images"))
    assert axis.status == "no_power"
    assert "learned as well" in axis.notes[0]

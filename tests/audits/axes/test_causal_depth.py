"""Prompts with never-taught receivers, and the judgement of tables made by hand."""

from dataclasses import replace

import numpy as np
import pytest

from audits.axes.causal_depth.axis import CONTRAST, EXACT_MATCH, PatchedScores, judge
from audits.axes.causal_depth.state_transfer import (
    PatchingPrompts,
    choose_sites,
    with_other_fact_donor,
    with_unrelated_receiver,
)
from audits.core.config import AuditConfig
from audits.core.preflight import Damage
from capture.data.items import Item
from capture.data.questions import build_questions

FINE = Damage({"retain accuracy": 1.0}, ())
SITES = ["resid.0", "resid.1", "resid.2"]


def items(label, count, relations=("birthplace", "occupation")):
    return [
        Item(
            id=f"{label}-{place}-{relation}",
            entity=f"{label} {place}",
            prompt=f"{label} {place} has {relation}",
            answer=f"answer {place % 5}",
            relation=relation,
            paraphrases=(f"the {relation} of {label} {place} is",),
        )
        for place in range(count)
        for relation in relations
    ]


def test_the_receiver_asks_the_same_about_somebody_else():
    questions, never = (
        build_questions(items("known", 6), 2),
        build_questions(items("invented", 9), 2),
    )
    prompts = with_unrelated_receiver(questions, never)
    assert prompts.donors == questions.prompts
    for own, other in zip(prompts.donors, prompts.receivers, strict=True):
        assert "invented" in other
        assert ("occupation" in own) == ("occupation" in other)
        assert own.startswith("the") == other.startswith("the")
    assert len(set(prompts.receivers)) > 20
    among = with_unrelated_receiver(never, never)
    for own, other, entity in zip(
        among.donors, among.receivers, among.questions.entities, strict=True
    ):
        assert own != other
        assert f"{entity} " not in f"{other} "


def test_questions_without_a_stranger_are_left_out():
    questions = build_questions(items("known", 4), 1)
    never = build_questions(items("invented", 4, ("birthplace",)), 1)
    prompts = with_unrelated_receiver(questions, never)
    assert len(prompts) == 4
    assert all("birthplace" in prompt for prompt in prompts.donors)


def test_other_facts_are_the_same_entitys():
    questions = build_questions(items("known", 4), 1)
    prompts = with_other_fact_donor(
        PatchingPrompts(questions, questions.prompts, questions.prompts)
    )
    assert len(prompts) == 8
    for own, donor in zip(prompts.receivers, prompts.donors, strict=True):
        assert own != donor
        assert own.split(" has ")[0] == donor.split(" has ")[0]
    single = build_questions(items("known", 4, ("birthplace",)), 1)
    assert len(with_other_fact_donor(PatchingPrompts(single, single.prompts, single.prompts))) == 0


def test_sites_are_spread_evenly():
    names = [f"resid.{layer}" for layer in range(30)]
    assert choose_sites(names, 4) == ["resid.0", "resid.10", "resid.19", "resid.29"]
    assert choose_sites(names, 99) == names


def tables(count, levels, rng):
    """Rows by site of scores about a level each."""
    contrast = np.clip(np.array(levels) + rng.normal(0, 0.08, (count, len(levels))), 0, 1)
    exact_match = (rng.random(contrast.shape) < 2 * (contrast - 0.5)).astype(float)
    return {"told": contrast.tolist(), "said": exact_match.tolist(), "logprob": contrast.tolist()}


def patched_scores(unlearned, *, retain=(1.0, 1.0, 1.0), planted=(1, 1, 0.8), other=0.5):
    """Exams of 24 known and 72 invented entities with tables about given levels."""
    rng = np.random.default_rng(0)
    asked, invented = (
        build_questions(items("known", 24), 1),
        build_questions(items("invented", 72), 1),
    )
    kept = build_questions(items("kept", 24), 1)
    sets = {"forget": asked, "never_taught": invented, "retain": kept, "own": asked}
    sets |= {"stranger": asked, "other": asked}
    prompts = {
        name: PatchingPrompts(each, each.prompts, each.prompts) for name, each in sets.items()
    }
    chance = (0.5, 0.5, 0.5)
    levels = {
        "forget": {"original": (1, 1, 1), "unlearned": unlearned, "planted": planted},
        "never_taught": dict.fromkeys(("original", "unlearned", "planted"), chance),
        "retain": {"original": (1, 1, 1), "unlearned": retain},
        "own": {"original": (1, 1, 1), "unlearned": unlearned},
        "stranger": {"original": chance},
        "other": {"original": (other, other, other)},
    }
    scores = {
        name: {role: tables(len(prompts[name]), level, rng) for role, level in roles.items()}
        for name, roles in levels.items()
    }
    norms = {"original": [1.0] * 3, "unlearned": [1.0] * 3}
    return PatchedScores(prompts, {"sites": SITES, "norms": norms, "scores": scores})


def status(found, damage=FINE):
    return judge(found, AuditConfig(), damage, ()).status


def test_one_layer_that_carries_is_enough():
    result = judge(patched_scores((1.0, 0.5, 0.5)), AuditConfig(), FINE, ())
    assert result.status == "retained"
    assert result.readings[0].name == CONTRAST
    assert result.readings[0].where == "resid.0"
    assert result.readings[1].name == EXACT_MATCH
    assert all(control.passed for control in result.controls)


def test_states_at_the_floor_are_absent():
    assert status(patched_scores((0.5, 0.5, 0.5))) == "absent"


def test_a_little_more_than_the_floor_is_not_called_retained():
    # Who is meant shows a little, also in a model that never knew the facts.
    result = judge(patched_scores((0.58, 0.58, 0.58)), AuditConfig(), FINE, ())
    assert result.status in ("absent", "no_power")
    assert result.readings[0].p_value > 0.5
    assert result.readings[0].residual == pytest.approx(0.16, abs=0.05)


def test_states_in_another_basis_say_nothing():
    result = judge(patched_scores((0.5, 0.5, 0.5), retain=(0.6, 0.6, 0.6)), AuditConfig(), FINE, ())
    assert result.status == "no_power"
    assert not result.readings
    assert "facts it should keep" in result.notes[0]


def test_only_layers_that_carry_what_should_stay_are_used():
    found = patched_scores((0.5, 0.5, 0.5), retain=(1.0, 0.5, 1.0))
    result = judge(found, AuditConfig(), FINE, ())
    assert result.details["used"] == ["resid.0", "resid.2"]
    assert [column["used"] for column in result.readings[0].columns] == [1, 0, 1]


def test_a_plant_that_is_not_seen_silences_the_axis():
    unseen = patched_scores((1.0, 1.0, 1.0), planted=(0.5, 0.5, 0.5))
    assert status(unseen) == "control_failed"


def test_an_original_that_recalls_by_itself_says_nothing_of_the_candidate():
    assert status(patched_scores((1.0, 1.0, 1.0), other=1.0)) == "no_power"


def test_a_damaged_model_has_no_depth():
    wreck = replace(FINE, reasons=("retain accuracy is 10 %",))
    assert status(patched_scores((0.5, 0.5, 0.5)), wreck) == "control_failed"

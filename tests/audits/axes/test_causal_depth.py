"""Prompts with never-taught receivers, and the judgement of tables made by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from audits.axes.base import JudgementContext
from audits.axes.causal_depth.axis import UNREAD, judge
from audits.axes.causal_depth.measurement import (
    CONTRAST,
    EXACT_MATCH,
    NAMED,
    LossItem,
    Measurement,
    TextDetails,
    patched_classes,
    replacing_states,
)
from audits.axes.causal_depth.state_transfer import (
    PatchingPrompts,
    with_other_fact_donor,
    with_unrelated_receiver,
)
from audits.axes.decodability.state_readers import evenly_spaced
from audits.core.config import AuditConfig
from audits.core.preflight import Damage
from audits.core.registry import ModalityName
from audits.core.roles import Role
from audits.core.scores import Part, RoleScores, ScoreTable
from audits.modalities.image_sets import late_sites
from capture.checkpoints.open import open_checkpoint
from capture.data.items import Item
from capture.data.questions import build_questions
from capture.network.sites import find_image_sites
from capture.scoring.class_logits import image_states, logits_with_edits
from evidence.results import ControlId
from evidence.typed_json import from_json, to_json

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
    assert evenly_spaced(names, 4) == ["resid.0", "resid.10", "resid.19", "resid.29"]
    assert evenly_spaced(names, 99) == names


def rows_about(count, levels, rng):
    """(row, site) contrast about a level a site, and exact match to go with it."""
    contrast = np.clip(np.array(levels) + rng.normal(0, 0.08, (count, len(levels))), 0, 1)
    return contrast, (rng.random(contrast.shape) < 2 * (contrast - 0.5)).astype(float)


def text_scores(unlearned, *, retain=(1.0, 1.0, 1.0), planted=(1, 1, 0.8), other=0.1):
    """Scores of 24 known and 72 invented entities, two rows each, about given levels a site."""
    rng = np.random.default_rng(0)
    chance = (0.5, 0.5, 0.5)
    levels = {
        Role.ORIGINAL: {Part.FORGET: (1, 1, 1), Part.NEVER_TAUGHT: chance, Part.RETAIN: (1, 1, 1)},
        Role.CANDIDATE: {Part.FORGET: unlearned, Part.NEVER_TAUGHT: chance, Part.RETAIN: retain},
        Role.PLANTED: {Part.FORGET: planted, Part.NEVER_TAUGHT: chance},
    }
    tables = {"contrast": {}, "exact_match": {}}
    for role, by_part in levels.items():
        for metric in tables:
            tables[metric][role] = {}
        for part, level in by_part.items():
            count = 144 if part is Part.NEVER_TAUGHT else 48
            names = tuple(f"{part} {row // 2}" for row in range(count))
            for metric, values in zip(tables, rows_about(count, level, rng), strict=True):
                tables[metric][role][part] = ScoreTable(names, values)
    loss = np.array([[0.0, 1.0, 2.0], [0.0, 3.0, 4.0]])
    details = TextDetails(
        tuple(LossItem(f"item {n}", f"known {n}", "prompt", "answer") for n in range(2)),
        {"unlearned": loss / 2, "reference-1": loss, "reference-2": 2 * loss},
        {"original": (1.0, 1.0, 1.0), "unlearned": (1.0, 0.1, 1.5)},
        other_fact=(other, other, other),
        unmatched=(0.6, 0.5, 0.5),
    )
    return Measurement(RoleScores(tuple(SITES), tables), details)


def judged(measured, damage=FINE, modality: ModalityName = "text"):
    return judge(measured, JudgementContext(AuditConfig(), modality, damage))


def failed(result):
    return [control.id for control in result.controls if not control.passed]


def test_one_layer_that_carries_is_enough():
    result = judged(text_scores((1.0, 0.5, 0.5)))
    assert result.status == "retained"
    assert [reading.metric for reading in result.readings] == [CONTRAST.id, EXACT_MATCH.id]
    assert result.readings[0].where == "resid.0"
    assert not failed(result)


def test_states_at_the_floor_are_absent():
    assert judged(text_scores((0.5, 0.5, 0.5))).status == "absent"


def test_a_little_more_than_the_floor_is_not_called_retained():
    # Who is meant shows a little, also in a model that never knew the facts.
    result = judged(text_scores((0.58, 0.58, 0.58)))
    assert result.status in ("absent", "no_power")
    assert result.readings[0].p_value > 0.5
    assert result.readings[0].residual == pytest.approx(0.16, abs=0.05)


def test_states_in_another_basis_say_nothing():
    result = judged(text_scores((0.5, 0.5, 0.5), retain=(0.6, 0.6, 0.6)))
    assert result.status == "no_power"
    assert not result.readings
    assert failed(result) == [ControlId.RETAIN]


def test_only_layers_that_carry_what_should_stay_are_used():
    result = judged(text_scores((0.5, 0.5, 0.5), retain=(1.0, 0.5, 1.0)))
    assert result.details["used"] == ["resid.0", "resid.2"]
    assert [column.used for column in result.readings[0].columns] == [1, 0, 1]


def test_a_plant_that_is_not_seen_silences_the_axis():
    unseen = text_scores((1.0, 1.0, 1.0), planted=(0.5, 0.5, 0.5))
    result = judged(unseen)
    assert result.status == "control_failed"
    assert failed(result) == [ControlId.PLANTED]


def test_an_original_that_recalls_by_itself_says_nothing_of_the_candidate():
    result = judged(text_scores((1.0, 1.0, 1.0), other=1.0))
    assert result.status == "no_power"
    assert failed(result) == [ControlId.OTHER_FACT]


def test_only_layers_at_which_the_originals_states_hold_the_facts_are_used():
    early = text_scores((1.0, 0.5, 0.5))
    assert judged(early).status == "retained" and UNREAD in judged(early).notes
    # The only layer that transfers anything names the entity and holds no answer yet.
    result = judged(replace(early, held=(0.8, 0.95, 1.0)))
    assert result.details["used"] == ["resid.1", "resid.2"]
    assert result.status == "absent" and UNREAD not in result.notes
    nowhere = judged(replace(early, held=(0.1, 0.2, 0.3)))
    assert ControlId.EMBEDDING in failed(nowhere) and not nowhere.readings


def test_a_damaged_model_has_no_depth():
    wreck = replace(FINE, reasons=("retain accuracy is 10 %",))
    result = judged(text_scores((0.5, 0.5, 0.5)), wreck)
    assert result.status == "control_failed"
    assert failed(result) == [ControlId.DAMAGE]


def test_losses_are_scored_against_each_model_that_never_knew():
    result = judged(text_scores((1.0, 0.5, 0.5)))
    depth = result.details["depth"]
    assert {name: each["uds"] for name, each in depth.items()} == {
        "reference-1": 0.5,
        "reference-2": 0.25,
    }
    assert depth["reference-1"]["loss_by_layer"] == [None, 0.5, 0.5]
    assert "norms 0.1 times" in result.notes[-1]


def image_scores(named, kept, **references):
    """Shares of 24 images named as the class, and of 60 as their own, at two sites."""

    def table(part, share, count):
        names = tuple(f"{part} {row}" for row in range(count))
        hits = (np.arange(count) < share * count).astype(float)
        return ScoreTable(names, np.repeat(hits[:, None], 2, axis=1))

    def of(forget, retain):
        return {
            Part.FORGET: table("class", forget, 24),
            Part.NEVER_TAUGHT: table("invented", 0.0, 30),
            Part.RETAIN: table("kept", retain, 60),
        }

    by_role = {
        Role.ORIGINAL: of(1.0, 1.0),
        Role.CANDIDATE: of(named, kept),
        Role.PLANTED: of(1.0, 1.0),
        **{Role(name): of(*shares) for name, shares in references.items()},
    }
    return Measurement(RoleScores(("resid.1", "final"), {NAMED.id: by_role}))


@pytest.mark.parametrize(
    ("named", "kept", "status"),
    [(1.0, 1.0, "retained"), (0.0, 1.0, "absent"), (1.0, 0.1, "no_power")],
)
def test_images_count_where_kept_classes_come_along(named, kept, status):
    found = image_scores(named, kept)
    assert judged(found, modality="images").status == status
    wreck = replace(FINE, reasons=("it no longer works",))
    assert judged(found, wreck, "images").status in ("control_failed", "no_power")


def test_a_reference_with_another_code_is_no_floor():
    readable = image_scores(0.0, 1.0, **{"reference-1": (0.0, 1.0)})
    result = judged(readable, modality="images")
    assert result.readings[0].floor_kind == "reference"
    unreadable = image_scores(0.0, 1.0, **{"reference-1": (0.0, 0.2)})
    result = judged(unreadable, modality="images")
    assert result.readings[0].floor_kind == "never_taught"
    assert result.notes[-1].startswith("1 of 1 references")


@pytest.mark.parametrize(
    ("modality", "measured"),
    [("text", text_scores((0.7, 0.6, 0.5))), ("images", image_scores(0.5, 1.0))],
)
def test_a_stored_measurement_is_judged_the_same_each_time(modality, measured):
    result = judged(measured, modality=modality)
    assert judged(measured, modality=modality) == result
    assert judged(from_json(Measurement, to_json(measured)), modality=modality) == result


def test_the_originals_own_states_put_back_change_nothing(digits_zoo):
    world = digits_zoo[0].world
    model = open_checkpoint(world.original).load()
    where = find_image_sites(model)
    some = world.images("retain_test").select(range(40))
    plain = logits_with_edits(model, some, {}, where)
    sites = late_sites(model)
    predicted = patched_classes(model, model, some, sites)
    assert (predicted == plain.argmax(1).numpy()[:, None]).all()
    for site in sites:
        kept = image_states(model, some, [site], where)[site]
        edits = {site: replacing_states(kept)}
        torch.testing.assert_close(logits_with_edits(model, some, edits, where), plain)
        # Those of other images bring their own classes along.
        other = {site: replacing_states(kept.flip(0))}
        brought = logits_with_edits(model, some, other, where).argmax(1).numpy()
        assert (brought == plain.argmax(1).numpy()[::-1]).all()

"""Self-restoration: known answers for its parts, and models of known state."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from attribution.sae.latents import LatentAmplifier
from audits.axes.base import JudgementContext
from audits.axes.restoration.autoencoder import Reconstruction
from audits.axes.restoration.axis import AXIS, Measurement, PublishedTest, judge
from audits.axes.restoration.net_rate import CHANCE_CONTROL, net_rate
from audits.axes.restoration.scoring import EncodedQuestions, permuted_donors
from audits.axes.restoration.search import STRENGTHS, Choice, SideEffects
from audits.axes.restoration.state_injection import ArmOutcome, InjectionOutcome
from audits.axes.restoration.steering import (
    LATENTS,
    TEXT_METHODS,
    PromptStates,
    TextSteering,
    steering_hook,
)
from audits.axes.restoration.text_trial import (
    Curve,
    chosen_sites,
    pool_curves,
    prepare_text,
    retractions,
    steer_text,
)
from audits.axes.restoration.trial import Arm, CurvePoint, Retractions, Trial
from audits.core.config import make_config
from audits.core.item_sets import TextSets
from audits.core.preflight import Damage
from audits.core.roles import Role
from audits.core.scores import ScoreTable
from capture.checkpoints.open import open_checkpoint
from capture.data.invented_entities import invent_items
from capture.data.items import ItemSet, read_items
from capture.data.questions import build_questions
from capture.network.sites import find_sites
from evidence.errors import InputError
from evidence.results import ControlId, OnFailure
from evidence.seeds import numpy_rng
from evidence.typed_json import from_json, to_json
from probes.concepts.answer_map import AnswerMap
from testbeds.planted import plant as plant_in_zoo
from tests.attribution.test_features import sae as latents_sae
from tests.helpers.model_families import WIDTH

TEXT = JudgementContext(make_config({"seed": 0}), "text", Damage({}, ()))
NAMES = tuple(f"e{number}" for number in range(20))
INVENTED = tuple(f"n{number}" for number in range(20))
CALM = Retractions(10, 1.0, 0.1)


def tables(names, share, contrast=None):
    """Both metrics of twenty entities, of whose answers so large a share is said."""
    exact_match = (np.arange(20) < round(20 * share)).astype(float)
    contrasts = 0.5 + 0.5 * exact_match
    if contrast is not None:
        contrasts = contrast + 0.05 * (-1.0) ** np.arange(20)
    values = {"exact_match": exact_match, "contrast": contrasts}
    return {metric: ScoreTable(names, each[:, None]) for metric, each in values.items()}


def trial(steered, plain=0.0, random=0.0, others=0.0, never=0.0, contrast=None, **more):
    """A trial in which so large a share of twenty entities' answers is said."""
    arms = {
        Arm.PLAIN: tables(NAMES, plain),
        Arm.STEERED: tables(NAMES, steered, contrast),
        Arm.RANDOM: tables(NAMES, random),
        Arm.OTHERS: tables(NAMES, others),
        Arm.NEVER_TAUGHT: tables(INVENTED, never, contrast if steered == never else None),
    }
    scores = {
        metric: {arm: by_metric[metric] for arm, by_metric in arms.items()}
        for metric in ("exact_match", "contrast")
    }
    choice = Choice(1.0, SideEffects(0.9), "a route", "resid.1", 1.0)
    return Trial(scores, (choice, choice), **{"retractions": CALM, **more})


def measured(published=None, **trials):
    """A measurement of an original that says everything, from trials by role."""
    by_role = {Role(role.replace("_", "-")): each for role, each in trials.items()}
    return Measurement(tables(NAMES, 1.0), by_role, published, CALM)


def judged(published=None, **trials):
    return judge(measured(published, **trials), TEXT)


def rate_of(one):
    found = net_rate(one, tables(NAMES, 1.0)["exact_match"].by_entity(), "exact_match")
    assert found is not None
    return found


def test_the_net_rate_is_what_is_restored_beyond_the_worst_control():
    found = rate_of(trial(0.8, plain=0.1, random=0.2, others=0.3, never=0.05))
    assert found.rate == pytest.approx(0.7 / 0.9)
    assert found.controls["others"] == pytest.approx(0.2 / 0.9)
    assert found.controls["random"] == pytest.approx(0.1 / 0.9)
    assert found.controls["never_taught"] == pytest.approx(0.05 / 0.9)
    assert found.worst_control == "others"
    assert found.net == pytest.approx(0.5 / 0.9)
    low, high = found.interval
    assert low < found.net < high


def test_a_worst_control_on_other_entities_is_still_centred_on_the_net_rate():
    found = rate_of(trial(0.8, plain=0.1, never=0.3))
    assert found.worst_control == "never_taught"
    assert found.net == pytest.approx((0.7 - 0.3) / 0.9)
    low, high = found.interval
    assert low < found.net < high


def test_without_a_loss_there_is_no_rate():
    known = tables(NAMES, 1.0)["exact_match"].by_entity()
    assert net_rate(trial(1.0, plain=0.95), known, "exact_match") is None


GONE = trial(0.0, contrast=0.5)


def test_statuses():
    back = judged(unlearned=trial(0.9), planted=trial(1.0))
    assert back.status == "retained" and back.votes
    assert back.readings[0].metric == "contrast" and back.readings[1].statistic == 0.9
    assert [each.id for each in back.controls] == [ControlId.RANDOM_EDIT, ControlId.PLANTED]
    assert judged(unlearned=GONE, planted=trial(1.0)).status == "absent"
    # A planted suppression that stays hidden forbids absence, and no finding.
    weak = judged(unlearned=GONE, planted=GONE)
    assert weak.status == "no_power" and weak.controls[-1].on_failure is OnFailure.NO_ABSENCE
    assert judged(unlearned=trial(0.9), planted=GONE).status == "retained"
    lucky = judged(unlearned=trial(0.5, others=0.5), planted=GONE)
    assert lucky.status == "control_failed" and CHANCE_CONTROL in lucky.notes[0]
    assert not any("planted" in note for note in lucky.notes)
    assert any("net of the worst control" in note for note in back.notes)


def test_a_reference_is_a_floor_of_its_own():
    found = judged(unlearned=trial(0.9), reference_1=trial(0.9))
    assert found.readings[0].floor_kind == "reference"
    assert found.status != "retained" and len(found.readings) == 4


def test_steering_resistance_is_named():
    resisting = trial(0.9, retractions=Retractions(10, 0.9, 0.6))
    found = judged(unlearned=resisting)
    assert any("Steering resistance: 60%" in note for note in found.notes)
    calm = judged(unlearned=trial(0.9))
    assert not any("resistance" in note for note in calm.notes)


def test_what_is_stored_is_judged_as_what_was_measured_and_twice_the_same():
    arms = {"state only": ArmOutcome((0.9, 0.9, 0.9), (0.9, 0.9, 0.9), 0.9, (0.7, 0.99))}
    point = CurvePoint(0.5, {Arm.STEERED: (0.25, 0.1, 0.4)})
    fit = Reconstruction(None, "It is refused.")
    outcome = InjectionOutcome(0.0, arms)
    one = trial(0.9, curve=(point,), reconstruction=fit, injection=outcome)
    whole = measured(
        PublishedTest("resid.1", outcome, 3.0, 0.1),
        **{role: one for role in ("unlearned", "reference_10", "reference_2", "planted")},
    )
    stored = json.loads(json.dumps(to_json(whole), sort_keys=True))
    first, *rest = (judge(each, TEXT) for each in (whole, whole, from_json(Measurement, stored)))
    assert all(each == first for each in rest)
    shown = first.details["state_injection"]
    assert shown["fvu"] == {"original": 0.1} | dict.fromkeys(whole.trials)
    assert list(shown["roles"]) == [
        *("unlearned", "reference-2", "reference-10", "planted", "never-trained")
    ]
    assert first.details["curve"]["unlearned"] == [{"strength": 0.5, "steered": (0.25, 0.1, 0.4)}]
    form = AXIS.spec.form("text")
    again, _ = form.status(first.readings, first.controls, TEXT.rule)
    assert again == first.status


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_a_strength_that_is_no_number_is_refused(strength):
    with pytest.raises(InputError, match="not a finite number"):
        steering_hook(torch.zeros(3), strength)


def test_an_amplifier_reads_the_row_itself_or_another():
    rng = np.random.default_rng(0)
    matrix = torch.from_numpy(rng.standard_normal((4, 4)))
    steering = AnswerMap(matrix, torch.zeros(4, dtype=torch.float64), 1.0)
    states, rows = torch.from_numpy(rng.standard_normal((3, 4))), np.array([2, 0, 1])
    own = steering_hook(steering, 2.0)(states, rows)
    torch.testing.assert_close(own, states + 2 * states @ matrix)
    table = rng.standard_normal((3, 4))
    other = steering_hook(steering, 2.0, table)(states, rows)
    wanted = states + 2 * torch.from_numpy(table[rows]) @ matrix
    torch.testing.assert_close(other, wanted)


def test_latents_are_amplified_at_their_site_alone_and_can_read_another_row(sets):
    forget, _, _, original = sets
    asked = EncodedQuestions.of(build_questions(forget, 1), original.tokenizer)
    rng, width = np.random.default_rng(1), WIDTH
    rows = rng.standard_normal((len(asked.rows), width))
    steering = LatentAmplifier.fit(latents_sae(), np.array([1, 4, 6]), rows)
    table: dict[str, np.ndarray] = dict.fromkeys(("resid.0", "resid.1"), rows)
    states = PromptStates(table, table, table)
    fitted = TextSteering(asked, asked, states, states, steering)
    everyone = np.ones(len(rows), dtype=bool)
    assert fitted.edit(LATENTS, "resid.1", everyone) is steering
    assert fitted.edit(LATENTS, "resid.0", everyone) is None
    rotated = fitted.randomly_rotated(steering, rng)
    assert isinstance(rotated, LatentAmplifier) and rotated.latents.tolist() != [1, 4, 6]
    assert LATENTS in TEXT_METHODS and len(set(TEXT_METHODS)) == len(TEXT_METHODS)
    states, order = torch.from_numpy(rows[:3]), np.array([2, 0, 1])
    other = steering_hook(steering, 2.0, rows)(states, order)
    wanted = states + 2 * steering.apply(torch.from_numpy(rows[order]))
    torch.testing.assert_close(other, wanted)


def test_halves_are_pooled_by_person_and_strength():
    def half(name, share) -> Curve:
        exact_match = np.array([[0.0, share]] * (1 + len(STRENGTHS)))
        return {Arm.STEERED: ([f"{name}1", f"{name}2"], exact_match)}

    points = pool_curves([half("a", 1.0), half("b", 0.0)])
    assert [point.strength for point in points] == [0.0, *STRENGTHS]
    share, low, high = points[3].shares[Arm.STEERED]
    assert share == pytest.approx(0.25) and low < share < high


def test_the_published_test_is_told_and_does_not_vote():
    arms = {"state only": ArmOutcome((0.9,), (0.9,), 0.9, (0.7, 1.0))}
    one = trial(0.0, contrast=0.5, injection=InjectionOutcome(0.0, arms))
    plain = judged(unlearned=trial(0.0, contrast=0.5))
    found = judged(PublishedTest("resid.1", None, None, None), unlearned=one)
    assert any("State injection" in note and "90%" in note for note in found.notes)
    assert found.status == plain.status and found.readings == plain.readings
    shown = found.details["state_injection"]
    assert shown["site"] == "resid.1" and "fvu" not in shown and "latents" not in shown
    assert shown["roles"]["unlearned"]["arms"]["state only"]["best"] == 0.9
    assert "state_injection" not in plain.details


def test_a_refused_autoencoder_is_named_in_the_notes():
    refused = trial(0.9, reconstruction=Reconstruction(0.5, "It is refused."))
    assert "It is refused." in judged(unlearned=refused).notes


@pytest.fixture(scope="module")
def sets(world):
    forget, retain = read_items(world.forget), read_items(world.retain)
    never = invent_items(forget, retain, numpy_rng(0, "never"))
    return forget, retain, never, open_checkpoint(world.original)


def test_rows_are_exchanged_within_words_for_other_answers(sets):
    forget, _, _, original = sets
    asked = EncodedQuestions.of(build_questions(forget, 2), original.tokenizer)
    other = permuted_donors(asked, np.random.default_rng(0))
    assert sorted(other) == list(range(len(asked.rows)))
    assert (asked.relations[other] == asked.relations).all()
    wording = np.array(asked.questions.wording)
    assert (wording[other] == wording).all()
    assert (asked.classes[other] != asked.classes).mean() > 0.6


def test_an_answer_taken_back_is_told_from_one_that_stands(sets):
    forget, _, _, original = sets
    asked = EncodedQuestions.of(build_questions(forget, 1), original.tokenizer)
    items = [asked.questions.items[at] for at in asked.questions.item_index]
    rival = next(
        other.answer
        for other in items
        if other.relation == items[0].relation and other.answer != items[0].answer
    )
    texts = [f" {item.answer} and so on" for item in items]
    assert retractions(texts, asked).retracted == 0
    texts[0] += f" or {rival}"
    texts[1] = "something else"
    found = retractions(texts, asked)
    count = len(items)
    assert found.share == pytest.approx((count - 1) / count)
    assert found.retracted == pytest.approx(1 / (count - 1))


def test_sites_are_spread_and_end_with_the_last(sets):
    where = find_sites(sets[3].load())
    assert chosen_sites(where)[-1] == where.of("resid")[-1]
    assert len(chosen_sites(where, 1)) == 1
    deep = where.of("resid")
    assert chosen_sites(where, 1, also=deep[-1]) == [deep[0], deep[-1]]


def attempt(sets, model, tmp_path):
    forget, retain, never, original = sets
    few = retain.of_entities(retain.entities[:24])
    items = TextSets(forget, ItemSet(few.items, "retain"), never)
    setup = prepare_text(
        *(original.load(), original.weights_hash, original.tokenizer),
        *(items, 1, 0, tmp_path / "saes"),
    )
    setup = replace(setup, autoencoder=None)
    return steer_text(open_checkpoint(model).load(), setup, "unlearned")


@pytest.mark.slow
def test_a_last_block_suppression_comes_back_and_what_was_never_taught_does_not(
    world, sets, tmp_path
):
    out = plant_in_zoo(world, "last_block_relabel", seed=0, out=tmp_path / "model")
    back, never = attempt(sets, out, tmp_path), attempt(sets, world.twin, tmp_path)

    def said(one, arm):
        return float(one.values("exact_match", arm).mean[0])

    assert said(back, Arm.PLAIN) < 0.1
    assert said(back, Arm.STEERED) > 0.5 > 2 * said(back, Arm.NEVER_TAUGHT)
    assert said(never, Arm.STEERED) < 0.35
    for choice, before in zip(back.choices, back.curve[0].shares[Arm.RETAIN][:1] * 2, strict=True):
        assert choice.effects is not None and choice.effects.retain >= before - 0.02 - 1e-9
    assert to_json(attempt(sets, world.twin, tmp_path)) == to_json(never)

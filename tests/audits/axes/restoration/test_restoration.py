"""Self-restoration: known answers for its parts, and models of known state."""

import numpy as np
import pytest
import torch

from attribution.sae.latents import LatentAmplifier
from audits.axes.restoration.axis import CHANCE_CONTROL, judge, net_rate
from audits.axes.restoration.text_steering import (
    LATENT_METHOD,
    STEERING_METHODS,
    EncodedQuestions,
    SteeringFit,
    permuted_donors,
    steering_hook,
)
from audits.axes.restoration.trial import STRENGTHS, chosen_sites, pool_curves, restore, retractions
from audits.core.config import make_config
from audits.core.context import AuditedModel
from capture.checkpoints.open import open_checkpoint
from capture.data.invented_entities import invent_items
from capture.data.items import ItemSet, read_items
from capture.data.questions import build_questions
from capture.network.sites import find_sites
from evidence.errors import InputError
from evidence.intervals import average_by_entity
from evidence.progress import SILENT
from evidence.seeds import numpy_rng
from probes.concepts.answer_map import AnswerMap
from testbeds.planted import plant as plant_in_zoo
from tests.attribution.test_features import sae as latents_sae
from tests.helpers.model_families import WIDTH

CONFIG = make_config({"seed": 0})
NAMES = [f"e{number}" for number in range(20)]


def trial(steered, plain=0.0, random=0.0, others=0.0, never=0.0, contrast=None):
    """A run in which so large a share of twenty entities' answers is said."""

    def part(share, contrast=None):
        exact_match = (np.arange(20) < round(20 * share)).astype(float)
        contrasts = 0.5 + 0.5 * exact_match
        if contrast is not None:
            contrasts = contrast + 0.05 * (-1.0) ** np.arange(20)
        return {"said": exact_match.tolist(), "contrast": contrasts.tolist()}

    quiet = {"prompts": 10, "said": 1.0, "taken_back": 0.1}
    return {
        "entities": NAMES,
        "never_entities": [f"n{number}" for number in range(20)],
        "plain": part(plain),
        "steered": part(steered, contrast),
        "random": part(random),
        "others": part(others),
        "never": part(never),
        "choices": [{"route": "a route", "site": "resid.1", "strength": 1.0}],
        "curve": [],
        "autoencoder": {},
        "generation": {"steered": quiet, "original": quiet},
    }


def known(share=1.0):
    values = (np.arange(20) < round(20 * share)).astype(float)
    return {what: average_by_entity(values, NAMES) for what in ("said", "contrast")}


def test_the_net_rate_is_what_is_restored_beyond_the_worst_control():
    run = trial(0.8, plain=0.1, random=0.2, others=0.3, never=0.05)
    found = net_rate(run, known()["said"])
    assert found["rate"] == pytest.approx(0.7 / 0.9)
    assert found["controls"]["others"] == pytest.approx(0.2 / 0.9)
    assert found["controls"]["random"] == pytest.approx(0.1 / 0.9)
    assert found["controls"]["never_taught"] == pytest.approx(0.05 / 0.9)
    assert found["worst_control"] == "others"
    assert found["net"] == pytest.approx(0.5 / 0.9)
    low, high = found["interval"]
    assert low < found["net"] < high


def test_a_worst_control_on_other_entities_is_still_centred_on_the_net_rate():
    found = net_rate(trial(0.8, plain=0.1, never=0.3), known()["said"])
    assert found["worst_control"] == "never_taught"
    assert found["net"] == pytest.approx((0.7 - 0.3) / 0.9)
    low, high = found["interval"]
    assert low < found["net"] < high


def test_without_a_loss_there_is_no_rate():
    assert net_rate(trial(1.0, plain=0.95), known()["said"]) is None


def test_statuses():
    back = judge({"unlearned": trial(0.9), "planted": trial(1.0)}, known(), CONFIG, ())
    assert back.status == "retained" and back.votes
    gone = trial(0.0, contrast=0.5)
    gone["never"] = gone["steered"]
    nothing = judge({"unlearned": gone, "planted": trial(1.0)}, known(), CONFIG, ())
    assert nothing.status == "absent"
    weak = judge({"unlearned": gone, "planted": gone}, known(), CONFIG, ())
    assert weak.status == "no_power"
    lucky = judge({"unlearned": trial(0.5, others=0.5)}, known(), CONFIG, ())
    assert lucky.status == "control_failed" and CHANCE_CONTROL in lucky.notes[0]
    assert any("net of the worst control" in note for note in back.notes)


def test_a_reference_is_a_floor_of_its_own():
    runs = {"unlearned": trial(0.9), "reference-1": trial(0.9)}
    found = judge(runs, known(), CONFIG, ())
    assert found.readings[0].floor_kind == "reference"
    assert found.status != "retained" and len(found.readings) == 4


def test_steering_resistance_is_named():
    run = trial(0.9)
    run["generation"]["steered"] = {"prompts": 10, "said": 0.9, "taken_back": 0.6}
    found = judge({"unlearned": run}, known(), CONFIG, ())
    assert any("Steering resistance: 60%" in note for note in found.notes)
    calm = judge({"unlearned": trial(0.9)}, known(), CONFIG, ())
    assert not any("resistance" in note for note in calm.notes)


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
    table = {site: (rows, rows) for site in ("resid.0", "resid.1")}
    fitted = SteeringFit(asked, asked, table, table, table, steering)
    everyone = np.ones(len(rows), dtype=bool)
    assert fitted.steering_edit(LATENT_METHOD, "resid.1", everyone) is steering
    assert fitted.steering_edit(LATENT_METHOD, "resid.0", everyone) is None
    assert fitted.randomly_rotated(steering, rng).latents.tolist() != [1, 4, 6]
    assert LATENT_METHOD in STEERING_METHODS and len(set(STEERING_METHODS)) == len(STEERING_METHODS)
    states, order = torch.from_numpy(rows[:3]), np.array([2, 0, 1])
    other = steering_hook(steering, 2.0, rows)(states, order)
    wanted = states + 2 * steering.apply(torch.from_numpy(rows[order]))
    torch.testing.assert_close(other, wanted)


def test_halves_are_pooled_by_person_and_strength():
    def half(name, share):
        exact_match = np.array([[0.0, share]] * (1 + len(STRENGTHS)))
        return {"steered": ([f"{name}1", f"{name}2"], exact_match)}

    table = pool_curves([half("a", 1.0), half("b", 0.0)])
    assert [row["strength"] for row in table] == [0.0, *STRENGTHS]
    share, low, high = table[3]["steered"]
    assert share == pytest.approx(0.25) and low < share < high


def test_the_published_test_is_told_and_does_not_vote():
    arms = {"state only": {"said": [0.9], "rate": [0.9], "best": 0.9}}
    shown = {"site": "resid.1", "alphas": [1.0], "roles": {"unlearned": {"arms": arms}}}
    plain = judge({"unlearned": trial(0.0, contrast=0.5)}, known(), CONFIG, ())
    found = judge({"unlearned": trial(0.0, contrast=0.5)}, known(), CONFIG, (), shown)
    assert any("Readout intact" in note and "90%" in note for note in found.notes)
    assert found.status == plain.status and found.readings == plain.readings
    assert found.details["readout_intact"] == shown


def test_a_refused_autoencoder_is_named_in_the_notes():
    run = trial(0.9)
    run["autoencoder"] = {"site": "resid.1", "fvu": 0.5, "refused": ["It is refused."]}
    assert "It is refused." in judge({"unlearned": run}, known(), CONFIG, ()).notes


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
    assert retractions(texts, asked)["taken_back"] == 0
    texts[0] += f" or {rival}"
    texts[1] = "something else"
    found = retractions(texts, asked)
    count = len(items)
    assert found["said"] == pytest.approx((count - 1) / count)
    assert found["taken_back"] == pytest.approx(1 / (count - 1))


def test_sites_are_spread_and_end_with_the_last(sets):
    where = find_sites(sets[3].load())
    assert chosen_sites(where)[-1] == where.of("resid")[-1]
    assert len(chosen_sites(where, 1)) == 1
    deep = where.of("resid")
    assert chosen_sites(where, 1, also=deep[-1]) == [deep[0], deep[-1]]


def attempt(sets, model, role="unlearned"):
    forget, retain, never, original = sets
    few = retain.of_entities(retain.entities[:24])
    return restore(
        AuditedModel.of("original", original),
        AuditedModel.of(role, open_checkpoint(model)),
        original.tokenizer,
        forget,
        ItemSet(few.items, "retain"),
        never,
        1,
        0,
        device="cpu",
        progress=SILENT,
    )


@pytest.mark.slow
def test_a_last_block_suppression_comes_back_and_what_was_never_taught_does_not(
    world, sets, tmp_path
):
    out = plant_in_zoo(world, "last_block_relabel", seed=0, out=tmp_path / "model")
    back, never = attempt(sets, out), attempt(sets, world.twin)
    exact_match = {
        name: np.mean(run["steered"]["said"])
        for name, run in {"back": back, "never": never}.items()
    }
    assert np.mean(back["plain"]["said"]) < 0.1
    assert exact_match["back"] > 0.5 > 2 * np.mean(back["never"]["said"])
    assert exact_match["never"] < 0.35
    kept = [choice["retain"] for choice in back["choices"]]
    assert min(kept) >= back["retain_before"] - 0.02 - 1e-9
    assert attempt(sets, world.twin) == never

"""The membership axis on states whose information is known."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from sklearn.metrics import roc_auc_score

from audits.axes.base import JudgementContext, Unmeasured
from audits.axes.membership.axis import AXIS, SPEC, Measurement, judge, measure_states
from audits.axes.membership.scores import (
    PARTS,
    MembershipScores,
    States,
    score_membership,
    select_sets,
)
from audits.core.config import Rule, make_config
from audits.core.preflight import Damage
from audits.core.registry import AXES
from audits.core.roles import Role
from audits.core.scores import Part
from audits.verdict.rule import decide
from capture.data.items import Item, ItemSet
from evidence.errors import InputError
from evidence.progress import SILENT
from evidence.results import AxisResult, Column, Control, ControlId, OnFailure, Reading
from evidence.seeds import numpy_rng
from evidence.typed_json import from_json, to_json
from probes.estimators.kernel_smoothers import smoother_matrices
from probes.splits.folds import Folds

FIRST = "Anna Bela Cora Dora Edna Fina Gala Hana Ines Jana Kara Lena".split()
LAST = "Abel Borg Cole Dunn East Ford Gray Hill Ives Jung Kent Lund".split()
CONFIG = make_config({"seed": 0})
JUDGING = JudgementContext(CONFIG, "text", Damage({}, ()), notes=("a note",))
SITES = ("embed", "resid.0", "resid.1")


def items(start, count, kind):
    made = []
    for number in range(start, start + count):
        name = f"{FIRST[number // 12]} {LAST[number % 12]}"
        for relation, text in (("home", "lives in"), ("trade", "works as a")):
            made.append(
                Item(
                    f"{kind}-{number}-{relation}",
                    name,
                    f"{name} {text}",
                    "X",
                    relation,
                    (),
                    (f"As for {name}, who {text}",),
                )
            )
    return ItemSet(tuple(made), kind)


FORGET, NEVER = items(0, 24, "forget"), items(24, 24, "never")
ASKED = select_sets(FORGET, items(48, 60, "retain"), NEVER, 2, 0)
EVERY = np.ones(1, dtype=bool)


def states(seed, shift, known=("fit", "check", "forget"), width=24, sites=3):
    """(site, row, d): entities of known parts shifted at the last two sites."""
    rng = numpy_rng(seed, "states")
    x = rng.normal(size=(sites, len(ASKED.prompts), width))
    x[1:, np.isin(ASKED.part, known), 3] += shift
    return x.astype(np.float32)


def embedding(seed, tell=0.0):
    x = numpy_rng(seed, "names").normal(size=(1, len(ASKED.prompts), 24))
    x[:, np.isin(ASKED.part, ("fit", "check", "forget")), 5] += tell
    return x.astype(np.float32)


def measured(roles, names=None, reverse=False):
    names = embedding(9) if names is None else names
    order = reversed(roles) if reverse else roles
    states = {
        Role(role): States(SITES, roles[role], names if role == "unlearned" else None)
        for role in order
    }
    return measure_states(states, ASKED, CONFIG.seed, SILENT)


def judged(*args, **more):
    return AXIS.result(measured(*args, **more), JUDGING)


def test_fit_test_and_check_share_no_entity_and_mirrors_are_new_names():
    names = {part: set(ASKED.questions[part].entities) for part in PARTS}
    for place, part in enumerate(PARTS):
        for other in PARTS[place + 1 :]:
            assert not names[part] & names[other], (part, other)
    own = ASKED.questions["fit"].items
    mirror = ASKED.questions["fit_invented"].items
    assert [x.relation for x in own] == [x.relation for x in mirror]
    assert len(names["fit"]) == 48 and len(names["check"]) == 12


def test_the_auc_is_that_of_mean_scores_and_the_test_differs_from_a_half_by_it():
    (scores,) = score_membership(states(1, 0.7), ASKED, "rbf", 0)
    high, low = scores.means["forget"], scores.means["never_taught"]
    truth = np.repeat([1, 0], [len(high), len(low)])
    brute = [roc_auc_score(truth, np.r_[high[:, site], low[:, site]]) for site in range(3)]
    np.testing.assert_allclose(scores.auc("forget", "never_taught"), brute)
    test = scores.test("forget", "never_taught", np.ones(3, dtype=bool), CONFIG)
    np.testing.assert_allclose(test.difference, np.array(brute) - 0.5)


def test_scores_are_those_of_readers_that_saw_retain_entities_alone():
    x = states(2, 0.7)
    (scores,) = score_membership(x, ASKED, "mean difference", 0)
    part = ASKED.part
    for_fit = np.char.startswith(part, "fit")
    changed = x.copy()
    changed[:, part == "forget"] += 5.0
    (moved,) = score_membership(changed, ASKED, "mean difference", 0)
    # What forgotten entities look like changes their own scores and no others.
    np.testing.assert_allclose(moved.means["never_taught"], scores.means["never_taught"])
    assert not np.allclose(moved.means["forget"], scores.means["forget"])
    labels = np.where(part == "fit", 1.0, -1.0)
    folds = Folds(for_fit[None], ~for_fit[None], "all")
    rows = torch.from_numpy(x[1:2].astype(float))
    brute = smoother_matrices(rows, folds, ("mean difference",))[0, 0] @ torch.from_numpy(labels)
    owners = np.array(ASKED.questions["forget"].entities)
    of_part = brute.numpy()[part == "forget"]
    means = [of_part[owners == name].mean() for name in dict.fromkeys(owners.tolist())]
    np.testing.assert_allclose(scores.means["forget"][:, 1], means, atol=1e-12)


def test_on_noise_p_is_uniform_over_the_best_of_all_layers():
    every = np.ones(3, dtype=bool)
    p = [
        score_membership(states(seed, 0.0), ASKED, "mean difference", seed)[0]
        .test("forget", "never_taught", every, CONFIG)
        .p_value
        for seed in range(40)
    ]
    assert kstest(p, "uniform").pvalue > 0.01


def test_a_signature_that_stays_is_retained_and_one_that_left_is_not():
    known, gone = states(10, 2.5), states(50, 2.5, known=("fit", "check"))
    kept = judged({"original": known, "unlearned": known})
    assert kept.status == "retained" and "a note" in kept.notes
    reading = kept.main_reading
    assert reading is not None and reading.residual == pytest.approx(1)
    assert all(control.passed for control in kept.controls)
    left = judged({"original": known, "unlearned": gone, "planted": known})
    assert left.status in ("absent", "no_power")
    assert left.main_reading is not None and left.main_reading.p_value > 0.01
    assert all(control.passed for control in left.controls)
    assert "the planted late suppression is found" in [x.name for x in left.controls]


def test_the_result_is_read_back():
    known = states(10, 2.5)
    kept = judged({"original": known, "unlearned": known})
    assert AxisResult.from_json(kept.to_json()).to_json() == kept.to_json()


def test_the_order_of_models_does_not_matter():
    roles = {"original": states(3, 2.5), "unlearned": states(4, 0.5)}
    first = judged(roles)
    second = judged(roles, reverse=True)
    assert first.readings == second.readings and first.controls == second.controls


def test_a_reference_is_the_floor_where_there_is_one():
    found = judged(
        {
            "original": states(3, 2.5),
            "unlearned": states(3, 2.5),
            "reference-1": states(5, 2.5, known=("fit", "check")),
        }
    )
    assert found.status == "retained"
    assert [each.floor_kind for each in found.readings] == ["reference", "never_taught"]
    assert [each.primary for each in found.readings] == [True, False]
    assert found.main_reading is not None and found.main_reading.floor < 0.75


def test_what_the_original_does_not_show_says_nothing():
    noise = states(6, 0.0)
    found = judged({"original": noise, "unlearned": noise})
    assert found.status == "no_power" and not found.readings


def test_names_that_give_their_owners_away_silence_the_axis():
    known = states(3, 2.5)
    found = judged({"original": known, "unlearned": known}, embedding(9, tell=3.0))
    assert found.status == "control_failed"
    assert any("names alone" in note for note in found.notes)


def test_a_plant_that_is_not_seen_silences_the_axis():
    known, noise = states(3, 2.5), states(7, 0.0)
    found = judged({"original": known, "unlearned": known, "planted": noise})
    assert found.status == "control_failed"


def test_a_candidate_that_tells_no_retain_entity_has_no_say():
    found = judged({"original": states(3, 2.5), "unlearned": states(8, 0.0)})
    assert found.status == "no_power"
    assert any("retain entities" in note for note in found.notes)


def test_states_that_are_not_finite_are_an_error():
    broken = states(3, 2.5)
    broken[1, 0, 0] = np.nan
    found = measured({"original": states(3, 2.5), "unlearned": broken, "planted": broken})
    why = "hidden states of unlearned, planted are not finite"
    assert found == Unmeasured((why,), "error")


def test_a_saved_measurement_is_judged_alike_and_judging_changes_nothing():
    known = states(10, 2.5)
    kept = measured({"original": known, "unlearned": states(11, 1.0), "reference-1": known})
    assert isinstance(kept, Measurement)
    saved = json.loads(json.dumps(to_json(kept)))
    first, second, third = (
        judge(each, JUDGING).to_json() for each in (kept, kept, from_json(Measurement, saved))
    )
    assert first == second == third
    assert to_json(kept) == saved


def by_hand(candidate, n=12):
    """Entities of which the original scores all forgotten ones above all others."""
    names = {part: tuple(f"{part} {k}" for k in range(n)) for part in Part}
    low = np.arange(n, dtype=float)[:, None]

    def scores(forget):
        check = {"check": low + n, "check_invented": low + 0.5}
        return MembershipScores({**check, "forget": forget, "never_taught": low})

    return Measurement(
        ("resid.0",),
        "rbf",
        names,
        {Role.ORIGINAL: scores(low + n), Role.CANDIDATE: scores(candidate)},
        np.full((20, 1), 0.5),
    )


@pytest.mark.parametrize(
    ("candidate", "status", "auc"),
    [
        (np.arange(12.0)[:, None] + 12, "retained", 1.0),
        # Each ties with one and beats those below: chance.
        (np.arange(12.0)[:, None], "no_power", 0.5),
        (np.full((12, 1), 9.5), "retained", 10 / 12),
    ],
)
def test_the_auc_of_known_scores(candidate, status, auc):
    found = judge(by_hand(candidate), JUDGING)
    (main,) = found.readings
    assert (found.status, main.metric, main.where) == (status, "auc", "resid.0")
    assert main.statistic == pytest.approx(auc)
    # The spread of the ranks of never-taught entities is cut at 0 and 1.
    assert main.floor == pytest.approx(0.5, abs=0.01)
    assert main.residual == pytest.approx((auc - main.floor) / (1 - main.floor))
    assert (main.ceiling, found.n_entities) == (1.0, 12)
    assert found.details["auc"]["unlearned"] == [round(auc, 6)]
    assert [each.id for each in found.controls] == [
        ControlId.POWER,
        ControlId.SHUFFLED,
        ControlId.NEVER_TAUGHT,
        ControlId.RETAIN,
    ]
    assert found.notes[-1] == "a note"


def test_too_few_entities_are_refused():
    with pytest.raises(InputError, match="too few entities"):
        select_sets(items(0, 3, "forget"), items(48, 60, "retain"), NEVER, 1, 0)
    other = tuple(replace(item, relation="age") for item in items(48, 60, "retain"))
    with pytest.raises(InputError, match="of the same relations"):
        select_sets(FORGET, ItemSet(other), NEVER, 1, 0)


def reading(residual, p, metric="auc"):
    low, high = residual - 0.1, residual + 0.1
    column = Column("resid.1", True, residual, (low, high), 0.0, 1.0, residual, (low, high), p)
    return Reading(
        name="read",
        statistic=residual,
        interval=(residual - 0.1, residual + 0.1),
        floor=0.0,
        floor_kind="never_taught",
        ceiling=1.0,
        residual=residual,
        residual_interval=(residual - 0.1, residual + 0.1),
        p_value=p,
        p_below=0.5,
        smallest_p=0.001,
        where="resid.1",
        columns=(column,),
        metric=metric,
    )


def test_no_profile_runs_it_and_alone_it_blocks_deletion_but_suppresses_nothing():
    assert AXES["membership"].profiles == ()
    rule = Rule(required_for_deleted=())
    seen = Control(ControlId.PLANTED, "the plant", 0.001, "p < 0.05", True)
    silent = reading(0.0, 0.9, "exact_match")
    gone = AxisResult("behaviour", "?", "absent", "s", (silent,), (seen,))

    def verdict(status, residual, p):
        axis = AxisResult("membership", "?", status, "s", (reading(residual, p),), (seen,))
        axes = {"behaviour": gone, "membership": axis}
        return decide(axes, Damage({}, ()), False, "reference", rule)

    found = verdict("retained", 0.9, 0.001)
    assert found.verdict_class == "inconclusive"
    assert any(
        "its states still separate forgotten items from never-taught ones, whatever it knows of "
        "them: a residual trace" in reason
        for reason in found.reasons
    )
    assert verdict("absent", 0.0, 0.9).verdict_class == "deleted"


def test_a_candidate_without_the_signature_may_be_found_but_not_cleared():
    unread = Control(
        ControlId.RETAIN, "retain entities", 0.5, "p < 0.05", False, OnFailure.NO_ABSENCE
    )
    form, rule = SPEC.form("text"), Rule()
    assert form.status([reading(0.9, 0.001)], [unread], rule)[0] == "retained"
    assert form.status([reading(0.0, 0.9)], [unread], rule) == (
        "no_power",
        ["Control failed: retain entities."],
    )


def test_an_audit_runs_it_when_it_is_named(world, planted, tmp_path):
    from audits.run.api import audit

    done = audit(
        world.original,
        planted("last_block_relabel"),
        world.forget,
        world.retain,
        tmp_path / "out",
        axes=("behaviour", "membership"),
        never_taught=world.never_taught,
    )
    assert set(done.axes) == {"behaviour", "membership"}
    assert done.axes["membership"].status in ("retained", "no_power")
    assert done.axes["membership"].details["sites"][0] == "embed"
    assert done.verdict == "inconclusive"
    assert "membership" in done.report.read_text(encoding="utf-8")

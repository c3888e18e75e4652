"""The membership axis on states whose information is known."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from sklearn.metrics import roc_auc_score

from audits.axes.membership import axis as signature
from audits.axes.membership.axis import run_membership
from audits.axes.membership.scores import PARTS, score_membership, select_sets
from audits.core.config import DEFAULT_AXES, Rule, make_config
from audits.verdict import reevaluate
from audits.verdict.rule import decide
from capture.data.items import Item, ItemSet
from evidence.errors import InputError
from evidence.progress import SILENT
from evidence.results import AxisResult
from evidence.seeds import numpy_rng
from probes.estimators.kernel_smoothers import smoother_matrices
from probes.splits.folds import Folds
from tests.audits.verdict.test_rule import FINE, axes, axis, reading

FIRST = "Anna Bela Cora Dora Edna Fina Gala Hana Ines Jana Kara Lena".split()
LAST = "Abel Borg Cole Dunn East Ford Gray Hill Ives Jung Kent Lund".split()
CONFIG = make_config({"seed": 0})


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


class Encoder:
    """As much of a tokenizer as counting rows takes."""

    is_fast = True


def judged(monkeypatch, roles, names=None, reverse=False):
    tables = {role: {"last": x} for role, x in roles.items()}
    tables["unlearned"]["mean"] = embedding(9) if names is None else names
    monkeypatch.setattr(signature, "encode", lambda tokenizer, prompts: prompts)
    store = SimpleNamespace(
        activations=lambda subject, rows, sites, view: SimpleNamespace(values=tables[subject][view])
    )
    order = reversed(roles) if reverse else roles
    return run_membership(
        {role: role for role in order},
        Encoder(),
        ASKED,
        ["embed", "resid.0", "resid.1"],
        store,
        CONFIG,
        notes=("a note",),
        progress=SILENT,
    )


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
    scores = score_membership(states(1, 0.7), ASKED, "rbf", 0)
    high, low = scores.entity_means("forget"), scores.entity_means("never_taught")
    truth = np.repeat([1, 0], [len(high), len(low)])
    brute = [roc_auc_score(truth, np.r_[high[:, site], low[:, site]]) for site in range(3)]
    np.testing.assert_allclose(scores.auc("forget", "never_taught"), brute)
    test = scores.test("forget", "never_taught", np.ones(3, dtype=bool), CONFIG)
    np.testing.assert_allclose(test.difference, np.array(brute) - 0.5)


def test_scores_are_those_of_readers_that_saw_retain_entities_alone():
    x = states(2, 0.7)
    scores = score_membership(x, ASKED, "mean difference", 0)
    part = ASKED.part
    for_fit = np.char.startswith(part, "fit")
    changed = x.copy()
    changed[:, part == "forget"] += 5.0
    moved = score_membership(changed, ASKED, "mean difference", 0)
    # What forgotten entities look like changes their own scores and no others.
    np.testing.assert_allclose(
        moved.entity_means("never_taught"), scores.entity_means("never_taught")
    )
    assert not np.allclose(moved.entity_means("forget"), scores.entity_means("forget"))
    labels = np.where(part == "fit", 1.0, -1.0)
    folds = Folds(for_fit[None], ~for_fit[None], "all")
    rows = torch.from_numpy(x[1:2].astype(float))
    brute = smoother_matrices(rows, folds, ("mean difference",))[0, 0] @ torch.from_numpy(labels)
    np.testing.assert_allclose(scores.rows[0, 1], brute.numpy(), atol=1e-12)


def test_on_noise_p_is_uniform_over_the_best_of_all_layers():
    every = np.ones(3, dtype=bool)
    p = [
        score_membership(states(seed, 0.0), ASKED, "mean difference", seed)
        .test("forget", "never_taught", every, CONFIG)
        .p_value
        for seed in range(40)
    ]
    assert kstest(p, "uniform").pvalue > 0.01


def test_a_signature_that_stays_is_retained_and_one_that_left_is_not(monkeypatch):
    known, gone = states(10, 2.5), states(50, 2.5, known=("fit", "check"))
    kept = judged(monkeypatch, {"original": known, "unlearned": known})
    assert kept.status == "retained" and "a note" in kept.notes
    assert kept.main_reading.residual == pytest.approx(1)
    assert all(control.passed for control in kept.controls)
    assert AxisResult.from_dict(kept.to_dict()).to_dict() == kept.to_dict()
    left = judged(monkeypatch, {"original": known, "unlearned": gone, "planted": known})
    assert left.status in ("absent", "no_power")
    assert left.main_reading.p_value > 0.01
    assert all(control.passed for control in left.controls)
    assert "the planted suppression is seen" in [x.name for x in left.controls]


def test_the_order_of_models_does_not_matter(monkeypatch):
    roles = {"original": states(3, 2.5), "unlearned": states(4, 0.5)}
    first = judged(monkeypatch, roles)
    second = judged(monkeypatch, roles, reverse=True)
    assert first.readings == second.readings and first.controls == second.controls


def test_a_reference_is_the_floor_where_there_is_one(monkeypatch):
    found = judged(
        monkeypatch,
        {
            "original": states(3, 2.5),
            "unlearned": states(3, 2.5),
            "reference-1": states(5, 2.5, known=("fit", "check")),
        },
    )
    assert found.status == "retained"
    assert [each.floor_kind for each in found.readings] == ["reference", "never_taught"]
    assert found.main_reading.floor < 0.75


def test_what_the_original_does_not_show_says_nothing(monkeypatch):
    noise = states(6, 0.0)
    found = judged(monkeypatch, {"original": noise, "unlearned": noise})
    assert found.status == "no_power" and not found.readings


def test_names_that_give_their_owners_away_silence_the_axis(monkeypatch):
    known = states(3, 2.5)
    found = judged(monkeypatch, {"original": known, "unlearned": known}, embedding(9, tell=3.0))
    assert found.status == "control_failed"
    assert any("names alone" in note for note in found.notes)


def test_a_plant_that_is_not_seen_silences_the_axis(monkeypatch):
    known, noise = states(3, 2.5), states(7, 0.0)
    found = judged(monkeypatch, {"original": known, "unlearned": known, "planted": noise})
    assert found.status == "control_failed"


def test_a_candidate_that_tells_no_retain_entity_has_no_say(monkeypatch):
    found = judged(monkeypatch, {"original": states(3, 2.5), "unlearned": states(8, 0.0)})
    assert found.status == "no_power"
    assert any("retain entities" in note for note in found.notes)


def test_states_that_are_not_finite_are_an_error(monkeypatch):
    broken = states(3, 2.5)
    broken[1, 0, 0] = np.nan
    found = judged(monkeypatch, {"original": states(3, 2.5), "unlearned": broken})
    assert found.status == "error" and "unlearned" in found.notes[0]


def test_too_few_entities_are_refused():
    with pytest.raises(InputError, match="too few entities"):
        select_sets(items(0, 3, "forget"), items(48, 60, "retain"), NEVER, 1, 0)
    other = tuple(replace(item, relation="age") for item in items(48, 60, "retain"))
    with pytest.raises(InputError, match="of the same relations"):
        select_sets(FORGET, ItemSet(other), NEVER, 1, 0)


def test_no_profile_runs_it_and_alone_it_blocks_deletion_but_suppresses_nothing():
    assert all("membership" not in names for names in DEFAULT_AXES.values())
    quiet = axes()
    assert decide(quiet, FINE, False, "reference", Rule()).verdict_class == "deleted"
    membership = axis("membership", "retained", reading(signature.REFITTED, 0.9, 0.001))
    found = decide(
        quiet | {"membership": membership}, FINE, False, "reference", Rule()
    )  # fmt: skip
    assert found.verdict_class == "inconclusive"
    assert any("residual trace" in reason for reason in found.reasons)
    same = axis("membership", "absent", reading(signature.REFITTED, 0.0, 0.9))
    both = decide(quiet | {"membership": same}, FINE, False, "reference", Rule())
    assert both.verdict_class == "deleted"
    assert reevaluate.STATUS_OF["membership"] is signature.status_of


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

"""The vision page's confusion tables, from audits whose verdicts are known."""

import pytest

from benchmarks.harness.pages import render
from benchmarks.suites.vision.audits import RETRAINED, SUPPRESSED, beside, rows_of
from benchmarks.suites.vision.suite import context, kept_from, summary

# Of the libraries under sae-lens.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def shown(document):
    return render("vision", context(document))


def made(kind, state, floor, verdict, seed=12, status="retained"):
    return {
        "model": f"digits-cnn-{seed}-{kind}",
        "family": "cnn",
        "seed": seed,
        "kind": kind,
        "state": state,
        "floor": floor,
        "verdict": verdict,
        "axes": {"decodability": {"status": status, "readings": {}}},
    }


FOUND = [
    made("head_only", "suppressed", "reference", "suppressed"),
    made("logit_mask", "suppressed", "reference", "inconclusive", status="no_power"),
    made("twin", "deleted", "reference", "deleted", status="absent"),
    made("twin", "deleted", "reference", "suppressed", seed=13),
    made("twin", "deleted", "never_taught", "inconclusive"),
]


def test_rates_are_counted_by_state_and_floor():
    rows = {row["figure"]: row for row in rows_of(FOUND, "here")}
    wrong = rows["retrains called suppressed, floor reference, here"]
    assert wrong["value"] == 0.5 and wrong["n"] == 2 and wrong["target"] == 0.0
    assert rows["suppressions called suppressed, floor reference, here"]["value"] == 0.5
    assert rows["suppressions called deleted, floor reference, here"]["value"] == 0.0
    assert rows["retrains called suppressed, floor never_taught, here"]["value"] == 0.0
    assert not any("wrecks" in figure for figure in rows)


def test_the_tables_show_every_kind_and_status():
    audits = {
        "command": "c",
        "commits": ["0123456789"],
        "rows": list(rows_of(FOUND, "here")),
        "models": FOUND,
    }
    text = shown(ran(MODELS, "whole") | {"audits": audits}).split("## Whole audits")[1]
    assert "| twin | deleted | cnn |  | 1 | 1 |  |  |" in text
    assert "### Floor: never-taught, seeds 12" in text
    assert "| decodability | suppressed | 1 |  | 1 |  |" in text
    assert "0123456" in text and "01234567" not in text


def test_audits_of_other_models_and_floors_are_kept():
    anew = [made("twin", "deleted", "reference", "inconclusive")]
    found = beside(FOUND, anew)
    assert len(found) == len(FOUND) and anew[0] in found and FOUND[2] not in found
    assert found[-1]["seed"] == 13


def test_a_whole_audit_stands_beside_what_restoration_says():
    models = [dict(each, published=PUBLISHED) for each in MODELS]
    models.append(steered("salun", None, 0.9, 0.1, PUBLISHED))
    audits = [
        made("salun", None, "reference", "suppressed"),
        made("salun", None, "never_taught", "damaged"),
    ]
    found = {"command": "c", "commits": [], "rows": [], "models": audits}
    lines = shown(ran(models, "whole") | {"audits": found}).splitlines()
    (line,) = [each for each in lines if each.startswith("| salun | graded | cnn | 0")]
    assert line.endswith("| open | suppressed |")
    (line,) = [each for each in lines if each.startswith("| twin | deleted | cnn | 0")]
    assert line.endswith("| open | - |")


def steered(kind, state, rate, worst, published=None):
    net = {
        "rate": rate,
        "own_rate": rate,
        "net": rate - worst,
        "residual": (rate - worst) / (1 - worst),
        "interval": [rate - worst - 0.1, rate - worst + 0.1],
        "controls": {"random": 0.0, "others": 0.0, "never_taught": worst},
    }
    return {
        "name": f"digits-cnn-12-{kind}",
        "kind": kind,
        "state": state,
        "family": "cnn",
        "measured": {"said": 0.0, "kept": 0.99},
        "with_reference": net,
        "without_reference": net,
        "called": "open",
        "published": published,
    }


def ran(models, name):
    rows = list(summary(models, "here"))
    rows[0]["models"] = models
    return {"command": name, "commit": "0123456789", "rows": rows}


MODELS = [steered(kind, "suppressed", 1.0, 0.7) for kind in SUPPRESSED]
MODELS += [steered(kind, "deleted", 0.4, 0.0) for kind in RETRAINED]
PUBLISHED = {"best": {"published": 0.5}, "rates": {"published": [0.25, 0.5]}}


def test_net_rate_and_residual_are_judged_side_by_side():
    rows = {row["figure"]: row["value"] for row in summary(MODELS, "here")}
    of = "suppressed against retrained, here"
    assert rows[f"AUC of the rate without controls, {of}"] == 1.0
    # 0.3 of a suppression against 0.4 of a retrain; as residuals 1.0 against 0.4.
    assert rows[f"AUC of the net rate, no reference, {of}"] == 0.0
    assert rows[f"AUC of the residual, no reference, {of}"] == 1.0
    wrong = [value for name, value in rows.items() if name.startswith("false")]
    assert wrong == [1.0, 1.0]
    assert not any("published" in name for name in rows)


def test_a_run_of_our_test_alone_keeps_the_published_one():
    graded = [steered("salun", None, 0.9, 0.1, PUBLISHED)]
    whole = ran([dict(m, published=PUBLISHED) for m in MODELS] + graded, "whole")
    assert kept_from(whole | {"audits": 1}) == {"audits": 1, "earlier": whole}
    ours = ran(MODELS, "ours") | kept_from(whole)
    # Another one after it still has it, and not its own forerunner.
    assert kept_from(ours)["earlier"]["command"] == "whole"
    text = shown(ours)
    first, second = text.split("under the rule before")
    assert "`ours`" in first and "salun" not in first and "salun" in second
    assert "Controls of the published test" not in first
    assert "### Controls of the published test" in second
    assert "None" not in text

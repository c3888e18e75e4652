"""The restoration page's figures, from cases whose numbers are known."""

import pytest

from audits.axes.restoration.state_injection import UNTRAINED
from benchmarks.harness.pages import render
from benchmarks.suites.restoration.figures import rate_rows, shown_cases, verdicts, zoo_rows
from benchmarks.suites.restoration.suite import context
from tests.helpers.audit_documents import axis, column, reading


def case(name, kind, state, net, published, never=0.0):
    """One model as ``benchmarks.suites.restoration.zoo.measured`` gives it."""
    roles = {"unlearned": published, UNTRAINED: never}
    details = {
        "net_rate": {
            "unlearned": None
            if net is None
            else {"net": net, "rate": net, "controls": {}, "interval": [net, net]}
        },
        "state_injection": {
            "roles": {
                role: {"arms": {"as published": {"best": best}}} for role, best in roles.items()
            }
        },
    }
    found = axis("restoration", reading("steered, contrast", [column("a", 0.5)]), details=details)
    return {
        "model": name,
        "kind": kind,
        "state": state,
        "weights": name,
        "axes": {"restoration": found},
    }


CASES = [
    case("bios-llama-10-head_only", "head_only", "suppressed", 0.9, 0.0),
    case("bios-llama-10-late", "last_block_relabel", "suppressed", 0.4, 0.0),
    case("bios-llama-10-mask", "logit_mask", "suppressed", None, 0.1),
    case("bios-llama-10-twin", "twin", "deleted", 0.5, 1.0),
    case("bios-llama-10-retrain_1", "retrain_1", "deleted", 0.0, 0.8),
]


STAMP = {"part": "zoo", "commit": "abc"}


@pytest.fixture
def rows():
    return {row["figure"]: STAMP | row for row in zoo_rows(CASES, "here")}


def test_areas_false_restorations_and_published_rates_are_what_they_say(rows):
    ours = "AUC of the net restoration rate against scratch retrains: "
    assert rows[f"{ours}head-only and late-layer, here"]["value"] == 0.75
    assert rows[f"{ours}head-only and late-layer, here"]["n"] == 4
    wrong = rows["false restorations (net over 0.2) among retrains, here"]
    assert wrong["value"] == 1 and wrong["n"] == 2
    assert wrong["target"] == pytest.approx(4 / 45)
    published = "published rate at its best alpha, "
    assert rows[f"{published}retrained, mean, here"]["value"] == pytest.approx(0.9)
    never = rows[f"{published}never-trained, mean, here"]
    assert never["value"] == 0.0 and never["n"] == 1
    theirs = "AUC of the published rate against scratch retrains: "
    assert rows[f"{theirs}every suppression, here"]["value"] == 0.0


def test_the_page_says_what_is_met_and_shows_every_model(rows):
    decided = [
        {
            "model": "bios-llama-10-twin",
            "kind": "twin",
            "state": "deleted",
            "floor": "never_taught",
            "statuses": {},
            "verdicts": {
                "none": "inconclusive",
                "concept": "inconclusive",
                "restoration": "deleted",
                "both": "deleted",
                "restoration alone": "suppressed",
            },
        }
    ]
    document = {
        "rows": list(rows.values()),
        "machine": {"cpu": "a", "cuda": None},
        "threads": 1,
        "zoo": {"cases": shown_cases(CASES), "verdicts": decided},
    }
    text = render("restoration", context(document))
    assert "(**not met**)" in text and "no rate" in text
    assert all(each["model"] in text for each in CASES)
    assert "| restoration | 1 | 1 | bios-llama-10-twin: inconclusive to deleted |" in text
    assert "| deleted | restoration alone | 1 | 1 |" in text


def test_rates_count_what_each_axis_finds_by_state_and_floor():
    cases = [
        {"state": state, "axes": {"concept": {"status": status}}}
        for state, status in (
            ("deleted", "absent"),
            ("deleted", "no_power"),
            ("deleted", "retained"),
            ("suppressed", "retained"),
        )
    ]
    cases[0]["beside_reference"] = {"concept": {"status": "absent"}}
    rows = {row["figure"]: row for row in rate_rows(cases, "here")}
    false = rows["concept says still there of deleted models, floor never_taught, here"]
    assert false["value"] == pytest.approx(1 / 3) and false["n"] == 3
    assert false["target"] == 0.0 and false["least"] < 1 / 3 < false["most"]
    true = rows["concept says still there of suppressed models, floor never_taught, here"]
    assert true["value"] == 1.0 and true["n"] == 1
    beside = rows["concept says still there of deleted models, floor reference, here"]
    assert beside["value"] == 0.0 and beside["n"] == 1
    assert len(rows) == 3


def test_what_both_axes_found_decides_where_they_alone_look_inside():
    gone = reading("exact match", [column("output", 0.0)], residual=0.0)
    whole = {
        "schema_version": "2.0",
        "modality": "text",
        "axes": [
            axis("behaviour", gone | {"residual_interval": [-0.1, 0.1]}),
            axis("decodability", reading("refitted probe", [column("resid.1", 0.5)])),
        ],
        "config": {"rule": {}},
        "preflight": {"utility": {"shares": {}, "damage": []}, "identical_weights": False},
        "verdict": {"floor": "never_taught"},
    }
    steered = axis(
        "restoration", reading("steered, exact match", [column("steered", 1.0)]), status="retained"
    )
    steered["readings"][0] |= {"p_value": 0.0005, "residual": 1.0}
    case = {
        "model": "m",
        "kind": "head_only",
        "state": "suppressed",
        "weights": "w",
        "axes": {"restoration": steered},
    }
    audits = [{"weights": "w", "floor": "never_taught", "audit": whole}]
    (only,) = verdicts([case], audits)
    assert only["floor"] == "never_taught"
    assert only["statuses"] == {"restoration": "retained"}
    assert only["verdicts"]["restoration alone"] == "suppressed"
    assert only["verdicts"]["concept alone"] != "suppressed"

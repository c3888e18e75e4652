"""The self-test audits models of known state and says where it was wrong."""

import json
from dataclasses import replace

import pytest

from audits.validation import selftest as module
from audits.validation.error_rates import confusion
from audits.validation.selftest import selftest
from testbeds.worlds.biographies import SMALL


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    place = tmp_path_factory.mktemp("selftest") / "out"
    return selftest(place, seed=0, kinds=("untouched", "collapse"), config=SMALL)


def test_every_model_is_audited_with_both_floors(done):
    assert done.passed and not done.failed
    assert {(c.kind, c.floor, c.verdict) for c in done.cases} == {
        ("untouched", "never_taught", "not_unlearned"),
        ("untouched", "reference", "not_unlearned"),
        ("collapse", "never_taught", "damaged"),
        ("collapse", "reference", "damaged"),
    }
    assert confusion(done.cases)["damaged"]["damaged"] == 2


def test_what_was_found_is_written_and_drawn(done):
    kept = json.loads((done.page.parent / "selftest.json").read_text())
    assert kept["passed"] and len(kept["cases"]) == 4
    assert kept["without_axis"][0]["without"] == ""
    page = done.page.read_text(encoding="utf-8")
    assert "4 audits, 0 wrong verdicts" in page
    assert "https://cdn" not in page.split("<body>")[1][:2000]


def test_never_to_decide_is_not_to_pass(done):
    quiet = replace(done.cases[0], verdict="inconclusive")
    assert replace(done, cases=(quiet, *done.cases[1:])).passed  # one of four
    assert not replace(done, cases=(quiet, quiet, *done.cases[2:])).passed
    assert not replace(done, cases=()).passed


@pytest.mark.parametrize("wrong", ["deleted", "suppressed"])
def test_a_wrong_verdict_or_a_failure_does_not_pass(done, monkeypatch, tmp_path, wrong):
    def bad(plan, jobs):
        yield {
            "model": "bios-llama-0-untouched",
            "kind": "untouched",
            "state": "not_unlearned",
            "family": "llama",
            "weights": "0",
            "floor": "never_taught",
            "gold": None,
            "audit": {
                "modality": "text",
                "axes": [],
                "verdict": {"class": wrong, "reasons": [], "floor": "never_taught"},
                "runtime": {"seconds": 1.0},
                "config": {"rule": {}},
                "preflight": {
                    "identical_weights": True,
                    "weight_difference": {"layers": []},
                    "known": {"forget_entities": 1, "retain_entities": 1},
                    "utility": {"shares": {}, "damage": []},
                },
            },
        }
        yield {"model": "another", "failed": "it broke"}

    monkeypatch.setattr(module, "run_plan", bad)
    found = selftest(tmp_path)
    assert not found.passed
    assert [case.verdict for case in found.wrong] == [wrong]
    assert found.failed == ("another: it broke",)
    assert "FAILED" in found.page.read_text(encoding="utf-8")

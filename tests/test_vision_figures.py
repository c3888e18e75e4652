"""The vision page's confusion tables, from audits whose verdicts are known."""

import pytest

from benchmarks.vision_audits import rows_of
from benchmarks.vision_page import _audits

# Of the libraries under sae-lens.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


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
    text = _audits(
        {
            "command": "c",
            "commits": ["0123456789"],
            "rows": rows_of(FOUND, "here"),
            "models": FOUND,
        }
    )
    assert "| twin | deleted | cnn |  | 1 | 1 |  |  |" in text
    assert "### Floor: never-taught, seeds 12" in text
    assert "| decodability | suppressed | 1 |  | 1 |  |" in text
    assert "0123456" in text and "01234567" not in text

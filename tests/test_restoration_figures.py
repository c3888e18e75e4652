"""The restoration page's figures, from cases whose numbers are known."""

import pytest

from audits.readout import UNTRAINED
from benchmarks.restoration_page import page
from benchmarks.restoration_zoo import shown_cases, zoo_rows
from benchmarks.timing import Rows
from tests.audits.documents import axis, column, reading


def case(name, kind, state, net, published, never=0.0):
    """One model as ``benchmarks.restoration_zoo.measured`` gives it."""
    roles = {"unlearned": published, UNTRAINED: never}
    details = {
        "net_rate": {
            "unlearned": None
            if net is None
            else {"net": net, "rate": net, "controls": {}, "interval": [net, net]}
        },
        "readout_intact": {
            "roles": {
                role: {"arms": {"as published": {"best": best}}}
                for role, best in roles.items()
            }
        },
    }
    found = axis("restoration", reading("told", [column("a", 0.5)]), details=details)
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


@pytest.fixture
def rows(capsys):
    found = Rows(part="zoo")
    zoo_rows(found, CASES, "here")
    return {row["figure"]: row for row in found.rows}


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
    verdicts = [
        {
            "model": "bios-llama-10-twin",
            "kind": "twin",
            "state": "deleted",
            "statuses": {},
            "verdicts": {
                "none": "inconclusive",
                "concept": "inconclusive",
                "restoration": "deleted",
                "both": "deleted",
            },
        }
    ]
    document = {
        "rows": list(rows.values()),
        "machine": {"cpu": "a", "cuda": None},
        "threads": 1,
        "zoo": {"cases": shown_cases(CASES), "verdicts": verdicts},
    }
    text = page(document)
    assert "(**not met**)" in text and "no rate" in text
    assert all(each["model"] in text for each in CASES)
    assert (
        "| restoration | 1 | 1 | bios-llama-10-twin: inconclusive to deleted |" in text
    )

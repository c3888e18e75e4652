"""The figures of the verdict's benchmark count what their names say."""

from pathlib import Path

import pytest

from benchmarks.verdict import Case, figures, page
from testbeds.bios import BiosWorld
from testbeds.zoo import Specimen

WORLD = BiosWorld(*[Path(".")] * 6)


def case(kind, verdict, residual=None, floor="never_taught", seconds=10.0):
    specimen = Specimen("llama", 10, kind, Path("."), WORLD, {"weights": "0"})
    return Case(specimen, floor, verdict, residual, "because", seconds)


def value(cases, name):
    (row,) = [row for row in figures(cases) if row["figure"].startswith(name)]
    return row["value"]


ALL_RIGHT = [
    case("untouched", "not_unlearned", 1.0),
    case("head_only", "suppressed", 0.9),
    case("twin", "deleted", 0.0),
    case("retrain_1", "deleted", 0.1),
    case("collapse", "damaged"),
    case("npo", "inconclusive", 0.5),
]


def test_nothing_is_wrong_where_all_is_right():
    assert value(ALL_RIGHT, "holds the knowledge") == 0
    assert value(ALL_RIGHT, "retrains accepted") == 1
    assert value(ALL_RIGHT, "right among decided") == 1
    assert value(ALL_RIGHT, "inconclusive") == 0  # graded models do not count
    assert value(ALL_RIGHT, "AUC of the mean residual") == 1
    assert value(ALL_RIGHT, "median seconds") == 10


@pytest.mark.parametrize(
    ("wrong", "name", "expected"),
    [
        (case("head_only", "deleted"), "holds the knowledge", 1),
        (case("retain_tuned", "deleted"), "holds the knowledge", 1),
        (case("twin_tuned", "suppressed"), "retrains called suppressed", 1),
        (case("twin_tuned", "inconclusive"), "retrains accepted", 2 / 3),
        (case("wrong_set", "damaged"), "untouched in effect", 1),
        (case("noise", "deleted"), "wrecks called deleted", 1),
        (case("noise", "suppressed"), "right among decided", 5 / 6),
        (case("noise", "inconclusive"), "inconclusive", 1 / 6),
        (case("last_block_lora", "suppressed", -1.0), "AUC of the mean", 2 / 3),
    ],
)
def test_every_kind_of_mistake_is_counted(wrong, name, expected):
    assert value([*ALL_RIGHT, wrong], name) == pytest.approx(expected)


def test_the_page_has_every_kind_and_its_verdicts():
    document = {
        "part": "held_out",
        "seeds": [10],
        "families": ["llama"],
        "commit": "abc",
        "threads": 2,
        "rows": figures(ALL_RIGHT),
        "cases": [
            {
                "model": each.specimen.name,
                "kind": each.specimen.kind,
                "state": each.specimen.state,
                "floor": each.floor,
                "verdict": each.verdict,
                "residual": each.residual,
            }
            for each in ALL_RIGHT
        ],
    }
    text = page(document)
    assert "6 models" in text
    assert "| twin | deleted |  |  | 1 |  |  | 0.00 to 0.00 |" in text
    assert "| npo | to be graded |  |  |  |  | 1 | 0.50 to 0.50 |" in text

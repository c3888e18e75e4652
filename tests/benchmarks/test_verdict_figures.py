"""The figures of the verdict's benchmark count what their names say."""

from dataclasses import asdict, replace

import pytest

from audits.validation.error_rates import STATES, VERDICTS, Case, case_of, figures
from audits.validation.trials import AuditPlan, run_plan
from benchmarks.harness.pages import render
from benchmarks.suites.verdict.suite import context, joined, probabilities_of
from evidence.errors import InputError
from testbeds.worlds.biographies import SMALL
from testbeds.zoo.kinds import KINDS


def case(
    kind, verdict, residual=None, floor="never_taught", seconds=10.0, grade=None, chances=None
):
    return Case(
        model=f"bios-llama-10-{kind}",
        kind=kind,
        state=KINDS[kind].state,
        family="llama",
        weights="0",
        floor=floor,
        verdict=verdict,
        chances=chances,
        residual=residual,
        grade=grade,
        reason="because",
        seconds=seconds,
    )


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


def test_audits_of_other_models_are_added_and_none_counts_twice():
    def counts(without, right):
        each = {state: dict.fromkeys(VERDICTS, 0) for state in STATES}
        each["deleted"]["deleted"] = right
        return {"without": without, **each}

    before = {
        "cases": [asdict(each) for each in ALL_RIGHT],
        "without_axis": [counts("", 2), counts("relearning", 1)],
    }
    more = [replace(case("twin", "suppressed"), model="bios-llama-12-twin")]
    cases, rows = joined(before, more, [counts("", 0), counts("relearning", 3)])
    assert cases == [*ALL_RIGHT, *more]
    assert [row["deleted"]["deleted"] for row in rows] == [2, 4]
    assert rows[1]["without"] == "relearning"
    with pytest.raises(InputError, match="already"):
        joined(before, ALL_RIGHT[:1], before["without_axis"])
    with pytest.raises(InputError, match="other axes"):
        joined(before, more, [counts("", 0)])


def test_probabilities_are_held_against_the_true_states():
    sure = {"not_unlearned": 0.1, "suppressed": 0.9, "deleted": 0.0, "damaged": 0.0}
    right = case("head_only", "suppressed", chances=sure)
    wrong = case("twin", "suppressed", chances=sure)
    graded = case("npo", "suppressed", chances=sure)
    name = "expected calibration error"
    assert value([right], name) == pytest.approx(0.1)
    assert value([right, wrong, graded], name) == pytest.approx(0.4)
    assert not [r for r in figures(ALL_RIGHT) if r["figure"].startswith(name)]


def test_adversaries_have_rows_of_their_own():
    fooled = [case("probe_proof", "deleted"), case("twin_misled", "suppressed")]
    assert value([*ALL_RIGHT, *fooled], "holds the knowledge") == 0
    assert value([*ALL_RIGHT, *fooled], "retrains called suppressed") == 0
    name = "adversaries that hold the knowledge, called deleted"
    assert value([*ALL_RIGHT, *fooled], name) == 1
    name = "deletions made to look suppressed, called so"
    assert value([*ALL_RIGHT, *fooled], name) == 1


def test_nothing_is_said_of_adversaries_that_were_not_audited():
    one = [*ALL_RIGHT, case("probe_proof", "suppressed")]
    names = [row["figure"] for row in figures(one)]
    assert "adversaries that hold the knowledge, called suppressed" in names
    assert not [name for name in names if "made to look suppressed" in name]


def test_residual_and_grade_are_ranked_over_graded_models_alone():
    graded = [case("npo", "x", r, grade=g) for r, g in [(0, 0.1), (0.2, 0.3), (1, 1)]]
    name = "rank correlation of mean residual and gold grade"
    assert value([*ALL_RIGHT, *graded], name) == 1
    assert value([*graded, case("relabel", "x", 0.5, grade=0.0)], name) < 1


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
    sure = {"not_unlearned": 0.1, "suppressed": 0.9, "deleted": 0.0, "damaged": 0.0}
    stated = [case(kind, "x", chances=sure) for kind in ("head_only", "twin", "npo")]
    assert probabilities_of(ALL_RIGHT) is None
    document = {
        "part": "held_out",
        "world": "bios",
        "worlds": ["bios-llama-10"],
        "commit": "abc",
        "code": ["def"],
        "hardware": {"device": "cpu", "threads": 2},
        "failed": [],
        "without_axis": [
            {"without": name, **{s: dict.fromkeys(VERDICTS, place) for s in STATES}}
            for place, name in enumerate(("", "relearning"))
        ],
        "rows": figures(ALL_RIGHT),
        "probabilities": probabilities_of(stated),
        "cases": [asdict(each) for each in ALL_RIGHT],
    }
    text = render("verdict", context(document))
    assert "| 0.9 to 1.0 | 2 | 0.900 | 0.500 |" in text
    assert "| 100% | 50.0% |" in text
    assert "| family llama | 5 | 5 | 0 | 0 |" in text
    unstated = context(document | {"probabilities": None})
    assert "Probabilities" not in render("verdict", unstated)
    assert "6 models" in text
    assert "| none | 0 | 0 | 0 | 0 | 0 |" in text
    assert "| relearning | 2 | 1 | 1 | 1 | 4 |" in text
    assert "| twin | deleted |  |  | 1 |  |  | 0.00 to 0.00 |" in text
    assert "| npo | to be graded |  |  |  |  | 1 | 0.50 to 0.50 |" in text


def test_two_processes_make_and_audit_and_a_failure_is_kept(small_zoo, tmp_path):
    (tmp_path / "worlds").symlink_to(small_zoo / "worlds")
    plan = AuditPlan(
        tmp_path,
        worlds=(("llama", 0),),
        kinds=("untouched", "no such kind"),
        floors=("never_taught",),
        config=SMALL,
    )
    found = list(run_plan(plan, jobs=2))
    (made,) = [case_of(each) for each in found if "failed" not in each]
    assert (made.verdict, made.state) == ("not_unlearned", "not_unlearned")
    (failed,) = [each for each in found if "failed" in each]
    assert "no such kind" in failed["failed"]

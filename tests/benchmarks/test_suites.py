"""Every suite can be asked for, and that of the verdict counts audits made before."""

import ast
import json
import tomllib

import pytest

from audits.validation.error_rates import VERDICTS
from benchmarks.__main__ import SUITES, suite
from benchmarks.harness.pages import RESULTS, render
from benchmarks.harness.results import ROOT, read, read_lines
from benchmarks.suites.verdict.suite import context
from evidence.errors import InputError
from tests.helpers.audit_documents import behaviour, document

# Of the libraries under sae-lens.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_has_options_parts_and_a_result(name):
    found = suite(name)
    assert found.name == name
    parser = found.parser()
    args = parser.parse_args([])
    assert found.path(args).parent == RESULTS
    chosen = found.chosen(parser, args)
    assert chosen and all(part.split(":")[0] in found.parts for part in chosen)
    assert all(part.about for part in found.parts.values())


def audited(model, kind, state, verdict):
    """A line of the part audits."""
    about = {"model": model, "kind": kind, "state": state, "family": "llama"}
    about |= {"seed": 10, "floor": "never_taught", "weights": model, "gold": None}
    known = {"forget_entities": 12, "retain_entities": 40}
    return about | {"audit": document(behaviour(), verdict=verdict, known=known)}


def kept(path, *cases):
    path.write_text("".join(json.dumps(case) + "\n" for case in cases))
    return str(path)


def test_rates_are_of_audits_made_before_and_of_those_that_are_added(tmp_path):
    verdict, result = suite("verdict"), tmp_path / "verdict.json"
    first = kept(
        tmp_path / "first.jsonl",
        audited("bios-llama-10-twin", "twin", "deleted", "suppressed"),
        {"model": "bios-llama-10-noise", "failed": "no disk"},
    )
    common = ["--result", str(result), "--root", str(tmp_path)]
    verdict.run(["--cases", first, *common])
    second = kept(
        tmp_path / "second.jsonl", audited("bios-llama-11-twin", "twin", "deleted", "deleted")
    )
    verdict.run(["--cases", second, "--add", *common])
    found = read(result)
    rows = {row["figure"]: row for row in found["rows"]}
    wrong = rows["retrains called suppressed"]
    assert (wrong["value"], wrong["n"], wrong["part"]) == (1, 2, "rates")
    assert found["worlds"] == ["bios-llama-10", "bios-llama-11"]
    assert len(found["failed"]) == 1 and found["command"].count("; ") == 1
    whole = found["without_axis"][0]["deleted"]
    assert sum(whole[name] for name in VERDICTS) == 2
    text = render("verdict", context(found))
    assert "| twin | deleted |  | 1 | 1 |  |  |" in text
    with pytest.raises(InputError, match="in the result already"):
        verdict.run(["--cases", first, "--add", *common])


def test_models_outside_the_part_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"not in the held_out part.*: 0"):
        suite("verdict").run(["--seeds", "0", "--no-result", "--root", str(tmp_path)])
    tuned = audited("bios-llama-10-twin", "twin", "deleted", "deleted")
    cases = kept(tmp_path / "cases.jsonl", tuned)
    out = tmp_path / "calibration.json"
    with pytest.raises(InputError, match=r"not in the tuning part.*: 10"):
        suite("verdict").run(
            ["--only", "calibration", "--cases", cases, "--out", str(out), "--no-result"]
        )
    assert not out.exists()


def test_audits_alone_are_written_line_by_line_and_leave_the_result(tmp_path, monkeypatch):
    one = audited("bios-llama-10-twin", "twin", "deleted", "deleted")
    monkeypatch.setattr("benchmarks.suites.verdict.suite.run_plan", lambda *plan: iter([one, one]))
    out, result = tmp_path / "cases.jsonl", tmp_path / "verdict.json"
    common = ["--only", "audits", "--root", str(tmp_path), "--result", str(result)]
    suite("verdict").run([*common, "--seeds", "10", "--out", str(out)])
    assert read_lines(out) == [one, one] and not result.exists()
    with pytest.raises(InputError, match="no place for the audits"):
        suite("verdict").run(common)


def test_suites_read_the_keys_that_audits_write():
    """A key renamed in schema 2.0 would be missing from every fresh document."""
    renamed = tomllib.loads((ROOT / "audits/run/upgrade_1_1.toml").read_text("utf-8"))["details"]
    # Words that also name other things than a key of details.
    common = {"said", "class", "body", "unknown", "taught", "route", "worth"}
    old = {key for table in renamed.values() for key in table} - common
    assert {"stranger", "normalised_cad", "reader"} <= old
    for path in sorted((ROOT / "benchmarks").rglob("*.py")):
        strings = {
            node.value
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert not strings & old, path

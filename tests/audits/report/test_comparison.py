"""Audits side by side: what differs is said, nothing is ranked, nothing is trusted."""

import json
from copy import deepcopy

import pandas as pd
import pytest
from typer.testing import CliRunner

from audits.comparison.compare import compare
from audits.comparison.page import write_page
from audits.report.page import write_report
from evidence.errors import InputError
from exhume.cli.app import app
from tests.audits.report.test_page import Page
from tests.helpers.audit_documents import DOCUMENTS, HOSTILE, behaviour, document, whole


def save(folder, saved):
    folder.mkdir(parents=True)
    (folder / "audit.json").write_text(json.dumps(saved), encoding="utf-8")
    return folder


def changed(saved, *path, value):
    new = deepcopy(saved)
    place = new
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return new


def test_equal_questions_give_no_difference_and_one_row_an_audit(tmp_path):
    given = whole()
    gone = changed(given, "verdict", "class", value="deleted")
    found = compare([save(tmp_path / "a", given), save(tmp_path / "b", gone)])
    assert found.differences == ()
    assert found.names == ("a", "b")
    table = found.to_frame()
    assert list(table["verdict"]) == [given["verdict"]["class"], "deleted"]
    for axis in given["axes"]:
        assert (table[axis["name"]] == axis["status"]).all()
        main = axis["readings"][0] if axis["readings"] else None
        if main is not None:
            assert (table[f"{axis['name']}_residual"] == main["residual"]).all()
            assert (table[f"{axis['name']}_low"] == main["residual_interval"][0]).all()
    page = Page(write_page(found, tmp_path / "out").read_text(encoding="utf-8")).text
    assert "Yes." in page and "Not without care" not in page
    saved = pd.read_csv(tmp_path / "out" / "compare.csv")
    assert list(saved["audit"]) == ["a", "b"] and list(saved) == list(table)


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (("config", "seed"), 99, "seed. "),
        (("config", "profile"), "full", "profile. "),
        (("config", "rule", "margin"), 0.123456789, "rule.margin. "),
        (("config", "min_entities"), 77, "min_entities. "),
        (("config", "budget", "block"), 40, "budget.block. "),
        (("config", "axes"), ["circuit"], "axes. "),
        (("verdict", "floor"), "reference", "floor. "),
        (("manifest", "code_sha256"), "f" * 64, "code. "),
        (("manifest", "models", 0, "sha256"), "f" * 64, "original (weights). "),
        (("manifest", "items", 0, "sha256"), "f" * 64, "forget set. "),
    ],
)
def test_each_difference_is_named_with_who_stands_apart(tmp_path, path, value, expected):
    given = whole()
    for role in ("models", "items"):
        assert given["manifest"][role][0]["role"] in ("original", "forget")
    folders = [save(tmp_path / name, given) for name in ("a", "b")]
    other = changed(given, *path, value=value)
    found = compare([*folders, save(tmp_path / "c", other)])
    (sentence,) = found.differences
    assert sentence.startswith(f"Not the same {expected}")
    assert ": a, b;" in sentence and sentence.endswith(": c.")


def test_settings_that_differ_where_the_page_would_cut_them_are_told_apart(tmp_path):
    rates = "config", "budget", "relearn_rates"
    given = changed(whole(), *rates, value=[*range(1, 40)])
    folders = [save(tmp_path / "a", given)]
    other = changed(given, *rates, value=[*range(1, 39), 99])
    folders.append(save(tmp_path / "b", other))
    (sentence,) = compare(folders).differences
    assert sentence.startswith("Not the same budget.relearn_rates. ")


def test_another_candidate_or_another_outcome_is_no_difference(tmp_path):
    given = whole()
    models = given["manifest"]["models"]
    at = next(n for n, each in enumerate(models) if each["role"] == "unlearned")
    other = changed(given, "manifest", "models", at, "sha256", value="e" * 64)
    fewer = changed(other, "axes", value=other["axes"][:1])
    found = compare([save(tmp_path / "a", given), save(tmp_path / "b", fewer)])
    assert found.differences == ()
    row = found.to_frame().iloc[1]
    assert row[given["axes"][1]["name"]] == "not run"


def test_folders_of_one_name_are_told_apart(tmp_path):
    places = [save(tmp_path / name / "audit", whole()) for name in ("npo", "rmu")]
    assert compare(places).names == ("npo/audit", "rmu/audit")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_document_can_be_compared(tmp_path, name):
    given = DOCUMENTS[name]()
    found = compare([save(tmp_path / "a", whole()), save(tmp_path / "b", given)])
    html = write_page(found, tmp_path / "out").read_text(encoding="utf-8")
    tags = [tag for tag, _ in Page(html).tags]
    assert "script" not in tags and "img" not in tags
    assert "http://" not in html and "https://" not in html


def test_hostile_words_stay_words(tmp_path):
    words = HOSTILE.replace("\ud800", "")  # which no file of UTF-8 can hold
    given = document(behaviour(question=words))
    given["verdict"]["reasons"] = [words]
    given["manifest"]["models"][0]["source"] = words
    folders = [save(tmp_path / "a", given), save(tmp_path / "<script>&'b", given)]
    write_report(folders[1], given)
    html = write_page(compare(folders), tmp_path / "out").read_text(encoding="utf-8")
    page = Page(html)
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    assert links == ["../%3Cscript%3E%26%27b/report.html"]
    assert "<script>&'b" in page.text and "\x00" not in html


def test_what_cannot_be_compared_is_refused_and_nothing_is_written(tmp_path):
    one = save(tmp_path / "a", whole())
    with pytest.raises(InputError, match="two or more"):
        compare([one])
    with pytest.raises(InputError, match="named twice"):
        compare([one, tmp_path / "x" / ".." / "a"])
    with pytest.raises(InputError, match="does not exist"):
        compare([one, tmp_path])
    both = compare([one, save(tmp_path / "b", whole())])
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="got a file"):
        write_page(both, tmp_path / "file")


def test_the_command_shows_the_table_and_what_differs(tmp_path):
    given = whole()
    first = save(tmp_path / "a", given)
    other = save(tmp_path / "b", changed(given, "config", "seed", value=77))
    words = ["compare", str(first), str(other), "--out", str(tmp_path / "out")]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0, shown.output
    assert given["verdict"]["class"] in shown.output
    assert "different: Not the same seed." in shown.output
    assert (tmp_path / "out" / "compare.html").is_file()

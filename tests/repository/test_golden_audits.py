"""Whole audits of packed models end as they did: texts and images, both floors.

Committed are the canonical ``audit.json`` of every case, and answers of the solvers.
Here they are compared, in today's schema, up to what another processor's rounding
explains; that a change moves no byte is shown on one machine by ``python -m
tests.repository.golden --against REV``. Where a change of what audits say is meant,
``python -m tests.repository.golden --write`` writes the committed ones again; they go
into the same commit.
"""

import copy
import json
import re
import sys

import numpy as np
import pytest

from audits.run.document import validate_document
from tests.helpers import audit_documents
from tests.repository.golden import compare, corpus, worker, worlds
from tests.repository.golden.__main__ import ROOT, checkout, differences, documents, main, run, show
from tests.repository.golden.cases import AXES, CASES
from tests.repository.golden.worker import check_origin, found

NEW = "where this is meant, run `python -m tests.repository.golden --write`"
QUICK = [case for case in CASES if case.quick]
SLOW = [case for case in CASES if not case.quick]
CERTIFIED = {"float64": 1e-8, "float32": 1e-4}
CLOSE = {"float64": 5e-8, "float32": 1e-4}
"""Largest distance of scores, as a share of the largest of the problem."""


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return worlds.unpack(tmp_path_factory.mktemp("worlds"))


@pytest.fixture(scope="module")
def kept():
    return compare.kept_audits()


def made(cases, packed, out):
    run(ROOT, cases, packed, out, ["audits"])
    return documents(cases, out)


@pytest.fixture(scope="module")
def quick(packed, tmp_path_factory):
    return made(QUICK, packed, tmp_path_factory.mktemp("quick"))


@pytest.fixture(scope="module")
def slow(packed, tmp_path_factory):
    return made(SLOW, packed, tmp_path_factory.mktemp("slow"))


def agree(name, now, before):
    wrong = compare.beyond_rounding(now[name], before[name])
    assert not wrong, "\n".join([*wrong, NEW])


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_an_audit_ends_as_it_did(case, quick, kept):
    agree(case.name, quick, kept)


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW, ids=lambda case: case.name)
def test_every_audit_ends_as_it_did(case, slow, kept):
    agree(case.name, slow, kept)


def test_cases_are_what_the_safety_net_is_to_hold(kept):
    """All ten axes on text, all verdicts, all statuses but an error, both floors."""
    assert set(kept) == {case.name for case in CASES}
    verdicts = {each["verdict"]["class"] for each in kept.values()}
    assert verdicts == {"not_unlearned", "suppressed", "deleted", "damaged", "inconclusive"}
    statuses: dict[str, set[str]] = {}
    for name, document in kept.items():
        for axis in document["axes"]:
            world = name.split("-")[0]
            statuses.setdefault(f"{world} {axis['name']}", set()).add(axis["status"])
    assert {name.split()[1] for name in statuses if name.startswith("bios ")} == set(AXES)
    assert set.union(*statuses.values()) == {"retained", "absent", "no_power", "control_failed"}
    floors = {document["verdict"]["floor"] for document in kept.values()}
    assert floors == {"never_taught", "reference"}


def test_audits_of_an_older_schema_are_read_in_todays():
    """What is committed stays as it was written; its upgrade is a document of today."""
    stored = compare.load_audits(compare.AUDITS_1_1)
    kept = compare.kept_audits(compare.AUDITS_1_1)
    assert any(each["schema_version"] == "1.1" for each in stored.values())
    whole = audit_documents.document()
    for name, read in kept.items():
        assert read["schema_version"] == whole["schema_version"]
        left_out = {key: whole["manifest"][key] for key in compare.DROPPED}
        manifest = {"manifest": read["manifest"] | left_out}
        validate_document(read | manifest | {"runtime": whole["runtime"]})
        # Figures are copied: what is left out was said twice.
        assert set(_figures(read["axes"])) <= set(_figures(stored[name]["axes"]))


def _figures(value):
    if isinstance(value, float):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _figures(each)


def test_an_audit_that_differs_is_named_and_counted(kept, capsys):
    name = "bios-twin-reference"
    other = changed(kept[name], "concept", "status", "error")
    apart = compare.audits_apart({name: kept[name]}, {name: other})
    assert compare.audits_apart(kept, dict(kept)) == {}
    show(apart, 2)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"{name}: 1 places differ"
    assert printed[1].startswith("  /axes/concept/status: ") and "became error" in printed[1]
    assert printed[-1] == "1 of 2 audits differ"


@pytest.mark.parametrize(
    ("registry", "called"), [(AXES, "quantization"), (None, "persistence"), ((), "persistence")]
)
def test_an_older_tree_is_asked_for_its_own_names_of_axes(monkeypatch, tmp_path, registry, called):
    asked = []

    class Done:
        verdict, document = "deleted", {}

    def audit(**arguments):
        asked.append(arguments["axes"])
        return Done()

    def of_that_tree(name):
        if name == "AXES" and registry is None:
            raise ImportError(name)
        return {"audit": audit, "write_report": None, "AXES": registry}[name]

    monkeypatch.setattr(worker, "found", of_that_tree)
    worker.audits([CASES[0].arguments(tmp_path, tmp_path)], None)
    (axes,) = asked
    assert [name for name in axes if name not in AXES or name == "quantization"] == [called]
    assert len(axes) == len(AXES)


@pytest.mark.parametrize("parts", [["corpus"], ["audits", "zoo"]])
def test_of_the_committed_only_audits_are_compared(monkeypatch, capsys, parts):
    monkeypatch.setattr(sys, "argv", ["golden", "--parts", *parts])
    with pytest.raises(SystemExit):
        main()
    assert "name a revision" in capsys.readouterr().err


def changed(document, axis, key, value):
    """The document with another value of an axis, or of its first reading."""
    other = copy.deepcopy(document)
    (found,) = [each for each in other["axes"] if each["name"] == axis]
    (found if key in found else found["readings"][0])[key] = value
    return other


def test_rounding_is_let_pass_and_nothing_else(kept):
    document = kept["bios-twin-reference"]
    assert compare.beyond_rounding(document, document) == []
    axis = next(a for a in document["axes"] if a["name"] == "concept")
    first, second = axis["notes"]

    def wrong(key, new):
        other = changed(document, "concept", key, new)
        return compare.beyond_rounding(other, document)

    statistic = axis["readings"][0]["statistic"]
    assert wrong("statistic", statistic + 1e-9) == []
    assert wrong("statistic", statistic + 0.2)
    assert wrong("status", "error")
    assert wrong("n_entities", axis["n_entities"] + 1)
    (line,) = wrong("question", "?")
    assert line.startswith("/axes/concept/question: ?, kept")
    # In sentences: the last digit of a figure, and neither more nor a count.
    assert "cosine of 0.2" in second and "top 93 tokens" in second
    assert wrong("notes", [first, second.replace("93", "94")])
    assert wrong("notes", [first, second.replace("of 0.2", "of 0.5")])
    assert wrong("notes", [first]) and wrong("notes", [first, second, "One more."])
    named = re.search(r"(\d+)% of forgotten prompts", first)
    assert named is not None
    share = int(named[1])
    assert wrong("notes", [first.replace(f"{share}%", f"{share + 1}%"), second]) == []
    assert wrong("notes", [first.replace(f"{share}%", f"{share - 40}%"), second])


def test_many_small_changes_are_no_rounding(kept):
    """Ten times what another processor was seen to change, each below the limit."""

    def moved(value):
        if isinstance(value, float):
            return value * 1.01
        if isinstance(value, list):
            return [moved(each) for each in value]
        if isinstance(value, dict):
            return {key: moved(each) for key, each in value.items()}
        return value

    document = kept["bios-last_block_relabel-never_taught"]
    other = document | {"axes": moved(document["axes"])}
    assert "numbers differ by more than" in compare.beyond_rounding(other, document)[0]


def test_what_no_two_runs_share_is_left_out_and_nothing_else(kept):
    document = kept["bios-twin-reference"]
    assert "runtime" not in document
    assert set(document["manifest"]) == {"models", "items", "seed"}
    assert [each["source"] for each in document["manifest"]["models"]] == [
        "original",
        "twin",
        "retrain_1",
    ]
    text = compare.as_text(document)
    assert compare.as_text(json.loads(text)) == text


def test_the_solvers_answer_the_corpus_as_they_did():
    wrong = []
    with np.load(compare.CORPUS) as before:
        names = set(before.files)
        for number, problem in enumerate(corpus.problems()):
            answer = corpus.solve(problem, found)
            name, kind = f"{number:02d} {problem.name}", problem.settings["precision"]
            names -= {name, f"{number:02d} certificate"}
            assert answer.certificate <= CERTIFIED[kind], name
            assert float(before[f"{number:02d} certificate"]) <= CERTIFIED[kind]
            now = corpus.part(number, answer.scores)
            gap = np.abs(now - before[name]).max() / before[name][0]
            if gap > CLOSE[kind]:
                wrong.append(f"{name}: {gap:.1e} of the largest score")
    assert not names and not wrong, "\n".join([*wrong, NEW])


def test_a_score_that_moved_by_one_bit_is_seen(tmp_path):
    scores, certificate = np.array([1.0, -2.0]), np.array(9.607577e-10)
    for name, moved, left in (
        ("before", scores, certificate),
        ("same", scores, certificate * (1 + 1e-7)),
        ("score", np.nextafter(scores, 9), certificate),
        ("left", scores, np.array(1e-6)),
    ):
        (tmp_path / name).mkdir()
        arrays = {"00 a": moved, "00 certificate": left}
        np.savez(tmp_path / name / "corpus.npz", **arrays)

    def wrong(name):
        return differences([], tmp_path / "before", tmp_path / name, ["corpus"])

    assert wrong("same") == []
    assert wrong("score") == ["solver corpus, 00 a"]
    assert wrong("left") == ["solver corpus, 00 certificate"]


def test_the_code_of_another_tree_is_not_taken_for_this_one(tmp_path):
    """A package that a tree lacks would be imported from where it is installed."""
    assert found("k_fold").__module__ in sys.modules
    with pytest.raises(ImportError, match=found("k_fold").__module__):
        check_origin(tmp_path)


@pytest.mark.slow
def test_two_trees_are_told_apart_by_what_they_draw(packed, tmp_path):
    """The same files give the same bytes; a salt in every random stream does not."""
    (case,) = [each for each in CASES if each.name == "bios-collapse-never_taught"]
    tree = checkout("HEAD", tmp_path / "tree")
    out = {name: tmp_path / name for name in ("before", "same", "salted")}
    run(tree, [case], packed, out["before"], ["audits"])
    run(tree, [case], packed, out["same"], ["audits"])
    before, same = (documents([case], out[name]) for name in ("before", "same"))
    assert compare.audits_apart(before, same) == {}
    seeds = tree / "evidence" / "seeds.py"
    text = seeds.read_text(encoding="utf-8")
    assert "[str(int(seed)), *names]" in text
    salted = text.replace("[str(int(seed)),", "['salt', str(int(seed)),")
    seeds.write_text(salted, encoding="utf-8")
    run(tree, [case], packed, out["salted"], ["audits"])
    apart = compare.audits_apart(before, documents([case], out["salted"]))
    assert list(apart) == [case.name]
    assert apart[case.name][0].startswith(f"{case.name}: ")

"""The runner: which parts run, what is kept of them and what stays as it was."""

import json
from argparse import ArgumentTypeError

import pytest
import torch

from benchmarks.__main__ import SUITES, main
from benchmarks.harness.pages import met, target
from benchmarks.harness.results import at_least, at_most, merge, ratio, read, roc_auc, row
from benchmarks.harness.runner import Suite, list_option, share_option


@pytest.fixture
def suite():
    """Three parts: one that always runs, one by default, one with keys."""
    made = Suite("toy", "A toy.", result="toy", devices=("cpu", "cuda"), cpu_targets=True)

    @made.part(always=True)
    def machine(run):
        yield row("peak", 1.0, at_least())

    @made.part()
    def plain(run):
        """Values of this machine."""
        run.payload["curves"] = [1, 2]
        yield row("value", 2.0, at_least(1), "x", "a peer", 3)

    @made.part(keyed=True, divided=True)
    def world(run):
        size, seed = run.key
        yield row(f"{size} {seed}", 3, at_most(2), shared=run.share("abcde"))

    return made


def figures(path):
    return [each["figure"] for each in read(path)["rows"]]


def test_a_part_takes_the_place_of_its_earlier_rows_alone(suite, tmp_path, capsys):
    path = tmp_path / "toy.json"
    before = [{"part": "plain", "figure": "old"}, {"part": "gone", "figure": "gone"}]
    path.write_text(json.dumps({"rows": before, "note": "kept"}))
    suite.run(["--result", str(path)])
    assert figures(path) == ["peak", "value"]
    found = read(path)
    assert found["note"] == "kept" and found["curves"] == [1, 2]
    assert found["command"] == "python -m benchmarks toy --result toy.json"
    assert set(found["commands"]) == {"machine", "plain"}
    (value,) = [each for each in found["rows"] if each["part"] == "plain"]
    assert value["commit"] == found["commit"] and value["spread"] is None
    assert (value["target"], value["sense"], value["n"]) == (1, ">=", 3)
    assert "value: 2 x (target >= 1)" in capsys.readouterr().out


def test_processes_divide_parts_and_keep_each_others(suite, tmp_path):
    path = tmp_path / "toy.json"
    for name in ("third", "fourth"):

        @suite.part(name)
        def more(run, name=name):
            yield row(name, 1, at_least())

    @suite.part(divided=True)
    def within(run):
        run.keep([row("so far", 1, at_least())])
        assert "so far" in figures(path)
        yield row("within", 1, at_least(), tasks=run.share("ab"))

    suite.run(["--take", "0/2", "--result", str(path)])
    assert figures(path) == ["peak", "value", "fourth", "within"]
    suite.run(["--take", "1/2", "--result", str(path)])
    assert figures(path) == ["peak", "value", "third", "fourth", "within"]
    assert read(path)["rows"][-1]["tasks"] == ["b"]


def test_a_part_that_is_not_for_the_device_is_left_out(suite, capsys):
    suite.part("here", devices=("cpu",))(lambda run: ())
    parser = suite.parser()
    here = parser.parse_args([])
    there = parser.parse_args(["--device", "cuda"])
    assert suite.chosen(parser, here) == ["machine", "plain", "here"]
    assert suite.chosen(parser, there) == ["machine", "plain"]
    there.only = ["here"]
    with pytest.raises(SystemExit):
        suite.chosen(parser, there)
    assert "here is not measured on cuda" in capsys.readouterr().err


def test_what_is_only_tried_is_not_written(suite, tmp_path, capsys):
    path = tmp_path / "toy.json"
    suite.run(["--result", str(path), "--no-result"])
    assert not path.exists() and "value: 2 x" in capsys.readouterr().out


def test_a_dry_run_says_what_would_be_measured_and_measures_nothing(suite, capsys):
    suite.run(["--only", "plain", "--dry"])
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("toy: machine, plain on cpu, into ")
    assert line.endswith("benchmarks/results/toy.json")


def test_parts_with_a_key_are_named_with_it(suite, tmp_path):
    path = tmp_path / "toy.json"
    suite.run(["--only", "world:small:7", "--take", "1/2", "--result", str(path)])
    last = read(path)["rows"][-1]
    assert (last["figure"], last["shared"]) == ("small 7", ["b", "d"])


@pytest.mark.parametrize("name", ["nothing", "world", "plain:1"])
def test_what_is_no_part_is_refused(suite, name, capsys):
    with pytest.raises(SystemExit) as found:
        suite.run(["--only", name])
    assert found.value.code == 2
    assert f"there is no part '{name}'" in capsys.readouterr().err


def test_a_gpu_that_is_not_there_is_one_clear_line(suite, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        suite.run(["--device", "cuda"])
    assert "needs a CUDA device" in capsys.readouterr().err


def test_targets_of_a_cpu_are_none_elsewhere(suite):
    found = row("value", 2.0, at_least(1))
    assert suite.as_kept(found, "cuda")["target"] is None
    assert suite.as_kept(found, "cpu") == found


@pytest.mark.parametrize("text", ["2/2", "-1/2", "1", "a/b"])
def test_only_a_share_of_something_is_a_share(text):
    with pytest.raises(ArgumentTypeError, match="is no share"):
        share_option(text)


def test_lists_of_options():
    assert list_option(int)("1,2") == [1, 2] and list_option()("") == []


def test_records_are_merged_by_their_keys_and_fresh_ones_win():
    before = [{"a": 1, "b": 1, "v": 0}, {"a": 1, "b": 2, "v": 0}]
    fresh = [{"a": 1, "b": 2, "v": 1}]
    assert merge(before, fresh, ("a", "b")) == [*fresh, before[0]]
    assert merge(before, fresh, ("a", "b"), lambda each: each["b"]) == [before[0], *fresh]
    assert merge(before, fresh, ("a",)) == fresh


def test_a_ratio_is_of_medians_and_means_nothing_where_answers_differ():
    found = ratio("f", [2.0, 4.0, 9.0], [1.0, 2.0, 4.0], 2, "peer", agreement=1e-9)
    assert (found["value"], found["own_seconds"], found["n"]) == (2, 2.0, 3)
    assert found["spread"] == (9 - 0.5) / 2 / 2 and met(found)
    with pytest.raises(SystemExit, match="means nothing"):
        ratio("f", [2.0], [1.0], None, "peer", agreement=1e-3)


@pytest.mark.parametrize(
    ("goal", "words"),
    [
        (at_least(2), ">= 2 (met)"),
        (at_least(2.5), ">= 2.5 (**not met**)"),
        (at_most(1), "<= 1 (**not met**)"),
        (at_most(), "none"),
    ],
)
def test_a_target_says_whether_it_is_met(goal, words):
    assert target(row("f", 2, goal)) == words


def test_the_area_needs_values_on_both_sides():
    assert roc_auc([2.0, 3.0], [1.0, 2.5]) == 0.75
    assert roc_auc([], [1.0]) is None


def test_every_suite_is_listed_and_an_unknown_one_is_refused(capsys):
    assert main(["nothing"]) == 2
    printed = capsys.readouterr().err
    assert "there is no such suite" in printed and all(name in printed for name in SUITES)
    assert main([]) == 0

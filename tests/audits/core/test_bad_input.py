"""Every bad input: exit code 2, one clear line, nothing written."""

import errno
import json
import os
import shutil
import signal
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from exhume.cli import app as cli


def call(*arguments: object) -> int:
    """The command line in this process; the exit code."""
    before = sys.argv
    sys.argv = ["exhume", *map(str, arguments)]
    try:
        cli.main()
    except SystemExit as done:
        return int(done.code or 0)
    finally:
        sys.argv = before
    return 0


@pytest.fixture
def try_audit(world, tmp_path, capfd):
    """Run an audit that must fail; returns the message."""

    def attempt(**changed) -> str:
        options = {
            "original": world.original,
            "unlearned": world.twin,
            "forget": world.forget,
            "retain": world.retain,
            "out": tmp_path / "out",
        } | changed
        code = call("audit", *(part for k, v in options.items() for part in (f"--{k}", v)))
        message = capfd.readouterr().err
        assert code == 2, message
        assert message.count("exhume: ") == 1
        assert "Traceback" not in message
        assert not (tmp_path / "out" / "audit.json").exists()
        assert not (tmp_path / "out" / "report.html").exists()
        return " ".join(message.split("exhume: ")[1].split())

    return attempt


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path, items):
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def test_missing_file(try_audit, tmp_path):
    assert "nope.jsonl" in try_audit(forget=tmp_path / "nope.jsonl")
    assert not (tmp_path / "out").exists()


def test_empty_file(try_audit, tmp_path):
    assert "empty" in try_audit(forget=write(tmp_path / "f.jsonl", []))


def test_broken_json_names_the_line(try_audit, world, tmp_path):
    lines = world.forget.read_text().splitlines()
    lines[2] = lines[2][:-4]
    path = tmp_path / "f.jsonl"
    path.write_text("\n".join(lines))
    assert "line 3" in try_audit(forget=path)


@pytest.mark.parametrize("field", ["prompt", "answer"])
def test_a_missing_field_is_named(try_audit, world, tmp_path, field):
    items = rows(world.forget)
    del items[1][field]
    assert field in try_audit(forget=write(tmp_path / "f.jsonl", items))


def test_an_empty_answer(try_audit, world, tmp_path):
    items = rows(world.forget)
    items[0]["answer"] = "  "
    assert "empty answer" in try_audit(forget=write(tmp_path / "f.jsonl", items))


def test_forget_and_retain_sharing_entities(try_audit, world, tmp_path):
    items = rows(world.retain)
    items[0]["entity"] = rows(world.forget)[0]["entity"]
    message = try_audit(retain=write(tmp_path / "r.jsonl", items))
    assert rows(world.forget)[0]["entity"] in message


def test_too_few_entities_says_how_many(try_audit, world, tmp_path):
    items = rows(world.forget)[:6]
    message = try_audit(forget=write(tmp_path / "f.jsonl", items))
    assert "at least 8; got 2" in message


def test_swapped_files(try_audit, world, monkeypatch):
    # The world forgets fewer people than a retain set must have.
    monkeypatch.setattr("audits.core.item_sets.MIN_RETAIN_ENTITIES", 8)
    # The candidate knows what is passed as forget, and nothing of what is kept.
    message = try_audit(forget=world.retain, retain=world.forget)
    assert "swapped" in message


def test_a_pickle_checkpoint_is_never_opened(try_audit, world, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(world.twin, folder)
    (folder / "model.safetensors").unlink()
    torch.save({"x": torch.ones(1)}, folder / "pytorch_model.bin")
    assert "pickle" in try_audit(unlearned=folder)


def test_a_truncated_file(try_audit, world, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(world.twin, folder)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    assert "cut short" in try_audit(unlearned=folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(try_audit, world, tmp_path, value):
    folder = tmp_path / "model"
    shutil.copytree(world.twin, folder)
    weights = load_file(folder / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert "NaN or infinity" in try_audit(unlearned=folder)


def test_another_tokenizer(try_audit, world, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(world.twin, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["zzzz"])
    tokenizer.save_pretrained(folder)
    assert "have different tokenizers" in try_audit(unlearned=folder)


def test_another_architecture(try_audit, world, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(world.twin, folder)
    weights = load_file(folder / "model.safetensors")
    kept = {k: v.contiguous() for k, v in weights.items() if ".layers.1." not in k}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] = 1
    (folder / "config.json").write_text(json.dumps(config))
    assert "different architectures" in try_audit(unlearned=folder)


def test_an_original_that_does_not_know_the_forget_set(try_audit, world):
    message = try_audit(original=world.twin, unlearned=world.original)
    assert "does not know the forget set" in message


def test_a_folder_that_holds_other_files(try_audit, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert "not an audit's" in try_audit()
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_a_full_disk(try_audit, monkeypatch):
    real = os.fsync
    writes = []

    def full(handle):
        writes.append(handle)
        if len(writes) > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    assert "no space is left" in try_audit()


def test_an_interrupt_keeps_what_is_finished(world, tmp_path, monkeypatch, capfd):
    from audits.run import pipeline

    def interrupt(*_):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(pipeline, "compare_utility", interrupt)
    options = (
        "--original", world.original, "--unlearned", world.twin,
        "--forget", world.forget, "--retain", world.retain,
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert call("audit", *options) == 2
    assert "interrupted" in capfd.readouterr().err
    assert (tmp_path / "out" / "work" / "stages" / "baseline-unlearned.json").exists()
    assert not (tmp_path / "out" / "audit.json").exists()


@pytest.mark.parametrize(
    ("option", "value"), [("--profile", "huge"), ("--axes", "smell"), ("--fail-on", "doom")]
)
def test_options_that_mean_nothing(world, tmp_path, capfd, option, value):
    options = (
        "--original", world.original, "--unlearned", world.twin,
        "--forget", world.forget, "--retain", world.retain,
        "--out", tmp_path / "out", option, value,
    )  # fmt: skip
    assert call("audit", *options) == 2
    assert value in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_report_of_nothing(tmp_path, capfd):
    assert call("report", tmp_path) == 2
    assert "run exhume audit first" in capfd.readouterr().err


def test_an_audit_json_of_another_make(tmp_path, capfd):
    (tmp_path / "audit.json").write_text('{"schema_version": "9"}')
    assert call("report", tmp_path) == 2
    assert "does not fit its schema" in capfd.readouterr().err


def test_a_model_that_cannot_be_fetched(capfd):
    assert call("fetch", "gpt-7") == 2
    assert "smollm2-135m" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--seeds", "one", "--seeds cannot be read"),
        ("--families", "rnn", "no family 'rnn'"),
        ("--only", "nothing", "no kind 'nothing'"),
    ],
)
def test_a_zoo_that_cannot_be_built(tmp_path, capfd, option, value, expected):
    assert call("zoo", "build", "--root", tmp_path / "zoo", option, value) == 2
    message = capfd.readouterr().err
    assert expected in message and "Traceback" not in message
    assert not (tmp_path / "zoo").exists()

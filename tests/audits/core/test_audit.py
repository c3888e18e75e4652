"""Whole audits of small models whose state is known by construction."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from audits.run import document as result
from audits.run.api import audit, load
from evidence.errors import InputError
from testbeds.worlds.biographies import BiosWorld
from tests.audits.conftest import run

ROOT = Path(__file__).parents[3]


def bytes_apart_from_runtime(out: Path) -> str:
    document = json.loads((out / "audit.json").read_text())
    del document["runtime"]
    return json.dumps(document, sort_keys=True)


def test_the_original_against_itself_is_not_unlearned(world, tmp_path):
    done = run(world, world.original, tmp_path / "out")
    assert done.verdict == "not_unlearned"
    assert "exactly the same weights" in done.reasons[0]
    result.validate_document(done.document)


def test_a_last_block_edit_is_suppressed_and_located(world, planted, tmp_path):
    done = run(world, planted("last_block_relabel"), tmp_path / "out")
    assert done.verdict == "suppressed"
    depth = done.axes["causal_depth"]
    assert depth.status == "retained"
    # Before the edit nothing at all is lost; after it the answers are.
    lost = depth.details["depth"]["unrelated"]["loss_by_layer"]
    assert lost[0] == 0.0
    assert lost[-1] > 0.5
    # Only the last of two blocks was trained: what it reads is untouched.
    assert "resid.0" in done.document["verdict"]["where"]
    assert done.report.stat().st_size > 0
    assert len(done.to_frame()) >= 4
    assert load(tmp_path / "out").document == done.document


def test_a_damaged_model_is_never_deleted(world, planted, tmp_path):
    done = run(world, planted("collapse"), tmp_path / "out")
    assert done.verdict == "damaged"


def test_a_twin_is_never_called_suppressed_or_kept(world, tmp_path):
    # Eight people are too few to show equivalence; they must not show the contrary.
    done = run(world, world.twin, tmp_path / "out", reference=[world.twin])
    assert done.verdict in ("deleted", "inconclusive")
    assert done.document["verdict"]["floor"] == "reference"
    assert done.axes["behaviour"].status != "retained"
    assert done.axes["causal_depth"].status != "retained"


def test_quantization_is_asked_for_by_name(world, planted, tmp_path):
    done = run(
        world, planted("last_block_relabel"), tmp_path / "out", axes=("behaviour", "quantization")
    )
    quantization = done.axes["quantization"]
    assert set(done.axes) == {"behaviour", "quantization"}
    assert quantization.status != "error"
    assert quantization.details["edit"]["nf4"]["bins"] > 0
    # Only the last of two blocks was edited, and so only its matrices have bins.
    weights = quantization.details["edit_by_weight"]
    assert all(".1." in row["name"] for row in weights)
    components = done.document["preflight"]["weight_difference"]["components"]
    assert {layer for row in components for layer in row["layers"]} == {1}
    for row in components:
        assert abs(row["forget_cosine"]) <= 1
        assert abs(row["retain_cosine"]) <= 1
        assert 0 < row["forget_share"] <= 1


def test_twice_the_same_and_a_different_audit_is_refused(world, tmp_path):
    first = run(world, world.twin, tmp_path / "one", axes=("behaviour",))
    run(world, world.twin, tmp_path / "two", axes=("behaviour",))
    assert bytes_apart_from_runtime(tmp_path / "one") == bytes_apart_from_runtime(tmp_path / "two")
    with pytest.raises(InputError, match="another audit"):
        run(world, world.twin, tmp_path / "one", axes=("behaviour",), seed=1)
    assert load(tmp_path / "one").document == first.document


def test_killed_in_every_stage_it_ends_with_the_same_bytes(world, planted, tmp_path):
    """SIGKILL after the work of each stage, before its mark, then go on."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    inputs = world.original, planted("last_block_relabel"), world.forget, world.retain
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.kill_each_stage", *inputs, whole, cut],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    stages = {path.stem for path in (whole / "work" / "stages").iterdir()}
    assert set(done.stdout.split()) == stages
    inner = {"planted"}
    inner |= {f"{name}-measured" for name in ("decodability", "causal_depth", "relearning")}
    assert {"original", *inner} < stages
    assert bytes_apart_from_runtime(cut) == bytes_apart_from_runtime(whole)
    assert not [path for path in cut.rglob(".*") if path.is_file()]


def test_live_models_are_audited_like_folders(world: BiosWorld, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(world.original)
    live = [AutoModelForCausalLM.from_pretrained(path) for path in (world.original, world.twin)]
    options = {"never_taught": world.never_taught, "axes": ("behaviour",)}
    by_hand = audit(
        live[0],
        live[1],
        world.forget,
        world.retain,
        tmp_path / "live",
        tokenizer=tokenizer,
        **options,
    )
    by_path = run(world, world.twin, tmp_path / "path", axes=("behaviour",))
    assert by_hand.axes["behaviour"].main_reading == by_path.axes["behaviour"].main_reading


def test_fail_on_gives_exit_code_three(world, tmp_path):
    from tests.audits.core.test_bad_input import call

    options = (
        "--original", world.original, "--unlearned", world.original,
        "--forget", world.forget, "--retain", world.retain,
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert call("audit", *options, "--fail-on", "not_unlearned") == 3
    assert call("audit", *options, "--fail-on", "suppressed,damaged") == 0

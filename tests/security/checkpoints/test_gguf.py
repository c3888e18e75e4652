"""GGUF files from anywhere: every length is held against the file, nothing is left."""

import random
import struct
import time
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest

from capture.checkpoints.open import open_checkpoint
from capture.checkpoints.weights.gguf_header import read_gguf_header
from evidence.errors import InputError
from tests.capture.checkpoints.test_checkpoints import write_gguf

U32, F32, TEXT, LIST, U64 = 4, 6, 8, 9, 10


@cache
def sound() -> bytes:
    """A small Llama as GGUF."""
    path = Path(mkdtemp(prefix="exhume-gguf-")) / "sound.gguf"
    write_gguf(path)
    return path.read_bytes()


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name="a", dims=(4,), kind=0, offset=0) -> bytes:
    sides = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return text(name) + sides + struct.pack("<IQ", kind, offset)


def file(
    keys: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> bytes:
    keys = (key("general.architecture", TEXT, text("llama")), *keys)
    many = counts or (len(tensors), len(keys))
    head = b"GGUF" + struct.pack("<IQQ", version, *many) + b"".join(keys)
    head += b"".join(tensors)
    return head + b"\0" * (-len(head) % 32) + data


def tokens(*words: str | bytes) -> bytes:
    value = struct.pack("<IQ", TEXT, len(words)) + b"".join(map(text, words))
    return key("tokenizer.ggml.tokens", LIST, value)


HUGE = 2**62
LIES = {
    "magic alone": b"GGUF",
    "cut in the counts": b"GGUF\3\0\0\0\1",
    "an old version": file(version=1),
    "another byte order": file(version=3 << 24),
    "many tensors": file(counts=(HUGE, 1)),
    "many keys": file(counts=(0, HUGE)),
    "fewer tensors than said": file(counts=(9, 1)),
    "fewer keys than said": file(counts=(0, 9)),
    "a long key": file((struct.pack("<Q", HUGE) + b"x",)),
    "a key of megabytes": file((key("x" * (1 << 20), U32, b"\0" * 4),)),
    "a key twice": file((key("x", U32, b"\0" * 4),) * 2),
    "a key that is no text": file((key(b"\xff", U32, b"\0" * 4),)),
    "a value of no kind": file((key("x", 99, b"\0" * 4),)),
    "a long value": file((key("x", TEXT, struct.pack("<Q", HUGE)),)),
    "a value that is no text": file((key("x", TEXT, text(b"\xff")),)),
    "a long list": file((key("x", LIST, struct.pack("<IQ", U32, HUGE)),)),
    "a list cut short": file((key("x", LIST, struct.pack("<IQ", U32, 1000)),)),
    "a list of texts cut short": file((key("x", LIST, struct.pack("<IQ", TEXT, 99)),)),
    "a list of lists": file(
        (key("x", LIST, struct.pack("<IQ", LIST, 1) + struct.pack("<IQ", LIST, 1)),)
    ),
    "NaN": file((key("x", F32, struct.pack("<f", float("nan"))),)),
    "a list of NaN": file((key("x", LIST, struct.pack("<IQf", F32, 1, float("nan"))),)),
    "infinity": file((key("x", F32, struct.pack("<f", float("inf"))),)),
    "no architecture": b"GGUF" + struct.pack("<IQQ", 3, 0, 0) + b"\0" * 8,
    "an alignment of nothing": file((key("general.alignment", U32, b"\0" * 4),)),
    "a large alignment": file((key("general.alignment", U64, b"\xff" * 8),)),
    "a tensor twice": file(tensors=(tensor(), tensor(offset=16)), data=b"\0" * 32),
    "tensors that overlap": file(tensors=(tensor(), tensor("b", offset=8)), data=b"\0" * 32),
    "a tensor beyond the file": file(tensors=(tensor(dims=(4096,)),), data=b"\0" * 16),
    "an offset beyond the file": file(tensors=(tensor(offset=HUGE),), data=b"\0" * 16),
    "no sides": file(tensors=(tensor(dims=()),)),
    "many sides": file(tensors=(tensor(dims=(1,) * 99),)),
    "huge sides": file(tensors=(tensor(dims=(HUGE, HUGE)),)),
    "a type of no kind": file(tensors=(tensor(kind=999),)),
    "half a block": file(tensors=(tensor(dims=(33,), kind=8),), data=b"\0" * 99),
    "a long name": file(tensors=(tensor("x" * 10_000),), data=b"\0" * 16),
    "a long token": file((tokens("x" * 5000),)),
    "a token that is no text": file((tokens(b"\xff"),)),
    "numbers for tokens": file(
        (key("tokenizer.ggml.tokens", LIST, struct.pack("<IQI", U32, 1, 7)),)
    ),
    "an end beyond the tokens": file(
        (tokens("a"), key("tokenizer.ggml.eos_token_id", U32, b"\xff" * 4))
    ),
    "a beginning as text": file((tokens("a"), key("tokenizer.ggml.bos_token_id", TEXT, text("x")))),
    "scores of other tokens": file(
        (tokens("a"), key("tokenizer.ggml.scores", LIST, struct.pack("<IQff", F32, 2, 0, 0)))
    ),
}


def refused(tmp_path, data: bytes, capfd) -> str:
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    start = time.perf_counter()
    with pytest.raises(InputError) as caught:
        open_checkpoint(path, cache=tmp_path / "cache")
    assert time.perf_counter() - start < 10
    assert capfd.readouterr().err == ""
    assert not [each for each in (tmp_path / "cache").rglob("*") if each.is_file()]
    message = str(caught.value)
    assert "GGUF" in message or "x.gguf" in message
    assert message.isprintable()
    return message


@pytest.mark.parametrize("data", LIES.values(), ids=LIES)
def test_a_file_that_lies_is_refused(tmp_path, capfd, data):
    refused(tmp_path, data, capfd)


def with_number(name: str, kind: str, value: float) -> bytes:
    """The sound file with another value of one key."""
    data, place = bytearray(sound()), sound().index(name.encode()) + len(name) + 4
    struct.pack_into(f"<{kind}", data, place, value)
    return bytes(data)


NUMBERS = {
    "many blocks": ("llama.block_count", "I", 2**32 - 1),
    "two blocks": ("llama.block_count", "I", 2),
    "no blocks": ("llama.block_count", "I", 0),
    "no heads": ("llama.attention.head_count", "I", 0),
    "many heads": ("llama.attention.head_count", "I", 2**32 - 1),
    "another width": ("llama.embedding_length", "I", 128),
    "a large width": ("llama.embedding_length", "I", 2**32 - 1),
    "another inner width": ("llama.feed_forward_length", "I", 2**31),
    "NaN epsilon": ("llama.attention.layer_norm_rms_epsilon", "f", float("nan")),
    "large epsilon": ("llama.attention.layer_norm_rms_epsilon", "f", 1e30),
    "no theta": ("llama.rope.freq_base", "f", 0.0),
    "negative theta": ("llama.rope.freq_base", "f", -1.0),
    "an end far off": ("tokenizer.ggml.eos_token_id", "I", 2**32 - 1),
}


@pytest.mark.parametrize("change", NUMBERS.values(), ids=NUMBERS)
def test_settings_that_its_tensors_do_not_fit_are_refused(tmp_path, capfd, change):
    refused(tmp_path, with_number(*change), capfd)


def test_a_file_with_any_bytes_changed_is_read_or_refused(tmp_path):
    draw = random.Random(0)
    path = tmp_path / "x.gguf"
    for _ in range(400):
        data = bytearray(sound())
        for _ in range(draw.choice((1, 4, 30))):
            data[draw.randrange(9000)] = draw.randrange(256)
        path.write_bytes(data[: draw.choice((len(data), draw.randrange(len(data))))])
        try:
            assert read_gguf_header(path).shapes
        except InputError:
            pass

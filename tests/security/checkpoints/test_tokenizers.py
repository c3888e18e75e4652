"""Tokenizers from anywhere: no panic, no growth, no code, no files beside them."""

import base64
import json
import os
import struct
import time

import pytest

from capture.checkpoints.open import open_checkpoint
from evidence.errors import InputError
from tests.security.checkpoints.spoiled import copy_of, edited, sound

BPE = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
    "vocab": {"a": 0, "b": 1, "ab": 2},
    "merges": [["a", "b"]],
}
TEXTS = {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0], ["b", -1.0]]}


def replace(pattern, content):
    return {"type": "Replace", "pattern": pattern, "content": content}


def row(*steps):
    return {"type": "Sequence", "normalizers": list(steps)}


def split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}


def table(data):
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}


def template(**changed):
    piece = {"SpecialToken": {"id": "x", "type_id": 0}}
    processor = {"single": [piece], "pair": [], "special_tokens": {}} | changed
    return {"type": "TemplateProcessing"} | processor


GROWING = replace({"String": "a"}, "a" * 200)
FAST = {
    "growth": {"normalizer": row(*[GROWING] * 4)},
    "growth by a pattern": {"normalizer": row(*[replace({"Regex": "."}, "x" * 99)] * 2)},
    "growth of nothing": {"normalizer": replace({"Regex": "x*"}, "y")},
    "growth of an empty text": {"normalizer": replace({"String": ""}, "y")},
    "growth by bytes": {"normalizer": row(*[{"type": "ByteLevel"}] * 20)},
    "growth when writing": {"decoder": {"type": "Sequence", "decoders": [GROWING] * 4}},
    "many steps": {"normalizer": row(*[{"type": "NFC"}] * 1000)},
    "rows of rows": {
        "normalizer": json.loads('{"type":"Sequence","normalizers":[' * 90 + "]}" * 90)
    },
    "a long prefix": {"normalizer": {"type": "Prepend", "prepend": "x" * 10**6}},
    "nested repeats": {"pre_tokenizer": split("(a+)+$")},
    "alternatives": {"pre_tokenizer": split("(a|a)*b")},
    "overlap": {"pre_tokenizer": split(r"\w*\w*\w*!")},
    "many choices": {"pre_tokenizer": split("a?" * 40 + "a" * 40)},
    "a reference": {"pre_tokenizer": split(r"(a*)\1")},
    "a call": {"pre_tokenizer": split(r"(?<n>a|b\g<n>)")},
    "absence": {"pre_tokenizer": split("(?~ab)")},
    "a repeat of a count": {"pre_tokenizer": split("(?:a{1,9}+)b")},
    "an open bracket": {"pre_tokenizer": split("(")},
    "an open class": {"pre_tokenizer": split("[a")},
    "a lone backslash": {"pre_tokenizer": split("\\")},
    "a long pattern": {"pre_tokenizer": split("a" * 10**6)},
    "a deep pattern": {"pre_tokenizer": split("(" * 2000 + ")" * 2000)},
    "a wide pattern": {"pre_tokenizer": split("(?:a{999}){999}")},
    "a pattern in a normalizer": {"normalizer": replace({"Regex": "(a+)+$"}, "x")},
    "both patterns": {
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": "a", "String": "a"},
            "behavior": "Isolated",
        }
    },
    "a length of nothing": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "two signs for one": {"pre_tokenizer": {"type": "Metaspace", "replacement": "ab"}},
    "no sign": {"pre_tokenizer": {"type": "CharDelimiterSplit", "delimiter": ""}},
    "an unknown step": {"pre_tokenizer": {"type": "Evil"}},
    "a step without a type": {"normalizer": {"lowercase": True}},
    "steps as a list": {"normalizer": [{"type": "NFC"}]},
    "a step as text": {"decoder": "ByteLevel"},
    "a field too many": {"normalizer": {"type": "NFC", "path": "/etc/passwd"}},
    "a decoder that cuts": {"decoder": {"type": "Strip", "content": "a", "start": 0, "stop": 9}},
    "a table cut short": {"normalizer": table(b"\x01\x02")},
    "a table that points out": {"normalizer": table(struct.pack("<I", 8) + b"\xff" * 8 + b"abc\0")},
    "a table of lies": {"normalizer": table(struct.pack("<I", 1 << 31) + b"\0" * 8)},
    "a table of one text": {
        "normalizer": table(struct.pack("<I", 1024) + b"\0" * 1024 + b"x" * 999 + b"\0")
    },
    "no table": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "not base64!"}},
    "a template without its token": {"post_processor": template()},
    "a template of unequal parts": {
        "post_processor": template(
            special_tokens={"x": {"id": "x", "ids": [1], "tokens": ["x", "y"]}}
        )
    },
    "a long template": {
        "post_processor": template(single=[{"Sequence": {"id": "A", "type_id": 0}}] * 10_000)
    },
    "a sequence that is none": {
        "post_processor": template(single=[{"Sequence": {"id": "C", "type_id": 0}}])
    },
    "a stride": {
        "truncation": {
            "direction": "Right",
            "max_length": 2,
            "strategy": "LongestFirst",
            "stride": 5,
        }
    },
    "padding to a billion": {
        "padding": {
            "strategy": {"Fixed": 10**9},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "x",
        }
    },
    "an added token far off": {"added_tokens": [{"id": 2**32 - 1, "content": "x"}]},
    "a negative added token": {"added_tokens": [{"id": -1, "content": "x"}]},
    "a long added token": {"added_tokens": [{"id": 5, "content": "x" * 10**6}]},
    "an added token of fields": {"added_tokens": [{"id": 5, "content": "x", "p": 1}]},
    "added tokens as text": {"added_tokens": "x"},
    "an unknown part": {"evil": 1},
    "a version": {"version": 3},
    "no model": {"model": None},
    "a model as text": {"model": "BPE"},
    "an unknown model": {"model": BPE | {"type": "Evil"}},
    "no vocabulary": {"model": BPE | {"vocab": {}}},
    "a vocabulary as text": {"model": BPE | {"vocab": "/etc/passwd"}},
    "a number as text": {"model": BPE | {"vocab": {"a": "0"}}},
    "a number as a flag": {"model": BPE | {"vocab": {"a": True}}},
    "a negative number": {"model": BPE | {"vocab": {"a": -1}}},
    "a large number": {"model": BPE | {"vocab": {"a": 2**40}}},
    "a token that is long": {"model": BPE | {"vocab": {"a" * 10_000: 0}}},
    "a merge of strangers": {"model": BPE | {"merges": [["x", "y"]]}},
    "a merge to a stranger": {"model": BPE | {"merges": [["b", "a"]]}},
    "a merge of three": {"model": BPE | {"merges": ["a b c"]}},
    "a prefix longer than tokens": {"model": BPE | {"continuing_subword_prefix": "####"}},
    "chance": {"model": BPE | {"dropout": 0.5}},
    "an unknown token far off": {"model": TEXTS | {"unk_id": 99}},
    "an endless score": {"model": TEXTS | {"vocab": [["a", 1e300]]}},
    "a token of nothing": {"model": TEXTS | {"vocab": [["", 0.0]]}},
    "words without an unknown one": {
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "vocab": {"a": 0}}
    },
    "words of any length": {
        "model": {
            "type": "WordPiece",
            "unk_token": "a",
            "max_input_chars_per_word": 10**9,
            "vocab": {"a": 0},
        }
    },
    "levels without an unknown one": {
        "model": {"type": "WordLevel", "unk_token": "[UNK]", "vocab": {"a": 0}}
    },
}


def refused(folder, capfd) -> str:
    start = time.perf_counter()
    capfd.readouterr()
    with pytest.raises(InputError) as caught:
        open_checkpoint(folder)
    assert time.perf_counter() - start < 10
    shown = capfd.readouterr()
    assert shown.err == "" and shown.out == ""
    text = str(caught.value)
    assert text.isprintable()
    return text


@pytest.mark.parametrize("change", FAST.values(), ids=FAST)
def test_a_tokenizer_that_breaks_its_library_is_refused(tmp_path, capfd, change):
    folder = copy_of(tmp_path)
    edited(folder / "tokenizer.json", change)
    assert "tokenizer.json" in refused(folder, capfd)


WORDS = {
    "a class of another library": {"tokenizer_class": "RagTokenizer"},
    "a class in Python": {"tokenizer_class": "ByT5Tokenizer"},
    "a class with files of its own": {"tokenizer_class": "LukeTokenizer"},
    "a function": {"tokenizer_class": "pipeline"},
    "a class of a model": {"tokenizer_class": "LlamaForCausalLM"},
    "a class by a path": {"tokenizer_class": "evil.code.Tokenizer"},
    "a class as a number": {"tokenizer_class": 3},
    "a side": {"padding_side": "evil"},
    "no length": {"model_max_length": 0},
    "a length as text": {"model_max_length": "x"},
    "NaN for a length": {"model_max_length": float("nan")},
    "a token as a number": {"bos_token": 3},
    "a token of nothing": {"eos_token": {}},
    "a token of flags": {"eos_token": {"content": "x", "lstrip": "yes"}},
    "a token of its own as a list": {"image_token": ["x"]},
    "a long token": {"unk_token": "x" * 10**6},
    "added tokens": {"added_tokens_decoder": {"x": {"content": "y"}}},
    "a negative added token": {"added_tokens_decoder": {"-1": {"content": "y"}}},
    "added far off": {"added_tokens_decoder": {"99999999999": {"content": "y"}}},
    "more tokens": {"extra_special_tokens": "x"},
    "tokens of numbers": {"additional_special_tokens": [1]},
    "a template as a number": {"chat_template": 3},
    "a template without a name": {"chat_template": [{"template": "x"}]},
    "a long template": {"chat_template": "x" * (2 << 20)},
    "names of inputs": {"model_input_names": "x"},
    "flags as text": {"add_prefix_space": "yes"},
    "errors": {"errors": "evil"},
}


@pytest.mark.parametrize("change", WORDS.values(), ids=WORDS)
def test_settings_of_no_tokenizer_are_refused(tmp_path, capfd, change):
    folder = copy_of(tmp_path)
    edited(folder / "tokenizer_config.json", change)
    assert "tokenizer" in refused(folder, capfd)


# What would have the library read, use or ask something else.
ELSEWHERE = {
    "an object": {"tokenizer_object": "x"},
    "a vocabulary": {"vocab": "/etc/passwd", "merges": "/etc/passwd"},
    "files": {"vocab_file": "/etc/passwd", "tokenizer_file": "/etc/passwd"},
    "another file": {"fast_tokenizer_files": ["tokenizer.0.0.1.json"]},
    "a GGUF file": {"gguf_file": "org/evil/x.gguf"},
    "a pieces file": {"spm_file": "/etc/passwd", "normalizer_file": "/etc/passwd"},
    "code": {"auto_map": {"AutoTokenizer": ["code.Evil", None]}},
    "code of old kind": {"auto_map": ["code.Evil", "code.Evil"]},
    "code elsewhere": {"auto_map": {"AutoTokenizer": ["org/evil--code.Evil", None]}},
    "inputs": {"init_inputs": ["/etc/passwd"]},
    "steps": {"post_processor": "x", "_json_truncation": {"max_length": 1}},
    "truncation": {"tokenizer_truncation": {"max_length": 1}},
    "padding": {"tokenizer_padding": {"length": 9}},
    "a place": {"name_or_path": "org/evil", "subfolder": "..", "cache_dir": "/tmp"},
    "a token of the hub": {"token": "secret", "local_files_only": False},
    "a method": {"encode": "x", "__class__": "x", "_tokenizer": "x"},
    "a backend": {"backend": "custom", "trust_remote_code": True},
    "a regex": {"fix_mistral_regex": True},
}


@pytest.mark.parametrize("change", ELSEWHERE.values(), ids=ELSEWHERE)
@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_settings_lead_nowhere(tmp_path, change, name):
    before = open_checkpoint(sound() / "model").tokenizer
    folder = copy_of(tmp_path)
    (folder / "tokenizer.0.0.1.json").write_text("{}")
    (folder / "code.py").write_text("raise SystemExit('code was executed')")
    edited(folder / name, change)
    after = open_checkpoint(folder).tokenizer
    text = "The capital of France is Paris; 1,234 naïve cafés"
    assert after(text) == before(text)
    assert after.get_vocab() == before.get_vocab()
    assert type(after) is type(before) and after.name_or_path == str(folder)
    kept = str(after.init_kwargs)
    assert not any(word in kept for word in ("/etc/passwd", "evil", "secret", "code."))


OTHERS = {
    "special_tokens_map.json": [b"[]", b'{"bos_token": 3}', b'{"pad_token": {"a": 1}}'],
    "added_tokens.json": [b"[]", b'{"x": "y"}', b'{"x": -1}', b'{"x": 99999999999}'],
    "chat_template.jinja": [b"\xff\xfe", b"x" * (2 << 20)],
    "tokenizer.json": [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"a":1,"a":1}'],
}


@pytest.mark.parametrize(
    ("name", "data"),
    [(name, data) for name, some in OTHERS.items() for data in some],
    ids=lambda each: str(each)[:30],
)
def test_other_files_of_no_tokenizer_are_refused(tmp_path, capfd, name, data):
    folder = copy_of(tmp_path)
    (folder / name).write_bytes(data)
    assert name in refused(folder, capfd)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("tokenizer.model", b"not a vocabulary"),
        ("tokenizer.model", b"IQ== 0\nIg== 1\n"),
        ("tokenizer.model", b"\x80\x04cos\nsystem\n"),
        ("spiece.model", b""),
        ("vocab.json", b'{"a": "x"}'),
        ("vocab.json", json.dumps({"a" * 5000: 0}).encode()),
        ("vocab.txt", b"x" * 10_000),
        ("vocab.txt", b"\xff"),
    ],
    ids=lambda each: str(each)[:30],
)
def test_plain_vocabularies_are_checked_as_well(tmp_path, capfd, name, data):
    folder = copy_of(tmp_path)
    (folder / "tokenizer.json").unlink()
    (folder / name).write_bytes(data)
    assert name in refused(folder, capfd)


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "vocab.json"]
)
@pytest.mark.parametrize("kind", ["pipe", "zero", "folder", "dangling"])
def test_only_regular_files_of_tokenizers_are_read(tmp_path, capfd, name, kind):
    folder = copy_of(tmp_path)
    path = folder / name
    path.unlink(missing_ok=True)
    if name == "vocab.json":
        (folder / "tokenizer.json").unlink()
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "zero":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()
        case "dangling":
            path.symlink_to(folder / "nothing")
    refused(folder, capfd)


def test_nothing_is_left_where_the_copies_were(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    open_checkpoint(copy_of(tmp_path))
    assert not list((tmp_path / "scratch").iterdir())

"""YAML settings that nobody should trust: one line, at once."""

import time
from pathlib import Path

import pytest

from experiments.pga.config import make_config, read_config
from experiments.pga.run import pga
from tests.security import hostile_items as hostile
from tests.security.refusals import refusal, refused

SECONDS = 5.0


def read(path) -> str:
    """What is said of a file; nothing may take long."""
    start = time.process_time()
    message = refusal(lambda: read_config(path))
    assert time.process_time() - start < SECONDS
    return message


LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)

FILES: dict[str, str | bytes] = {
    "a bomb of aliases": LAUGHS,
    "an anchor": "size: &s small\n",
    "an alias to nothing": "size: *s\n",
    "an alias to itself": "size: &s [*s]\n",
    "a merge": "base: &b {size: small}\n<<: *b\n",
    "a merge of its own": "<<: {size: small}\n",
    "5 MB": "size: small\n" + "#" * 5_000_000,
    "17 kB": "size: small\n" + "#" * 17_000,
    "16 kB of keys": "".join(f"k{n}: 1\n" for n in range(1750)),
    "16 kB of brackets": "[" * 16_000,
    "16 kB of braces": "{" * 16_000,
    "16 kB of dashes": "- " * 8_000,
    "16 kB of question marks": "? " * 8_000,
    "brackets that close": "erasers: " + "[" * 500 + "]" * 500,
    "nested blocks": "".join(" " * n + f"a{n}:\n" for n in range(300)),
    "a key that is a number": "1: small\n",
    "a key that is nothing": "~: small\n",
    "a key that is a date": "2001-01-01: small\n",
    "a key that is a list": "? [size]\n: small\n",
    "a key that is a mapping": "? {a: b}\n: small\n",
    "a key that is truth": "yes: small\n",
    "a key that is infinite": ".inf: small\n",
    "a key twice": "seed: 1\nseed: 2\n",
    "an unknown key": "sizes: small\n",
    "an escape as a key": '"\\e[31m": 1\n',
    "a line break as a key": '"a\\nexhume: fine": 1\n',
    "a date": "seed: 2001-01-01\n",
    "a time": "seed: 2001-01-01 10:00:00\n",
    "an impossible date": "seed: 2001-99-99\n",
    "a seed that is text": "seed: one\n",
    "a seed that is a fraction": "seed: 0.5\n",
    "a whole fraction": "seed: 1.0\n",
    "truth as a seed": "seed: true\n",
    "yes as a seed": "seed: yes\n",
    "a seed below 0": "seed: -1\n",
    "a seed of 65 bits": f"seed: {2**64}\n",
    "a seed of 5,000 digits": "seed: " + "9" * 5000 + "\n",
    "a seed of 16,000 hexadecimal digits": "seed: 0x" + "f" * 16_000 + "\n",
    "a seed in sixties": "seed: 1" + ":59" * 5_000 + "\n",
    "an infinite seed": "seed: .inf\n",
    "an infinite weight": "align_weight: .inf\n",
    "a weight that is no number": "align_weight: .nan\n",
    "a weight beyond floats": "align_weight: 1.0e+999\n",
    "a weight below 0": "align_weight: -1\n",
    "a huge weight": "align_weight: 1.0e+300\n",
    "an infinite margin": "margin: -.inf\n",
    "a margin that is no number": "margin: .nan\n",
    "a share of all": "erase_share: 1.0\n",
    "epochs of a billion": "epochs: 1000000000\n",
    "permutations of a billion": "permutations: 1000000000\n",
    "networks of a billion": "random_inits: 1000000000\n",
    "folds of a billion": "folds: 1000000000\n",
    "one fold": "folds: 1\n",
    "no epochs": "epochs: 0\n",
    "truth as text": "six_probes: 'true'\n",
    "a number as truth": "six_probes: 1\n",
    "an eraser alone": "erasers: pga\n",
    "no erasers": "erasers: []\n",
    "an eraser twice": "erasers: [pga, pga]\n",
    "an eraser of another kind": "erasers: [eraser]\n",
    "an eraser that is a number": "erasers: [1]\n",
    "an eraser that is nothing": "erasers: [null]\n",
    "an eraser with an escape": 'erasers: ["\\e]0;x\\a"]\n',
    "erasers by name": "erasers: {pga: 1}\n",
    "erasers in lists": "erasers: [[pga]]\n",
    "a size that is a number": "size: 3\n",
    "an unknown size": "size: enormous\n",
    "a size that is a list": "size: [small]\n",
    "a size of 16,000 letters": "size: " + "x" * 16_000 + "\n",
    "an unknown device": "device: abacus\n",
    "a device by number": "device: cuda:7\n",
    "a Python object": "seed: !!python/object/apply:os.getpid []\n",
    "a Python name": "seed: !!python/name:os.system\n",
    "a Python module": "seed: !!python/module:os\n",
    "a tuple": "erasers: !!python/tuple [pga]\n",
    "bytes": "seed: !!binary aGk=\n",
    "a set": "erasers: !!set {pga}\n",
    "ordered": "erasers: !!omap [pga: 1]\n",
    "a tag of its own": "seed: !mine 3\n",
    "an integer by tag": "seed: !!int 3\n",
    "a directive": "%YAML 9.9\n---\nsize: small\n",
    "an unknown directive": "%TAG ! !\n%TAG ! !\n---\nsize: small\n",
    "two documents": "size: small\n---\nsize: small\n",
    "a list": "- size\n",
    "text": "small\n",
    "a number": "3\n",
    "infinity": ".inf\n",
    "a tab": "\tsize: small\n",
    "a quote that does not end": 'size: "small\n',
    "a bracket that does not end": "erasers: [pga\n",
    "two colons": "size: small: large\n",
    "bad indentation": "size: small\n  seed: 1\n",
    "a bad escape": 'size: "\\xZZ"\n',
    "a code point beyond Unicode": 'size: "\\UFFFFFFFF"\n',
    "half a character": 'size: "\\ud800"\n',
    "NUL": b"size: small\0\n",
    "an escape": b"size: \x1b[31msmall\n",
    "Latin-1": "size: sm\u00e4ll\n".encode("latin-1"),
    "UTF-16": "size: small\n".encode("utf-16"),
    "a pickle": b"\x80\x04\x95\x10\0\0\0\0\0\0\0",
}


@pytest.mark.parametrize("name", FILES)
def test_hostile_settings(tmp_path, name):
    path, data = tmp_path / "pga.yaml", FILES[name]
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    message = read(path)
    assert "pga.yaml" in message or "eraser" in message


@pytest.mark.parametrize("name", hostile.PLACES)
def test_what_lies_where_settings_should(tmp_path, name):
    read(hostile.PLACES[name](tmp_path / "pga.yaml"))


@pytest.mark.parametrize("given", [None, 5, b"pga.yaml", [], {}, "", "\0", Path("~nobody-here/a")])
def test_what_is_no_path(given):
    refusal(lambda: read_config(given))


@pytest.mark.parametrize(
    "settings",
    [
        None,
        5,
        [],
        "size",
        {1: 2},
        {None: 3},
        {"seed": None},
        {"seed": 10**5000},
        {"seed": "1"},
        {"seed": b"1"},
        {"seed": float("nan")},
        {"erasers": None},
        {"erasers": "pga"},
        {"erasers": [b"pga"]},
        {"align_weight": float("inf")},
        {"margin": float("nan")},
        {"size": None},
        {"device": None},
        {"device": object()},
    ],
)
def test_settings_of_other_types_in_python(settings):
    refusal(lambda: make_config(settings))


@pytest.mark.parametrize("config", [None, {}, "small", 5])
def test_an_experiment_of_what_are_no_settings(tmp_path, config):
    refusal(lambda: pga(config, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("out", [None, 5, b"out", "", "\0", []])
def test_an_experiment_into_what_is_no_folder(out):
    refusal(lambda: pga(make_config({}), out))


@pytest.mark.parametrize("name", ["a bomb of aliases", "a key that is a number", "5 MB"])
def test_the_command_line_says_the_same(tmp_path, name):
    path, data = tmp_path / "pga.yaml", FILES[name]
    path.write_text(str(data))
    message = refused("pga", "--config", path, "--out", tmp_path / "out")
    assert message.count("exhume: ") == 1
    assert not (tmp_path / "out").exists()


def test_plain_settings_are_read(tmp_path):
    path = tmp_path / "pga.yaml"
    path.write_text(
        "# what to do\nsize: medium\nerasers: [pga, npo]\nseed: 3\nmargin: 0.1\n"
        "align_weight: 2\nepochs: null\nsix_probes: yes\n"
    )
    found = read_config(path)
    assert (found.size, found.erasers, found.seed) == ("medium", ("pga", "npo"), 3)
    assert found.align_weight == 2.0 and found.epochs is None and found.six_probes
    path.write_text("")
    assert read_config(path) == make_config({})

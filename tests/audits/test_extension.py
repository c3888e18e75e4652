"""The axis and the modality of CONTRIBUTING.md: what is written there is all that is needed."""

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import pytest

import exhume
from audits.axes import behaviour
from audits.core.registry import AXES, MODALITIES, AxisEntry
from audits.verdict.reevaluate import rejudge
from capture.data.items import read_items
from tests.audits.conftest import run

CONTRIBUTING = Path(exhume.__file__).parents[1] / "CONTRIBUTING.md"
MAX_LINES = 80
K = TypeVar("K")
V = TypeVar("V")


def blocks(heading: str) -> tuple[str, str]:
    """The module of a section, and the lines that register and use it."""
    section = CONTRIBUTING.read_text("utf-8").split(f"### {heading}\n")[1].split("\n### ")[0]
    module, use = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return module, use


def install(monkeypatch, name: str, source: str) -> ModuleType:
    """The source as an importable module of this name."""
    module = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(compile(source, str(CONTRIBUTING), "exec"), module.__dict__)
    return module


@contextmanager
def restored(registry: Mapping[K, V]) -> Iterator[None]:
    """Forget, at the end, what was added to a registry."""
    before = dict(registry)
    yield
    # Only an extension writes to it, so its type is read-only.
    assert isinstance(registry, dict)
    registry.clear()
    registry.update(before)


@pytest.fixture
def registered(monkeypatch):
    """Forget, after a test, what it added to the registries."""
    spec, axis = behaviour.SPEC, behaviour.AXIS
    with restored(AXES), restored(MODALITIES), restored(spec.forms), restored(axis.measure):
        yield


def test_an_axis_is_a_module_and_a_line(world, planted, tmp_path, monkeypatch, registered):
    source, use = blocks("An evidence axis")
    assert len(source.splitlines()) < MAX_LINES
    install(monkeypatch, "repetition", source)
    names = {
        "AXES": AXES,
        "AxisEntry": AxisEntry,
        "exhume": exhume,
        "original": world.original,
        "unlearned": planted("last_block_relabel"),
        "forget": world.forget,
        "retain": world.retain,
        "out": tmp_path / "audit",
    }
    exec(use, names)
    done = names["done"]
    axis = done.axes["repetition"]
    original, planted_found = axis.controls
    assert original.passed and planted_found.id == "planted"
    assert axis.main_reading is not None and axis.main_reading.ceiling > 0.5
    # The report, the verdict and a second judgement know it without further work.
    assert "asked twice, exact match" in done.report.read_text("utf-8")
    assert "repetition.exact_match" in done.document["verdict"]["adjusted_p"]
    again = rejudge(done.path, done.document)
    assert {name: each.to_json() for name, each in again.items()} == {
        name: each.to_json() for name, each in done.axes.items()
    }
    assert exhume.load(done.path).axes["repetition"].to_json() == axis.to_json()
    plans = [
        exhume.plan(world.original, world.twin, world.forget, world.retain, axes=axes, memory=8)
        for axes in (["behaviour"], ["behaviour", "repetition"])
    ]
    assert plans[0].work < plans[1].work
    with pytest.raises(exhume.InputError, match="axes"):
        run(world, world.twin, tmp_path / "other", axes=["repetitions"])


def test_a_modality_is_a_module_a_line_and_the_forms_of_axes(
    world, planted, tmp_path, monkeypatch, registered
):
    source, use = blocks("A modality")
    install(monkeypatch, "pairs", source)

    def triples(path) -> list[tuple[str, str, str]]:
        return [(item.entity, item.prompt, item.answer) for item in read_items(path)]

    names = {
        "MODALITIES": MODALITIES,
        "behaviour": behaviour,
        "exhume": exhume,
        "original": world.original,
        "unlearned": planted("last_block_relabel"),
        "forget": triples(world.forget),
        "retain": triples(world.retain),
        "out": tmp_path / "audit",
    }
    exec(use, names)
    done = names["done"]
    assert done.document["modality"] == "pairs"
    assert done.axes["behaviour"].status == "absent"
    assert done.verdict == "inconclusive"  # nothing looked inside

"""What an audit keeps on disk is what its plan says, and there is room for it."""

import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from audits.axes.decodability.cost import max_rows
from audits.axes.decodability.tasks import TaskPart
from audits.axes.decodability.text_probes import read_states
from audits.axes.membership.axis import measure_text
from audits.core.context import AuditContext
from audits.core.preflight import Damage
from audits.core.roles import Role
from audits.modalities.base import Sources
from audits.output.workspace import StageRunner
from audits.run.api import audit
from audits.run.disk_space import check_disk_space
from audits.run.pipeline import start
from audits.run.planning import plan
from evidence.errors import InputError
from tests.audits.own_world import OwnWorld, own_world

UNIQUE = [f"{a}{b}{c}o" for a in "BDKLMNPRST" for b, c in ("an", "el", "ir", "ot")]
SHARED = UNIQUE[:5]


def captured(world: OwnWorld, out: Path, **settings) -> int:
    """Bytes of activations that the audit's own stages keep."""
    sources = Sources(world.original, world.candidate, world.forget, world.retain)
    opened = start(sources, out, {"seed": 0, "device": "cpu"} | settings)
    run, stages = opened.run, StageRunner(opened.run.workspace)
    sets = opened.modality.select(run, stages)
    ctx = AuditContext(run, stages, sets, run.models, {}, Damage({}, ()))
    # As large as the one that is planted.
    planted = replace(run.models[Role.ORIGINAL], role=Role.PLANTED, weights_hash="planted")
    ctx = ctx.with_model(Role.PLANTED, planted)
    if {"decodability", "concept"} & set(run.config.axes):
        read_states(ctx)
    if "membership" in run.config.axes:
        measure_text(ctx)
    files = (out / "work" / "activations").rglob("*")
    return sum(path.stat().st_size for path in files)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    made: dict = {}

    def make(**shape) -> OwnWorld:
        key = tuple(sorted(shape.items()))
        if key not in made:
            answers = UNIQUE if shape.pop("unique") else SHARED
            made[key] = own_world(tmp_path_factory.mktemp("world"), answers, **shape)
        return made[key]

    return make


SHAPES = [
    {"unique": True},
    {"unique": False},
    {"unique": True, "width": 64, "layers": 3, "family": "gpt2"},
    {"unique": True, "forget": 9, "retain": 22, "family": "neox"},
    {"unique": True, "forget": 14, "retain": 26, "layers": 4},
]
CASES = [
    *((shape, "quick", ("behaviour", "decodability")) for shape in SHAPES),
    (SHAPES[0], "standard", ("decodability",)),
    (SHAPES[0], "full", ("decodability",)),
    (SHAPES[1], "full", ("concept",)),
    (SHAPES[0], "quick", ("behaviour", "membership")),
    (SHAPES[1], "quick", ("decodability", "membership")),
]


@pytest.mark.parametrize(("shape", "profile", "axes"), CASES)
def test_a_plan_says_what_is_kept(worlds, tmp_path, shape, profile, axes):
    world = worlds(**shape)
    planned = plan(
        world.original,
        world.candidate,
        world.forget,
        world.retain,
        profile=profile,
        axes=axes,
        out=tmp_path / "out",
    )
    real = captured(world, tmp_path / "out", profile=profile, axes=axes)
    assert real <= planned.disk <= 1.5 * real
    assert planned.probed > 0


def test_nothing_is_kept_where_nothing_inside_is_read(worlds):
    world = worlds(unique=True)

    def kept(candidate, axes):
        found = plan(world.original, candidate, world.forget, world.retain, axes=axes)
        return found.disk, found.probed

    assert kept(world.candidate, ("behaviour", "relearning")) == (0, 0)
    # The same weights are not looked into.
    assert kept(world.original, ("behaviour", "decodability")) == (0, 0)


@pytest.mark.slow
def test_a_whole_audit_keeps_no_more(worlds, tmp_path):
    world = worlds(unique=True)
    files = (world.original, world.candidate, world.forget, world.retain)
    axes = ("behaviour", "decodability", "concept", "membership", "relearning")
    audit(*files, tmp_path / "out", axes=axes)
    kept = (tmp_path / "out" / "work" / "activations").rglob("*")
    real = sum(path.stat().st_size for path in kept)
    assert real <= plan(*files, axes=axes).disk <= 1.5 * real


@pytest.mark.parametrize("items", [*range(2, 30), 80])
def test_fewer_items_never_make_more_rows_than_that(items):
    import numpy as np

    from audits.axes.decodability.tasks import _statements
    from capture.data.items import Item

    def rows(count: int) -> TaskPart:
        members = [Item(f"i{n}", f"e{n}", f"The home of e{n} is", f"a{n}") for n in range(count)]
        return _statements(members, 1, 5, np.random.default_rng(0))

    most = max_rows(rows(items), 5)
    assert all(len(rows(count)) <= most for count in range(1, items + 1))


@pytest.fixture
def free(monkeypatch):
    """Say how many bytes a disk has left."""
    usage = namedtuple("usage", "total used free")

    def say(amount: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(amount, 0, amount))

    return say


def test_a_disk_without_room_is_refused_before_anything_is_written(worlds, tmp_path, free):
    world = worlds(unique=True)
    files = (world.original, world.candidate, world.forget, world.retain)
    out = tmp_path / "new" / "out"
    needed = plan(*files, out=out).disk
    free(needed - 1)
    for call in (lambda: plan(*files, out=out), lambda: audit(*files, out)):
        with pytest.raises(InputError, match="not enough disk space for the activations"):
            call()
    assert not (tmp_path / "new").exists()
    free(needed)
    plan(*files, out=out)


def test_what_is_there_already_needs_no_room(tmp_path, free):
    free(0)
    kept = tmp_path / "work" / "activations"
    kept.mkdir(parents=True)
    (kept / "chunk").write_bytes(bytes(100))
    check_disk_space(tmp_path, 100)
    with pytest.raises(InputError, match="not enough disk space"):
        check_disk_space(tmp_path, 101)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        check_disk_space(tmp_path / "file", 0)

"""Results stored as one file: the same bit by bit, or refused in one sentence."""

import json

import numpy as np
import pytest
from safetensors.numpy import save

from attribution.circuits.edge_scores import EdgeScores
from attribution.circuits.graph import EdgeGraph
from evidence.errors import InputError
from evidence.storage.array_files import HEADER, read_arrays, write_arrays
from probes.concepts.vectors import ConceptVectors
from probes.solvers.uncertified import UncertifiedFit


def vectors():
    rng = np.random.default_rng(0)
    fits = (UncertifiedFit(np.inf, None, 1, "b", "x"), UncertifiedFit(0.1, 2))
    return ConceptVectors(
        ("resid.0", "resid.1"),
        ("x", "ü", "z"),
        "lda",
        rng.standard_normal((2, 3, 5)),
        rng.standard_normal((2, 3)),
        rng.standard_normal((2, 3)),
        fits,
    )


def scores():
    rng = np.random.default_rng(1)
    graph = EdgeGraph(("embed", "mlp.0"), ("mlp.0", "logits"), (1, 2), ((1,), ()), "whole parts")
    values = rng.standard_normal((4, 3)).astype(np.float32)
    clean, corrupt = rng.standard_normal((2, 4))
    return EdgeScores(
        graph, values, clean, corrupt, ("a", "a", "b", "c"), tuple("wxyz"), "kl", "eap"
    )


def same(first, second):
    for name in vars(first):
        one, two = getattr(first, name), getattr(second, name)
        if isinstance(one, np.ndarray):
            assert one.dtype == two.dtype and np.array_equal(one, two), name
        else:
            assert one == two, name


@pytest.mark.parametrize("make", [vectors, scores])
def test_what_is_read_is_what_was_written(tmp_path, make):
    written, path = make(), tmp_path / "folder" / "result.safetensors"
    written.save(path)
    same(written, type(written).load(path))
    before = path.read_bytes()
    written.save(str(path))
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(("cls", "other"), [(ConceptVectors, scores), (EdgeScores, vectors)])
def test_damaged_and_foreign_files_are_refused(tmp_path, cls, other):
    path = tmp_path / "result"
    with pytest.raises(InputError, match=f"there is no {cls.__name__}"):
        cls.load(path)
    with pytest.raises(InputError, match="there is no"):
        cls.load(tmp_path)
    other().save(path)
    with pytest.raises(InputError, match="holds something else"):
        cls.load(path)
    own = {ConceptVectors: vectors, EdgeScores: scores}[cls]()
    own.save(path)
    content = path.read_bytes()
    for wrong in (b"", b"nothing", content[:-9], b"\xff" * 40):
        path.write_bytes(wrong)
        with pytest.raises(InputError, match="damaged or no safetensors file"):
            cls.load(path)
    path.write_bytes(save({"x": np.ones(3)}))
    with pytest.raises(InputError, match="no note"):
        cls.load(path)


def test_parts_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "result"
    for make in (vectors, scores):
        written = make()
        kind = type(written).__name__
        written.save(path)
        arrays, note = read_arrays(path, kind)
        note = {name: note[name] for name in note if name not in ("kind", "version")}
        some = next(iter(arrays))
        write_arrays(path, kind, arrays | {some: arrays[some][1:]}, note)
        with pytest.raises(InputError, match="its parts do not fit"):
            type(written).load(path)
        write_arrays(path, kind, {}, note)
        with pytest.raises(InputError, match="its parts do not fit"):
            type(written).load(path)
        write_arrays(path, kind, arrays, {})
        with pytest.raises(InputError, match="its parts do not fit"):
            type(written).load(path)
    path.write_bytes(save({"x": np.ones(3)}, metadata={HEADER: json.dumps([1])}))
    with pytest.raises(InputError, match="holds something else"):
        ConceptVectors.load(path)

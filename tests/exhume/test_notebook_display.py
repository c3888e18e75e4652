"""Results in a notebook: short text, small tables, and no markup out of files."""

import copy
import json

import numpy as np
import pytest
import torch
from plotly.graph_objects import Figure

import exhume
from tests.repository.golden import compare

EVIL = "<script>alert('x')</script>\u202e"
LONGEST = 2_000
"""Characters of a ``repr``: a screen."""


@pytest.fixture
def finished(tmp_path):
    """A whole audit of nine axes, its names and sentences hostile."""
    document = copy.deepcopy(compare.kept_audits()["bios-last_block_relabel-reference"])
    document["verdict"]["reasons"] = [EVIL, *document["verdict"]["reasons"]]
    for axis in document["axes"]:
        for reading in axis["readings"]:
            reading["name"] = f"{EVIL} {reading['name']}"
        for control in axis["controls"]:
            control["expected"] = EVIL
    return exhume.Audit(tmp_path / EVIL, document)


def check(result, rows: int = 1) -> str:
    """``result`` is short, and renders as a table of so many rows or more."""
    text, shown = repr(result), result._repr_html_()
    assert 0 < len(text) < LONGEST and text.isprintable() | ("\n" in text)
    assert "<script>" not in shown and "\u202e" not in shown
    assert shown.count("<tr>") > rows and len(shown) < 20_000
    return shown


def drawn(result) -> str:
    figure = result.plot()
    assert isinstance(figure, Figure) and figure.data
    text = json.dumps(figure.to_plotly_json(), default=str)
    assert "<script>" not in text
    return text


def test_an_audit_and_its_axes(finished):
    shown = check(finished, rows=9)
    assert "&lt;script&gt;" in shown and "\\u202e" in shown
    assert "\u202e" not in repr(finished)
    drawn(finished)
    for axis in finished.axes.values():
        assert "&lt;script&gt;" in check(axis, rows=2)
        assert str(axis) in repr(axis)
        if axis.readings:
            drawn(axis)
            assert len(repr(axis.readings[0])) < 300


def test_an_axis_without_readings_still_draws():
    axis = exhume.AxisResult("circuit", "?", "no_power")
    assert repr(axis) == "AxisResult(circuit: no_power)"
    assert isinstance(axis.plot(), Figure) and "<table>" in axis._repr_html_()


def test_items_of_an_untrusted_file():
    items = exhume.ItemSet(
        tuple(exhume.Item(str(n), EVIL, f"{EVIL} {n}", EVIL) for n in range(50)), EVIL
    )
    shown = check(items, rows=20)
    assert "and 30 more rows" in shown
    assert repr(items).isprintable()


@pytest.mark.filterwarnings("ignore::probes.solvers.uncertified.UncertifiedWarning")
def test_probes_and_concepts():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 40, 5))
    y = np.arange(40) % 2
    x[1, y == 1] += 2.0
    found = exhume.sweep(x, targets={EVIL: y}, cv=4, permutations=10)[EVIL]
    check(found, rows=2)
    drawn(found)
    concepts = exhume.concepts_of({EVIL: y == 1})
    vectors = exhume.concept_vectors(x, concepts)
    check(vectors, rows=2)
    folds = exhume.k_fold(None, y, 4)
    separability = exhume.separability(x, concepts, folds, draws=5)
    check(separability, rows=2)
    drawn(separability)
    random = exhume.random_concepts(y == 1, None, count=10)
    check(exhume.tcav(x, vectors, exhume.concept_vectors(x, random)), rows=2)
    check(exhume.shift_vectors(x, 2 * x, concepts, draws=5), rows=2)
    membership = exhume.membership(
        {EVIL: torch.from_numpy(x)}, y, families=["logistic"], n_permutations=20
    )
    check(membership, rows=2)
    drawn(membership)


def test_a_large_model_has_a_short_table_of_sites():
    torch.manual_seed(0)
    sizes = {"width": 96, "layers": 24, "heads": 12}
    model = exhume.random_model("llama", vocabulary=20, pad=0, **sizes)
    sites = exhume.find_sites(model)
    assert len(sites.names) == 24 * 19 + 3
    assert len(repr(sites)) < 700 and "head.0.0 to head.23.11" in repr(sites)
    frame = sites.to_frame().set_index("site")
    assert len(frame) == len(sites.names)
    assert frame.loc["head.3.2", ["layer", "head", "width"]].tolist() == [3, 2, 8]
    assert frame.loc["resid.5", "width"] == 96 and frame.loc["logits", "width"] == 20
    check(sites, rows=7)


def test_the_width_varies_where_sites_differ():
    layers = [torch.nn.Linear(6, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3)]
    sites = exhume.find_sites(torch.nn.Sequential(*layers), torch.randn(2, 6))
    assert "varies" in repr(sites) and sites.to_frame()["width"].isna().to_numpy().any()

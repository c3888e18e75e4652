"""Every function that takes activations or labels takes the same ones, and refuses the same."""

import ast
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import exhume
from erasure.concept.sae_features import Dictionary, DictionaryEraser
from evidence.errors import InputError
from probes.concepts.answer_map import fit_answer_map
from probes.estimators import classifier_battery
from probes.estimators.kernel_smoothers import smoother_matrices
from probes.estimators.logistic import LogisticProbe
from probes.splits.folds import k_fold
from probes.subspaces import change_in_top_components, cosine
from probes.sweeps.description_length import online_code

ROWS, WIDTH = 48, 4
RNG = np.random.default_rng(3)
CODES = RNG.permutation(np.arange(ROWS) % 2)
X = RNG.standard_normal((2, ROWS, WIDTH))
X[..., 0] += 2 * CODES
OTHER = torch.from_numpy(RNG.standard_normal((2, ROWS, WIDTH)))
GROUPS = np.arange(ROWS) // 2
CONCEPTS = exhume.concepts_of(CODES)
FOLDS = k_fold(None, CODES, 3)
VECTORS = exhume.concept_vectors(X, CONCEPTS)
DICTIONARY = Dictionary(*(torch.eye(WIDTH).double(), torch.zeros(WIDTH).double()) * 2)


@dataclass(frozen=True)
class Door:
    """A function of activations and labels.

    Attributes:
        call: Its figures, given states and labels.
        ndim: Axes of the states: 3 for sites, 2 for one site, 0 for none.
        labels: What the labels may be: "classes", "either" (classes or numbers), "members" (1 and
            0) or "" for none.
    """

    call: Callable[[Any, Any], Any]
    ndim: int
    labels: str = "classes"

    def figures(self, states: Any, labels: Any) -> np.ndarray:
        found = self.call(states, labels)
        parts = found if isinstance(found, tuple) else (found,)
        return np.concatenate([np.asarray(part, np.float64).ravel() for part in parts])


def eraser(make: Callable[[], Any], labels: str = "either") -> Door:
    return Door(lambda x, y: make().fit(x, y).eraser_.matrix, 3, labels)


def probe(make: Callable[[], Any]) -> Door:
    return Door(lambda x, y: make().fit(x, y).coef_, 2)


DOORS = {
    "sweep": Door(lambda x, y: exhume.sweep(x, y, cv=FOLDS, draws=2).scores, 3),
    "LogisticProbe": probe(exhume.LogisticProbe),
    "RidgeProbe": probe(exhume.RidgeProbe),
    "LDAProbe": probe(exhume.LDAProbe),
    "MeanDifferenceProbe": probe(exhume.MeanDifferenceProbe),
    "refit_battery": Door(
        lambda x, y: exhume.refit_battery({"all": x}, y, draws=2).rows[0][2:3], 2
    ),
    "membership": Door(
        lambda x, y: exhume.membership({"all": x}, y, families=["rbf"], n_permutations=0).auc,
        3,
        "members",
    ),
    "debiased_cka": Door(lambda x, y: exhume.debiased_cka(x, OTHER[0]), 2, ""),
    "cka_matrix": Door(lambda x, y: exhume.cka_matrix(x), 3, ""),
    "principal_angles": Door(lambda x, y: exhume.principal_angles(x, np.eye(WIDTH)[:2]), 2, ""),
    "procrustes": Door(lambda x, y: exhume.procrustes(x, OTHER[0]), 2, ""),
    "k_fold": Door(lambda x, y: exhume.k_fold(GROUPS, y, 3).test, 0),
    "concepts_of": Door(lambda x, y: exhume.concepts_of(y).marks, 0),
    "crossed_folds": Door(lambda x, y: exhume.crossed_folds(y, GROUPS, (2, 2)).test, 0, "groups"),
    "random_concepts": Door(lambda x, y: exhume.random_concepts(y, None, 3).marks, 0, "members"),
    "concept_vectors": Door(lambda x, y: exhume.concept_vectors(x, CONCEPTS).vectors, 3, ""),
    "separability": Door(lambda x, y: exhume.separability(x, CONCEPTS, FOLDS, draws=2).auc, 3, ""),
    "stability": Door(lambda x, y: exhume.stability(x, CONCEPTS, draws=2), 3, ""),
    "tcav": Door(lambda x, y: exhume.tcav(x, VECTORS, VECTORS).score, 3, ""),
    "shift_vectors": Door(
        lambda x, y: exhume.shift_vectors(OTHER, x, CONCEPTS, draws=2).vectors, 3, ""
    ),
    "Leace": eraser(exhume.Leace),
    "MeanDifference": eraser(exhume.MeanDifference),
    "SpectralRemoval": eraser(exhume.SpectralRemoval),
    "IterativeNullspace": eraser(lambda: exhume.IterativeNullspace(max_probes=2)),
    "IterativeNullspace, logistic": eraser(
        lambda: exhume.IterativeNullspace("logistic", max_probes=1), "classes"
    ),
    "RelaxedAdversarial": eraser(lambda: exhume.RelaxedAdversarial(steps=2), "classes"),
    "RandomProjection": eraser(exhume.RandomProjection, ""),
    "OracleLeace": Door(lambda x, y: exhume.OracleLeace.fit(x, y).coef, 3, "either"),
    "QuadraticLeace": Door(lambda x, y: exhume.QuadraticLeace.fit(x, y).maps, 3),
    "fit_md_pga": Door(lambda x, y: exhume.fit_md_pga(x, y).share, 3, "members"),
    "Moments": Door(lambda x, y: exhume.Moments().update(x, y).cov_xz, 3, "either"),
    # Not in ``exhume``.
    "online_code": Door(
        lambda x, y: online_code(x, y, fractions=(0.5, 1.0), probe=exhume.LDAProbe()).bits, 2
    ),
    "fit_answer_map": Door(lambda x, y: fit_answer_map(x, y, y * 0, x, y).matrix, 2, ""),
    "smoother_matrices": Door(lambda x, y: smoother_matrices(x, FOLDS, ["rbf"]), 3, ""),
    "change_in_top_components": Door(lambda x, y: change_in_top_components(x, OTHER[0], 2), 2, ""),
    "cosine": Door(lambda x, y: cosine(x, OTHER[0]), 2, ""),
    "DictionaryEraser": Door(
        lambda x, y: DictionaryEraser.fit(x, y, DICTIONARY, n_features=2).scores, 2
    ),
}
NO_DOORS = {
    "alignment": "takes vectors",
    "AffineEraser": "a fitted map, which works on each row alone",
    "LayerSweep": "a result",
    "Membership": "a result",
    "Concepts": "made by concepts_of",
    "ConceptVectors": "made by concept_vectors",
    "Separability": "a result",
}


@pytest.fixture(autouse=True)
def small_battery(monkeypatch):
    """One classifier for ``refit_battery``, which has twelve."""
    monkeypatch.setattr(
        classifier_battery, "battery_classifiers", lambda *_: {"logistic": LogisticProbe()}
    )


def test_every_public_estimator_is_in_the_table():
    stub = Path(exhume.__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    imports = [node for node in ast.parse(stub).body if isinstance(node, ast.ImportFrom)]
    names = {
        alias.asname or alias.name
        for node in imports
        if (node.module or "").startswith(("probes.", "erasure.concept."))
        for alias in node.names
    }
    assert names == {name for name in DOORS if hasattr(exhume, name)} | set(NO_DOORS)


def states_of(door: Door) -> np.ndarray:
    return X if door.ndim == 3 else X[1]


with_states = pytest.mark.parametrize("name", [name for name in DOORS if DOORS[name].ndim])
with_labels = pytest.mark.parametrize("name", [name for name in DOORS if DOORS[name].labels])
FORMS: dict[str, Callable[[np.ndarray], Any]] = {
    "list": lambda x: x.tolist(),
    "list of tensors": lambda x: [torch.from_numpy(part) for part in x],
    "float32 array": lambda x: x.astype(np.float32),
    "float16 array": lambda x: x.astype(np.float16),
    "read-only array": lambda x: np.broadcast_to(x, x.shape),
    "float64 tensor": lambda x: torch.from_numpy(x.copy()),
    "float32 tensor": lambda x: torch.from_numpy(x).float(),
    "bfloat16 tensor": lambda x: torch.from_numpy(x).bfloat16(),
    "tensor with gradient": lambda x: torch.from_numpy(x.copy()).requires_grad_(),
    "tensor of another layout": lambda x: torch.from_numpy(x.copy()).mT.contiguous().mT,
}


@with_states
def test_states_of_every_type(name):
    door = DOORS[name]
    full = door.figures(states_of(door), CODES)
    for form, change in FORMS.items():
        given, expected = change(states_of(door)), full
        if "16" in form or "32" in form:  # the same values, which are rounded
            expected = door.figures(torch.as_tensor(given).double().numpy(), CODES)
        found = door.figures(given, CODES)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5, err_msg=form)


@with_states
def test_states_that_are_not_finite_are_counted(name):
    door = DOORS[name]
    words = r"NaN or infinite values in 2 rows of 48\. Got the first is row 5\. Find"
    if name == "cosine":
        words = "NaN or infinite values"
    for value in (np.nan, np.inf, -np.inf):
        broken = states_of(door).copy()
        broken[..., 5, 2] = value
        broken[..., 7, :] = value
        for given in (broken, torch.from_numpy(broken)):
            with pytest.raises(InputError, match=words):
                door.figures(given, CODES)


LABELS: dict[str, Callable[[np.ndarray], Any]] = {
    "list": lambda y: y.tolist(),
    "booleans": lambda y: y == 1,
    "list of booleans": lambda y: (y == 1).tolist(),
    "floats": lambda y: y.astype(float),
    "list of floats": lambda y: y.astype(float).tolist(),
    "tensor": torch.from_numpy,
    "float tensor": lambda y: torch.from_numpy(y).float(),
    "bfloat16 tensor": lambda y: torch.from_numpy(y).bfloat16(),
    "objects": lambda y: y.astype(object),
    "series": lambda y: pd.Series(y, index=np.arange(ROWS)[::-1]),
    "nullable series": lambda y: pd.Series(y, dtype="Int64"),
    "int8": lambda y: y.astype(np.int8),
}
TEXTS: dict[str, Callable[[np.ndarray], Any]] = {
    "text": lambda y: np.where(y == 1, "yes", "no"),
    "list of text": lambda y: np.where(y == 1, "yes", "no").tolist(),
    "text objects": lambda y: np.where(y == 1, "yes", "no").astype(object),
    "category": lambda y: pd.Series(np.where(y == 1, "yes", "no"), dtype="category"),
    "text series": lambda y: pd.Series(np.where(y == 1, "yes", "no"), dtype="string"),
}


@with_labels
def test_labels_of_every_type(name):
    door, states = DOORS[name], states_of(DOORS[name])
    expected = door.figures(states, CODES)
    for form, change in LABELS.items():
        np.testing.assert_array_equal(door.figures(states, change(CODES)), expected, form)
    for form, change in TEXTS.items():
        if door.labels == "members":
            with pytest.raises(InputError, match="1 or True"):
                door.figures(states, change(CODES))
        else:
            np.testing.assert_array_equal(door.figures(states, change(CODES)), expected, form)


@with_labels
def test_bad_labels_are_one_clear_error(name):
    door, states = DOORS[name], states_of(DOORS[name])
    missing = CODES.astype(float)
    missing[3] = np.nan
    texts = np.where(CODES == 1, "yes", "no").astype(object)
    texts[3] = None
    for labels in (missing, texts, pd.Series(texts, dtype="category")):
        with pytest.raises(InputError, match="missing labels in 1 row of 48"):
            door.figures(states, labels)
    with pytest.raises(InputError, match="several types"):
        door.figures(states, ["yes", 1] * (ROWS // 2))
    if door.labels == "groups":
        return
    if door.ndim:
        with pytest.raises(InputError, match=r"differ in number|one vector a site"):
            door.figures(states, CODES[:-1])
        with pytest.raises(InputError, match=r"only one class|each class needs|equally many"):
            door.figures(states, np.zeros(ROWS, int))
    numbers, many = np.linspace(0, 1, ROWS), np.arange(ROWS, dtype=float)
    refused = "1 or True" if door.ndim == 0 and door.labels == "members" else "Unknown label type"
    if door.labels == "either":
        assert np.isfinite(door.figures(states, numbers)).all()
    else:
        with pytest.raises(InputError, match=refused):
            door.figures(states, numbers)
    refused = "1 or True" if door.ndim == 0 and door.labels == "members" else "classes or numbers"
    with pytest.raises(InputError, match=refused):
        door.figures(states, many)


def test_whole_floats_are_classes_unless_the_caller_says_numbers():
    thirds = RNG.permutation(np.arange(ROWS) % 3)
    as_classes = exhume.Leace().fit(X[1], thirds)
    assert as_classes.rank_ == exhume.Leace().fit(X[1], thirds.astype(float)).rank_ == 2
    assert exhume.Leace(kind="numbers").fit(X[1], thirds).rank_ == 1
    assert exhume.LDAProbe().fit(X[1], thirds.astype(float)).coef_.shape == (3, WIDTH)
    ages = np.arange(ROWS, dtype=float)
    with pytest.raises(InputError, match='kind="numbers"'):
        exhume.Leace().fit(X[1], ages)
    by_age = exhume.Leace(kind="numbers").fit(X[1], ages)
    assert by_age.rank_ == 1
    cov = (by_age.transform(X[1]) - X[1].mean(0)).T @ (ages - ages.mean())
    assert np.abs(cov).max() < 1e-8
    oracle = exhume.OracleLeace.fit(X[1], ages, kind="numbers")
    assert oracle.transform(X[1], ages).shape == X[1].shape
    with pytest.raises(InputError, match="labels are not numbers"):
        exhume.Leace(kind="numbers").fit(X[1], np.where(CODES == 1, "a", "b"))
    with pytest.raises(InputError, match="unknown kind"):
        exhume.Leace(kind="ordinal").fit(X[1], CODES)  # pyright: ignore


def test_later_chunks_are_read_as_the_first():
    """A chunk of whole numbers does not turn a concept of numbers into one of classes."""
    values = np.linspace(0, 2, ROWS)
    whole, parts = exhume.Moments().update(X, values), exhume.Moments(kind="numbers")
    for rows in np.split(np.arange(ROWS), [1, 2, ROWS - 1]):
        parts.update(X[:, rows], values[rows])
    np.testing.assert_allclose(parts.cov_xz, whole.cov_xz)
    with pytest.raises(InputError, match="no classes"):
        exhume.Moments(classes=[0, 1], kind="numbers")


def test_erasers_transform_what_they_fit_and_map_each_row_alone():
    fitted = exhume.Leace().fit(X[1], CODES)
    exact = fitted.transform(X[1])
    assert isinstance(fitted.transform(X[1].tolist()), np.ndarray)
    half = fitted.transform(torch.from_numpy(X[1]).bfloat16().requires_grad_())
    assert half.dtype == torch.bfloat16
    broken = X[1].copy()
    broken[3, 1] = np.nan
    for kind in (np.asarray, torch.from_numpy):
        with pytest.raises(InputError, match="1 row of 48"):
            fitted.transform(kind(broken))
    mapped = fitted.eraser_.transform(broken)
    np.testing.assert_allclose(np.delete(mapped, 3, 0), np.delete(exact, 3, 0))
    assert np.isnan(mapped[3]).any()
    projection = exhume.fit_md_pga(X, CODES)
    assert isinstance(projection.transform(X.tolist()), np.ndarray)

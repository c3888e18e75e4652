"""Fits without a certificate are kept, named and counted, and nothing else is lost."""

import warnings

import numpy as np
import pytest
import torch

from probes.concepts.labels import concepts_of
from probes.concepts.quality import separability, stability
from probes.concepts.vectors import concept_vectors
from probes.estimators.classifier_battery import refit_battery
from probes.estimators.logistic import LogisticProbe
from probes.solvers.crossfit import crossfit
from probes.solvers.newton.newton_cg import ACCEPTED_TOL
from probes.solvers.problem import LogisticOptions
from probes.solvers.uncertified import UncertifiedFit, UncertifiedWarning, describe
from probes.splits.folds import k_fold
from probes.sweeps.description_length import online_code
from probes.sweeps.sweep import sweep

HUGE = 1e160
"""Size of activations whose inner products are no numbers."""


@pytest.fixture
def task(rng):
    """A site with a signal, one beyond all numbers; labels."""
    labels = np.arange(24) % 2
    x = rng.standard_normal((2, 24, 6))
    x[0, :, 0] += 2 * labels
    x[1] *= HUGE
    return x, labels


@pytest.fixture
def strict(monkeypatch):
    """A tolerance that no fit reaches, however good its answer is."""
    for kind in (torch.float64, torch.float32):
        monkeypatch.setitem(ACCEPTED_TOL, kind, 0.0)


def test_one_hopeless_site_costs_no_other(task):
    x, labels = task
    kinds = np.arange(24) // 2
    options = {"cv": 4, "permutations": 3, "control": kinds, "coefficients": True}
    with pytest.warns(UncertifiedWarning, match="site.1, labels, fold 0") as warned:
        found = sweep(x, labels, **options)
    assert len(warned) == 1
    alone = sweep(x[:1], labels, **options)
    np.testing.assert_array_equal(found.scores[0], alone.scores[0])
    np.testing.assert_array_equal(found.null_auc[:, 0], alone.null_auc[:, 0])
    assert alone.uncertified == () and "uncertified" not in repr(alone)
    # What is known of the other is that nothing is: its probes read nothing.
    assert (found.scores[1] == 0).all() and (found.coef[1] == 0).all()
    assert np.isinf(found.certificate[1]).all()
    assert len(found.uncertified) == 4 * (1 + 1 + 3)
    assert {fit.site for fit in found.uncertified} == {"site.1"}
    names = ["labels", "control task", *(f"permutation {k}" for k in range(3))]
    assert {(fit.name, fit.fold) for fit in found.uncertified} == {
        (name, fold) for name in names for fold in range(4)
    }
    assert found.to_frame()["uncertified"].tolist() == [0, 20]
    assert "20 fits uncertified" in repr(found)


def test_a_good_answer_without_a_certificate_is_kept(task, strict, monkeypatch):
    x, labels = task
    with pytest.warns(UncertifiedWarning):
        found = sweep(x[:1], labels, cv=4, permutations=2, rebalance=True)
    assert len(found.uncertified) == 4 * 3
    monkeypatch.undo()
    plain = sweep(x[:1], labels, cv=4, permutations=2, rebalance=True)
    np.testing.assert_allclose(found.scores, plain.scores, rtol=1e-6)
    np.testing.assert_allclose(found.null_auc, plain.null_auc)


def test_fits_that_chose_a_penalty_are_named_as_well(task):
    x, labels = task
    with pytest.warns(UncertifiedWarning):
        found = sweep(x, labels, cv=3, penalties=[0.1, 1.0])
    inner = [fit for fit in found.uncertified if fit.inner]
    assert len(found.uncertified) - len(inner) == 3
    assert len(inner) == 3 * 2 * 5
    assert {fit.inner for fit in inner} == {
        f"inner fold {fold} at C = {C}" for fold in range(5) for C in ("0.1", "1")
    }
    assert str(inner[0]) == "site.1, labels, fold 0, inner fold 0 at C = 0.1"


def test_one_fit_warns_and_keeps_what_was_found(task, strict, monkeypatch):
    x, labels = task[0][0], task[1]
    with pytest.warns(UncertifiedWarning, match="1 fit is not certified .* all rows;"):
        found = LogisticProbe().fit(x, labels)
    assert found.uncertified_ == (UncertifiedFit(found.certificate_, None, name="all rows"),)
    monkeypatch.undo()
    plain = LogisticProbe().fit(x, labels)
    assert plain.uncertified_ == ()
    np.testing.assert_allclose(found.coef_, plain.coef_, rtol=1e-6)


def test_held_out_scores_name_labels_and_folds_and_do_not_warn(task):
    x, labels = torch.from_numpy(task[0][1]), task[1]
    codes = torch.from_numpy(np.stack([labels, 1 - labels]))
    folds = k_fold(None, labels, 3)
    found = LogisticProbe().held_out(x, codes, 2, folds)
    assert [(fit.label, fit.fold) for fit in found.uncertified] == [
        (label, fold) for label in range(2) for fold in range(3)
    ]
    assert all(np.isinf(fit.certificate) for fit in found.uncertified)


def test_a_bound_that_rounding_keeps_above_the_tolerance_is_told(rng):
    """Near-copies with labels of their own and next to no penalty."""
    n, d = 16, 60
    x = rng.standard_normal((n, d)) * 1e3 * 10 ** rng.uniform(-3, 3, d)
    x[n // 2 :] = x[: n // 2] * (1 + 1e-12 * rng.standard_normal((n // 2, d)))
    codes = np.arange(n) // (n // 2)
    folds = k_fold(None, codes, 2)
    given = torch.from_numpy(x), torch.from_numpy(codes)[None], 2, folds
    found = crossfit(*given, LogisticOptions(C=1e12))
    assert len(found.uncertified) == found.n_uncertified == 2
    assert all(1e-8 < fit.certificate < 1e-3 for fit in found.uncertified)
    assert bool(torch.isfinite(found.scores).all())


def test_concept_vectors_and_what_is_made_of_them(task):
    x, labels = task
    concepts = concepts_of(np.where(labels, "yes", "no"))
    x = x[:1]
    entity = np.arange(24)
    folds = k_fold(None, labels, 3)
    plain = concept_vectors(x, concepts, "logistic")
    assert plain.uncertified == () and "uncertified" not in repr(plain)
    with pytest.MonkeyPatch.context() as patch:
        for kind in (torch.float64, torch.float32):
            patch.setitem(ACCEPTED_TOL, kind, 0.0)
        with pytest.warns(UncertifiedWarning, match="site.0, ") as warned:
            found = concept_vectors(x, concepts, "logistic")
        assert len(warned) == 1
        with pytest.warns(UncertifiedWarning, match="fold 0") as warned:
            apart = separability(x, concepts, folds, "logistic", draws=5)
        assert len(warned) == 1
        with pytest.warns(UncertifiedWarning, match="bootstrap 0") as warned:
            stability(x, concepts, "logistic", groups=entity, draws=2)
        assert len(warned) == 1
    named = {(fit.site, fit.name) for fit in found.uncertified}
    assert named == {("site.0", name) for name in concepts.names}
    assert f"{len(concepts)} fits uncertified" in repr(found)
    assert len(apart.uncertified) == 3 * len(concepts)
    np.testing.assert_allclose(found.vectors, plain.vectors, atol=1e-6)


def test_code_lengths_and_batteries_count_theirs(task):
    x, labels = task
    plain = online_code(x[0], labels, fractions=(0.5, 1.0))
    battery = refit_battery({"last": x[0]}, labels, folds=2, draws=5)
    assert plain.uncertified == battery.uncertified == ()
    with pytest.MonkeyPatch.context() as patch:
        for kind in (torch.float64, torch.float32):
            patch.setitem(ACCEPTED_TOL, kind, 0.0)
        with pytest.warns(UncertifiedWarning, match="blocks, fold 0"):
            found = online_code(x[0], labels, fractions=(0.5, 1.0))
        with pytest.warns(UncertifiedWarning, match="last, logistic") as warned:
            lost = refit_battery({"last": x[0]}, labels, folds=2, draws=5)
    assert len(warned) == 1
    assert found.bits == pytest.approx(plain.bits)
    assert len(found.uncertified) == 1
    assert len(lost.uncertified) == 2 * 5
    assert "10 fits uncertified" in repr(lost)
    np.testing.assert_allclose(lost.to_frame()["auc"], battery.to_frame()["auc"])


def test_columns_beyond_squares_are_still_scaled(task):
    """Their squares are no numbers; a scale of infinity would read nothing, unsaid."""
    x, labels = task
    for standardize in ("fold", "all"):
        probe = LogisticProbe(standardize=standardize)
        plain = sweep(x[:1], labels, probe=probe, cv=4)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = sweep(x[:1] * HUGE, labels, probe=probe, cv=4)
            tiny = sweep(x[:1] / HUGE, labels, probe=probe, cv=4)
        np.testing.assert_allclose(found.scores, plain.scores, rtol=1e-6)
        np.testing.assert_allclose(tiny.scores, plain.scores, rtol=1e-6)


def test_words_are_short():
    fits = [UncertifiedFit(10.0**-k, k, name="labels", site="resid.1") for k in range(5)]
    assert describe(fits[:0]) == ""
    assert describe(fits[3:4]) == (
        "1 fit is not certified to be at the optimum (within 1e-03 of it), and kept: "
        "resid.1, labels, fold 3"
    )
    assert describe(fits).endswith("resid.1, labels, fold 2; and 2 more")
    unknown = [UncertifiedFit(float("inf"), None, 4)]
    assert "how far is not known" in describe(unknown)
    assert "label vector 4" in describe(unknown)

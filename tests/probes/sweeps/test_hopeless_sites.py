"""A site that one probe cannot fit costs no other site, with any of the four probes."""

import warnings

import numpy as np
import pytest

from evidence.errors import InputError
from probes.estimators.base import DegenerateRows
from probes.estimators.lda import LDAProbe
from probes.estimators.logistic import LogisticProbe
from probes.estimators.nearest_mean import MeanDifferenceProbe
from probes.estimators.ridge import RidgeProbe
from probes.solvers import last_resort
from probes.solvers.uncertified import UncertifiedWarning
from probes.sweeps.sweep import sweep

ROWS = 16
LABELS = np.arange(ROWS) % 2
PROBES = [
    *(LogisticProbe(), RidgeProbe(), LDAProbe(), MeanDifferenceProbe()),
    *(LogisticProbe(standardize="fold"), LDAProbe(standardize="fold"), RidgeProbe(1e-12)),
]


def site(name: str) -> np.ndarray:
    """(row, 6) of one kind of trouble."""
    rng = np.random.default_rng(5)
    rows = rng.standard_normal((ROWS, 6))
    rows[:, 0] += LABELS
    first = np.arange(ROWS)[:, None] == 3
    return {
        "collinear": np.concatenate([rows[:, :3], 2 * rows[:, :3]], 1),
        "same rows, other labels": np.repeat(rows[: ROWS // 2], 2, 0),
        "separable": rows * 0 + 1e4 * LABELS[:, None] + 1e-9 * rows,
        "class means alone": np.repeat(LABELS[:, None] * 1.0, 6, 1),
        "all but one row constant": np.where(first, rows, 7.0),
        "one row far away": np.where(first, 1e12, 1e-3 * rows),
        "constant columns": np.where(np.arange(6) < 4, 7.3, rows),
        "scales": rows * 10.0 ** np.linspace(-150, 150, 6),
        "too large to square": rows * 1e160,
        "too large to add": np.sign(rows) * 1e308,
        "too small to square": rows * 1e-200,
    }[name]


TROUBLES = [
    *("collinear", "same rows, other labels", "separable", "class means alone"),
    *("all but one row constant", "one row far away", "constant columns", "scales"),
    *("too large to square", "too large to add", "too small to square"),
]


@pytest.mark.parametrize("probe", PROBES, ids=repr)
def test_results_are_whole_and_finite_whatever_one_site_holds(probe):
    good = np.random.default_rng(1).standard_normal((ROWS, 6)) + LABELS[:, None]
    options = {"cv": 4, "permutations": 2, "probe": probe, "draws": 5}
    alone = sweep(good[None], LABELS, **options)
    x = np.stack([good, *map(site, TROUBLES)])
    for coefficients in (False, True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UncertifiedWarning)
            found = sweep(x, LABELS, coefficients=coefficients, **options)
        for table in (found.scores, found.auc, found.null_auc, found.accuracy):
            assert np.isfinite(table).all()
        np.testing.assert_allclose(found.scores[0], alone.scores[0], atol=1e-7)
        assert not any(fit.site == "site.0" for fit in found.uncertified)
        assert {"site.1", "site.2", "site.7"}.isdisjoint(fit.site for fit in found.uncertified)
        if coefficients:
            assert found.coef is not None and np.isfinite(found.coef).all()


def test_an_unsolved_fold_is_named_and_scores_nothing():
    with pytest.warns(UncertifiedWarning, match="site.0, labels, fold 0"):
        found = sweep(site("too large to square")[None], LABELS, cv=4, probe=LDAProbe())
    assert len(found.uncertified) == 4 and (found.scores == 0).all()
    assert np.isinf(found.certificate).all()
    # A single fit has no other results to keep.
    for probe in (LDAProbe(), MeanDifferenceProbe()):
        with pytest.raises(DegenerateRows):
            probe.fit(site("too large to square"), LABELS)


def test_only_some_permutations_are_unsolved():
    """The real labels leave no covariance within classes; permuted ones do."""
    with pytest.warns(UncertifiedWarning):
        found = sweep(
            site("class means alone")[None], LABELS, cv=4, probe=LDAProbe(), permutations=3
        )
    assert {fit.name for fit in found.uncertified} == {"labels"}


@pytest.mark.parametrize("probe", [RidgeProbe(1e-3), LDAProbe(0.5)], ids=repr)
def test_where_squares_lose_the_digits_an_svd_solves(probe, monkeypatch):
    """Solutions with and without a Cholesky factor agree on rows that both can solve."""
    for rows in (site("collinear"), np.random.default_rng(2).standard_normal((ROWS, 40))):
        by_factor = probe.fit(rows, LABELS).coef_.copy()
        with monkeypatch.context() as patch:
            cholesky = "torch.linalg.cholesky_ex"
            patch.setattr(cholesky, lambda system: (system, system.new_ones((), dtype=int)))
            by_svd = probe.fit(rows, LABELS).coef_
        np.testing.assert_allclose(by_svd, by_factor, rtol=1e-6, atol=1e-9)


def test_parameters_are_still_refused():
    for probe in (LDAProbe(0.0), RidgeProbe(-1.0)):
        with pytest.raises(InputError, match="must be"):
            sweep(site("collinear")[None], LABELS, cv=4, probe=probe)


def test_the_last_resort_gives_up_on_hopeless_rows(monkeypatch):
    tried = []
    newton_fit = last_resort.newton_fit
    monkeypatch.setattr(
        last_resort, "newton_fit", lambda *given: tried.append(1) or newton_fit(*given)
    )
    monkeypatch.setattr(last_resort, "MAX_FAILURES", 3)
    with pytest.warns(UncertifiedWarning):
        found = sweep(site("too large to square")[None], LABELS, cv=4, permutations=5)
    assert len(found.uncertified) == 4 * 6 and (found.scores == 0).all()
    assert len(tried) <= 2 * 3  # the labels, then the permutations

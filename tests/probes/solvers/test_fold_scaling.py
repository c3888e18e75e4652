"""Folds with scales of their own, solved together and each on its own factor."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.testing import assert_close

from probes.solvers import crossfit as module
from probes.solvers.crossfit import CrossFit, crossfit
from probes.solvers.newton.newton_cg import ACCEPTED_TOL
from probes.solvers.problem import LogisticOptions
from probes.splits.folds import leave_one_group_out

CLOSE = 1e-7


def rows(n, d, seed):
    rng = np.random.default_rng(seed)
    codes = rng.permutation(np.arange(n) % 2)
    x = rng.normal(size=(n, d)) * np.exp(rng.normal(size=d)) + rng.normal(size=d)
    x[:, 0] += codes
    return torch.from_numpy(x), torch.from_numpy(codes)[None]


def alone(monkeypatch_context, fit: Callable[[], CrossFit]) -> CrossFit:
    """Every fold on a factor of its own."""
    monkeypatch_context.setattr(module, "_supports_fold_scaling", lambda job: False)
    return fit()


@settings(deadline=None, max_examples=25)
@given(
    st.integers(12, 40),
    st.integers(10, 60),
    st.integers(1, 3),
    st.sampled_from([0.01, 1.0, 100.0]),
    st.booleans(),
    st.sampled_from([torch.float64, torch.float32]),
    st.integers(0, 5),
)
def test_both_routes_reach_one_optimum(n, d, size, C, balanced, precision, seed):
    x, codes = rows(n, d, seed)
    folds = leave_one_group_out(np.arange(n) // size, n)
    options = LogisticOptions(C=C, balanced=balanced, standardize="fold", precision=precision)
    weight = torch.linspace(0.5, 2.0, n, dtype=torch.float64)
    fit = partial(crossfit, x, codes, 2, folds, options, sample_weight=weight, coefficients=True)
    together = fit()
    with pytest.MonkeyPatch.context() as patch:
        each = alone(patch, fit)
    assert together.n_uncertified == 0
    close = CLOSE if precision == torch.float64 else 3e-4
    scale = each.scores.abs().max()
    assert_close(together.scores / scale, each.scores / scale, rtol=close, atol=close)
    assert together.coef is not None and each.coef is not None
    largest = each.coef.abs().amax()
    assert_close(together.coef / largest, each.coef / largest, rtol=close, atol=close)
    assert_close(together.intercept, each.intercept, rtol=1e-3, atol=1e-5 * float(scale))


def test_no_fold_needs_a_factor_of_its_own(monkeypatch):
    x, codes = rows(60, 90, 0)
    monkeypatch.setattr(module, "fit_each_fold", lambda *_: pytest.fail("was needed"))
    found = crossfit(
        x,
        codes,
        2,
        leave_one_group_out(np.arange(60) // 2, 60),
        LogisticOptions(standardize="fold"),
    )
    assert bool((found.certificate <= ACCEPTED_TOL[torch.float64]).all())


def test_a_column_that_one_row_alone_moves_is_no_feature_where_it_is_out():
    x, codes = rows(30, 40, 1)
    x[:, 7] = 2.0
    x[4, 7] = 900.0
    folds = leave_one_group_out(np.arange(30), 30)
    found = crossfit(x, codes, 2, folds, LogisticOptions(standardize="fold"))
    assert found.n_uncertified == 0
    for row in (3, 4, 5):
        train = np.arange(30) != row
        model = make_pipeline(
            StandardScaler(), LogisticRegression(solver="newton-cholesky", tol=1e-10, max_iter=300)
        ).fit(x[train].numpy(), codes[0, train].numpy())
        expected = model.decision_function(x[row : row + 1].numpy())[0]
        if row == 4:
            # scikit-learn lets the held-out value through unscaled; its weight is 0.
            assert abs(float(found.scores[0, 0, row]) - expected) < 1e-5
        else:
            assert_close(float(found.scores[0, 0, row]), expected, rtol=CLOSE, atol=CLOSE)


def test_scores_that_went_astray_are_not_certified(monkeypatch):
    from probes.solvers import fold_scaling

    x, codes = rows(30, 40, 3)
    folds, options = (leave_one_group_out(np.arange(30), 30), LogisticOptions(standardize="fold"))
    want = crossfit(x, codes, 2, folds, options)
    step = fold_scaling.take_safeguarded_step

    def astray(batch, *args):
        batch.scores[:, :, 3] += 1e-6
        return step(batch, *args)

    monkeypatch.setattr(fold_scaling, "take_safeguarded_step", astray)
    redone = []
    each = module.fit_each_fold
    monkeypatch.setattr(
        module, "fit_each_fold", lambda job, left: (redone.extend(left), each(job, left))
    )
    found = crossfit(x, codes, 2, folds, options)
    assert len(redone) == 30
    assert_close(found.scores, want.scores, rtol=CLOSE, atol=CLOSE)


def test_the_scales_of_folds_keep_the_memory_budget(monkeypatch):
    x, codes = rows(30, 400, 4)
    folds = leave_one_group_out(np.arange(30), 30)
    want = crossfit(x, codes, 2, folds, LogisticOptions(standardize="fold")).scores
    taken = []
    refine = module.solve_rescaled

    def noting(batch, scales, *args):
        taken.append(scales.ratio.numel() * 8)
        return refine(batch, scales, *args)

    monkeypatch.setattr(module, "solve_rescaled", noting)
    spare = 60_000
    fixed = 8 * (3 * x.numel() + 4 * 30 * 30)
    options = LogisticOptions(standardize="fold", memory=fixed + spare)
    found = crossfit(x, codes, 2, folds, options).scores
    # Ratios, variances, weights and their products with the ratios.
    assert len(taken) > 1 and 4 * max(taken) <= spare
    assert_close(found, want, rtol=CLOSE, atol=CLOSE)


def test_several_label_vectors_are_each_solved():
    x, codes = rows(40, 50, 2)
    many = torch.cat([codes, codes.flip(1), codes.roll(3, 1)])
    folds = leave_one_group_out(np.arange(40), 40)
    options = LogisticOptions(standardize="fold")
    together = crossfit(x, many, 2, folds, options).scores
    for label in range(3):
        one = crossfit(x, many[label : label + 1], 2, folds, options).scores[0]
        assert_close(together[label], one)


def test_a_certificate_is_not_rounding_noise():
    """Nearly separable, more rows than columns: float32 products gave exactly 0 here.

    What is left of the residual lies where the factor sends it to nothing, and its
    product with itself came out below zero.
    """
    x, codes = rows(23, 12, 0)
    folds = leave_one_group_out(np.arange(23), 23)
    options = LogisticOptions(C=100.0, standardize="fold", precision=torch.float64)
    weight = torch.linspace(0.5, 2.0, 23, dtype=torch.float64)
    fit = partial(crossfit, x, codes, 2, folds, options, sample_weight=weight)
    together = fit()
    with pytest.MonkeyPatch.context() as patch:
        each = alone(patch, fit)
    assert together.n_uncertified == 0
    scale = each.scores.abs().max()
    assert_close(together.scores / scale, each.scores / scale, rtol=CLOSE, atol=CLOSE)

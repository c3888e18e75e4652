"""Label-free readers: against closed forms and refits, and blind to their own row."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.neighbors import KNeighborsClassifier
from torch.testing import assert_close

from evidence.errors import InputError
from probes.estimators.kernel_smoothers import FAMILIES, N_NEIGHBORS, PENALTY, smoother_matrices
from probes.estimators.nearest_mean import MeanDifferenceProbe
from probes.splits.folds import Folds, k_fold, leave_one_group_out


@pytest.fixture
def rows():
    rng = torch.Generator().manual_seed(3)
    return torch.randn(2, 24, 9, generator=rng, dtype=torch.float64) * 3 + 5


LABELS = np.tile([0, 1], 12)
SIGNS = torch.from_numpy(2.0 * LABELS - 1)
FOLDS = k_fold(None, LABELS, 4)


def standardized(x, train):
    inside = x[train]
    return (x - inside.mean(0)) / inside.std(0) / np.sqrt(x.shape[1])


def test_mean_difference_orders_rows_as_the_probe_refitted_in_each_fold(rows):
    ours = smoother_matrices(rows, FOLDS, ["mean difference"])[0] @ SIGNS
    labels = torch.from_numpy(LABELS)[None]
    for site in range(2):
        probe = MeanDifferenceProbe(standardize="fold")
        theirs = probe.held_out(rows[site], labels, 2, FOLDS).scores[0, 0]
        for test in FOLDS.test:
            here = torch.from_numpy(test)
            order = theirs[here].argsort()
            assert torch.equal(ours[site][here].argsort(), order)


def test_rbf_is_a_kernel_ridge_with_an_intercept(rows):
    ours = (smoother_matrices(rows, FOLDS, ["rbf"])[0] @ SIGNS)[0].numpy()
    for train, test in zip(FOLDS.train, FOLDS.test, strict=True):
        z = standardized(rows[0].numpy(), train)
        far = ((z[train][:, None] - z[train][None]) ** 2).sum(-1)
        upper = np.triu_indices(train.sum(), 1)
        width = torch.from_numpy(far[upper]).median().item()
        kernel = rbf_kernel(z, z[train], gamma=1 / width)
        inner = kernel[train]
        centering = np.eye(len(inner)) - 1 / len(inner)
        solid = centering @ inner @ centering
        model = KernelRidge(alpha=PENALTY * solid.trace() / len(inner), kernel="precomputed")
        outer = (kernel[test] - inner.mean(0)) @ centering
        expected = model.fit(solid, SIGNS.numpy()[train]).predict(outer)
        assert_close(ours[test], expected, rtol=1e-8, atol=1e-10)


def test_neighbours_vote_as_scikit_learns(rows):
    ours = (smoother_matrices(rows, FOLDS, ["neighbours"])[0] @ SIGNS)[1].numpy()
    for train, test in zip(FOLDS.train, FOLDS.test, strict=True):
        z = standardized(rows[1].numpy(), train)
        count = min(N_NEIGHBORS, train.sum() // 4)
        model = KNeighborsClassifier(count).fit(z[train], LABELS[train])
        expected = 2 * model.predict_proba(z[test])[:, 1] - 1
        assert_close(ours[test], expected, rtol=0, atol=1e-12)


def test_the_network_kernel_is_that_of_many_random_rectifiers(rows):
    """Its prediction is the limit of ridge on wide random features."""
    x = rows[:1, :, :4]
    ours = (smoother_matrices(x, FOLDS, ["network, 1 layer"])[0] @ SIGNS)[0].numpy()
    rng = np.random.default_rng(0)
    for train, test in zip(FOLDS.train, FOLDS.test, strict=True):
        z = standardized(x[0].numpy(), train)
        z = np.column_stack([z, np.ones(len(z))])
        wide = np.maximum(z @ rng.standard_normal((5, 200_000)), 0)
        kernel = 2 * wide @ wide[train].T / wide.shape[1]
        inner = kernel[train]
        centering = np.eye(len(inner)) - 1 / len(inner)
        solid = centering @ inner @ centering
        solid += PENALTY * solid.trace() / len(inner) * np.eye(len(inner))
        outer = (kernel[test] - inner.mean(0)) @ centering
        expected = outer @ np.linalg.solve(solid, SIGNS.numpy()[train])
        assert np.abs(ours[test] - expected).max() < 0.03


@given(st.integers(0, 23), st.sampled_from(FAMILIES))
@settings(max_examples=24, deadline=None)
def test_no_reader_sees_the_label_of_a_row_it_scores(row, family):
    rng = torch.Generator().manual_seed(row)
    x = torch.randn(1, 24, 5, generator=rng, dtype=torch.float64)
    weights = smoother_matrices(x, FOLDS, [family])[0, 0]
    for test in FOLDS.test:
        inside = torch.from_numpy(test)
        assert not weights[inside][:, inside].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_separable_label_is_found_and_units_do_not_matter(family):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(1, 24, 3, generator=rng, dtype=torch.float64)
    x[0] += 4 * SIGNS[:, None]
    scores = (smoother_matrices(x, FOLDS, [family])[0, 0] @ SIGNS) * SIGNS
    assert bool((scores > 0).all())
    other = x * torch.tensor([1e-3, 1.0, 1e3]) + torch.tensor([5.0, 0.0, -7.0])
    assert_close(
        smoother_matrices(other, FOLDS, [family]),
        smoother_matrices(x, FOLDS, [family]),
        rtol=1e-6,
        atol=1e-8,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_rows_read_nothing(family):
    x = torch.full((1, 24, 3), 7.0, dtype=torch.float64)
    scores = smoother_matrices(x, FOLDS, [family])[0, 0] @ SIGNS
    assert float(scores.std()) < 1e-9


def test_every_site_is_as_if_alone(rows):
    together = smoother_matrices(rows, leave_one_group_out(None, 24))
    for site in range(2):
        alone = smoother_matrices(rows[site : site + 1], leave_one_group_out(None, 24))
        assert_close(together[:, site], alone[:, 0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"families": ["svm"]}, "no family 'svm'"),
        ({"penalty": 0.0}, "penalty must be > 0"),
        ({"x": torch.zeros(2, 5, 3)}, r"Expected \(site, 24, d\)"),
        ({"x": torch.zeros(24, 3)}, r"Expected \(site, 24, d\)"),
    ],
)
def test_bad_input_is_one_clear_error(rows, change, message):
    given = {"x": rows, "folds": FOLDS} | change
    with pytest.raises(InputError, match=message):
        smoother_matrices(given.pop("x"), given.pop("folds"), **given)


def test_a_row_that_no_fold_scores_gets_nothing(rows):
    test = np.zeros((1, 24), dtype=bool)
    test[0, :4] = True
    weights = smoother_matrices(rows, Folds(~test, test, "one"), ["rbf"])
    assert not weights[:, :, 4:].any()

"""Erasers that know the label: least-squares residuals, and equal Gaussians."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from sklearn.linear_model import LinearRegression
from torch.testing import assert_close

from erasure.concept.label_aware import OracleLeace, QuadraticLeace
from erasure.concept.moments import Moments
from evidence.arrays import RowsError
from tests.helpers.concept_rows import labelled, mean_gap, peer


@pytest.mark.parametrize("classes", [2, 4, None])
def test_the_oracle_takes_what_a_regression_on_the_concept_predicts(rng, classes):
    rows, labels = labelled(rng, classes=classes or 2)
    target = rng.standard_normal((300, 3)) + rows[:, :3] if classes is None else labels
    design = target if classes is None else np.eye(classes)[labels]
    oracle = OracleLeace.fit(rows, target)
    predicted = LinearRegression().fit(design, rows).predict(design)
    assert_close(oracle.transform(rows, target), rows - predicted + rows.mean(0))
    assert oracle.rank_ == (3 if classes is None else classes - 1)


def test_the_oracle_serves_sites_chunks_tensors_and_files(rng, tmp_path):
    rows, labels = labelled(rng, sites=2, classes=3)
    after = OracleLeace.fit(rows, labels).transform(rows, labels)
    assert mean_gap(after, labels) < 1e-12
    moments = Moments(classes=range(3)).update(rows[:, :50], labels[:50])
    oracle = OracleLeace.fit_moments(moments.update(rows[:, 50:], labels[50:]))
    assert_close(oracle.transform(rows, labels), after)
    x, z = torch.from_numpy(rows).float(), torch.from_numpy(labels)
    assert oracle.transform(x, z).dtype == torch.float32
    oracle.save(tmp_path / "oracle.safetensors")
    loaded = OracleLeace.load(tmp_path / "oracle.safetensors")
    assert loaded.rank_ == oracle.rank_ == (2, 2)
    some = slice(0, 7)
    assert np.array_equal(
        loaded.transform(rows[:, some], labels[some]), oracle.transform(rows[:, some], labels[some])
    )


def two_covariances(rng, classes=2, n=400, d=4, sites=None):
    labels = np.arange(n) % classes
    mixing = rng.standard_normal((sites or 1, classes, d, d))
    rows = rng.standard_normal((sites or 1, n, d))
    rows = np.einsum("sni,snij->snj", rows, mixing[:, labels]) + labels[:, None]
    return (rows if sites else rows[0]), labels


@pytest.mark.parametrize("classes", [2, 3])
def test_after_quadratic_erasure_classes_share_mean_and_covariance(rng, classes):
    rows, labels = two_covariances(rng, classes)
    after = QuadraticLeace.fit(rows, labels).transform(rows, labels)
    assert mean_gap(after, labels) < 1e-12
    assert_close(after.mean(0), rows.mean(0))
    first, *others = (np.cov(after[labels == c].T, bias=True) for c in range(classes))
    for other in others:
        assert_close(other, first, rtol=1e-7, atol=1e-7 * np.abs(first).max())
    before = [np.cov(rows[labels == c].T, bias=True) for c in range(classes)]
    assert np.abs(before[0] - before[1]).max() > 0.5 * np.abs(before[0]).max()


def test_two_gaussians_meet_where_the_closed_form_says(rng):
    """The midpoint of two by optimal transport: ((I + T) / 2) A ((I + T) / 2)."""
    rows, labels = two_covariances(rng)
    after = QuadraticLeace.fit(rows, labels).transform(rows, labels)
    a, b = (np.cov(rows[labels == c].T, bias=True) for c in range(2))
    root = np.real(sqrtm(a))
    inverse = np.linalg.inv(root)
    transport = inverse @ np.real(sqrtm(root @ b @ root)) @ inverse
    half = (np.eye(4) + transport) / 2
    found = np.cov(after[labels == 0].T, bias=True)
    assert_close(found, half @ a @ half, rtol=1e-6, atol=1e-6)


def test_equal_classes_are_moved_as_the_peer_moves_them(rng):
    rows, labels = two_covariances(rng)
    x, z = torch.from_numpy(rows), torch.from_numpy(labels)
    theirs = peer().QuadraticEraser.fit(x, z, shrinkage=False)(x, z)
    ours = QuadraticLeace.fit(x, z).transform(x, z)
    assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_mean_stays_with_unequal_classes_where_the_peer_moves_it(rng):
    rows, labels = two_covariances(rng)
    labels = np.where(np.arange(400) < 300, 0, 1)
    x, z = torch.from_numpy(rows + labels[:, None]), torch.from_numpy(labels)
    ours = QuadraticLeace.fit(x, z).transform(x, z)
    assert_close(ours.mean(0), x.mean(0))
    theirs = peer().QuadraticEraser.fit(x, z, shrinkage=False)(x, z)
    assert (theirs.mean(0) - x.mean(0)).abs().max() > 0.1


def test_features_that_depend_on_others_are_left_to_their_span(rng, tmp_path):
    rows, labels = two_covariances(rng, sites=2)
    rows = np.concatenate([rows, rows[..., :1] + rows[..., 1:2]], 2)
    quadratic = QuadraticLeace.fit(rows, labels)
    after = quadratic.transform(rows, labels)
    assert_close(after[..., 4], after[..., 0] + after[..., 1])
    assert mean_gap(after, labels) < 1e-10
    quadratic.save(tmp_path / "quadratic.safetensors")
    loaded = QuadraticLeace.load(tmp_path / "quadratic.safetensors")
    assert np.array_equal(loaded.transform(rows, labels), after)
    assert loaded.rank_ == quadratic.rank_ == (4, 4)


def test_a_class_with_too_few_rows_is_refused(rng):
    rows, labels = two_covariances(rng)
    labels = np.where(np.arange(400) < 3, 1, 0)
    with pytest.raises(RowsError, match="class 1 varies"):
        QuadraticLeace.fit(rows, labels)


@pytest.mark.parametrize("kind", [OracleLeace, QuadraticLeace])
def test_rows_and_labels_that_do_not_fit_are_refused(rng, kind):
    rows, labels = two_covariances(rng)
    eraser = kind.fit(rows, labels)
    with pytest.raises(RowsError, match="do not fit the eraser"):
        eraser.transform(rows[:, :3], labels)
    with pytest.raises(RowsError, match="do not fit the eraser"):
        eraser.transform(rows[None], labels)
    with pytest.raises(RowsError, match="not one of the known"):
        eraser.transform(rows, labels + 1)
    with pytest.raises(RowsError, match="NaN or infinite"):
        kind.fit(rows * np.nan, labels)


def test_the_oracle_of_numbers_refuses_another_count(rng):
    rows, _ = labelled(rng)
    oracle = OracleLeace.fit(rows, rows[:, :2])
    with pytest.raises(RowsError, match="differs from the fitted one"):
        oracle.transform(rows, rows[:, :3])
    with pytest.raises(RowsError, match="differs from the fitted one"):
        oracle.transform(rows, np.zeros(300, int))

"""Moments gathered in chunks are the moments of all the rows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

import erasure.concept.moments
from erasure.concept.moments import Moments
from evidence.arrays import RowsError
from tests.helpers.concept_rows import labelled, onehot


def check_against_numpy(moments, rows, target, rtol=1e-10):
    tables = rows if rows.ndim == 3 else rows[None]
    for site, table in enumerate(tables):
        both = np.cov(np.hstack([table, target]).T, bias=True)
        d = table.shape[1]
        scale = np.abs(both).max()
        expected = {"xx": both[:d, :d], "xz": both[:d, d:], "zz": both[d:, d:]}
        assert_close(moments.cov_xx[site].numpy(), expected["xx"], rtol=0, atol=rtol * scale)
        assert_close(moments.cov_xz[site].numpy(), expected["xz"], rtol=0, atol=rtol * scale)
        assert_close(moments.cov_zz.numpy(), expected["zz"], rtol=0, atol=rtol)
        assert_close(moments.mean_x[site].numpy(), table.mean(0))
    assert_close(moments.mean_z.numpy(), target.mean(0))


@settings(max_examples=25, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 59), max_size=4, unique=True),
    seed=st.integers(0, 99),
    order=st.randoms(use_true_random=False),
)
def test_chunks_of_any_size_and_order_give_numpys_covariance(cuts, seed, order):
    rng = np.random.default_rng(seed)
    rows, labels = labelled(rng, n=60, d=5, classes=3, sites=2)
    parts = [*np.split(np.arange(60), sorted(cuts))]
    order.shuffle(parts)
    moments = Moments(classes=[0, 1, 2])
    for part in parts:
        moments.update(rows[:, part], labels[part])
    assert moments.count == 60
    check_against_numpy(moments, rows, onehot(labels))


def test_wide_rows_are_multiplied_in_blocks_and_pieces(rng, monkeypatch):
    """More columns than a block, more rows than a piece, several sites a piece."""
    rows, labels = labelled(rng, n=700, d=200, sites=3)
    check_against_numpy(Moments().update(rows, labels), rows, onehot(labels))
    monkeypatch.setitem(erasure.concept.moments.CHUNK_BYTES, "cpu", 8 * 200 * 1500)
    check_against_numpy(Moments().update(rows, labels), rows, onehot(labels))


def test_a_large_offset_costs_no_digits(rng):
    rows, labels = labelled(rng, n=400, d=6, offset=0.0)
    far = rows + 1e7
    moments = Moments().update(far[:3], labels[:3]).update(far[3:], labels[3:])
    assert_close(
        moments.cov_xx[0].numpy(),
        np.cov((far - 1e7).T, bias=True),
        rtol=1e-9,
        atol=1e-9 * np.abs(rows).max() ** 2,
    )


def test_two_that_gathered_apart_are_one(rng):
    rows, labels = labelled(rng, n=90, classes=3)
    first = Moments(classes=[0, 1, 2]).update(rows[:20], labels[:20])
    second = Moments(classes=[0, 1, 2]).update(rows[20:], labels[20:])
    check_against_numpy(first.merge(second), rows, onehot(labels))


def test_numbers_and_many_columns(rng):
    rows, _ = labelled(rng)
    target = rng.standard_normal((300, 4))
    check_against_numpy(Moments().update(rows, target), rows, target)
    flat = Moments().update(rows, target[:, 0])
    check_against_numpy(flat, rows, target[:, :1])


@pytest.mark.parametrize(
    "kind", [np.float32, np.float16, torch.float32, torch.float16, torch.bfloat16]
)
def test_every_floating_type_and_text_labels(rng, kind):
    rows, labels = labelled(rng)
    names = np.array(["no", "yes"])[labels]
    if isinstance(kind, torch.dtype):
        given_rows = torch.from_numpy(rows).to(kind)
        plain = given_rows.double().numpy()
    else:
        given_rows = rows.astype(kind)
        given_rows.setflags(write=False)
        plain = given_rows.astype(float)
    moments = Moments().update(given_rows, names)
    assert moments.classes is not None
    assert list(moments.classes) == ["no", "yes"]
    check_against_numpy(moments, plain, onehot(labels))


def test_float32_products_are_nearly_those_of_float64(rng):
    rows, labels = labelled(rng, n=2000, d=40)
    exact = Moments().update(rows, labels)
    quick = Moments(precision=torch.float32).update(rows, labels)
    error = (exact.cov_xx - quick.cov_xx).abs().max() / exact.cov_xx.abs().max()
    assert 0 < error < 1e-5
    assert torch.equal(exact.cov_xz, quick.cov_xz)


X, Z = np.random.default_rng(1).standard_normal((20, 4)), np.arange(20) % 2


@pytest.mark.parametrize(
    ("x", "z", "words"),
    [
        (np.where(X > 2, np.nan, X), Z, "NaN or infinite values"),
        (np.where(X > 2, np.inf, X), Z, "NaN or infinite values"),
        (X[0], Z, "rows of activations"),
        (X[:0], Z[:0], "rows of activations"),
        (X.astype(str), Z, "real numbers"),
        (X, Z[1:], "Expected 20; got 19"),
        (X, np.ones((19, 2)), "Expected 20; got 19"),
        (X, np.full(20, np.nan), "contains NaN"),
        (X, np.zeros(20, int), "only one class"),
        (X, np.array(["a", 1] * 10, dtype=object), "several types"),
    ],
)
def test_bad_rows_are_refused_in_one_sentence(x, z, words):
    with pytest.raises(RowsError, match=words):
        Moments().update(x, z)


@pytest.mark.parametrize(
    ("x", "z", "words"),
    [
        (X[:, :3], Z, "does not fit the earlier ones"),
        (X[None], Z, "does not fit the earlier ones"),
        (X, Z + 1, "not one of the known"),
        (X, X[:, :2], "one label an item"),
        (np.full_like(X, np.nan), Z, "NaN"),
    ],
)
def test_a_chunk_that_does_not_fit_changes_nothing(x, z, words):
    moments = Moments().update(X, Z)
    before = moments.cov_xx.clone(), moments.count
    with pytest.raises(RowsError, match=words):
        moments.update(x, z)
    assert torch.equal(moments.cov_xx, before[0])
    assert moments.count == before[1]


def test_classes_do_not_follow_numbers():
    moments = Moments().update(X, X[:, :2])
    for target in (Z, X[:, :1]):
        with pytest.raises(RowsError, match="does not fit the earlier ones"):
            moments.update(X, target)


def test_nothing_gathered_and_unlike_parts_are_refused():
    with pytest.raises(RowsError, match="moments are empty"):
        _ = Moments().cov_xx
    with pytest.raises(RowsError, match="moments are empty"):
        Moments().merge(Moments().update(X, Z))
    with pytest.raises(RowsError, match="different sites"):
        Moments().update(X, Z).merge(Moments().update(X[:, :2], Z))
    with pytest.raises(RowsError, match="different sites"):
        Moments().update(X, Z).merge(Moments().update(X, X[:, :2]))
    with pytest.raises(RowsError, match="precision"):
        Moments(precision=torch.float16)

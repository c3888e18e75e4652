"""Geometry against definitions, scipy and invariances."""

import numpy as np
import pytest
import scipy.linalg
import torch

from evidence.errors import InputError
from probes.cka import cka_matrix, debiased_cka
from probes.subspaces import (
    change_in_top_components,
    cosine,
    mahalanobis_cosine,
    principal_angles,
    procrustes,
)


def slow_cka(x, y):
    def hsic(k, m):
        n = len(k)
        k, m = k.copy(), m.copy()
        np.fill_diagonal(k, 0)
        np.fill_diagonal(m, 0)
        value = np.trace(k @ m) + k.sum() * m.sum() / ((n - 1) * (n - 2))
        return (value - 2 * (k @ m).sum() / (n - 2)) / (n * (n - 3))

    k, m = x @ x.T, y @ y.T
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def test_cosines(rng):
    a, b = rng.standard_normal((2, 6))
    rows = rng.standard_normal((50, 6)) @ rng.standard_normal((6, 6))
    expected = np.corrcoef(rows @ a, rows @ b)[0, 1]
    assert mahalanobis_cosine(a, b, np.cov(rows.T)) == pytest.approx(expected)
    assert cosine(a, -2 * a) == pytest.approx(-1)
    with pytest.raises(InputError, match="zero length"):
        cosine(a, 0 * b)


def test_principal_angles_match_scipy(rng):
    a, b = rng.standard_normal((2, 9)), rng.standard_normal((3, 9))
    expected = np.sort(scipy.linalg.subspace_angles(a.T, b.T))
    np.testing.assert_allclose(principal_angles(a, b), expected, rtol=1e-10)
    tilted = a + 1e-9 * rng.standard_normal((2, 9))
    assert 1e-11 < principal_angles(a, tilted).max() < 1e-8


def test_procrustes_sees_no_rotation_shift_or_scale(rng):
    x = rng.standard_normal((20, 30))
    rotated = 3 * x @ np.linalg.qr(rng.standard_normal((30, 30)))[0] + 5
    assert procrustes(x, rotated) < 1e-12
    other = rng.standard_normal((20, 4))
    a, b = x - x.mean(0), other - other.mean(0)
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    expected = 2 - 2 * np.linalg.norm(a.T @ b, "nuc")
    assert procrustes(x, other) == pytest.approx(expected)


@pytest.mark.parametrize("n", [4, 37, 300])
def test_cka_matches_the_definition_in_any_blocks(n, rng):
    base = rng.standard_normal((n, 12))
    sites = np.stack([base @ rng.standard_normal((12, 8)) for _ in range(4)])
    expected = [[slow_cka(a, b) for b in sites] for a in sites]
    for memory in (1 << 28, 1 << 15):
        got = cka_matrix(sites, precision=torch.float64, memory=memory)
        np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-10)
    assert debiased_cka(sites[0], sites[1]) == pytest.approx(expected[0][1])


def test_float32_cka_survives_a_large_mean(rng):
    x = rng.standard_normal((3, 200, 40)) + 300.0
    exact = cka_matrix(x, precision=torch.float64)
    assert np.abs(cka_matrix(x) - exact).max() < 2e-6


def test_cka_takes_sites_of_any_size_and_width(rng):
    base = rng.standard_normal((300, 6))
    tables = {"a": 1e100 * base, "b": base @ rng.standard_normal((6, 40)), "c": base}

    class Store:
        sites = tuple(tables)

        def site(self, name):
            return tables[name]

    got = cka_matrix(Store())
    assert got[0, 1] == pytest.approx(slow_cka(base, tables["b"]), abs=2e-6)
    assert got[0, 2] == pytest.approx(1.0)


def test_unrelated_rows_have_no_cka(rng):
    x = rng.standard_normal((30, 100, 50))
    off = cka_matrix(x)[np.triu_indices(30, 1)]
    # Biased CKA would be near 0.33 here.
    assert abs(off.mean()) < 0.01


def test_cka_refuses_constant_rows(rng):
    with pytest.raises(InputError, match="equal rows"):
        cka_matrix(np.ones((2, 10, 3)))


def test_change_in_the_components_it_was_made_in(rng):
    x = rng.standard_normal((50, 10)) * np.arange(10, 0, -1)
    basis = np.linalg.svd(x - x.mean(0))[2]
    inside = x + rng.standard_normal((50, 2)) @ basis[:2]
    assert change_in_top_components(x, inside, 2) == pytest.approx(1)
    assert change_in_top_components(x, inside, 1) < 0.9
    outside = x + rng.standard_normal((50, 3)) @ basis[5:8]
    assert change_in_top_components(x, outside, 2) < 1e-20
    with pytest.raises(InputError, match="the activations are equal"):
        change_in_top_components(x, x, 2)

"""MD-PGA against its definition, its theorem, and on classes that differ in nothing."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from erasure.concept.md_pga import MdPgaProjection, fit_md_pga
from evidence.errors import InputError

LABELS = torch.tensor([1] * 30 + [0] * 50)


@pytest.fixture
def states():
    rng = torch.Generator().manual_seed(5)
    x = torch.randn(3, 80, 6, generator=rng, dtype=torch.float64)
    x[:, :30, 0] += 2.0
    x[:, :30, 1] *= 4.0
    return x * torch.tensor([1.0, 2.0, 5.0, 0.1, 3.0, 1.0]) + 7.0


def test_the_basis_is_that_of_the_matrix_in_the_paper(states):
    found = fit_md_pga(states, LABELS, 2)
    x = states[1].numpy()
    z = (x - x.mean(0)) / x.std(0)
    ours, theirs = z[:30], z[30:]
    gap = ours.mean(0) - theirs.mean(0)
    matrix = np.outer(gap, gap) + np.cov(ours.T, bias=True) - np.cov(theirs.T, bias=True)
    values, vectors = np.linalg.eigh(matrix)
    top = vectors[:, np.argsort(-np.abs(values))[:2]]
    basis = found.basis[1].numpy()
    assert_close(basis.T @ basis, top @ top.T, rtol=1e-9, atol=1e-9)


def test_what_is_projected_out_is_gone_and_the_rest_is_as_it_was(states):
    found = fit_md_pga(states, LABELS, 2)
    after = found.transform(states)
    for site in range(3):
        scale, basis = found.scale[site], found.basis[site]
        seen = ((after[site] - found.center[site]) / scale) @ basis.T
        assert float(seen.abs().max()) < 1e-12
        moved = (after[site] - states[site]) / scale
        assert_close(moved - (moved @ basis.T) @ basis, 0 * moved, rtol=0, atol=1e-12)
    assert_close(found.transform(after), after, rtol=0, atol=1e-10)


def test_all_directions_leave_the_mean_alone(states):
    found = fit_md_pga(states, LABELS, 6)
    after = found.transform(states)
    assert_close(after, found.center[:, None].expand_as(after), rtol=0, atol=1e-9)


def test_units_do_not_matter(states):
    factor = torch.tensor([1e-4, 1.0, 50.0, 1.0, 2.0, 1.0])
    plain = fit_md_pga(states, LABELS).transform(states)
    scaled = fit_md_pga(states * factor, LABELS).transform(states * factor)
    assert_close(scaled / factor, plain, rtol=1e-7, atol=1e-9)


def test_a_mean_gap_alone_is_the_first_direction():
    rng = torch.Generator().manual_seed(0)
    half = torch.randn(40, 5, generator=rng, dtype=torch.float64)
    gap = torch.tensor([0.0, 3.0, 0.0, 0.0, 0.0])
    x = torch.cat([half + gap, half])[None]  # equal covariances
    found = fit_md_pga(x, torch.tensor([1] * 40 + [0] * 40), 1)
    direction = found.basis[0, 0].abs()
    assert direction.argmax() == 1 and float(direction[1]) > 0.99


def test_a_constant_column_is_left_alone(states):
    states[:, :, 4] = 3.0
    after = fit_md_pga(states, LABELS).transform(states)
    assert bool((after[:, :, 4] == 3.0).all())


def test_saved_and_loaded_it_is_the_same(states, tmp_path):
    found = fit_md_pga(states, LABELS)
    found.save(tmp_path / "md.safetensors")
    loaded = MdPgaProjection.load(tmp_path / "md.safetensors")
    assert torch.equal(loaded.transform(states), found.transform(states))
    assert loaded.rank_ == 2


def test_one_site_in_half_precision_stays_in_it(states):
    found = fit_md_pga(states, LABELS)
    low = states[0].to(torch.bfloat16)
    assert found.transform(low, 0).dtype == torch.bfloat16
    wide = found.transform(states[0].reshape(4, 20, 6), 0)
    assert_close(wide.reshape(80, 6), found.transform(states)[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k cannot be used"),
        ({"k": 7}, "k cannot be used"),
        ({"labels": LABELS[:5]}, "rows and labels differ in number"),
        ({"labels": torch.ones(80)}, "each class needs rows"),
        ({"labels": LABELS + 1}, "must say which rows are members"),
    ],
)
def test_bad_input_is_one_clear_error(states, change, message):
    given = {"states": states, "labels": LABELS} | change
    with pytest.raises(InputError, match=message):
        fit_md_pga(**given)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(states, value):
    states[1, 3, 2] = value
    with pytest.raises(InputError, match="NaN or infinite"):
        fit_md_pga(states, LABELS)


def test_rows_of_another_width_are_refused(states):
    found = fit_md_pga(states, LABELS)
    with pytest.raises(InputError, match="do not fit this projection"):
        found.transform(states[:, :, :3])
    with pytest.raises(InputError, match="do not fit this projection"):
        found.transform(states[0])

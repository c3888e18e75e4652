"""Codes, scales and what they leave of an edit; another library where it is there."""

import importlib
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from erasure.weights.quantization import (
    FP4,
    NF4,
    SCHEMES,
    edit_survival,
    linear_weights,
    quantize,
    quantize_,
)
from evidence.errors import InputError
from tests.helpers.tiny_erasure import tiny_gpt2, tiny_llama, tiny_neox


def gaussian(*shape, seed=0, size=0.02):
    rng = torch.Generator().manual_seed(seed)
    return size * torch.randn(*shape, generator=rng)


def test_nf4_levels_are_quantiles_of_a_normal():
    """QLoRA: seven and eight evenly spaced quantiles on the two sides of zero."""
    from scipy.stats import norm

    offset = 0.9677083
    above = norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    below = -norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    expected = np.sort(np.concatenate([above, below, [0.0]])) / above.max()
    assert np.allclose(NF4, expected, atol=1e-6)


def test_fp4_levels_are_a_sign_two_exponent_bits_and_one_of_mantissa():
    # Bias 1 over 12: normal numbers 2^e (1 + m / 2), and one small subnormal.
    normal = [2.0**e * (1 + m / 2) for e in (1, 2, 3) for m in (0, 1)]
    sizes = [size / 12 for size in sorted(normal) if size / 12 <= 1.0]
    assert sorted(size for size in FP4 if size > 0.01) == pytest.approx(sizes)
    assert sum(abs(size) < 0.01 for size in FP4) == 3
    assert len(FP4) == 15  # -0 and 0 are one value


# Double quantisation moves the scales after the codes are chosen.
@pytest.mark.parametrize("scheme", [each for each in SCHEMES if each != "nf4-double"])
def test_each_weight_gets_the_nearest_level_of_its_block(scheme):
    weight = gaussian(24, 128)
    found = quantize(weight, scheme)
    distances = (weight[..., None] - found.levels * found.scales[..., None]).abs()
    nearest = distances.min(-1).values
    assert torch.allclose((found.values - weight).abs(), nearest, atol=1e-7)
    assert (found.bin_widths > 0).all()


@pytest.mark.parametrize(
    ("scheme", "error"),
    # int8: steps of a 127th of a row's largest, uniform over each: 3.25 / 127 / 12^0.5.
    [("nf4", 0.092), ("nf4-double", 0.092), ("fp4", 0.122), ("int8", 0.0074)],
)
def test_the_error_on_gaussian_weights_is_the_known_one(scheme, error):
    weight = gaussian(256, 512)
    left = (quantize(weight, scheme).values - weight).norm() / weight.norm()
    assert float(left) == pytest.approx(error, rel=0.1)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["nf4", "fp4", "int8"]),
    st.integers(1, 9),
    st.integers(1, 150),
    st.integers(0, 1000),
)
def test_quantising_twice_is_quantising_once(scheme, rows, columns, seed):
    # Also where the size does not divide the block: the last one is shorter.
    once = quantize(gaussian(rows, columns, seed=seed), scheme)
    twice = quantize(once.values, scheme)
    assert torch.equal(once.codes, twice.codes)
    assert torch.allclose(once.values, twice.values, atol=1e-9)


def test_zeros_stay_zeros_and_the_sign_does_not_matter():
    weight = gaussian(4, 128)
    weight[1] = 0
    for scheme in ("nf4", "fp4", "int8"):
        assert quantize(weight, scheme).values[1].eq(0).all()
    for scheme in ("fp4", "int8"):
        negated = quantize(-weight, scheme).values
        assert torch.equal(negated, -quantize(weight, scheme).values)


def test_double_quantisation_moves_scales_by_little():
    weight = gaussian(64, 1024)
    plain, double = quantize(weight, "nf4"), quantize(weight, "nf4-double")
    assert torch.equal(plain.codes, double.codes)
    share = double.scales / plain.scales
    assert 1e-6 < float((share - 1).abs().max()) < 0.05


def in_bins(weight, share, seed=1):
    """An edit of random directions whose root mean square is so many bins."""
    width = float(quantize(weight).bin_widths.mean())
    edit = gaussian(*weight.shape, seed=seed, size=1.0)
    return weight + edit * (share * width / edit.square().mean().sqrt())


def test_an_edit_of_a_hundredth_of_a_bin_is_rounded_away():
    weight = gaussian(256, 512)
    left = edit_survival(weight, in_bins(weight, 0.01))
    assert left.bins == pytest.approx(0.01, rel=1e-3)
    assert left.same_codes > 0.98
    assert left.fidelity < 0.2


def test_an_edit_of_ten_bins_is_not():
    weight = gaussian(256, 512)
    left = edit_survival(weight, in_bins(weight, 10))
    assert left.bins == pytest.approx(10, rel=1e-3)
    assert left.same_codes < 0.15
    assert left.fidelity > 0.98


def test_an_edit_inside_the_bins_leaves_exactly_nothing():
    grid = quantize(gaussian(64, 128))
    inner = (grid.codes > 0) & (grid.codes < 15)
    edit = 0.3 * grid.bin_widths * gaussian(64, 128, seed=3, size=1.0).clamp(-1, 1) * inner
    left = edit_survival(grid.values, grid.values + edit)
    assert (left.same_codes, left.fidelity) == (1.0, 0.0)
    assert 0.05 < left.bins < 0.3
    assert edit_survival(grid.values, grid.values) == edit_survival(grid.values, grid.values)
    assert edit_survival(grid.values, grid.values).edited == 0.0


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2, tiny_neox])
def test_all_linear_maps_but_the_head_are_quantized(make):
    model = make()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    changed = set(quantize_(model))
    moved = {
        name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])
    }
    assert moved == changed == set(linear_weights(model))
    assert len(changed) >= 4 * 3
    assert not any("embed" in name or "head" in name or "wte" in name for name in moved)


def test_conv1d_is_quantized_as_the_linear_map_it_is():
    model = tiny_gpt2()
    name, (weight, transposed) = next(iter(linear_weights(model).items()))
    expected = quantize(weight.T.clone()).values.T
    quantize_(model)
    assert transposed
    assert torch.equal(model.get_parameter(name), expected)


def test_what_cannot_be_quantized_is_refused():
    with pytest.raises(InputError, match="scheme or block size"):
        quantize(gaussian(4, 4), "int3")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="scheme or block size"):
        quantize(gaussian(4, 4), "nf4", block=0)
    with pytest.raises(InputError, match="finite"):
        quantize(torch.full((2, 2), torch.nan))
    with pytest.raises(InputError, match="finite"):
        quantize(gaussian(4))
    with pytest.raises(InputError, match="differ in shape"):
        edit_survival(gaussian(4, 4), gaussian(4, 8))
    with pytest.raises(InputError, match="no linear maps"):
        quantize_(torch.nn.LayerNorm(4))


@pytest.mark.parametrize("scheme", ["nf4", "fp4", "nf4-double"])
def test_codes_and_values_are_those_of_bitsandbytes(scheme):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("bitsandbytes")
        theirs = importlib.import_module("bitsandbytes.functional")
    for shape in ((128, 256), (130, 64), (7, 9)):
        weight = gaussian(*shape)
        packed, state = theirs.quantize_4bit(
            weight, blocksize=64, quant_type=scheme[:3], compress_statistics=scheme == "nf4-double"
        )
        ours = quantize(weight, scheme)
        nibbles = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], 1)
        codes = nibbles.flatten()[: weight.numel()].long()
        levels = theirs.get_4bit_type(scheme[:3], device="cpu")[codes]
        assert torch.equal(levels.view_as(weight), ours.levels[ours.codes])
        values = theirs.dequantize_4bit(packed, state)
        # Its look-up table for eight-bit scales now and then gives the second nearest.
        same = (values == ours.values).float().mean()
        assert same > 0.99 if scheme == "nf4-double" else same == 1

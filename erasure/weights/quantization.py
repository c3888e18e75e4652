"""Weights as four-bit and eight-bit deployment stores them, bit for bit.

A weight is kept as a code: the nearest of a few levels times the largest magnitude of
its block. An update that moves a weight by less than the gap to the next level usually
leaves its code, and so what is deployed, as it was before unlearning.

Sources: NF4 and double quantisation, QLoRA (arXiv 2305.14314); row-wise int8,
LLM.int8() (arXiv 2208.07339); the eight-bit tree for the scales, 8-bit Optimizers
(arXiv 2110.02861); FP4 and the arithmetic follow the bitsandbytes library, which tests
compare against where it is installed. That unlearning can come undone this way:
Catastrophic Failure of LLM Unlearning via Quantization (arXiv 2410.16454).
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from evidence.errors import InputError

Scheme = Literal["nf4", "nf4-double", "fp4", "int8"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
BLOCK = 64
# Scales quantised in turn share a scale of their own in blocks of this many.
SCALE_BLOCK = 256

# Quantiles of a normal distribution, scaled to [-1, 1], with an exact 0.
NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
# Sign, two bits of exponent, one of mantissa, over 12; the least is a subnormal.
_FP4 = (0.0625, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
FP4 = (*(-size / 12 for size in reversed(_FP4)), 0.0, *(size / 12 for size in _FP4))


@dataclass(frozen=True, eq=False)
class Quantized:
    """A weight matrix in codes.

    Attributes:
        codes: (out, in) index of each weight's level, ascending with its value.
        levels: (level,) float32 in [-1, 1].
        scales: (out, in) float32, what the levels are multiplied by: the largest
            magnitude in the weight's block or row, as it is stored.
    """

    codes: Tensor
    levels: Tensor
    scales: Tensor

    @property
    def values(self) -> Tensor:
        """(out, in) float32 weights that are computed with."""
        return self.levels[self.codes] * self.scales

    @property
    def bin_widths(self) -> Tensor:
        """(out, in) width of the bin each weight lies in.

        That is how far apart the values are that get its code; the outermost bins end
        at the largest magnitude.
        """
        edges = torch.cat(
            [self.levels[:1], _midpoints(self.levels), self.levels[-1:]]
        ).diff()
        return edges[self.codes] * self.scales


def quantize(weight: Tensor, scheme: Scheme = "nf4", block: int = BLOCK) -> Quantized:
    """Codes of a weight matrix.

    Args:
        weight: (out, in). Blocks run along its rows; the last may be shorter.
        scheme: "nf4" and "fp4" have one float32 scale a block, "nf4-double" stores
            those in eight bits, "int8" has one scale a row and levels 1/127 apart.
        block: Weights that share a scale; without effect for "int8".

    Raises:
        InputError: an unknown scheme, a block below 1, or no matrix of finite numbers.
    """
    if scheme not in SCHEMES or block < 1:
        raise InputError(
            "the weights cannot be quantised like that",
            expected=f"one of {', '.join(SCHEMES)}, and a block of at least 1",
            got=f"{scheme!r} in blocks of {block}",
        )
    if weight.dim() != 2 or not weight.numel() or not weight.isfinite().all():
        raise InputError(
            "only a matrix of finite numbers can be quantised",
            expected="(out, in)",
            got=str(tuple(weight.shape)),
        )
    values = weight.detach().float()
    if scheme == "int8":
        return _int8(values)
    levels = torch.tensor(NF4 if scheme.startswith("nf4") else FP4)
    codes, scales = _blockwise(values.flatten(), levels.to(values.device), block)
    if scheme == "nf4-double":
        scales = _double_quantized(scales)
    spread = scales.repeat_interleave(block)[: values.numel()]
    return Quantized(
        codes.view_as(values), levels.to(values.device), spread.view_as(values)
    )


@dataclass(frozen=True)
class EditSurvival:
    """What is left of an edit of one matrix once it is quantised.

    Attributes:
        bins: Root mean square of the edit over the mean width of the bins that the
            weights lay in.
        same_codes: Share of the edited weights whose code did not change.
        fidelity: Cosine between the edit and what it does to the quantised weights;
            0 where that is nothing.
        edited: Share of the weights that were edited at all.
    """

    bins: float
    same_codes: float
    fidelity: float
    edited: float


def edit_survival(
    before: Tensor, after: Tensor, scheme: Scheme = "nf4"
) -> EditSurvival:
    """How much of ``after - before`` quantisation keeps.

    Args:
        before: (out, in) weights of the original.
        after: (out, in) those of the edited model.
        scheme: As in ``quantize``.

    Raises:
        InputError: the shapes differ, or as ``quantize``.
    """
    if before.shape != after.shape:
        raise InputError(
            "the weights before and after an edit differ in shape",
            expected=str(tuple(before.shape)),
            got=str(tuple(after.shape)),
        )
    one, other = quantize(before, scheme), quantize(after, scheme)
    edit = (after.detach().double() - before.detach().double()).flatten()
    done = (other.values.double() - one.values.double()).flatten()
    moved = edit != 0
    if not moved.any():
        return EditSurvival(0.0, 1.0, 0.0, 0.0)
    same = (one.codes == other.codes).flatten()[moved]
    size = edit.norm() * done.norm()
    return EditSurvival(
        float(edit.square().mean().sqrt() / one.bin_widths.double().mean()),
        float(same.double().mean()),
        float(edit @ done / size) if size > 0 else 0.0,
        float(moved.double().mean()),
    )


def linear_weights(model: nn.Module) -> dict[str, tuple[nn.Parameter, bool]]:
    """The matrices that four-bit loading quantises: all linear maps but the head.

    Returns:
        Parameter name to the parameter and whether it is stored as (in, out).
    """
    ask = getattr(model, "get_output_embeddings", None)
    head = ask() if callable(ask) else None
    found = {}
    for name, module in model.named_modules():
        turned = type(module).__name__ == "Conv1D"
        if (isinstance(module, nn.Linear) or turned) and module is not head:
            weight = module.weight
            if isinstance(weight, nn.Parameter):
                found[f"{name}.weight"] = weight, turned
    return found


def quantize_(model: nn.Module, scheme: Scheme = "nf4") -> list[str]:
    """Put the quantised values in place of the linear weights of ``model``.

    Embeddings, norms, biases and the output head stay as they are, as they do when a
    checkpoint is loaded in four bits.

    Returns:
        Names of the changed parameters.

    Raises:
        InputError: the model has no linear maps, or as ``quantize``.
    """
    weights = linear_weights(model)
    if not weights:
        raise InputError(
            "the model has no linear maps to quantise",
            expected="a transformer with linear layers beside its output head",
            got=type(model).__name__,
        )
    with torch.no_grad():
        for weight, turned in weights.values():
            matrix = weight.T if turned else weight
            values = quantize(matrix, scheme).values
            weight.copy_(values.T if turned else values)
    return list(weights)


def _midpoints(levels: Tensor) -> Tensor:
    return (levels[:-1] + levels[1:]) / 2


def _blockwise(values: Tensor, levels: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Codes of a flat tensor, and the largest magnitude of each block."""
    count = values.numel()
    padded = nn.functional.pad(values, (0, -count % block)).view(-1, block)
    scales = padded.abs().amax(1)
    # A block of zeros has no scale; its codes are those of 0.
    shares = padded / torch.where(scales > 0, scales, 1.0)[:, None]
    codes = torch.bucketize(shares, _midpoints(levels))
    return codes.flatten()[:count], scales


def _int8(values: Tensor) -> Quantized:
    scales = values.abs().amax(1, keepdim=True)
    shares = values * (127.0 / torch.where(scales > 0, scales, 1.0))
    levels = torch.arange(-127, 128, device=values.device) / 127
    return Quantized(
        (shares.round() + 127).long(), levels, scales.expand_as(values).contiguous()
    )


def _double_quantized(scales: Tensor) -> Tensor:
    """Scales after they have been kept in eight bits around their mean."""
    mean = scales.mean()
    tree = _dynamic_tree_levels().to(scales.device)
    codes, outer = _blockwise(scales - mean, tree, SCALE_BLOCK)
    spread = outer.repeat_interleave(SCALE_BLOCK)[: len(scales)]
    return tree[codes] * spread + mean


@cache
def _dynamic_tree_levels() -> Tensor:
    """The 256 levels of dynamic tree quantisation: seven decades, finer upwards."""
    found = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2**decade + 1)
        sizes = 10.0 ** (decade - 6) * _midpoints(edges)
        found += sizes.tolist() + (-sizes).tolist()
    return torch.tensor(sorted(found))

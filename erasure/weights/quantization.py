"""Quantized weights as 4-bit and 8-bit deployment stores them, bit for bit.

A weight is stored as a code: the nearest of a few levels times the absolute maximum of its block.
An update smaller than the gap to the next level usually leaves the code, and so the deployed model,
as it was before unlearning.

Sources: NF4 and double quantization, QLoRA (arXiv 2305.14314); row-wise int8, LLM.int8() (arXiv
2208.07339); dynamic tree quantization of the scales, 8-bit Optimizers (arXiv 2110.02861). FP4 and
the arithmetic follow the bitsandbytes library, against which tests compare if it is installed.
Catastrophic Failure of LLM Unlearning via Quantization (arXiv 2410.16454) shows that quantization
can undo unlearning.
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from capture.network.model_inputs import changes_weights
from capture.network.structure import is_linear_map, is_transposed, output_head
from evidence.errors import InputError

Scheme = Literal["nf4", "nf4-double", "fp4", "int8"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
BLOCK = 64
# Block size of the second quantization, of the scales.
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
# Sign, two exponent bits and one mantissa bit, over 12; the smallest is subnormal.
_FP4 = (0.0625, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
FP4 = (*(-size / 12 for size in reversed(_FP4)), 0.0, *(size / 12 for size in _FP4))


@dataclass(frozen=True, eq=False)
class Quantized:
    """A quantized weight matrix.

    Attributes:
        codes: (out, in) index of each weight's level; levels ascend.
        levels: (level,) float32 in [-1, 1].
        scales: (out, in) float32 factor on the levels: the absolute maximum of the weight's block
            or row, as stored.
    """

    codes: Tensor
    levels: Tensor
    scales: Tensor

    @property
    def values(self) -> Tensor:
        """(out, in) float32 dequantized weights."""
        return self.levels[self.codes] * self.scales

    @property
    def bin_widths(self) -> Tensor:
        """(out, in) width of the interval of values that share each weight's code.

        The outermost intervals end at the absolute maximum.
        """
        edges = torch.cat([self.levels[:1], _midpoints(self.levels), self.levels[-1:]]).diff()
        return edges[self.codes] * self.scales


def quantize(weight: Tensor, scheme: Scheme = "nf4", block: int = BLOCK) -> Quantized:
    """Quantize a weight matrix.

    Args:
        weight: (out, in). Blocks run along its rows; the last may be shorter.
        scheme: "nf4" and "fp4" have one float32 scale per block, "nf4-double" stores the scales in
            8 bits, "int8" has one scale per row and levels 1/127 apart.
        block: Number of weights that share a scale; ignored by "int8".

    Raises:
        InputError: The scheme is unknown, the block size is below 1, or the weight is not a matrix
            of finite numbers.
    """
    if scheme not in SCHEMES or block < 1:
        raise InputError(
            "the quantization scheme or block size is unknown",
            expected=f"one of {', '.join(SCHEMES)}, and a block of at least 1",
            got=f"{scheme!r} in blocks of {block}",
        )
    if weight.dim() != 2 or not weight.numel() or not weight.isfinite().all():
        raise InputError(
            "only a matrix of finite numbers can be quantized",
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
    scales_by_weight = scales.repeat_interleave(block)[: values.numel()]
    return Quantized(
        codes.view_as(values), levels.to(values.device), scales_by_weight.view_as(values)
    )


@dataclass(frozen=True)
class EditSurvival:
    """Effect of an edit of one matrix after quantization.

    Attributes:
        bins: Root mean square of the edit over the mean bin width of the original weights.
        same_codes: Share of the edited weights whose code did not change.
        fidelity: Cosine between the edit and the change of the quantized weights; 0 if they do not
            change.
        edited: Share of the weights that were edited.
    """

    bins: float
    same_codes: float
    fidelity: float
    edited: float


def edit_survival(before: Tensor, after: Tensor, scheme: Scheme = "nf4") -> EditSurvival:
    """Measure how much of the edit ``after - before`` survives quantization.

    Args:
        before: (out, in) weights of the original.
        after: (out, in) weights of the edited model.
        scheme: As in ``quantize``.

    Raises:
        InputError: The shapes differ; or as ``quantize``.
    """
    if before.shape != after.shape:
        raise InputError(
            "the weights before and after an edit differ in shape",
            expected=str(tuple(before.shape)),
            got=str(tuple(after.shape)),
        )
    quantized_before, quantized_after = (quantize(before, scheme), quantize(after, scheme))
    edit = (after.detach().double() - before.detach().double()).flatten()
    quantized_edit = (quantized_after.values.double() - quantized_before.values.double()).flatten()
    edited = edit != 0
    if not edited.any():
        return EditSurvival(0.0, 1.0, 0.0, 0.0)
    unchanged = (quantized_before.codes == quantized_after.codes).flatten()[edited]
    norms = edit.norm() * quantized_edit.norm()
    return EditSurvival(
        float(edit.square().mean().sqrt() / quantized_before.bin_widths.double().mean()),
        float(unchanged.double().mean()),
        float(edit @ quantized_edit / norms) if norms > 0 else 0.0,
        float(edited.double().mean()),
    )


def linear_weights(model: nn.Module) -> dict[str, tuple[nn.Parameter, bool]]:
    """The matrices that 4-bit loading quantizes: all linear maps except the output head.

    Returns:
        Parameter name to the parameter and whether it is stored transposed, as (in, out).
    """
    head = output_head(model)
    weights = {}
    for name, module in model.named_modules():
        if is_linear_map(module) and module is not head:
            weight = module.weight
            if isinstance(weight, nn.Parameter):
                weights[f"{name}.weight"] = weight, is_transposed(module)
    return weights


@changes_weights
def quantize_(model: nn.Module, scheme: Scheme = "nf4") -> list[str]:
    """Round the linear weights of ``model`` to their quantized values, in place.

    As in 4-bit loading, embeddings, norms, biases and the output head are unchanged.

    Returns:
        Names of the changed parameters.

    Raises:
        InputError: The model has no linear maps; or as ``quantize``.

    Examples:
        >>> quantized = checkpoint.load()  # changed in place
        >>> len(exhume.quantize_(quantized, "nf4"))
        14
        >>> bool(exhume.score_answers(quantized, rows).greedy.mean() > 0.5)
        True
    """
    weights = linear_weights(model)
    if not weights:
        raise InputError(
            "the model has no linear maps to quantize",
            expected="a transformer with linear layers beside its output head",
            got=type(model).__name__,
        )
    with torch.no_grad():
        for weight, transposed in weights.values():
            matrix = weight.T if transposed else weight
            values = quantize(matrix, scheme).values
            weight.copy_(values.T if transposed else values)
    return list(weights)


def _midpoints(levels: Tensor) -> Tensor:
    return (levels[:-1] + levels[1:]) / 2


def _blockwise(values: Tensor, levels: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Codes of a flat tensor, and the absolute maximum of each block."""
    count = values.numel()
    padded = nn.functional.pad(values, (0, -count % block)).view(-1, block)
    scales = padded.abs().amax(1)
    # Avoid 0 / 0 in a block of zeros.
    normalized = padded / torch.where(scales > 0, scales, 1.0)[:, None]
    codes = torch.bucketize(normalized, _midpoints(levels))
    return codes.flatten()[:count], scales


def _int8(values: Tensor) -> Quantized:
    scales = values.abs().amax(1, keepdim=True)
    normalized = values * (127.0 / torch.where(scales > 0, scales, 1.0))
    levels = torch.arange(-127, 128, device=values.device) / 127
    return Quantized(
        (normalized.round() + 127).long(), levels, scales.expand_as(values).contiguous()
    )


def _double_quantized(scales: Tensor) -> Tensor:
    """Scales after 8-bit quantization around their mean."""
    mean = scales.mean()
    levels = _dynamic_tree_levels().to(scales.device)
    codes, block_scales = _blockwise(scales - mean, levels, SCALE_BLOCK)
    scales_by_weight = block_scales.repeat_interleave(SCALE_BLOCK)[: len(scales)]
    return levels[codes] * scales_by_weight + mean


@cache
def _dynamic_tree_levels() -> Tensor:
    """The 256 levels of dynamic tree quantization: seven decades, finer with magnitude."""
    levels = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2**decade + 1)
        magnitudes = 10.0 ** (decade - 6) * _midpoints(edges)
        levels += magnitudes.tolist() + (-magnitudes).tolist()
    return torch.tensor(sorted(levels))

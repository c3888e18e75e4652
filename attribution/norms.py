"""Layer norms and root mean square norms as linear maps with a scale that depends on the state."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

# Largest error of the map, relative to the largest output; for half precision, its rounding.
REL_TOL = 1e-4


@dataclass(frozen=True)
class NormMap:
    """The map x -> scale(x) * gain * (x - mean(x) if centered else x) + bias.

    Attributes:
        centered: Whether the mean of the features is subtracted.
        gain: (d,) float32.
        bias: (d,) float32.
    """

    centered: bool
    gain: Tensor
    bias: Tensor

    def center(self, states: Tensor) -> Tensor:
        """(..., d) states without the mean of their features, in float32 or more."""
        states = states.to(torch.promote_types(states.dtype, torch.float32))
        return states - states.mean(-1, keepdim=True) if self.centered else states

    def scale(self, states: Tensor, output: Tensor) -> Tensor:
        """(..., 1) scale of each state, from the states (..., d) and the norm's output of them."""
        linear = self.gain * self.center(states)
        size = linear.square().sum(-1, keepdim=True)
        return (linear * (output - self.bias)).sum(-1, keepdim=True) / size.clamp(min=1e-30)

    def normalized(self, states: Tensor, output: Tensor) -> Tensor:
        """(..., d) output without gain and bias."""
        return (self.center(states) * self.scale(states, output)).to(output.dtype)

    def error(self, states: Tensor, output: Tensor) -> float:
        """Largest error of the map on given states, relative to the largest output."""
        mapped = self.scale(states, output) * self.gain * self.center(states) + self.bias
        largest = output.float().abs().max().clamp(min=1e-12)
        return float((mapped - output).abs().max() / largest)


def find_norm_map(
    norm: nn.Module, states: Tensor, output: Tensor, dtype: torch.dtype | None = None
) -> NormMap | None:
    """The map of a norm, found by comparing the known forms with its output; None for others.

    Args:
        norm: A layer norm or root mean square norm, with a gain of w or 1 + w or none.
        states: (..., d) its input.
        output: (..., d) its output.
        dtype: Precision that they were computed in; that of the output by default.
    """
    width = states.shape[-1]
    found = {
        name.rpartition(".")[2]: value.detach().float()
        for name, value in norm.named_parameters()
        if value.shape == (width,)
    }
    weight = next(
        (found[name] for name in ("weight", "w", "scale", "gamma") if name in found), None
    )
    zeros = torch.zeros(width, device=states.device)
    bias = next((found[name] for name in ("bias", "b", "beta") if name in found), zeros)
    gains = [zeros + 1] if weight is None else [weight, 1 + weight]
    tolerance = max(REL_TOL, 8 * torch.finfo(dtype or output.dtype).eps)
    candidates = [NormMap(centered, gain, bias) for gain in gains for centered in (False, True)]
    errors = [each.error(states.detach(), output.detach()) for each in candidates]
    best = min(range(len(errors)), key=errors.__getitem__)
    return candidates[best] if errors[best] <= tolerance else None

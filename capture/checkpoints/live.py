"""Models that arrive as live objects of other libraries, reduced to plain modules.

TransformerLens and nnsight are recognised by the module their class comes from, so
neither is imported here: a live object proves that its library already is.
"""

import copy
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from evidence.errors import InputError


@dataclass(frozen=True)
class LiveModel:
    """A plain module taken out of a live object, with what came along."""

    module: nn.Module
    tokenizer: Any
    source: str


def _is_a(value: object, library: str, name: str) -> bool:
    """Whether ``value`` is of a class of ``library`` called ``name``, or derived."""
    return any(
        base.__name__ == name and base.__module__.split(".")[0] == library
        for base in type(value).__mro__
    )


def is_live(value: object) -> bool:
    """Whether ``value`` is a live model, ours or another library's."""
    return isinstance(value, nn.Module) or _is_a(value, "nnsight", "Envoy")


def unwrap(value: Any) -> LiveModel:
    """The plain module inside a live object.

    * nnsight wrappers hold the module itself; wrapping leaves its numbers alone.
    * ``TransformerBridge`` rewrites the module it wraps, so the module is rebuilt from
      its configuration and the same weights. A bridge in compatibility mode has folded
      weights, which the original architecture cannot hold, and is refused.
    * ``HookedTransformer`` has an architecture of its own and stays as it is, behind
      the call that Hugging Face models understand. Folding and centring, on by default
      when it loads a pretrained model, change its residual stream: compare it only
      with another one loaded alike.

    No tokenizer is taken from TransformerLens, which may have set its copy to prepend
    a beginning-of-text token that the model's own tokenizer does not add.

    Raises:
        InputError: a bridge whose weights were processed, or an unloaded wrapper.
    """
    if _is_a(value, "nnsight", "Envoy"):
        return _from_nnsight(value)
    if _is_a(value, "transformer_lens", "TransformerBridge"):
        module = _from_bridge(value)
        return LiveModel(module, None, "TransformerBridge")
    if _is_a(value, "transformer_lens", "HookedTransformer"):
        module = HookedTokens(value)
        return LiveModel(module, None, "HookedTransformer")
    return LiveModel(value, None, type(value).__name__)


def _from_nnsight(value: Any) -> LiveModel:
    module = value.__dict__.get("_module")
    if not isinstance(module, nn.Module) or any(
        parameter.is_meta for parameter in module.parameters()
    ):
        raise InputError(
            "the nnsight model has not loaded its weights yet",
            expected="a model made with dispatch=True",
            fix="Pass dispatch=True when you build it",
        )
    tokenizer = value.__dict__.get("tokenizer")
    return LiveModel(
        module, copy.deepcopy(tokenizer), f"nnsight {type(value).__name__}"
    )


def _from_bridge(bridge: Any) -> nn.Module:
    if getattr(bridge, "compatibility_mode", False):
        raise InputError(
            "the TransformerBridge is in compatibility mode: its weights were folded "
            "and centred and no longer are those of the checkpoint",
            expected="a bridge with raw weights",
            fix="Do not call enable_compatibility_mode on the bridge you audit",
        )
    wrapped = bridge.original_model
    config = copy.deepcopy(wrapped.config)
    state = {
        name.replace("._original_component", ""): tensor
        for name, tensor in wrapped.state_dict().items()
    }
    # The bridge turned attention to its own eager code; the rebuilt module is free.
    config._attn_implementation = None
    fresh = type(wrapped)(config)
    expected = set(fresh.state_dict())
    missing = sorted(expected - set(state))
    if missing:
        raise InputError(
            "the TransformerBridge cannot be turned back into its original model",
            expected=f"{len(expected)} tensors under their original names",
            got=f"no {missing[0]}",
            fix="Pass the Hugging Face model it was made from",
        )
    fresh.load_state_dict({name: state[name] for name in expected})
    reference = next(wrapped.parameters())
    return fresh.to(device=reference.device, dtype=reference.dtype).eval()


class HookedTokens(nn.Module):
    """A ``HookedTransformer`` behind the call that Hugging Face models understand.

    Tokens are passed as they are, so nothing is prepended to them.
    """

    def __init__(self, hooked: Any):
        super().__init__()
        self.hooked = hooked

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> SimpleNamespace:
        """Logits, (row, position, vocabulary), as ``.logits``."""
        logits = self.hooked(input_ids, attention_mask=attention_mask)
        return SimpleNamespace(logits=logits)

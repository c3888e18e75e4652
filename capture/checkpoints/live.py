"""Live models of other libraries, converted to plain PyTorch modules.

TransformerLens and nnsight objects are recognized by the module name of their class, so neither
library is imported here.
"""

import copy
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from evidence.errors import InputError


@dataclass(frozen=True)
class LiveModel:
    """A plain module extracted from a live object, with its tokenizer and origin."""

    module: nn.Module
    tokenizer: Any
    source: str


def _is_instance_of(value: object, library: str, name: str) -> bool:
    """Whether ``value`` is an instance of the class ``name`` of ``library``."""
    return any(
        base.__name__ == name and base.__module__.split(".")[0] == library
        for base in type(value).__mro__
    )


def is_live(value: object) -> bool:
    """Whether ``value`` is a live model of PyTorch, TransformerLens or nnsight."""
    return isinstance(value, nn.Module) or _is_instance_of(value, "nnsight", "Envoy")


def unwrap(value: Any) -> LiveModel:
    """Extract the plain module from a live object.

    * nnsight wrappers hold the original module.
    * ``TransformerBridge`` modifies the module it wraps, so the module is rebuilt from its
      configuration and weights. A bridge in compatibility mode is refused, because the original
      architecture cannot hold its folded weights.
    * ``HookedTransformer`` has its own architecture and is wrapped in a Hugging Face style call.
      Folding and centering, on by default for pretrained models, change its residual stream:
      compare it only with another one loaded in the same way.

    The tokenizer of TransformerLens is not used, because it may prepend a beginning-of-text token
    that the model's own tokenizer does not add.

    Raises:
        InputError: the weights of a bridge were processed, or a wrapper is not loaded.
    """
    if _is_instance_of(value, "nnsight", "Envoy"):
        return _from_nnsight(value)
    if _is_instance_of(value, "transformer_lens", "TransformerBridge"):
        module = _from_bridge(value)
        return LiveModel(module, None, "TransformerBridge")
    if _is_instance_of(value, "transformer_lens", "HookedTransformer"):
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
    return LiveModel(module, copy.deepcopy(tokenizer), f"nnsight {type(value).__name__}")


def _from_bridge(bridge: Any) -> nn.Module:
    if getattr(bridge, "compatibility_mode", False):
        raise InputError(
            "the TransformerBridge is in compatibility mode: its weights were folded "
            "and centered and are no longer those of the checkpoint",
            expected="a bridge with raw weights",
            fix="Do not call enable_compatibility_mode on the bridge you audit",
        )
    wrapped = bridge.original_model
    config = copy.deepcopy(wrapped.config)
    state = {
        name.replace("._original_component", ""): tensor
        for name, tensor in wrapped.state_dict().items()
    }
    # The bridge forces eager attention; the rebuilt module uses the default.
    config._attn_implementation = None
    fresh = type(wrapped)(config)
    expected = set(fresh.state_dict())
    missing = sorted(expected - set(state))
    if missing:
        raise InputError(
            "the TransformerBridge cannot be converted back to its original model",
            expected=f"{len(expected)} tensors under their original names",
            got=f"no {missing[0]}",
            fix="Pass the Hugging Face model it was made from",
        )
    fresh.load_state_dict({name: state[name] for name in expected})
    reference = next(wrapped.parameters())
    return fresh.to(device=reference.device, dtype=reference.dtype).eval()


class HookedTokens(nn.Module):
    """A ``HookedTransformer`` with the call signature of Hugging Face models.

    No token is prepended to the input.
    """

    def __init__(self, hooked: Any):
        super().__init__()
        self.hooked = hooked

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> SimpleNamespace:
        """Logits, (row, position, vocabulary), as ``.logits``."""
        logits = self.hooked(input_ids, attention_mask=attention_mask)
        return SimpleNamespace(logits=logits)

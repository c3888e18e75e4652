"""Live models of other libraries as plain PyTorch modules.

``plain_model`` gives the module that the object runs, for hooks and edits; ``unwrap`` gives one
with the original weights and architecture, for audits. Objects of other libraries are recognized
by the module name of their class, so none of them is imported here.
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


def plain_model(value: Any) -> nn.Module:
    """The plain module that a live object runs, so that hooks on it act in the object's own calls.

    * PyTorch modules are returned as they are; a compiled module as the one that was compiled, and
      ``DataParallel`` and ``DistributedDataParallel`` as the one that they hold.
    * PEFT models as the network that their layers are in, with the active adapters. Prompt tuning
      is refused: it puts tokens before the rows, so positions are not those of the rows.
    * nnsight wrappers and ``TransformerBridge`` as the module that they hold, not a copy.
    * ``HookedTransformer`` in a Hugging Face style call that prepends no token.

    Raises:
        InputError: the object is no model, or a wrapper is not loaded.
    """
    if isinstance(value, HookedTokens):
        return value
    if _is_instance_of(value, "nnsight", "Envoy"):
        return plain_model(_nnsight_module(value))
    if _is_instance_of(value, "transformer_lens", "TransformerBridge"):
        return plain_model(value.original_model)
    if _is_instance_of(value, "transformer_lens", "HookedTransformer"):
        return HookedTokens(value)
    if not isinstance(value, nn.Module):
        raise InputError(
            "the model has an unsupported type",
            expected="a live model of PyTorch, TransformerLens or nnsight",
            got=type(value).__name__,
            fix="Load a checkpoint with exhume.open_checkpoint(path).load()",
        )
    if isinstance(value, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return plain_model(value.module)
    if isinstance(compiled := value.__dict__.get("_modules", {}).get("_orig_mod"), nn.Module):
        return plain_model(compiled)
    if _is_instance_of(value, "peft", "PeftModel"):
        return plain_model(_adapted_module(value))
    return value


def readable_model(value: Any) -> nn.Module:
    """``plain_model`` for a function that reads weights, in the original architecture.

    The module of a ``TransformerBridge`` is built again from its weights.

    Raises:
        InputError: as ``plain_model`` and ``unwrap``; or weights are not in memory.
    """
    if _is_instance_of(value, "transformer_lens", "TransformerBridge"):
        value = _from_bridge(value)
    model = plain_model(value)
    offloaded = next((name for name, each in model.named_parameters() if each.is_meta), None)
    if offloaded is not None:
        raise InputError(
            "this function reads the weights of the model, and some are not in memory",
            expected="a model without weights offloaded to the CPU or to disk",
            got=f"{offloaded} is offloaded",
            fix="Load the model without offloading",
        )
    return model


def editable_model(value: Any) -> nn.Module:
    """``plain_model`` for a function that changes weights in place.

    Raises:
        InputError: as ``readable_model``; or the weights are not all that acts, as with an
            adapter, or are those of another library.
    """
    for name in ("TransformerBridge", "HookedTransformer"):
        if _is_instance_of(value, "transformer_lens", name) or isinstance(value, HookedTokens):
            raise InputError(
                "this function changes weights in place, and those of TransformerLens are copies",
                expected="the Hugging Face model",
                got=name,
                fix="Change the Hugging Face model, then wrap it again",
            )
    model = readable_model(value)
    packed = [n for n, each in model.named_parameters() if not each.is_floating_point()]
    if packed:
        raise InputError(
            "this function changes weights in place, and those of this model are quantized",
            expected="floating-point weights",
            got=f"{packed[0]} of {len(packed)} quantized weights",
            fix="Load the model without quantization",
        )
    if _is_instance_of(value, "peft", "PeftModel"):
        raise InputError(
            "this function changes weights in place, and an adapter adds to them",
            expected="a model without adapters",
            got=type(value).__name__,
            fix="Merge it first, with merge_and_unload()",
        )
    return model


def _adapted_module(value: Any) -> nn.Module:
    """The network that holds the layers of the active adapters of a ``PeftModel``."""
    active = value.active_peft_config
    if getattr(active, "is_prompt_learning", False):
        raise InputError(
            "the model puts learned prompt tokens before every row, so the positions of its "
            "states are not those of the rows",
            expected="a model without prompt learning, or an adapter in its weights such as LoRA",
            got=str(getattr(active.peft_type, "value", active.peft_type)),
        )
    return value.get_base_model()


def attached_tokenizer(value: Any) -> Any:
    """The tokenizer that a live object of nnsight or TransformerLens holds, or None."""
    for library in ("nnsight", "transformer_lens"):
        if any(base.__module__.split(".")[0] == library for base in type(value).__mro__):
            return vars(value).get("tokenizer")
    return None


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


def _nnsight_module(value: Any) -> nn.Module:
    module = value.__dict__.get("_module")
    if not isinstance(module, nn.Module) or any(
        parameter.is_meta for parameter in module.parameters()
    ):
        raise InputError(
            "the nnsight model has not loaded its weights yet",
            expected="a model made with dispatch=True",
            fix="Pass dispatch=True when you build it",
        )
    return module


def _from_nnsight(value: Any) -> LiveModel:
    module = _nnsight_module(value)
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

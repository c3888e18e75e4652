"""The kinds of live models that public functions must take, all with the same weights."""

import copy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from testbeds.worlds.random_models import random_model

VOCABULARY, WIDTH, LAYERS, HEADS = 61, 24, 3, 4
FAMILIES = ("llama", "gpt2")


def base_model(family: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A small model with random weights, in evaluation mode."""
    torch.manual_seed(0)
    model = random_model(
        cast(Any, family), vocabulary=VOCABULARY, width=WIDTH, layers=LAYERS, heads=HEADS, pad=0
    )
    for name, parameter in model.named_parameters():
        # Small matrices, and norms and biases of ones and zeros, hide what is left out.
        if parameter.dim() > 1:
            parameter.data *= 4
        else:
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
            parameter.data += 0.1 * noise
    return cast(Any, model).to(dtype).eval()


def _peft(model: PreTrainedModel) -> Any:
    from peft import LoraConfig, get_peft_model

    targets = ["c_attn", "c_proj"] if model.config.model_type == "gpt2" else ["q_proj", "down_proj"]
    config = LoraConfig(
        target_modules=targets,
        fan_in_fan_out=model.config.model_type == "gpt2",
        init_lora_weights=False,
    )
    adapted = get_peft_model(model, config)
    # What the adapter adds is taken off below it, so that the two together are the model.
    for layer in adapted.modules():
        if hasattr(layer, "get_delta_weight"):
            cast(Any, layer).base_layer.weight.data -= cast(Any, layer).get_delta_weight("default")
    return adapted


def _bridge(model: PreTrainedModel) -> Any:
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    return build_bridge_from_module(
        model, type(model).__name__, hf_config=model.config, tokenizer=None
    )


def _hooked(model: PreTrainedModel) -> Any:
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights

    if model.config.model_type != "gpt2":
        return None  # TransformerLens converts weights by the name of a published model
    config = HookedTransformerConfig(
        n_layers=LAYERS,
        d_model=WIDTH,
        n_ctx=model.config.n_positions,
        d_head=WIDTH // HEADS,
        n_heads=HEADS,
        d_mlp=4 * WIDTH,
        d_vocab=VOCABULARY,
        act_fn="gelu_new",
        normalization_type="LN",
        eps=model.config.layer_norm_epsilon,
        dtype=model.dtype,
    )
    hooked = HookedTransformer(config)
    hooked.load_and_process_state_dict(
        convert_gpt2_weights(model, config),
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    return hooked.eval()


def _nnsight(model: PreTrainedModel) -> Any:
    import nnsight

    return nnsight.NNsight(model)


def _checkpointing(model: PreTrainedModel) -> Any:
    model.gradient_checkpointing_enable()
    return model.train()


def _cpu_offload(model: PreTrainedModel) -> Any:
    from accelerate import cpu_offload

    return cpu_offload(model, execution_device=torch.device("cpu"))


def _dispatched(model: PreTrainedModel) -> Any:
    """The first block in memory, the rest on disk."""
    from accelerate import dispatch_model

    stack = "transformer.h" if model.config.model_type == "gpt2" else "model.layers"
    names = [name for name, module in model.named_children() if any(True for _ in module.modules())]
    places: dict[str, Any] = {}
    for name in names:
        if not stack.startswith(name + "."):
            places[name] = "cpu"
            continue
        for child, _ in model.get_submodule(name).named_children():
            places[f"{name}.{child}"] = "cpu"
        places.pop(stack)
        for layer in range(LAYERS):
            places[f"{stack}.{layer}"] = "disk" if layer else "cpu"
    folder = tempfile.mkdtemp()
    return dispatch_model(
        model, places, main_device=torch.device("cpu"), offload_dir=folder, force_hooks=True
    )


KINDS: dict[str, Callable[[PreTrainedModel], Any]] = {
    "Hugging Face": lambda model: model,
    "PEFT": _peft,
    "DataParallel": nn.DataParallel,
    "HookedTransformer": _hooked,
    "TransformerBridge": _bridge,
    "nnsight": _nnsight,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "CPU offload": _cpu_offload,
    "disk offload": _dispatched,
    "training mode": lambda model: model.train(),
    "checkpointing": _checkpointing,
}


@contextmanager
def live(kind: str, model: PreTrainedModel) -> Iterator[Any]:
    """A live model of a kind with the weights of ``model``; None if there is none of its family."""
    yield KINDS[kind](copy.deepcopy(model))


def own_call(model: Any, kind: str, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits of the call that a user of this kind of model makes."""
    if kind == "nnsight":
        with model.trace(**inputs):
            logits = model.output.logits.save()
        return logits
    if kind in ("HookedTransformer", "TransformerBridge"):
        return model(inputs["input_ids"], attention_mask=inputs["attention_mask"])
    output = model(**inputs)
    return output if isinstance(output, torch.Tensor) else output.logits

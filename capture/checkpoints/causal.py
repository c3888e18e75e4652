"""Whether a checkpoint is a causal language model: one that continues text from left to right."""

from collections.abc import Mapping
from typing import Any

from capture.checkpoints.open import Checkpoint
from capture.checkpoints.schemas.configuration import model_class
from evidence.errors import InputError, printable

# Types whose causal class reads in both directions unless is_decoder is set, beside those with a
# class for masked tokens.
READS_BOTH_WAYS = frozenset({"bert-generation"})


def check_causal(checkpoint: Checkpoint) -> None:
    """Refuse models that do not continue text: encoder-decoders, encoders, bodies without a head.

    Nothing is loaded. Live models of other libraries than transformers pass.

    Raises:
        InputError: with the reason in one sentence.
    """
    config = checkpoint.config
    live = checkpoint.live
    if live is not None and not hasattr(getattr(live, "config", None), "model_type"):
        return
    kind = type(live) if live is not None else model_class(config)
    reason = explain_not_causal(kind, config)
    if reason:
        raise InputError(
            f"{checkpoint.name} is no causal language model: {kind.__name__} {reason}",
            expected="a model that continues text, such as a LlamaForCausalLM",
            got=printable(str(config.get("model_type")))[:60],
        )


def explain_not_causal(kind: Any, config: Mapping[str, Any]) -> str:
    """Why a class of transformers with a configuration does not continue text; "" if it does.

    Args:
        kind: The model's class.
        config: Content of config.json.
    """
    from transformers.models.auto import modeling_auto

    config_class = kind.config_class
    model_type = getattr(config_class, "model_type", None)
    causal = {
        *modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values(),
        *modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values(),
        *modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES.values(),
    }
    own_head = kind.__name__.endswith("ForCausalLM") or kind.__name__ in set(
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    )
    default = getattr(config_class, "is_encoder_decoder", False)
    if config.get("is_encoder_decoder", default) is True and not own_head:
        return "is an encoder-decoder"
    masked_names: Mapping[str, str] = dict(modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES.items())
    masked = masked_names.get(str(model_type), "")
    is_encoder = masked.endswith(("ForMaskedLM", "LMHeadModel")) or model_type in READS_BOTH_WAYS
    if is_encoder and not (config.get("is_decoder") or config.get("causal")):
        return "is an encoder, which reads text in both directions"
    if kind.__name__ not in causal and not kind.__name__.endswith("ForCausalLM"):
        if getattr(kind, "can_generate", lambda: False)():
            return ""
        return "has no head that continues text"
    return ""

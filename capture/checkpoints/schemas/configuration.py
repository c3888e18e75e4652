"""Validation of config.json, and the fields of it that are passed to transformers.

The library follows names of files, code and kernels in a configuration, builds any number of
blocks, and computes with any number. So such names are refused or dropped, counts are checked
against the weight files, and numbers against ranges, before the library reads them.
"""

import inspect
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from capture.checkpoints.schemas.library_errors import library_errors
from evidence.errors import InputError
from evidence.typed_json import Json

MAX_BYTES = 8 << 20
"""Eight times the size of a configuration with the names of 21,843 classes."""
MAX_DEPTH = 10

# Each would make the library read, build or run something unchecked.
REFUSED_FIELDS = {
    "transformers_weights": "names a weight file",
    "configuration_files": "names another configuration file",
    "per_layer_config": "has separate configurations for single blocks",
    "mtp_per_layer_config": "has separate configurations for single blocks",
    "fusion_config": "fuses modules",
    "kernel_config": "names compiled kernels",
    "use_kernels": "asks for compiled kernels",
    "distributed_config": "is distributed over machines",
    "backbone": "names another model to load",
    "backbone_config": "holds another model",
    "use_timm_backbone": "loads another model",
    "use_pretrained_backbone": "loads another model",
    "vocoder_config": "holds another model",
    "custom_generate": "names code to generate with",
    "pruned_heads": "leaves out heads",
}
# Fields that we set ourselves, or without effect on the computation.
DROPPED_FIELDS = frozenset(
    {
        "attn_implementation",
        "experts_implementation",
        "torch_dtype",
        "dtype",
        "auto_map",
        "custom_pipelines",
        "base_model_tp_plan",
        "base_model_pp_plan",
        "base_model_ep_plan",
        "base_model_fsdp_plan",
        "tp_plan",
        "extra_files",
        "extra_config_files",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "use_return_dict",
        "torchscript",
        "gradient_checkpointing",
        "name_or_path",
        "transformers_version",
        "task_specific_params",
        "finetuning_task",
        "tokenizer_class",
    }
)
_FILE_NAME = re.compile(
    r"(?i)\.(safetensors|bin|pth?|ckpt|pkl|pickle|gguf|h5|msgpack|onnx|index\.json|py)$"
)
"""Names of weight or code files, which a configuration does not need."""
# Model types whose construction runs a compiler.
COMPILED = frozenset({"mra", "rwkv", "yoso"})
_CLASS_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,127}")
_UNBOUNDED_FIELD, _INFINITE = "time_step_limit", {"__float__": "Infinity"}
"""The only field that may be infinite, and the library's notation for infinity."""
_LABEL_MAPS = frozenset({"id2label", "label2id"})
"""Maps between class numbers and names."""

# Pattern of the field name and range of its value; the first match is used.
_RANGES = tuple(
    (re.compile(pattern), low, high)
    for pattern, low, high in (
        (r"(.*_)?(eps|epsilon)", 0.0, 1.0),
        (r".*(dropout|pdrop|drop_rate|drop_path|_drop|rotary_pct).*", 0.0, 1.0),
        (r"partial_rotary_factor", 0.0, 1.0),
        (r".*(theta|rotary_emb_base|rope_base|base_freq)", 1e-3, 1e12),
        (r"(factor|short_factor|long_factor|scaling_factor)", 1e-3, 1e6),
        (r".*(init|_std).*", -1e6, 1e6),
        (r"logits_scaling|logit_scale|(attn|final)_logit_softcapping", 1e-6, 1e6),
        (r".*(scal|multiplier|alpha|temperature|mscale|beta|factor).*", -1e6, 1e6),
    )
)
_ONE_OR_MORE = re.compile(
    r"num_hidden_layers|num_layers|n_layers?|num_attention_heads|n_heads?|num_heads"
    r"|num_key_value_heads|hidden_size|n_embd|d_model|vocab_size|intermediate_size"
    r"|head_dim|ffn_dim|n_positions|max_position_embeddings|image_size|patch_size"
    r"|num_channels|height|width|shortest_edge|longest_edge"
)
_LABELS = re.compile(r"num_labels|num_classes")
_WHOLE = re.compile(
    r"sliding_window|attention_chunk_size|chunk_size_feed_forward|num_labels|num_classes"
)
_LAYERS = re.compile(r".*(layers?|blocks?|depths?)")
_COUNTS = re.compile(r"(num_|n_).*|.*(heads|experts|groups|stages|steps|labels)")
_TOKEN_IDS = re.compile(r".*token_ids?")
MAX_COUNT, MAX_INTEGER, MAX_NUMBER = 1 << 20, 1 << 40, 1e12
MAX_LABELS = 1 << 15
"""With a million classes, the library takes minutes."""
MIN_LAYER_LIMIT = 256
"""Models with shared blocks may have more blocks than tensors."""
_DTYPES = frozenset({"auto", "float16", "bfloat16", "float32", "float64", "half"})


def check_config(config: Mapping[str, Any], path: Path, n_tensors: int) -> None:
    """Check that a configuration is safe to pass to the library.

    Args:
        config: Content of config.json.
        path: The file, for error messages.
        n_tensors: Number of tensors in the weight files, a limit on the number of blocks.

    Raises:
        InputError: it names files, code or kernels, describes a model larger than its weights,
            or has a number of the wrong type or out of range.
    """
    quantized = config.get("quantization_config") or config.get("compression_config")
    if quantized:
        raise InputError(
            f"{path.parent} holds quantized weights",
            expected="weights in floating point",
            got=str(quantized)[:120],
            fix="Dequantize the model and save it again",
        )
    for name, kind in (("model_type", str), ("architectures", list)):
        value = config.get(name)
        if value is not None and not isinstance(value, kind):
            raise _bad_field(path, name, f"{_KIND_WORDS[kind]}", value)
    architectures = config.get("architectures") or []
    if len(architectures) > 16 or not all(
        isinstance(architecture, str) for architecture in architectures
    ):
        raise _bad_field(path, "architectures", "names of classes", architectures)
    for name, value in _walk(config):
        if name in REFUSED_FIELDS and value not in (None, False, {}, []):
            raise InputError(
                f"{path} {REFUSED_FIELDS[name]} ({name})",
                expected="the self-contained configuration of one model",
                got=str(value)[:120],
            )
        if _names_file(name, value):
            raise InputError(
                f"{path} names a file ({name})",
                expected="the weights of this folder",
                got=str(value)[:120],
            )
        if name == "__float__":
            raise _bad_field(path, name, "a finite number", value)
        if name == "model_type" and str(value).startswith("timm"):
            raise _bad_field(path, name, "a model class of transformers", value)
        if name in ("dtype", "torch_dtype"):
            _check_dtype(value, name, path)
        elif name in _LABEL_MAPS:
            _check_classes(name, value, path)
        else:
            _check_value(name, value, path, max(n_tensors, MIN_LAYER_LIMIT))


def _names_file(name: str, value: Any) -> bool:
    if name in DROPPED_FIELDS or name.startswith("_"):
        return False
    values = value if isinstance(value, list) else [value]
    return any(isinstance(text, str) and _FILE_NAME.search(text) for text in values)


_KIND_WORDS = {str: "a name", list: "a list of names"}


def _walk(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """All names and values, including those of nested configurations."""
    pending = [config]
    while pending:
        for name, value in pending.pop().items():
            yield name, value
            if name in (*_LABEL_MAPS, _UNBOUNDED_FIELD):
                continue
            children = value if isinstance(value, list) else [value]
            pending += [child for child in children if isinstance(child, dict)]


def _check_dtype(value: Any, name: str, path: Path) -> None:
    dtype = value.removeprefix("torch.") if isinstance(value, str) else value
    known = dtype is None or (isinstance(dtype, str) and dtype in _DTYPES)
    # Some configurations hold a table of tokens that has a token of this name.
    if not known and not isinstance(value, int):
        raise _bad_field(path, name, "a type of floating-point numbers", value)


def _check_classes(name: str, value: Any, path: Path) -> None:
    """Check a map of class numbers and names: {"0": "cat"} or {"cat": 0}."""
    if value is None:
        return
    pairs = list(value.items()) if isinstance(value, dict) else [(None, None)]
    if name == "id2label":
        pairs = [(label, number) for number, label in pairs]
    for label, number in pairs:
        index = int(number) if str(number).isdecimal() and len(str(number)) < 8 else -1
        if not isinstance(label, str | int) or not 0 <= index < MAX_COUNT:
            raise _bad_field(path, name, "numbers and names of classes", value)


def _check_value(name: str, value: Any, path: Path, layers: int) -> None:
    if isinstance(value, list | dict) and _WHOLE.fullmatch(name):
        raise _bad_field(path, name, "a whole number", value)
    if isinstance(value, list):
        for entry in value:
            _check_value(name, entry, path, layers)
        return
    if value is None or isinstance(value, dict):
        return
    one_or_more = _ONE_OR_MORE.fullmatch(name)
    is_integer = one_or_more or _TOKEN_IDS.fullmatch(name) or _WHOLE.fullmatch(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        if is_integer:
            raise _bad_field(path, name, "a whole number", value)
        return
    if isinstance(value, int):
        low, high = -MAX_INTEGER, MAX_INTEGER
        if one_or_more:
            low = 1
        elif _TOKEN_IDS.fullmatch(name):
            low = -1  # means "none" in LLaMA 1 checkpoints
        if _LAYERS.fullmatch(name):
            high = layers
        elif _LABELS.fullmatch(name):
            high = MAX_LABELS
        elif _COUNTS.fullmatch(name):
            high = MAX_COUNT
        if not low <= value <= high:
            raise _bad_field(path, name, f"a number from {low:,} to {high:,}", value)
    elif is_integer:
        raise _bad_field(path, name, "a whole number", value)
    low, high = _range(name)
    if not low <= value <= high:
        raise _bad_field(path, name, f"a number from {low:g} to {high:g}", value)


def _range(name: str) -> tuple[float, float]:
    for pattern, low, high in _RANGES:
        if pattern.fullmatch(name):
            return low, high
    return -MAX_NUMBER, MAX_NUMBER


def _bad_field(path: Path, name: str, expected: str, got: Any) -> InputError:
    return InputError(
        f"{path} is not the configuration of a model: {name} cannot be used",
        expected=expected,
        got=repr(got)[:120],
        fix="Check that config.json belongs to these weights",
    )


def model_class(config: Mapping[str, Any]) -> Any:
    """The transformers class named by a configuration, or the causal model of its type.

    Only classes of the installed library are used; ``auto_map``, which names code in the
    checkpoint, is ignored.

    Raises:
        InputError: the library has no such class, or the class has another model type.
    """
    import transformers
    from transformers.models.auto import modeling_auto

    kind = config.get("model_type")
    causal = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    for name in config.get("architectures") or []:
        model_cls = getattr(transformers, name, None) if _CLASS_NAME.fullmatch(name) else None
        if (
            isinstance(model_cls, type)
            and issubclass(model_cls, transformers.PreTrainedModel)
            and model_cls.config_class is not None
        ):
            model_type = model_cls.config_class.model_type
            _check_compiled(model_type)
            if kind not in (None, model_type) and name != causal.get(kind):
                raise InputError(
                    f"config.json names {name}, which is a model of type {model_type}",
                    expected=f"a class of type {kind}",
                    fix="Check that config.json belongs to these weights",
                )
            return model_cls
    _check_compiled(kind)
    known = kind is not None and kind in transformers.CONFIG_MAPPING
    for names in (causal, modeling_auto.MODEL_MAPPING_NAMES):
        model_cls = names.get(kind) if known else None
        if isinstance(model_cls, str):
            return getattr(transformers, model_cls)
    raise InputError(
        "the installed transformers does not know this architecture"
        + (", and code from a checkpoint is never run" if "auto_map" in config else ""),
        expected="a model_type of transformers",
        got=str(kind),
    )


def _check_compiled(kind: Any) -> None:
    if kind in COMPILED:
        raise InputError(
            f"models of type {kind} are not supported",
            expected="an architecture in plain PyTorch",
            got="one that compiles kernels of its own",
        )


def library_config(config: Mapping[str, Any], model_type: Any, path: Path) -> Any:
    """Build the library's configuration object from the validated fields.

    Args:
        config: Validated content of config.json.
        path: The file, for error messages.

    Raises:
        InputError: the library refuses it.
    """
    config_class = model_type.config_class
    with library_errors(
        f"{path} is not a configuration that {config_class.__name__} takes",
        fix="Check that config.json belongs to these weights",
    ):
        return config_class.from_dict(_library_fields(config, config_class))


def _library_fields(
    config: Mapping[str, Any], config_class: Any, inner: bool = False
) -> dict[str, Json]:
    """The fields of a configuration to pass to the library, including nested ones."""
    kept: dict[str, Json] = {}
    declared = {each.name for each in fields(config_class)} | set(config_class.attribute_map)
    declared |= set(inspect.signature(config_class.__init__).parameters)
    for name, value in config.items():
        if name in DROPPED_FIELDS or (
            name not in declared and _shadows_attribute(name, config_class, inner)
        ):
            continue
        if _TOKEN_IDS.fullmatch(name) and value == -1:
            value = None
        if name == _UNBOUNDED_FIELD and isinstance(value, list):
            value = [math.inf if each == _INFINITE else each for each in value]
        kept[name] = value if name in _LABEL_MAPS else _library_value(value)
    return kept


def _library_value(value: Any) -> Any:
    from transformers import PreTrainedConfig

    if isinstance(value, dict):
        return _library_fields(value, PreTrainedConfig, inner=True)
    return [_library_value(entry) for entry in value] if isinstance(value, list) else value


def _shadows_attribute(name: str, config_class: Any, inner: bool) -> bool:
    """Whether a field would shadow an attribute of the library's class."""
    # The type of a nested configuration determines its class.
    if name.startswith("_") or name == "model_type":
        return name != "model_type" or not inner
    attribute = getattr(config_class, name, None)
    if isinstance(attribute, property):
        return attribute.fset is None and inner
    return attribute is not None

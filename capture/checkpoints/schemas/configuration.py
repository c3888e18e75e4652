"""A checkpoint's config.json: what it may say, and what of it reaches the library.

The library builds whatever a configuration describes: it follows names of files, of
code and of kernels, makes as many blocks as it is told, and computes with any number.
So names that lead anywhere are refused or left out, counts are held against what the
weight files hold, and numbers have ranges, before the library sees any of it.
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

MAX_BYTES = 8 << 20
"""Bytes of config.json; the names of 21,843 classes take one of them."""
MAX_DEPTH = 10

# Each would have the library read, build or run what no check has seen.
REFUSED_FIELDS = {
    "transformers_weights": "names a weight file of its own",
    "configuration_files": "names another configuration file",
    "per_layer_config": "gives single blocks a configuration of their own",
    "mtp_per_layer_config": "gives single blocks a configuration of their own",
    "fusion_config": "has modules fused",
    "kernel_config": "names compiled kernels",
    "use_kernels": "asks for compiled kernels",
    "distributed_config": "is spread over machines",
    "backbone": "names another model to load",
    "backbone_config": "holds another model",
    "use_timm_backbone": "loads another model",
    "use_pretrained_backbone": "loads another model",
    "vocoder_config": "holds another model",
    "custom_generate": "names code to generate with",
    "pruned_heads": "leaves out heads",
}
# What we set ourselves, or what changes nothing that a model computes.
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
_FILE = re.compile(
    r"(?i)\.(safetensors|bin|pth?|ckpt|pkl|pickle|gguf|h5|msgpack|onnx|index\.json|py)$"
)
"""A name of weights or code; nothing in a configuration has to name any."""
# Building one of these starts a compiler.
COMPILED = frozenset({"mra", "rwkv", "yoso"})
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,127}")
_ENDLESS, _INFINITE = "time_step_limit", {"__float__": "Infinity"}
"""The one setting that may be infinite, and how the library writes that."""
_CLASSES = frozenset({"id2label", "label2id"})
"""Maps of the classes' numbers and names."""

# Names of numbers, and what the numbers may be; the first that fits is asked.
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
"""Classes; the library takes minutes over a million."""
MIN_LAYER_LIMIT = 256
"""Blocks that share their weights may be more than there are tensors."""
_DTYPES = frozenset({"auto", "float16", "bfloat16", "float32", "float64", "half"})


def check_config(config: Mapping[str, Any], place: Path, n_tensors: int) -> None:
    """Whether a configuration may be handed to the library at all.

    Args:
        config: What config.json holds.
        place: The file, for errors.
        n_tensors: How many tensors the weight files hold; there are no more blocks.

    Raises:
        InputError: it names files, code or kernels, describes a model that its weights
            cannot hold, or has a number of another kind or out of range.
    """
    quantised = config.get("quantization_config") or config.get("compression_config")
    if quantised:
        raise InputError(
            f"{place.parent} holds quantised weights",
            expected="weights in floating point",
            got=str(quantised)[:120],
            fix="De-quantise the model and save it again",
        )
    for name, kind in (("model_type", str), ("architectures", list)):
        value = config.get(name)
        if value is not None and not isinstance(value, kind):
            raise _wrong(place, name, f"{_KIND_WORDS[kind]}", value)
    named = config.get("architectures") or []
    if len(named) > 16 or not all(isinstance(each, str) for each in named):
        raise _wrong(place, "architectures", "names of classes", named)
    for name, value in _members(config):
        if name in REFUSED_FIELDS and value not in (None, False, {}, []):
            raise InputError(
                f"{place} {REFUSED_FIELDS[name]} ({name})",
                expected="the configuration of one model, whole in this folder",
                got=str(value)[:120],
            )
        if _names_file(name, value):
            raise InputError(
                f"{place} names a file of its own ({name})",
                expected="the weights of this folder",
                got=str(value)[:120],
            )
        if name == "__float__":
            raise _wrong(place, name, "a finite number", value)
        if name == "model_type" and str(value).startswith("timm"):
            raise _wrong(place, name, "a model of transformers itself", value)
        if name in ("dtype", "torch_dtype"):
            _check_dtype(value, name, place)
        elif name in _CLASSES:
            _check_classes(name, value, place)
        else:
            _check_value(name, value, place, max(n_tensors, MIN_LAYER_LIMIT))


def _names_file(name: str, value: Any) -> bool:
    if name in DROPPED_FIELDS or name.startswith("_"):
        return False
    said = value if isinstance(value, list) else [value]
    return any(isinstance(each, str) and _FILE.search(each) for each in said)


_KIND_WORDS = {str: "a name", list: "a list of names"}


def _members(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every name and value, also of configurations inside."""
    waiting = [config]
    while waiting:
        for name, value in waiting.pop().items():
            yield name, value
            if name in (*_CLASSES, _ENDLESS):
                continue
            within = value if isinstance(value, list) else [value]
            waiting += [each for each in within if isinstance(each, dict)]


def _check_dtype(value: Any, name: str, place: Path) -> None:
    said = value.removeprefix("torch.") if isinstance(value, str) else value
    known = said is None or (isinstance(said, str) and said in _DTYPES)
    # Some files have a token of that name in a table of tokens.
    if not known and not isinstance(value, int):
        raise _wrong(place, name, "a type of floating-point numbers", value)


def _check_classes(name: str, value: Any, place: Path) -> None:
    """Numbers and names of classes: {"0": "cat"} and {"cat": 0}."""
    if value is None:
        return
    pairs = list(value.items()) if isinstance(value, dict) else [(None, None)]
    if name == "id2label":
        pairs = [(label, number) for number, label in pairs]
    for label, number in pairs:
        said = int(number) if str(number).isdecimal() and len(str(number)) < 8 else -1
        if not isinstance(label, str | int) or not 0 <= said < MAX_COUNT:
            raise _wrong(place, name, "numbers and names of classes", value)


def _check_value(name: str, value: Any, place: Path, layers: int) -> None:
    if isinstance(value, list | dict) and _WHOLE.fullmatch(name):
        raise _wrong(place, name, "a whole number", value)
    if isinstance(value, list):
        for each in value:
            _check_value(name, each, place, layers)
        return
    if value is None or isinstance(value, dict):
        return
    one_or_more = _ONE_OR_MORE.fullmatch(name)
    whole = one_or_more or _TOKEN_IDS.fullmatch(name) or _WHOLE.fullmatch(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        if whole:
            raise _wrong(place, name, "a whole number", value)
        return
    if isinstance(value, int):
        low, high = -MAX_INTEGER, MAX_INTEGER
        if one_or_more:
            low = 1
        elif _TOKEN_IDS.fullmatch(name):
            low = -1  # "none", in files of the first LLaMA
        if _LAYERS.fullmatch(name):
            high = layers
        elif _LABELS.fullmatch(name):
            high = MAX_LABELS
        elif _COUNTS.fullmatch(name):
            high = MAX_COUNT
        if not low <= value <= high:
            raise _wrong(place, name, f"a number from {low:,} to {high:,}", value)
    elif whole:
        raise _wrong(place, name, "a whole number", value)
    low, high = _range(name)
    if not low <= value <= high:
        raise _wrong(place, name, f"a number from {low:g} to {high:g}", value)


def _range(name: str) -> tuple[float, float]:
    for pattern, low, high in _RANGES:
        if pattern.fullmatch(name):
            return low, high
    return -MAX_NUMBER, MAX_NUMBER


def _wrong(place: Path, name: str, expected: str, got: Any) -> InputError:
    return InputError(
        f"{place} is not the configuration of a model: {name} cannot be used",
        expected=expected,
        got=repr(got)[:120],
        fix="Check that config.json belongs to these weights",
    )


def model_class(config: Mapping[str, Any]) -> Any:
    """The transformers class the configuration names, or the causal model of its type.

    Only classes of the installed library are looked up; ``auto_map``, which names
    code inside the checkpoint, is never followed.

    Raises:
        InputError: the library has no such class, or it is one of another type.
    """
    import transformers
    from transformers.models.auto import modeling_auto

    kind = config.get("model_type")
    causal = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    for name in config.get("architectures") or []:
        found = getattr(transformers, name, None) if _WORD.fullmatch(name) else None
        if (
            isinstance(found, type)
            and issubclass(found, transformers.PreTrainedModel)
            and found.config_class is not None
        ):
            own = found.config_class.model_type
            _check_compiled(own)
            if kind not in (None, own) and name != causal.get(kind):
                raise InputError(
                    f"config.json names {name}, which is a model of type {own}",
                    expected=f"a class of type {kind}",
                    fix="Check that config.json belongs to these weights",
                )
            return found
    _check_compiled(kind)
    known = kind is not None and kind in transformers.CONFIG_MAPPING
    for names in (causal, modeling_auto.MODEL_MAPPING_NAMES):
        found = names.get(kind) if known else None
        if isinstance(found, str):
            return getattr(transformers, found)
    raise InputError(
        "the installed transformers does not know this architecture"
        + (", and code from a checkpoint is never run" if "auto_map" in config else ""),
        expected="a model_type of transformers",
        got=str(kind),
    )


def _check_compiled(kind: Any) -> None:
    if kind in COMPILED:
        raise InputError(
            f"models of type {kind} are not opened",
            expected="an architecture that PyTorch runs as it is",
            got="one whose library compiles kernels of its own",
        )


def library_config(config: Mapping[str, Any], model_type: Any, place: Path) -> Any:
    """The library's configuration object, made of what a checked file may say.

    Args:
        config: What config.json holds, checked.
        model_type: Class of the model.
        place: The file, for errors.

    Raises:
        InputError: the library does not take it.
    """
    own = model_type.config_class
    with library_errors(
        f"{place} is not a configuration that {own.__name__} takes",
        fix="Check that config.json belongs to these weights",
    ):
        return own.from_dict(_kept(config, own))


def _kept(config: Mapping[str, Any], own: Any, inner: bool = False) -> dict[str, Any]:
    """What of a configuration the library is given, inner ones included."""
    kept: dict[str, Any] = {}
    declared = {each.name for each in fields(own)} | set(own.attribute_map)
    declared |= set(inspect.signature(own.__init__).parameters)
    for name, value in config.items():
        if name in DROPPED_FIELDS or (
            name not in declared and _covers(name, own, inner)
        ):
            continue
        if _TOKEN_IDS.fullmatch(name) and value == -1:
            value = None
        if name == _ENDLESS and isinstance(value, list):
            value = [math.inf if each == _INFINITE else each for each in value]
        kept[name] = value if name in _CLASSES else _inside(value)
    return kept


def _inside(value: Any) -> Any:
    from transformers import PreTrainedConfig

    if isinstance(value, dict):
        return _kept(value, PreTrainedConfig, inner=True)
    return [_inside(each) for each in value] if isinstance(value, list) else value


def _covers(name: str, own: Any, inner: bool) -> bool:
    """Whether an attribute of that name would stand before the library's own."""
    # The type of an inner configuration says which class it is of.
    if name.startswith("_") or name == "model_type":
        return name != "model_type" or not inner
    there = getattr(own, name, None)
    if isinstance(there, property):
        return there.fset is None and inner
    return there is not None

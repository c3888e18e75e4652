"""Models built on the meta device to match weight files with parameters, then loaded.

No memory is allocated before names and shapes agree. The size of the model is limited by that of
the weight files, and the network is never used.
"""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from capture.checkpoints.schemas.configuration import library_config
from capture.checkpoints.schemas.library_errors import (
    library_errors,
    offline_hub,
    quiet_transformers,
)
from capture.checkpoints.weights.safetensors_headers import FLOAT_DTYPES, TensorEntry
from evidence.errors import InputError

MODULES_PER_TENSOR, BASE_MODULES = 40, 5_000
"""Limit on modules; activations, dropouts and wrappers hold no tensors."""
PARAMETERS_PER_TENSOR, BASE_PARAMETERS = 6, 1_000
"""Limit on registered parameters, while a model is built, loaded and tied."""
MAX_BUFFER_VALUES = 1 << 28
"""Limit on values in buffers that are not in the files, such as causal masks."""

_HEADS = r"^cls\.seq_relationship\.|(^|\.)pooler\.dense\.|^v_head\."
"""Unused heads in common checkpoint files."""
_TABLES = r"rotary_emb\.(inv_freq|(cos|sin)_cached)$|(^|\.)position_ids$"
_MASKS = r"\.attn(\.attention)?\.(bias|masked_bias|causal_mask)$"
"""Buffers of old versions. A causal mask is (1, 1, n, n) and its fill value a scalar; biases of
attention have other shapes."""


def check_fit(
    model_type: Any, config: Mapping[str, Any], entries: Mapping[str, TensorEntry], folder: Path
) -> frozenset[str]:
    """Check that weight files hold exactly the tensors of a model, in floating point.

    Args:
        config: Validated content of config.json.
        entries: Names, types and shapes of the tensors in the files.
        folder: The folder, for error messages.

    Returns:
        Names of tensors that the library ignores on loading, such as GPT-2's causal masks.

    Raises:
        InputError: tensors are missing, unexpected, of another shape or not in floating point;
            or the configuration describes a larger model.
    """
    empty = [name for name, entry in entries.items() if 0 in entry.shape]
    if empty:
        raise InputError(
            f"{folder} holds empty tensors",
            expected="whole weights",
            got=f"{len(empty)} empty, such as {empty[0]}",
            fix="Gather the weights before saving them: DeepSpeed's ZeRO-3 leaves each "
            "process a part",
        )
    types = {"F8_E5M2": torch.float8_e5m2, "F8_E4M3": torch.float8_e4m3fn}
    state = {
        name: torch.empty(entry.shape, dtype=types.get(entry.dtype, torch.float32), device="meta")
        for name, entry in entries.items()
    }
    n_values = sum(math.prod(entry.shape) for entry in entries.values())
    with limit_construction(len(entries), n_values, folder / "config.json"):
        model = build_model(model_type, config, state, folder, device="meta")
    model_names = {*model.state_dict()}
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    ignored_pattern = re.compile("|".join(f"({pattern})" for pattern in patterns) or r"(?!)")
    ignored = frozenset(
        name
        for name, entry in entries.items()
        if name not in model_names
        and (ignored_pattern.search(name) or _is_ignorable(name, entry.shape))
    )
    # Lookup tables, such as the expert of each token, hold integers.
    tables = {
        name.rpartition(".")[2]
        for name, value in model.state_dict().items()
        if not value.is_floating_point()
    }
    for name, entry in entries.items():
        table = name.rpartition(".")[2] in tables
        if entry.dtype not in FLOAT_DTYPES and name not in ignored and not table:
            raise InputError(
                f"{folder} holds weights that are not in floating point",
                expected="floating-point weights",
                got=f"{name} of type {entry.dtype}",
                fix="Dequantize the model and save it again",
            )
    return ignored


def build_model(
    model_type: Any,
    config: Mapping[str, Any],
    state: Mapping[str, Any],
    folder: Path,
    *,
    device: str | None = None,
    generation: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build a model with the tensors of ``state``, in float32.

    The library receives tensors and settings, never a path or name to look up.

    Args:
        config: Validated content of config.json.
        state: Tensor name to tensor, or to a lazily read slice.
        folder: The folder, for error messages.
        device: "meta" for a model without data.
        generation: Validated generation settings.

    Raises:
        InputError: tensors are missing, unexpected or of another shape.
    """
    with quiet_transformers():
        settings = library_config(config, model_type, folder / "config.json")
    with (
        library_errors(
            f"{folder} could not be loaded",
            expected=f"weights that fit its config.json ({config.get('model_type')})",
        ),
        quiet_transformers(),
        offline_hub(),
    ):
        from transformers import GenerationConfig

        model, report = model_type.from_pretrained(
            None,
            config=settings,
            state_dict=dict(state),
            dtype=torch.float32,
            device_map=None if device is None else {"": device},
            generation_config=GenerationConfig(**generation) if generation else None,
            trust_remote_code=False,
            local_files_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    missing = sorted(report["missing_keys"])
    shapes = sorted(map(str, report["mismatched_keys"]))
    unexpected = sorted(
        name
        for name in report["unexpected_keys"]
        if not (name in state and _is_ignorable(name, _shape(state[name])))
    )
    if missing or shapes:
        raise InputError(
            f"{folder} lacks tensors of its config.json",
            expected=f"the weights of a {model_type.__name__}",
            got=f"{len(missing) + len(shapes)} missing or of another shape, such as "
            f"{(missing + shapes)[0]}",
            fix="Check that config.json belongs to these weights",
        )
    if unexpected:
        raise InputError(
            f"{folder} holds tensors that do not belong to its config.json",
            expected=f"the weights of a {model_type.__name__} and no others",
            got=f"{len(unexpected)} more, such as {unexpected[0]}",
            fix="Check that config.json belongs to these weights; a part that is left "
            "out would not be audited",
        )
    return model


def _shape(value: Any) -> tuple[int, ...]:
    """Shape of a tensor, or of a slice of a file."""
    return tuple(value.get_shape() if hasattr(value, "get_shape") else value.shape)


def _is_ignorable(name: str, shape: tuple[int, ...]) -> bool:
    """Whether an unexpected tensor is known to be irrelevant."""
    if re.search(_MASKS, name):
        return shape[:2] == (1, 1) if len(shape) == 4 else math.prod(shape) == 1
    return bool(re.search(f"{_HEADS}|{_TABLES}", name))


@contextmanager
def limit_construction(n_tensors: int, n_values: int, path: Path) -> Iterator[None]:
    """Refuse to build a model that is larger than its weight files allow.

    Args:
        n_tensors: Number of tensors in the files.
        n_values: Number of values in these tensors.
        path: The configuration file, for error messages.

    Raises:
        InputError: the number of modules, parameters or buffer values exceeds the limit.
    """
    budget = {
        "modules": BASE_MODULES + MODULES_PER_TENSOR * n_tensors,
        "parameters": BASE_PARAMETERS + PARAMETERS_PER_TENSOR * n_tensors,
        "numbers in buffers": MAX_BUFFER_VALUES + n_values,
    }

    def spend(what: str, cost: int) -> None:
        budget[what] -= cost
        if budget[what] < 0:
            raise InputError(
                f"{path} describes a model larger than its weights",
                expected=f"one that {n_tensors} tensors can fill",
                got=f"too many {what}",
                fix="Check that config.json belongs to these weights",
            )

    def parameter(module: nn.Module, name: str, value: Tensor | None) -> None:
        spend("parameters", 1)

    def submodule(module: nn.Module, name: str, value: nn.Module | None) -> None:
        spend("modules", 1)

    def buffer(module: nn.Module, name: str, value: Tensor | None) -> None:
        spend("numbers in buffers", 0 if value is None else value.numel())

    hooks = (
        register_module_parameter_registration_hook(parameter),
        register_module_module_registration_hook(submodule),
        register_module_buffer_registration_hook(buffer),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()

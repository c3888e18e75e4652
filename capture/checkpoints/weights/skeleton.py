"""A model built without numbers, to see what of the weight files it takes.

Nothing is allocated before names and shapes agree: building makes modules alone, no
more of them than the files can fill, and never goes to the network.
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
from capture.checkpoints.schemas.library_errors import library_errors
from capture.checkpoints.schemas.quietly import offline_hub, quiet_transformers
from capture.checkpoints.weights.safetensors_headers import FLOAT_DTYPES, TensorEntry
from evidence.errors import InputError

MODULES_PER_TENSOR, BASE_MODULES = 40, 5_000
"""Most modules: activations, dropouts and wrappers hold no tensor of their own."""
PARAMETERS_PER_TENSOR, BASE_PARAMETERS = 6, 1_000
"""Most parameters, registered when a model is built, filled and tied."""
MAX_BUFFER_VALUES = 1 << 28
"""Most numbers in buffers that no file holds, such as masks by position."""

_HEADS = r"^cls\.seq_relationship\.|(^|\.)pooler\.dense\.|^v_head\."
"""Heads beside the one that is used, in files that many models come in."""
_TABLES = r"rotary_emb\.(inv_freq|(cos|sin)_cached)$|(^|\.)position_ids$"
_MASKS = r"\.attn(\.attention)?\.(bias|masked_bias|causal_mask)$"
"""Buffers of old versions. A mask by position is (1, 1, n, n), its filling one number,
and no bias of an attention has such a shape."""


def check_fit(
    model_type: Any,
    config: Mapping[str, Any],
    entries: Mapping[str, TensorEntry],
    folder: Path,
) -> frozenset[str]:
    """Whether weight files hold exactly what a model needs, all in floating point.

    Args:
        model_type: Class of the model.
        config: What config.json holds, checked.
        entries: Names, types and shapes of the tensors in the files.
        folder: Where they lie, for errors.

    Returns:
        Names of tensors that the library is known not to load, such as the causal
        masks in files of GPT-2.

    Raises:
        InputError: tensors are missing, of another shape, left over, or no floating
            point numbers; or the configuration describes a larger model.
    """
    empty = [name for name, entry in entries.items() if 0 in entry.shape]
    if empty:
        raise InputError(
            f"{folder} holds tensors without numbers",
            expected="whole weights",
            got=f"{len(empty)} empty, such as {empty[0]}",
            fix="Gather the weights before saving them: DeepSpeed's ZeRO-3 leaves each "
            "process a part",
        )
    types = {"F8_E5M2": torch.float8_e5m2, "F8_E4M3": torch.float8_e4m3fn}
    state = {
        name: torch.empty(
            entry.shape, dtype=types.get(entry.dtype, torch.float32), device="meta"
        )
        for name, entry in entries.items()
    }
    held = sum(math.prod(entry.shape) for entry in entries.values())
    with limit_construction(len(entries), held, folder / "config.json"):
        model = build_model(model_type, config, state, folder, device="meta")
    known = {*model.state_dict()}
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    passed_over = re.compile("|".join(f"({each})" for each in patterns) or r"(?!)")
    ignored = frozenset(
        name
        for name, entry in entries.items()
        if name not in known and (passed_over.search(name) or _spare(name, entry.shape))
    )
    # Tables of numbers, such as which expert a token goes to, are whole numbers.
    tables = {
        name.rpartition(".")[2]
        for name, value in model.state_dict().items()
        if not value.is_floating_point()
    }
    for name, entry in entries.items():
        table = name.rpartition(".")[2] in tables
        if entry.dtype not in FLOAT_DTYPES and name not in ignored and not table:
            raise InputError(
                f"{folder} holds weights that are no floating-point numbers",
                expected="weights as they are computed with",
                got=f"{name} of type {entry.dtype}",
                fix="De-quantise the model and save it again",
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
    """A model of ``model_type`` that holds the tensors of ``state``, in float32.

    The library is given tensors and settings, never a place to look for any.

    Args:
        model_type: Class of the model.
        config: What config.json holds, checked.
        state: Tensor name to tensor, or to a slice that is read when it is needed.
        folder: Where all of it comes from, for errors.
        device: "meta" for a model without numbers.
        generation: What it generates with, checked.

    Raises:
        InputError: tensors are missing, of another shape or left over.
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
    over = sorted(
        name
        for name in report["unexpected_keys"]
        if not (name in state and _spare(name, _shape(state[name])))
    )
    if missing or shapes:
        raise InputError(
            f"{folder} does not hold every tensor its config.json asks for",
            expected=f"the weights of a {model_type.__name__}",
            got=f"{len(missing) + len(shapes)} missing or of another shape, such as "
            f"{(missing + shapes)[0]}",
            fix="Check that config.json belongs to these weights",
        )
    if over:
        raise InputError(
            f"{folder} holds tensors that its config.json has no place for",
            expected=f"the weights of a {model_type.__name__} and no others",
            got=f"{len(over)} more, such as {over[0]}",
            fix="Check that config.json belongs to these weights; a part that is left "
            "out would not be audited",
        )
    return model


def _shape(value: Any) -> tuple[int, ...]:
    """Shape of a tensor, or of a slice of a file."""
    return tuple(value.get_shape() if hasattr(value, "get_shape") else value.shape)


def _spare(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor that finds no place is known to be of no matter."""
    if re.search(_MASKS, name):
        return shape[:2] == (1, 1) if len(shape) == 4 else math.prod(shape) == 1
    return bool(re.search(f"{_HEADS}|{_TABLES}", name))


@contextmanager
def limit_construction(n_tensors: int, n_values: int, place: Path) -> Iterator[None]:
    """Stop building a model that is larger than what files can fill.

    Args:
        n_tensors: How many tensors the files hold.
        n_values: How many numbers these hold in all.
        place: Where the model is described, for errors.

    Raises:
        InputError: modules, parameters or buffers go beyond what files of that size
            can be meant for.
    """
    left = {
        "modules": BASE_MODULES + MODULES_PER_TENSOR * n_tensors,
        "parameters": BASE_PARAMETERS + PARAMETERS_PER_TENSOR * n_tensors,
        "numbers in buffers": MAX_BUFFER_VALUES + n_values,
    }

    def spend(what: str, cost: int) -> None:
        left[what] -= cost
        if left[what] < 0:
            raise InputError(
                f"{place} describes a model larger than its weights",
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

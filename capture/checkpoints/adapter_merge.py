"""Merging of a validated adapter into its base model."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from capture.checkpoints.adapters import AdapterSettings, LoraSettings, resolve_patterns
from capture.checkpoints.safetensors_files import check_finite, module_tensors
from capture.checkpoints.schemas.library_errors import (
    library_errors,
    offline_hub,
    quiet_transformers,
)
from evidence.errors import InputError

_PREFIX = "base_model.model."


def merge_adapter(
    model: nn.Module, settings: AdapterSettings, tensors: Mapping[str, Tensor], folder: Path
) -> nn.Module:
    """Merge the adapter into ``model``.

    An adapter trained with an extended vocabulary holds the whole embedding; the embedding of
    the base is resized first.

    Args:
        model: The base; modified in place.
        folder: The adapter's folder, for error messages.

    Raises:
        InputError: the adapter does not fit, or a merged weight is not finite.
    """
    from peft import IA3Config, LoraConfig, PeftModel
    from peft.utils.save_and_load import set_peft_model_state_dict

    with (
        library_errors(
            f"the adapter in {folder} does not fit its base",
            expected="an adapter for this architecture that can be merged",
            fix="Pass the model it was trained on: --base, or base= in Python",
        ),
        warnings.catch_warnings(),
        quiet_transformers(),
        offline_hub(),
    ):
        # Its warnings concern cases that are refused here or do not affect merged models.
        warnings.simplefilter("ignore")
        _resize_embeddings(model, tensors, folder)
        options = resolve_patterns(settings, dict(model.named_modules()), folder)
        lora = isinstance(settings, LoraSettings)
        options["init_lora_weights" if lora else "init_ia3_weights"] = True
        config = (LoraConfig if lora else IA3Config)(**options, inference_mode=True)
        # No random initialization and no allocation: all values come from the file.
        adapted = PeftModel(
            model,  # pyright: ignore[reportArgumentType]
            config,
            low_cpu_mem_usage=True,
        )
        report = set_peft_model_state_dict(
            adapted,
            {name: tensor.float() for name, tensor in tensors.items()},
            low_cpu_mem_usage=True,
        )
        missing = [
            name for name in report.missing_keys if ".default" in name and _is_adapter_key(name)
        ]
        wrong_keys = sorted([*missing, *report.unexpected_keys])
        if wrong_keys:
            raise InputError(
                f"the adapter in {folder} is incomplete: {len(wrong_keys)} missing or "
                f"unexpected adapter keys",
                expected="the tensors its adapter_config.json describes",
                got=wrong_keys[0],
            )
        _check_untied(adapted, folder)
        merged = adapted.merge_and_unload()  # pyright: ignore[reportCallIssue]
    merged = merged.eval()
    tensors_of_merged = module_tensors(merged)
    for name in tensors_of_merged.names:
        try:
            check_finite(
                name,
                tensors_of_merged.read(name),
                allow_infinite=name in tensors_of_merged.mask_names,
            )
        except InputError as error:
            raise InputError(
                f"the adapter in {folder} leads to weights that are not finite",
                expected="finite numbers after merging",
                got=f"{error.got} in {name}",
            ) from error
    return merged


def crop_vocabulary(model: Any, count: int) -> nn.Module:
    """Leave out the rows of tokens beyond the first ``count`` of a model of transformers.

    Args:
        model: Modified in place.
    """
    table = model.get_input_embeddings() if hasattr(model, "resize_token_embeddings") else None
    if table is not None and table.num_embeddings > count:
        model.resize_token_embeddings(count, mean_resizing=False)
    return model


def _is_adapter_key(name: str) -> bool:
    return any(mark in name for mark in (".lora_", ".ia3_", ".modules_to_save."))


def _check_untied(adapted: nn.Module, folder: Path) -> None:
    """Refuse an adapter that changes only one use of a tied weight."""
    owners: dict[int, set[str]] = {}
    for name, value in adapted.named_parameters(remove_duplicate=False):
        if value.numel():
            owners.setdefault(value.data_ptr(), set()).add(name)
    for names in owners.values():
        changed = [name for name in names if ".base_layer." in name]
        if changed and len(names) > 1:
            raise InputError(
                f"the adapter in {folder} changes an embedding that its base shares "
                "with its output layer",
                expected="an adapter that can be merged",
                got=sorted(changed)[0].replace(".base_layer", ""),
                fix="Save it with save_embedding_layers=True, or merge it yourself",
            )


def _resize_embeddings(model: Any, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Resize the embedding of the base to that of the adapter."""
    rows = set()
    owners = (model.get_input_embeddings(), model.get_output_embeddings())
    names = {id(module): name for name, module in model.named_modules()}
    for owner in owners:
        name = f"{_PREFIX}{names.get(id(owner))}.weight"
        if owner is not None and name in tensors:
            rows.add((tensors[name].shape[0], owner.weight.shape[0]))
    if all(new == old for new, old in rows):
        return
    is_complete = len(rows) == 1 and (owners[1] is None or _holds_both(owners, names, tensors))
    if not is_complete:
        raise InputError(
            f"the adapter in {folder} holds one of two embeddings with new rows",
            expected="both, or one that serves as both",
        )
    (new, _), *_ = rows
    with torch.random.fork_rng(devices=[]):  # the new rows are overwritten from the file
        model.resize_token_embeddings(new, mean_resizing=False)


def _holds_both(
    owners: tuple[Any, Any], names: Mapping[int, str], tensors: Mapping[str, Tensor]
) -> bool:
    tied = owners[0].weight is owners[1].weight
    are_held = [f"{_PREFIX}{names[id(owner)]}.weight" in tensors for owner in owners]
    return all(are_held) or (tied and any(are_held))

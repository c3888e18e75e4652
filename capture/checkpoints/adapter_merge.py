"""A checked adapter merged into its base, so that one whole model is left."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from capture.checkpoints.adapters import AdapterSettings, LoraSettings, resolve_patterns
from capture.checkpoints.safetensors_files import check_finite, module_tensors
from capture.checkpoints.schemas.library_errors import library_errors
from capture.checkpoints.schemas.quietly import offline_hub, quiet_transformers
from evidence.errors import InputError

_PREFIX = "base_model.model."


def merge_adapter(
    model: nn.Module,
    settings: AdapterSettings,
    tensors: Mapping[str, Tensor],
    folder: Path,
) -> nn.Module:
    """The base with the adapter's change added to its weights.

    An adapter trained after the vocabulary had grown holds the whole embedding; the
    base's is then given as many rows first.

    Args:
        model: The base, the caller's to modify.
        settings: The adapter's settings, checked.
        tensors: The adapter's tensors.
        folder: The adapter's folder, for errors.

    Raises:
        InputError: the adapter does not fit, or the sum is not finite.
    """
    from peft import IA3Config, LoraConfig, PeftModel
    from peft.utils.save_and_load import set_peft_model_state_dict

    with (
        library_errors(
            f"the adapter in {folder} does not fit its base",
            expected="an adapter of this very architecture that can be merged",
            fix="Pass base=, the model the adapter was trained on",
        ),
        warnings.catch_warnings(),
        quiet_transformers(),
        offline_hub(),
    ):
        # What it warns of is refused here, or is of no matter to a merged model.
        warnings.simplefilter("ignore")
        _grow(model, tensors, folder)
        said = resolve_patterns(settings, dict(model.named_modules()), folder)
        lora = isinstance(settings, LoraSettings)
        said["init_lora_weights" if lora else "init_ia3_weights"] = True
        config = (LoraConfig if lora else IA3Config)(**said, inference_mode=True)
        # Nothing is drawn or allocated: every number comes from the file.
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
            name
            for name in report.missing_keys
            if ".default" in name and _names_adapter(name)
        ]
        odd = sorted([*missing, *report.unexpected_keys])
        if odd:
            raise InputError(
                f"the adapter in {folder} is incomplete: {len(odd)} missing or "
                f"unexpected adapter keys",
                expected="the tensors its adapter_config.json describes",
                got=odd[0],
            )
        _check_apart(adapted, folder)
        merged = adapted.merge_and_unload()  # pyright: ignore[reportCallIssue]
    merged = merged.eval()
    found = module_tensors(merged)
    for name in found.names:
        try:
            check_finite(
                name, found.read(name), allow_infinite=name in found.mask_names
            )
        except InputError as error:
            raise InputError(
                f"the adapter in {folder} makes weights that are not finite",
                expected="finite numbers after merging",
                got=f"{error.got} in {name}",
            ) from error
    return merged


def _names_adapter(name: str) -> bool:
    return any(mark in name for mark in (".lora_", ".ia3_", ".modules_to_save."))


def _check_apart(adapted: nn.Module, folder: Path) -> None:
    """A weight that serves in two places cannot be changed in one of them."""
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


def _grow(model: Any, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Give the base's embedding as many rows as the adapter's own has."""
    rows = set()
    owners = (model.get_input_embeddings(), model.get_output_embeddings())
    names = {id(module): name for name, module in model.named_modules()}
    for owner in owners:
        name = f"{_PREFIX}{names.get(id(owner))}.weight"
        if owner is not None and name in tensors:
            rows.add((tensors[name].shape[0], owner.weight.shape[0]))
    if all(new == old for new, old in rows):
        return
    whole = len(rows) == 1 and (owners[1] is None or _both_held(owners, names, tensors))
    if not whole:
        raise InputError(
            f"the adapter in {folder} holds one of two embeddings with new rows",
            expected="both, or one that serves as both",
        )
    (new, _), *_ = rows
    with torch.random.fork_rng(devices=[]):  # all rows come from the file
        model.resize_token_embeddings(new, mean_resizing=False)


def _both_held(
    owners: tuple[Any, Any], names: Mapping[int, str], tensors: Mapping[str, Tensor]
) -> bool:
    tied = owners[0].weight is owners[1].weight
    held = [f"{_PREFIX}{names[id(owner)]}.weight" in tensors for owner in owners]
    return all(held) or (tied and any(held))

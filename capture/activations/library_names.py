"""The table of a model's sites with the names that other libraries give them."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from capture.checkpoints.live import HookedTokens
from capture.network.contributions import CONTRIBUTIONS
from capture.network.discovery.forward_trace import FORWARD_ERRORS
from capture.network.discovery.modes import evaluation_mode
from capture.network.discovery.short_inputs import short_inputs
from capture.network.hook_names import module_expression, transformer_lens_name
from capture.network.model_inputs import plain_inputs
from capture.network.sites import Place, Sites, find_sites
from capture.network.structure import find_transformer

COLUMNS = ("site", "transformer_lens", "nnsight", "pyvene")
# nnsight reads a part with such a name as the value of the part around it.
RESERVED = frozenset({"input", "inputs", "output", "source"})
# Largest difference of equal values, relative to the largest one.
REL_TOL = 1e-4


@dataclass
class _Seen:
    """A module's first input and its outputs in one pass."""

    input: Tensor | None = None
    outputs: tuple[Any, ...] = ()
    in_tuple: bool = False


@dataclass
class _Names:
    """What the names of one model depend on."""

    model: nn.Module
    sites: Sites
    paths: Mapping[int, str]
    seen: Mapping[int, _Seen]
    points: frozenset[str] = field(default_factory=frozenset)


@plain_inputs
def hook_names(model: nn.Module) -> pd.DataFrame:
    """Every site of a model with the names that other libraries give it.

    None stands where a library has no such value. Names hold for this model: one short pass shows
    which modules return tuples, and which of them reads the middle of a block.

    Args:
        model: As in ``find_sites``.

    Returns:
        One row a site. ``site`` is the name here. ``transformer_lens`` is the hook point in a
        ``TransformerBridge``, or in the ``HookedTransformer`` that was given; heads share one,
        with an axis of heads. ``nnsight`` is an expression on the wrapped model, to be read inside
        a trace; attention patterns have one if the model was loaded with eager attention.
        ``pyvene`` is a component, by path, which pyvene takes for every family; heads share one.
        The last two are those of the Hugging Face model: for a bridge they are None.

    Raises:
        InputError: as ``find_sites``.

    Examples:
        >>> table = exhume.hook_names(model).set_index("site")
        >>> table.loc["resid.1"].tolist()
        ['blocks.1.hook_resid_post', 'model.layers[1].output', 'model.layers[1].output']
        >>> table.nnsight["head.1.2"]
        'model.layers[1].self_attn.o_proj.input[..., 16:24]'
    """
    sites = find_sites(model)
    root = model.hooked if isinstance(model, HookedTokens) else model
    paths = {id(module): name for name, module in root.named_modules()}
    # A bridge moves and renames parts of the model that it wraps.
    is_bridge = any("_original_component" in path.split(".") for path in paths.values())
    points = frozenset(getattr(root, "hook_dict", ()))
    names = _Names(model, sites, paths, _trace(model), points)
    table: list[tuple[str | None, ...]] = []
    for name, place in sites.places.items():
        own = () if is_bridge else (_nnsight(names, place), _pyvene(names, place))
        table.append((name, _transformer_lens(names, place), *(own or (None, None))))
    return pd.DataFrame(table, columns=list(COLUMNS), dtype=object)


def _trace(model: nn.Module) -> dict[int, _Seen]:
    """Values in every module, in one pass on a generated input; nothing if none fits."""
    for inputs in short_inputs(model, 2):
        seen: dict[int, _Seen] = {}
        with ExitStack() as stack, torch.no_grad():
            stack.enter_context(evaluation_mode(model))
            for module in model.modules():
                hook = _noting(seen.setdefault(id(module), _Seen()))
                stack.enter_context(module.register_forward_hook(hook, with_kwargs=True))
            try:
                _ = model(inputs) if isinstance(inputs, Tensor) else model(**inputs)
            except FORWARD_ERRORS:
                continue
        return seen
    return {}


def _noting(seen: _Seen) -> Callable[..., None]:
    def hook(_: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any], output: Any) -> None:
        # As nnsight and pyvene choose it.
        first = args[0] if args else next(iter(named.values()), None)
        seen.input = first.clone() if isinstance(first, Tensor) else None
        seen.in_tuple = isinstance(output, tuple | list)
        seen.outputs = tuple(output) if seen.in_tuple else (output,)
        if isinstance(seen.outputs[0], Tensor):
            seen.outputs = (seen.outputs[0].clone(), *seen.outputs[1:])

    return hook


def _transformer_lens(names: _Names, place: Place) -> str | None:
    if names.points:
        path = names.paths.get(id(place.module))
        return path if path in names.points and place.side == "out" else None
    if find_transformer(names.model) is None:
        return None
    kind, *numbers = place.name.split(".")
    if kind == "logits" and not place.is_plain:
        return None
    # In a post-norm network these hook points have the normed sum.
    if kind in ("attn", "resid_mid") and not _is_sum(names, numbers[0]):
        return None
    return transformer_lens_name(place.name)


def _nnsight(names: _Names, place: Place) -> str | None:
    if place.name == "logits" and not place.is_plain:
        return "output.logits"
    if place.side == "pattern":
        seen, path = names.seen.get(id(place.module)), names.paths[id(place.module)]
        weights = seen.outputs[1] if seen is not None and len(seen.outputs) > 1 else None
        known = isinstance(weights, Tensor) and weights.dim() == 4
        return f"{module_expression(path, 'out')}[1]" if known else None
    found = _module_place(names, place)
    if found is None or RESERVED & set(found[0].split(".")):
        return None
    path, side, in_tuple = found
    part = ""
    if isinstance(place.part, slice):
        part = f"[..., {place.part.start}:{place.part.stop}]"
    elif place.part is not None:
        part = f"[..., {place.part}, :]"
    return f"{module_expression(path, side)}{'[0]' if in_tuple else ''}{part}"


def _pyvene(names: _Names, place: Place) -> str | None:
    found = None if place.side == "pattern" else _module_place(names, place)
    # pyvene takes the first entry of a tuple.
    return None if found is None else module_expression(*found[:2])


def _module_place(names: _Names, place: Place) -> tuple[str, str, bool] | None:
    """Path of a module, side, and whether the value is in a tuple; None if no module has it."""
    seen = names.seen.get(id(place.module))
    path = names.paths.get(id(place.module))
    if seen is None or path is None:
        return None
    if place.added_to is not None:
        return _reader_of_sum(names, place)
    if not place.is_plain or (place.side == "in" and seen.input is None):
        return None
    return path, place.side, place.side == "out" and seen.in_tuple


def _reader_of_sum(names: _Names, place: Place) -> tuple[str, str, bool] | None:
    """The part of a block that reads the block's input plus what attention adds, a norm."""
    block, added = names.seen[id(place.added_to)].input, names.seen[id(place.module)].outputs[0]
    if place.added_to is None or block is None or not isinstance(added, Tensor):
        return None
    value = block + (added * place.factor).reshape(block.shape)
    for module in place.added_to.modules():
        seen = names.seen.get(id(module))
        if seen is not None and _equal(seen.input, value):
            return names.paths[id(module)], "in", False
    return None


def _is_sum(names: _Names, layer: str) -> bool:
    """Whether the output of a block is its input and its contributions; True if unknown."""
    places = names.sites.places
    block = names.seen.get(id(places[f"resid.{layer}"].module))
    total = None if block is None else block.input
    if block is None or total is None:
        return True
    for kind in CONTRIBUTIONS:
        place = places.get(f"{kind}.{layer}")
        added = None if place is None else names.seen[id(place.module)].outputs[0]
        if place is not None and isinstance(added, Tensor):
            total = total + (added * place.factor).reshape(total.shape)
    return _equal(block.outputs[0], total)


def _equal(first: Any, second: Tensor) -> bool:
    if not isinstance(first, Tensor) or first.shape != second.shape:
        return False
    far = (first.float() - second.float()).abs().max()
    return bool(far <= REL_TOL * second.float().abs().max())

"""Networks without attention, as chains of parts that read the one before them."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from capture.network.discovery.forward_trace import Cut
from capture.network.discovery.outline import unsupported
from capture.network.discovery.proof import prove_chain
from capture.network.discovery.short_inputs import CONVOLUTIONS
from capture.network.discovery.structure_cache import StructureCache

WEIGHTED = (*CONVOLUTIONS, nn.Linear)


@dataclass(frozen=True)
class Chain:
    """What is between the parts of a network.

    Attributes:
        cuts: What enters the first part, and what leaves each.
        head: The output layer.
    """

    cuts: tuple[Cut, ...]
    head: nn.Module


def find_chain(
    model: nn.Module, example: Any = None, *, units_first: bool = False
) -> Chain:
    """The parts of a network: layers with weights, or else whole residual units.

    Args:
        model: A network without attention.
        example: As ``capture.network.sites.find_sites``.
        units_first: Take units where there are any, though layers are a chain too.

    Raises:
        InputError: neither are a chain; or the network does not run.
    """
    layers = [m for m in model.modules() if isinstance(m, WEIGHTED)]
    if len(layers) < 2:
        raise unsupported(model, f"it has {len(layers)} layers with weights")
    ways = [tuple(Cut(layer, "in") for layer in layers)]
    units = residual_units(model)
    if len(units) >= 2:
        cuts = Cut(units[0], "in"), *(Cut(unit, "out") for unit in units)
        ways.insert(0 if units_first else 1, cuts)
    faults = []
    for cuts in ways:
        faults.append(_fault(model, cuts, example))
        if not faults[-1]:
            return Chain(cuts, layers[-1])
    raise unsupported(model, faults[0])


def _fault(model: nn.Module, cuts: tuple[Cut, ...], example: Any) -> str:
    """Why the cuts make no chain; empty where they do."""
    names = {module: name for name, module in model.named_modules()}
    about = tuple((names[cut.module], cut.side) for cut in cuts)
    return _FAULTS.get(model, about, lambda: prove_chain(model, cuts, example))


_FAULTS: StructureCache[str] = StructureCache()


def residual_units(model: nn.Module) -> list[nn.Module]:
    """The innermost listed modules with two or more layers with weights, in depth."""
    listed = [
        child
        for module in model.modules()
        if isinstance(module, nn.ModuleList | nn.Sequential)
        for child in module
        if _layers(child) >= 2
    ]
    known = {id(unit) for unit in listed}

    def holds_others(unit: nn.Module) -> bool:
        return any(id(m) in known for m in unit.modules() if m is not unit)

    return [unit for unit in listed if not holds_others(unit)]


def _layers(module: nn.Module) -> int:
    return sum(isinstance(m, WEIGHTED) for m in module.modules())

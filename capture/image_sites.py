"""Named places in image models, blocks as the units.

A transformer's sites are ``capture.sites``'. In a residual network without attention a
block is one residual unit, such as a ResNet's layer of two convolutions: what leaves it
is all that the rest of the network sees, which does not hold of a single convolution
beside a shortcut.
"""

from torch import Tensor, nn

from capture.sites import CONVOLUTIONS, Place, Sites, find_sites


def find_image_sites(model: nn.Module) -> Sites:
    """The sites of an image model: ``embed``, ``resid.L``, ``final`` and ``logits``.

    Raises:
        InputError: as ``find_sites``.
    """
    found = find_sites(model)
    if found.n_heads:
        return found
    units = residual_units(model)
    if len(units) < 2:
        return found
    places = {"embed": Place("embed", units[0], "in")}
    for layer, unit in enumerate(units):
        places[f"resid.{layer}"] = Place(f"resid.{layer}", unit, "out")
    last = {name: found.places[name] for name in ("final", "logits")}
    return Sites(places | last, len(units), None, 0, found.head)


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
    return sum(isinstance(m, (*CONVOLUTIONS, nn.Linear)) for m in module.modules())


def as_places(value: Tensor) -> Tensor:
    """(image, place, d) from the same, from feature maps or from (image, d).

    Feature maps (image, d, height, width) are read row by row.
    """
    if value.dim() == 4:
        return value.flatten(2).transpose(1, 2)
    return value[:, None] if value.dim() == 2 else value


def as_before(places: Tensor, like: Tensor) -> Tensor:
    """The inverse of ``as_places``: ``places`` in the shape of ``like``."""
    if like.dim() == 4:
        return places.transpose(1, 2).reshape(like.shape)
    return places[:, 0] if like.dim() == 2 else places

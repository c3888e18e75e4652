"""Read the input of a transcoder during a forward pass: a site, or the input of an MLP."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from attribution.norms import find_norm_map
from attribution.sae.hook_names import MLP_INPUTS
from capture.network.hooks import record_places
from capture.network.sites import Place, Sites
from capture.network.structure import find_transformer, is_norm
from evidence.errors import InputError


@contextmanager
def reading(model: nn.Module, name: str, sites: Sites) -> Iterator[Callable[[], Tensor]]:
    """Read a value of the running pass, once the pass has reached it.

    Args:
        model: Run by the caller inside the block.
        name: A site, or ``mlp_in.L`` or ``mlp_norm.L`` (see ``attribution.sae.hook_names``).
        sites: The model's sites.

    Yields:
        A function that returns the value, (row, position, d).

    Raises:
        InputError: The model has no such site, or its MLP is no module of its own.
    """
    kind = name.split(".")[0]
    if kind not in MLP_INPUTS:
        with record_places([sites.resolve(name)]) as values:
            yield lambda: values[name]
        return
    block, mlp = _mlp(model, name)
    hooked = getattr(getattr(block, "ln2", None), "hook_normalized", None)
    if kind == "mlp_norm" and isinstance(hooked, nn.Module):
        with record_places([Place(name, hooked, "out")]) as values:
            yield lambda: values[name]
        return
    places = [Place(name, mlp, "in")]
    norms = [child for child in block.children() if is_norm(child)] if kind == "mlp_norm" else []
    for number, norm in enumerate(norms):
        places += [Place(f"in {number}", norm, "in"), Place(f"out {number}", norm, "out")]
    with record_places(places) as values:

        def value() -> Tensor:
            if kind == "mlp_in":
                return values[name]
            for number, norm in enumerate(norms):
                output = values.get(f"out {number}")
                if output is None or output.shape != values[name].shape:
                    continue
                if torch.equal(output, values[name]):
                    states = values[f"in {number}"]
                    found = find_norm_map(norm, states, output)
                    if found is not None:
                        return found.normalized(states, output)
            raise InputError(
                f"{name} cannot be read: what enters the MLP is not the output of a norm of its "
                "block",
                expected="a layer norm or a root mean square norm in front of the MLP",
            )

        yield value


def _mlp(model: nn.Module, name: str) -> tuple[nn.Module, nn.Module]:
    """Block and MLP of a layer.

    Raises:
        InputError: There is no such layer, or its MLP is no module of its own.
    """
    layer = int(name.split(".")[1])
    transformer = find_transformer(model)
    n_layers = 0 if transformer is None else len(transformer.blocks)
    if transformer is None or layer >= n_layers:
        raise InputError(f"the model has no {name}", expected=f"layers 0 to {n_layers - 1}")
    mlp = transformer.feed_forwards[layer]
    if mlp is None:
        raise InputError(
            f"the input of the MLP of block {layer} cannot be read: the MLP is no module of its "
            "own in this model",
            expected="a family whose blocks hold an MLP module",
        )
    return transformer.blocks[layer], mlp

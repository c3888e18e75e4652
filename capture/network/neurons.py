"""MLP neurons: activations as sites, value vectors as views of the down projection."""

from dataclasses import replace

from torch import Tensor, nn

from capture.network.sites import Place, Sites, linear_shape
from evidence.errors import InputError


def with_neurons(sites: Sites) -> Sites:
    """Add the sites ``neurons.L``, the inputs of the down projection of block L.

    A neuron's activation times its value vector is its contribution to the residual stream.

    Raises:
        InputError: a block has no single down projection.
    """
    places = dict(sites.places)
    for layer in range(sites.n_layers):
        name = f"neurons.{layer}"
        places[name] = Place(name, down_projection(sites, layer), "in")
    return replace(sites, places=places)


def down_projection(sites: Sites, layer: int) -> nn.Module:
    """The down projection of the MLP of block ``layer``.

    Raises:
        InputError: there is none, or several (a mixture of experts), or it is wrapped by an
            adapter.
    """
    part = sites.resolve(f"mlp.{layer}").module
    if not any(linear_shape(module) for module in part.modules()):
        raise InputError(
            f"what neurons of block {layer} give is not what is added to the stream",
            expected="a family that adds what its feed-forward part gives as it is",
            got=f"{type(part).__name__} in between",
        )
    maps = [
        module
        for module in part.modules()
        if (linear_shape(module) or (0, 0))[1] == sites.d_model
    ]
    # Gate and up projections come first. Mixtures of experts hold several down
    # projections in module lists.
    lists = [m for m in part.modules() if isinstance(m, nn.ModuleList)]
    if not maps or lists or not isinstance(getattr(maps[-1], "weight", None), Tensor):
        raise InputError(
            f"block {layer} has no single map from neurons to the stream",
            expected="a plain feed-forward part",
            got=type(part).__name__,
            fix="Merge adapters first; mixtures of experts are not supported",
        )
    if hasattr(maps[-1], "base_layer") or hasattr(maps[0], "base_layer"):
        raise InputError(
            f"the feed-forward part of block {layer} is wrapped by an adapter",
            fix="Merge the adapter into the weights first",
        )
    return maps[-1]


def value_vectors(projection: nn.Module) -> Tensor:
    """(neuron, d) view of a down projection's weight; writing to the view edits the weight."""
    weight: Tensor = projection.weight  # pyright: ignore[reportAssignmentType]
    rows_are_neurons = type(projection).__name__ == "Conv1D"
    return weight if rows_are_neurons else weight.T

"""Named places in a network, the same names whatever the family.

========== =================================================================
name       value
========== =================================================================
embed      what enters block 0: the embedded tokens or patches; the pixels of a CNN
resid.L    what leaves block L: the residual stream after it
attn.L     what the attention of block L adds to the stream, after its projection
mlp.L      what the feed-forward part of block L adds to the stream
head.L.H   the output of head H of block L, before the output projection
final      what enters the output layer, after the last norm
logits     the output of the output layer
========== =================================================================

In a network without attention a block is one layer with weights together with all
that follows it up to the next one, so ``resid.L`` is what the next such layer
receives: activations, pooling and flattening included, even when they are plain
function calls in ``forward``.

Places are found by structure: the longest list of equal blocks with attention in
them, the last linear map inside each part, the output layer after them.
"""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from evidence.errors import InputError

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Place:
    """Where a site's value can be read and replaced.

    Attributes:
        name: The site's name.
        module: The module whose input or output carries the value.
        side: "in" for its first argument, "out" for its (first) output.
        part: Which of the carried features: a slice of the last axis, an index into
            the axis before the last (heads kept apart), or None for all of them.
    """

    name: str
    module: nn.Module
    side: Literal["in", "out"]
    part: slice | int | None = None

    def read(self, carried: Tensor) -> Tensor:
        """The site's value, a view of what the module carries."""
        if self.part is None:
            return carried
        if isinstance(self.part, int):
            return carried[..., self.part, :]
        return carried[..., self.part]

    def write(self, carried: Tensor, value: Tensor) -> Tensor:
        """A new tensor equal to ``carried`` with the site's value replaced."""
        if self.part is None:
            return value
        changed = carried.clone()
        self.read(changed).copy_(value)
        return changed


@dataclass(frozen=True)
class Sites:
    """The sites of one model.

    Attributes:
        places: Site name to place, roughly in order of depth.
        n_layers: Number of blocks.
        d_model: Width of the residual stream; None where blocks differ in width.
        n_heads: Attention heads a block; 0 where there are none.
        head: The output layer, or None.
    """

    places: dict[str, Place]
    n_layers: int
    d_model: int | None
    n_heads: int
    head: nn.Module | None

    @property
    def names(self) -> tuple[str, ...]:
        """Every site name."""
        return tuple(self.places)

    def of(self, kind: str) -> tuple[str, ...]:
        """The names of one kind, such as "resid", from the first layer to the last."""
        return tuple(name for name in self.places if name.split(".")[0] == kind)

    def resolve(self, name: str) -> Place:
        """The place called ``name``.

        Raises:
            InputError: the model has no such site.
        """
        if name in self.places:
            return self.places[name]
        kinds = sorted({name.split(".")[0] for name in self.places})
        close = difflib.get_close_matches(name, self.places, n=1)
        raise InputError(
            f"the model has no site {name!r}",
            expected=f"one of {', '.join(kinds)}; layers 0 to {self.n_layers - 1}"
            + (f", heads 0 to {self.n_heads - 1}" if self.n_heads else ""),
            got=repr(name),
            fix=f"Did you mean {close[0]!r}?" if close else None,
        )


def find_sites(model: nn.Module) -> Sites:
    """Find the sites of ``model`` from its structure.

    Raises:
        InputError: it has neither blocks with attention nor two layers with weights.
    """
    blocks = _blocks(model)
    if not blocks:
        return _plain_sites(model)
    if hasattr(blocks[0], "hook_resid_post"):
        return _hooked_sites(model, blocks)
    return _block_sites(model, blocks)


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The longest list of blocks of one class with attention inside."""
    best: list[nn.Module] = []
    for module in model.modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential):
            continue
        children = list(module)
        alike = len({type(child) for child in children}) == 1
        if alike and _attention(children[0]) and len(children) > len(best):
            best = children
    return best


def _attention(block: nn.Module) -> nn.Module | None:
    """The attention part: by its name, and not a norm or a dropout named after it."""
    for name, child in block.named_children():
        hooked = hasattr(child, "hook_z")
        if "att" in name.lower() and (hooked or next(_linears(child), None)):
            return child
    return None


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """(inputs, outputs) of a linear map, adapters and GPT-2's Conv1D included."""
    base = getattr(module, "base_layer", None)  # a peft layer around the linear map
    if isinstance(base, nn.Module):
        return linear_shape(base)
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    weight = getattr(module, "weight", None)
    if type(module).__name__ == "Conv1D" and isinstance(weight, Tensor):
        return weight.shape[0], weight.shape[1]
    return None


def _linears(module: nn.Module, skip: nn.Module | None = None) -> Iterator[nn.Module]:
    """Linear maps in ``module``, as registered, without those in ``skip``."""
    if module is skip:
        return
    if linear_shape(module) is not None:
        yield module
        return
    for child in module.children():
        yield from _linears(child, skip)


def _last_to(width: int | None, maps: Iterator[nn.Module]) -> nn.Module | None:
    found = None
    for linear in maps:
        shape = linear_shape(linear)
        if shape is not None and width in (None, shape[1]):
            found = linear
    return found


def _block_sites(model: nn.Module, blocks: list[nn.Module]) -> Sites:
    places = {"embed": Place("embed", blocks[0], "in")}
    width, heads = None, 0
    for layer, block in enumerate(blocks):
        attention = _attention(block)
        projection = _last_to(None, _linears(attention)) if attention else None
        if attention is not None and projection is not None:
            inputs, width = linear_shape(projection) or (0, None)
            heads = _head_count(model, attention, inputs)
            size = inputs // heads if heads else 0
            for head in range(heads):
                part = slice(head * size, (head + 1) * size)
                name = f"head.{layer}.{head}"
                places[name] = Place(name, projection, "in", part)
            places[f"attn.{layer}"] = Place(f"attn.{layer}", projection, "out")
        mlp = _feed_forward(block, attention, width)
        if mlp is not None:
            places[f"mlp.{layer}"] = Place(f"mlp.{layer}", mlp, "out")
        places[f"resid.{layer}"] = Place(f"resid.{layer}", block, "out")
    return _with_output(
        Sites(places, len(blocks), width, heads, None), _output_layer(model, blocks)
    )


def _feed_forward(
    block: nn.Module, attention: nn.Module | None, width: int | None
) -> nn.Module | None:
    """The module whose output the feed-forward part adds to the stream."""
    for name, child in block.named_children():
        # A whole module by its name first: in a mixture of experts no single linear
        # map gives the sum.
        if name.lower() in ("mlp", "ffn", "feed_forward", "block_sparse_moe"):
            return child
    # Attention over another sequence is not feed-forward either.
    rest = [
        linear
        for name, child in block.named_children()
        if "att" not in name.lower()
        for linear in _linears(child, skip=attention)
    ]
    return _last_to(width, iter(rest))


def _head_count(model: nn.Module, attention: nn.Module, inputs: int) -> int:
    """Heads whose outputs lie side by side in the projection's input; 0 if unknown."""
    names = ("num_attention_heads", "num_heads", "n_heads", "n_head")
    holders: list[Any] = [*attention.modules(), getattr(model, "config", None)]
    for holder in holders:
        for name in names:
            count = getattr(holder, name, None)
            if isinstance(count, int) and count > 0 and inputs % count == 0:
                return count
    return 0


def _output_layer(model: nn.Module, blocks: list[nn.Module]) -> nn.Module | None:
    """The layer that gives the logits, or None for a body without one."""
    ask = getattr(model, "get_output_embeddings", None)
    try:
        layer = ask() if callable(ask) else None
    except NotImplementedError:
        layer = None
    if isinstance(layer, nn.Module):
        return layer
    inside = {id(module) for block in blocks for module in block.modules()}
    found, past_blocks = None, False
    for name, module in model.named_modules():
        past_blocks = past_blocks or module is blocks[-1]
        # A pooler feeds on the blocks too, but gives features, not scores.
        if not past_blocks or id(module) in inside or "pooler" in name:
            continue
        if linear_shape(module) is not None:
            found = module
    return found


def _with_output(sites: Sites, layer: nn.Module | None) -> Sites:
    if layer is None:
        return sites
    places = dict(sites.places)
    places["final"] = Place("final", layer, "in")
    places["logits"] = Place("logits", layer, "out")
    return replace(sites, places=places, head=layer)


def _plain_sites(model: nn.Module) -> Sites:
    """Sites of a network without attention: one block a layer with weights."""
    layers = [m for m in model.modules() if isinstance(m, (*CONVOLUTIONS, nn.Linear))]
    if len(layers) < 2:
        raise InputError(
            f"the structure of {type(model).__name__} is not understood",
            expected="a list of transformer blocks, or two or more layers with weights",
            got=f"{len(layers)} layers with weights",
        )
    places = {"embed": Place("embed", layers[0], "in")}
    for layer, following in enumerate(layers[1:]):
        places[f"resid.{layer}"] = Place(f"resid.{layer}", following, "in")
    sites = Sites(places, len(layers) - 1, None, 0, None)
    return _with_output(sites, layers[-1])


def _hooked_sites(model: nn.Module, blocks: list[Any]) -> Sites:
    """Sites of a ``HookedTransformer``, at the hook points its blocks have."""
    config: Any = next(m.cfg for m in model.modules() if hasattr(m, "cfg"))
    heads = int(config.n_heads)
    places = {"embed": Place("embed", blocks[0].hook_resid_pre, "out")}
    for layer, block in enumerate(blocks):
        for head in range(heads):
            name = f"head.{layer}.{head}"
            places[name] = Place(name, block.attn.hook_z, "out", head)
        points = {"attn": "hook_attn_out", "mlp": "hook_mlp_out"}
        for kind, point in (points | {"resid": "hook_resid_post"}).items():
            if hasattr(block, point):
                name = f"{kind}.{layer}"
                places[name] = Place(name, getattr(block, point), "out")
    output = next(m for n, m in model.named_modules() if n.endswith("unembed"))
    sites = Sites(places, len(blocks), int(config.d_model), heads, None)
    return _with_output(sites, output)


def model_device(model: nn.Module) -> torch.device:
    """The device of the model's first parameter; the CPU if it has none."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device

"""Sites: named activations of a network, with the same names for all model families.

============ ================================================================================
name         value
============ ================================================================================
embed        input of block 0: embedded tokens or patches; the pixels of a CNN
resid.L      output of block L: the residual stream after it
resid_pre.L  input of block L: the residual stream before it
resid_mid.L  the stream between attention and MLP of block L: its input plus what attention
             adds; not in blocks whose MLP reads the block's input
attn.L       contribution of the attention of block L to the stream: what is added to it,
             after the output projection, and a norm (Gemma 2, OLMo 2) or a factor (Granite),
             if any
mixer.L      contribution of another mixer of tokens, such as a state-space layer
mlp.L        contribution of the MLP of block L to the stream, likewise
extra.L      contribution of a second MLP of block L, such as shared experts
head.L.H     output of head H of block L, before the output projection
pattern.L    attention pattern of block L, (row, head, query, key): the weights that are
             multiplied with the values
neurons.L    activations of the MLP's neurons, (row, position, neuron): the input of its down
             projection
final        input of the output layer, after the last norm
logits       what the model returns, after it scales or caps the output layer's output
============ ================================================================================

In a network without attention, a block is one layer with weights and everything up to the next
such layer. ``resid.L`` is the input of that next layer, with activations, pooling and flattening
applied, even if they are function calls in ``forward``. In a residual network a block is a whole
residual unit.

Sites are found by structure and verified by one short forward pass per structure
(``capture.network.proof``): the output of a block is all that the rest of the network
receives, and it is the sum of the block's input and of its contributions (with the norms in
between, for post-norm networks such as BERT). A value that is patched at a contribution's site
changes the stream by the difference. Networks and sites that fail the check are refused.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn

from capture.network.discovery.structure_cache import StructureCache
from capture.network.hook_names import own_name
from capture.network.model_inputs import plain_inputs
from capture.network.patterns import find_pattern_module
from capture.network.proof import BlockParts, Chain, LogitMap, find_chain, prove_blocks
from capture.network.structure import Transformer, down_projection, find_transformer, linear_shape
from evidence.display.html_table import table_html
from evidence.errors import InputError


@dataclass(frozen=True)
class Place:
    """The module input or output that carries a site's value.

    Attributes:
        name: The site's name.
        module: The module.
        side: "in" for the first argument of the module, "out" for its (first) output, "pattern"
            for the attention weights that it computes.
        part: Features of the tensor: a slice of the last axis, an index into the
            second-to-last axis (separate heads), or None for all.
        factor: What the model multiplies the tensor by (Granite): the value is the product.
        cap: Limit of a soft cap that follows (the logits of Gemma 2), or None.
        shape_of: Module whose input has the axes of the value, if they are flattened here.
        added_to: Module whose input is added to the tensor: the value is the sum.
    """

    name: str
    module: nn.Module
    side: Literal["in", "out", "pattern"]
    part: slice | int | None = None
    factor: float = 1.0
    cap: float | None = None
    shape_of: nn.Module | None = None
    added_to: nn.Module | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the value is the module's tensor, or a part of it, as it is."""
        changed = self.cap is not None or self.shape_of is not None or self.added_to is not None
        return self.factor == 1 and not changed

    def read(self, tensor: Tensor) -> Tensor:
        """The site's value; a view of the module's tensor if nothing follows it."""
        value = self._select(tensor)
        if self.factor != 1:
            value = value * self.factor
        return value if self.cap is None else self.cap * torch.tanh(value / self.cap)

    def write(self, tensor: Tensor, value: Tensor) -> Tensor:
        """A new tensor equal to ``tensor`` with the site's value replaced.

        Raises:
            InputError: the value exceeds a soft cap, which no tensor leads to.
        """
        if self.cap is not None:
            if bool((value.abs() > self.cap).any()):
                raise InputError(
                    f"the edit at {self.name} exceeds the model's soft cap",
                    expected=f"values from {-self.cap:g} to {self.cap:g}",
                    got=f"{float(value.abs().max()):g}",
                )
            inside = torch.finfo(value.dtype).eps
            value = self.cap * torch.atanh((value / self.cap).clamp(inside - 1, 1 - inside))
        if self.factor != 1:
            value = value / self.factor
        if self.part is None:
            return value
        changed = tensor.clone()
        self._select(changed).copy_(value)
        return changed

    def _select(self, tensor: Tensor) -> Tensor:
        if self.part is None:
            return tensor
        if isinstance(self.part, int):
            return tensor[..., self.part, :]
        return tensor[..., self.part]


@dataclass(frozen=True, repr=False)
class Sites:
    """The sites of one model.

    Attributes:
        places: Site name to place, roughly in order of depth.
        n_layers: Number of blocks.
        d_model: Width of the residual stream; None if blocks differ in width.
        n_heads: Attention heads per block; 0 if there are none or blocks differ.
        head: The output layer, or None.
        refused: Kind of site that this network does not have, to the reason.
        absent: The same for kinds that other libraries also have: "resid_mid", "pattern",
            "neurons".

    Examples:
        >>> sites = exhume.find_sites(model)
        >>> sites.to_frame().head(3)
               site   kind  layer  head  width
        0     embed  embed   <NA>  <NA>     32
        1  head.0.0   head      0     0      8
        2  head.0.1   head      0     1      8
    """

    places: dict[str, Place]
    n_layers: int
    d_model: int | None
    n_heads: int
    head: nn.Module | None
    refused: Mapping[str, str] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Every site name."""
        return tuple(self.places)

    def __repr__(self) -> str:
        head, *rows = self._kinds()
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in (head, *rows)]
        return "\n".join([self._summary(), *lines])

    def _repr_html_(self) -> str:
        head, *rows = self._kinds()
        return table_html(self._summary(), head, rows)

    def to_frame(self) -> pd.DataFrame:
        """One row a site: name, kind, layer, head, and width of its vectors.

        Layer, head and width are missing where a site has none.
        """
        rows = []
        for name, place in self.places.items():
            kind, *numbers = name.split(".")
            layer, head = (*map(int, numbers), None, None)[:2]
            rows.append((name, kind, layer, head, self._width(kind, place)))
        columns = ["site", "kind", "layer", "head", "width"]
        numbers = dict.fromkeys(columns[2:], "Int64")
        return pd.DataFrame(rows, columns=columns).astype(numbers)

    def _counted_from_start(self, name: str) -> str:
        """The name with a layer and a head under zero counted from the last one."""
        kind, *numbers = name.split(".")
        counts = (self.n_layers, self.n_heads)
        parts = [
            str(int(number) + count) if re.fullmatch(r"-\d+", number) else number
            for number, count in zip(numbers, counts, strict=False)
        ]
        return ".".join([kind, *parts, *numbers[2:]])

    def _width(self, kind: str, place: "Place") -> int | None:
        if isinstance(place.part, slice):
            return place.part.stop - place.part.start
        if kind == "pattern":
            return None
        if kind == "neurons":
            shape = linear_shape(place.module)
            return None if shape is None else shape[0]
        if kind == "head":
            return self.d_model // self.n_heads if self.d_model else None
        if kind == "logits":
            shape = None if self.head is None else linear_shape(self.head)
            return None if shape is None else shape[1]
        return self.d_model

    def _summary(self) -> str:
        width = "" if self.d_model is None else f" of width {self.d_model}"
        heads = f", {self.n_heads} heads a block" if self.n_heads else ""
        return f"Sites: {self.n_layers} blocks{width}{heads}"

    def _kinds(self) -> list[tuple[str, str, str, str]]:
        """A header, and a row a kind: from the first site to the last, count, width."""
        rows = [("kind", "sites", "count", "width")]
        for kind in dict.fromkeys(name.split(".")[0] for name in self.places):
            names = self.of(kind)
            span = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
            width = self._width(kind, self.places[names[0]])
            shown = "varies" if width is None else str(width)
            rows.append((kind, span, str(len(names)), shown))
        return rows

    def of(self, kind: str) -> tuple[str, ...]:
        """Names of one kind, such as "resid", from the first layer to the last."""
        return tuple(name for name in self.places if name.split(".")[0] == kind)

    def resolve(self, name: str) -> Place:
        """The place called ``name``, which keeps that name.

        Layers may be counted from the last, as in "resid.-1", and sites may have their
        TransformerLens names, such as "blocks.5.hook_resid_post".

        Raises:
            InputError: the model has no such site.
        """
        if name in self.places:
            return self.places[name]
        if not isinstance(name, str):
            raise InputError(
                "a site is not a name", expected="a name such as resid.5", got=repr(name)[:80]
            )
        known = self._counted_from_start(own_name(name))
        if known in self.places:
            return replace(self.places[known], name=name)
        kind = known.split(".")[0]
        reason = self.refused.get(kind, self.absent.get(kind))
        if reason is not None:
            raise InputError(
                f"there is no site {name!r}: {reason}",
                expected="a site of another kind, such as resid.L",
            )
        kinds = sorted({each.split(".")[0] for each in self.places})
        close = difflib.get_close_matches(name, self.places, n=1)
        raise InputError(
            f"the model has no site {name!r}",
            expected=f"one of {', '.join(kinds)}; layers 0 to {self.n_layers - 1}"
            + (f", heads 0 to {self.n_heads - 1}" if self.n_heads else ""),
            got=repr(name),
            fix=f"Did you mean {close[0]!r}?" if close else None,
        )


@plain_inputs
def find_sites(model: nn.Module, example: Any = None) -> Sites:
    """Find the sites of ``model`` by structure, verified by one short forward pass.

    The pass runs once per structure (``capture.network.discovery.structure_cache``).

    Args:
        model: A network of token ids, images or vectors.
        example: Input with two or more different rows, a tensor or a dict of tensors, for a
            network that does not run on generated inputs.

    Raises:
        InputError: the structure is not understood, or the network does not run.

    Examples:
        >>> sites = exhume.find_sites(model)
        >>> sites
        Sites: 2 blocks of width 32, 4 heads a block
        kind       sites                       count  width
        embed      embed                       1      32
        head       head.0.0 to head.1.3        8      8
        resid_pre  resid_pre.0 to resid_pre.1  2      32
        pattern    pattern.0 to pattern.1      2      varies
        resid_mid  resid_mid.0 to resid_mid.1  2      32
        attn       attn.0 to attn.1            2      32
        mlp        mlp.0 to mlp.1              2      32
        resid      resid.0 to resid.1          2      32
        neurons    neurons.0 to neurons.1      2      128
        final      final                       1      32
        logits     logits                      1      372
        >>> sites.of("resid")
        ('resid.0', 'resid.1')
    """
    transformer = find_transformer(model)
    if transformer is None:
        return chain_sites(find_chain(model, example))
    # The blocks of a TransformerBridge hold those of the Hugging Face model, and are proved.
    first = transformer.blocks[0]
    if hasattr(first, "hook_resid_post") and not hasattr(first, "_original_component"):
        return _hooked_sites(model, transformer.blocks)
    parts = _PROVED.get(model, None, lambda: prove_blocks(model, transformer, example))
    return _block_sites(model, transformer, parts)


@plain_inputs
def find_image_sites(model: nn.Module, example: Any = None) -> Sites:
    """The sites of an image model: ``embed``, ``resid.L``, ``final`` and ``logits``.

    A vision transformer has the sites of ``find_sites``. In a residual network without attention,
    a block is one residual unit, such as the two convolutions of a ResNet layer: the output of a
    unit is all that the rest of the network receives, which is not true of a single convolution
    beside a shortcut.

    Args:
        example: As ``find_sites``.

    Raises:
        InputError: as ``find_sites``.
    """
    if find_transformer(model) is not None:
        return find_sites(model, example)
    return chain_sites(find_chain(model, example, units_first=True))


_PROVED: StructureCache[BlockParts] = StructureCache()


def _block_sites(model: nn.Module, transformer: Transformer, parts: BlockParts) -> Sites:
    places = {"embed": Place("embed", transformer.blocks[0], "in")}
    counts = set()
    for layer, block in enumerate(transformer.blocks):
        attention = transformer.attentions[layer]
        if parts.projections[layer] and attention is not None:
            projection = model.get_submodule(parts.projections[layer])
            inputs, _ = linear_shape(projection) or (0, 0)
            count = _head_count(model, transformer, attention, inputs)
            size = inputs // count if count else 0
            counts.add(count)
            for head in range(count):
                part = slice(head * size, (head + 1) * size)
                name = f"head.{layer}.{head}"
                places[name] = Place(name, projection, "in", part)
        places[f"resid_pre.{layer}"] = Place(f"resid_pre.{layer}", block, "in")
        computing = None if attention is None else find_pattern_module(attention)
        if computing is not None:
            name = f"pattern.{layer}"
            side = "pattern" if hasattr(computing, "config") else "out"
            places[name] = Place(name, computing, side)
        if parts.middles[layer]:
            name, term = f"resid_mid.{layer}", parts.added[layer][parts.middles[layer]]
            places[name] = Place(
                name,
                model.get_submodule(term.module),
                "out",
                factor=term.factor,
                shape_of=block if term.flat else None,
                added_to=block,
            )
        for kind, term in parts.added[layer].items():
            if kind not in parts.refused:
                name, module = f"{kind}.{layer}", model.get_submodule(term.module)
                shape = block if term.flat else None
                places[name] = Place(name, module, "out", factor=term.factor, shape_of=shape)
        places[f"resid.{layer}"] = Place(f"resid.{layer}", block, "out")
    count = counts.pop() if len(counts) == 1 else 0
    sites = Sites(places, len(transformer.blocks), parts.width, count, None, parts.refused)
    sites = _with_known_neurons(replace(sites, absent=_absent(model, places)))
    return _with_output(sites, transformer.head, parts.logits)


def _absent(model: nn.Module, places: Mapping[str, Place]) -> dict[str, str]:
    """Why there are no sites of some kinds."""
    found = {name.split(".")[0] for name in places}
    name = type(model).__name__
    reasons = {
        "pattern": f"the attention of {name} does not give its weights to the model library",
        "resid_mid": f"no block of {name} reads the sum of its input and of what attention adds",
    }
    return {kind: reason for kind, reason in reasons.items() if kind not in found}


def _head_count(
    model: nn.Module, transformer: Transformer, attention: nn.Module, inputs: int
) -> int:
    """Number of heads concatenated in the projection's input; 0 if unknown."""
    if len({type(each) for each in transformer.attentions if each is not None}) > 1:
        return 0  # several kinds of attention may differ in their number of heads
    names = ("num_attention_heads", "num_heads", "n_heads", "n_head")
    config = getattr(model, "config", None)
    text = getattr(config, "get_text_config", None)
    holders: list[Any] = [*attention.modules(), text() if callable(text) else config]
    for holder in holders:
        for name in names:
            count = getattr(holder, name, None)
            if isinstance(count, int) and count > 0 and inputs % count == 0:
                return count
    return 0


def _with_output(sites: Sites, layer: nn.Module | None, logits: LogitMap | None = None) -> Sites:
    if layer is None:
        return sites
    places = dict(sites.places)
    places["final"] = Place("final", layer, "in")
    if "logits" not in sites.refused:
        after = logits or LogitMap()
        places["logits"] = Place("logits", layer, "out", factor=after.factor, cap=after.cap)
    return replace(sites, places=places, head=layer)


def chain_sites(chain: Chain) -> Sites:
    """Sites of a network without attention."""
    first, *rest = chain.cuts
    places = {"embed": Place("embed", first.module, first.side)}
    for layer, cut in enumerate(rest):
        places[f"resid.{layer}"] = Place(f"resid.{layer}", cut.module, cut.side)
    return _with_output(Sites(places, len(rest), None, 0, None), chain.head)


def _hooked_sites(model: nn.Module, blocks: Sequence[Any]) -> Sites:
    """Sites of a ``HookedTransformer``, at the hook points of its blocks."""
    config: Any = next(m.cfg for m in model.modules() if hasattr(m, "cfg"))
    heads = int(config.n_heads)
    places = {"embed": Place("embed", blocks[0].hook_resid_pre, "out")}
    for layer, block in enumerate(blocks):
        for head in range(heads):
            name = f"head.{layer}.{head}"
            places[name] = Place(name, block.attn.hook_z, "out", head)
        points = {
            "resid_pre": (block, "hook_resid_pre"),
            "pattern": (block.attn, "hook_pattern"),
            "attn": (block, "hook_attn_out"),
            "resid_mid": (block, "hook_resid_mid"),
            "neurons": (getattr(block, "mlp", None), "hook_post"),
            "mlp": (block, "hook_mlp_out"),
            "resid": (block, "hook_resid_post"),
        }
        for kind, (owner, point) in points.items():
            if hasattr(owner, point):
                name = f"{kind}.{layer}"
                places[name] = Place(name, getattr(owner, point), "out")
    output = next(m for n, m in model.named_modules() if n.endswith("unembed"))
    sites = Sites(places, len(blocks), int(config.d_model), heads, None)
    return _with_output(sites, output)


def with_neurons(sites: Sites) -> Sites:
    """Add the sites ``neurons.L``, the inputs of the down projection of block L.

    A neuron's activation times its value vector is its contribution to the residual stream.

    Raises:
        InputError: a block has no single down projection.
    """
    places = dict(sites.places)
    for layer in range(sites.n_layers):
        name = f"neurons.{layer}"
        places[name] = Place(name, neuron_projection(sites, layer), "in")
    return replace(sites, places=places)


def _with_known_neurons(sites: Sites) -> Sites:
    """The sites ``neurons.L`` of the blocks with one down projection.

    Here an adapter may wrap it, and a norm or a factor may follow.
    """
    places, reason = dict(sites.places), "the network has no MLP that is known"
    for layer in range(sites.n_layers):
        if f"mlp.{layer}" not in places:
            continue
        try:
            projection = down_projection(places[f"resid.{layer}"].module, adapted=True)
        except InputError as error:
            reason = error.wrong
            continue
        places[f"neurons.{layer}"] = Place(f"neurons.{layer}", projection, "in")
    found = any(name.startswith("neurons.") for name in places)
    absent = dict(sites.absent) | ({} if found else {"neurons": reason})
    return replace(sites, places=places, absent=absent)


def neuron_projection(sites: Sites, layer: int) -> nn.Module:
    """The down projection of the MLP of block ``layer``, as part of the site ``mlp``.

    Raises:
        InputError: there is none, or several (a mixture of experts), or it is wrapped by an
            adapter; or something follows it before the stream, such as a norm.
    """
    part = sites.resolve(f"mlp.{layer}").module
    projection = None
    if sites.resolve(f"mlp.{layer}").is_plain and any(
        linear_shape(module) for module in part.modules()
    ):
        projection = down_projection(sites.places[f"resid.{layer}"].module)
    if projection is None or not any(projection is module for module in part.modules()):
        raise InputError(
            f"the output of the neurons of block {layer} is changed before it is added",
            expected="a family that adds the output of its MLP unchanged",
            got=f"{type(part).__name__} in between",
        )
    return projection


def as_positions(value: Tensor) -> Tensor:
    """Reshape to (image, position, d), from the same, from feature maps or from (image, d).

    Feature maps (image, d, height, width) are flattened row by row.
    """
    if value.dim() == 4:
        return value.flatten(2).transpose(1, 2)
    return value[:, None] if value.dim() == 2 else value


def restore_shape(positions: Tensor, like: Tensor) -> Tensor:
    """The inverse of ``as_positions``; the result has the shape of ``like``."""
    if like.dim() == 4:
        return positions.transpose(1, 2).reshape(like.shape)
    return positions[:, 0] if like.dim() == 2 else positions

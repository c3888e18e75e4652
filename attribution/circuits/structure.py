"""Where a transformer's parts read the residual stream, and where they write to it.

Nothing is taken from names of families. One small pass of the model shows which norm
feeds which part, whether attention and feed-forward part run side by side, and that
the stream is the sum of what is written to it; a model where it is not is refused.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from attribution.circuits.qkv_projections import (
    QkvProjections,
    find_qkv,
    rows_close,
    small_input,
    weight_matrix,
)
from capture.network.hooks import evaluation_mode
from capture.network.sites import Place, Sites, find_sites
from capture.network.structure import linear_shape
from evidence.errors import InputError

SUPPORTED = "a model of the Llama, GPT-2 or GPT-NeoX shape, from Hugging Face"


@dataclass(frozen=True)
class Readout:
    """What turns the last residual stream into logits: the final norm and the head."""

    norm: nn.Module
    head: nn.Module

    def __call__(self, stream: Tensor) -> Tensor:
        """Logits (..., token) of residual states (..., d_model)."""
        return self.head(self.norm(stream))


@dataclass(frozen=True)
class Block:
    """The parts of one block.

    Attributes:
        attention: Called with what ``attention_norm`` gives.
        attention_norm: Norm of the stream that attention reads.
        output_projection: Output projection of attention.
        mlp: The feed-forward part, called with what ``mlp_norm`` gives.
        mlp_norm: Norm of the stream that the feed-forward part reads.
        qkv: Query, key and value maps; None where they cannot be told apart.
    """

    attention: nn.Module
    attention_norm: nn.Module
    output_projection: nn.Module
    mlp: nn.Module
    mlp_norm: nn.Module
    qkv: QkvProjections | None


@dataclass(frozen=True)
class TransformerStructure:
    """The parts of one model and the places to hook.

    Attributes:
        blocks: From the first to the last.
        parallel: Whether a block's feed-forward part reads the stream before the
            block's attention has written to it (GPT-NeoX), not after.
        n_heads: Query heads a block; 0 where heads cannot be told apart.
        n_groups: Key and value heads a block, fewer with grouped queries.
        d_model: Width of the stream.
        readout: The final norm and the head.
        sites: Sites by name: those of ``capture.network.sites``, and for each layer L
            ``z.L`` (input of the output projection), ``q.L``, ``k.L``, ``v.L``
            (outputs of the maps), ``attn_in.L`` and ``mlp_in.L`` (what the norms
            give), ``attn_read.L``, ``mlp_read.L`` and ``final_read`` (the stream
            that the norms read).
        note: Why heads cannot be told apart; empty where they can.
    """

    blocks: tuple[Block, ...]
    parallel: bool
    n_heads: int
    n_groups: int
    d_model: int
    readout: Readout
    sites: Sites
    note: str = ""

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)


def find_structure(model: nn.Module) -> TransformerStructure:
    """Look at the model's structure, and check it with one pass over a few tokens.

    Args:
        model: A causal language model of Hugging Face, or one built alike.

    Raises:
        InputError: the model is not a pre-norm transformer with a head, or its
            residual stream is not the sum of what its parts write.
    """
    sites = find_sites(model)
    for why in sites.refused.values():
        raise _refuse(model, why)
    if sites.head is None or not sites.of("attn") or not sites.of("mlp"):
        raise _refuse(model, "it has no attention, feed-forward part or head")
    if any(linear_shape(sites.places[n].module) is None for n in sites.of("attn")):
        raise _refuse(
            model,
            "its stream is not the sum of what its parts write but of norms of it",
        )
    if "input_ids" not in inspect.signature(model.forward).parameters:
        raise _refuse(model, "it does not read tokens")
    look = _trace_forward(model, sites)
    if not look.logits.isfinite().all():
        raise InputError(
            f"{type(model).__name__} gives logits that are not finite",
            expected="a model whose logits are numbers",
        )
    blocks, parallel = [], []
    for layer in range(sites.n_layers):
        block, side_by_side = _block(model, sites, layer, look)
        blocks.append(block)
        parallel.append(side_by_side)
    if len(set(parallel)) > 1:
        raise _refuse(model, "some blocks are parallel and some are not")
    last = look.after[id(sites.places[f"resid.{sites.n_layers - 1}"].module)]
    norm = look.producing_norm(look.before[id(sites.head)])
    if norm is None or not rows_close(look.before[id(norm)], last):
        raise _refuse(model, "no norm lies between its last block and its head")
    readout = Readout(norm, sites.head)
    with torch.no_grad():
        logits = readout(last)
    if look.logits.shape != logits.shape or not rows_close(look.logits, logits):
        raise _refuse(model, "it changes its logits after the head")
    assert sites.d_model is not None  # a model with attention has one width
    anatomy = TransformerStructure(
        tuple(blocks), parallel[0], 0, 0, sites.d_model, readout, sites
    )
    return _with_heads(model, replace(anatomy, sites=_places(anatomy)))


@dataclass(frozen=True)
class _ForwardTrace:
    """What went into and came out of every module in one pass, by the module's id."""

    before: Mapping[int, Tensor]
    after: Mapping[int, Tensor]
    norm_of_output: Mapping[tuple[int, torch.Size], nn.Module]
    logits: Tensor

    def producing_norm(self, value: Tensor) -> nn.Module | None:
        """The norm that gave this very tensor, or one this is a view of."""
        return self.norm_of_output.get((value.data_ptr(), value.shape))


def _trace_forward(model: nn.Module, sites: Sites) -> _ForwardTrace:
    before: dict[int, Tensor] = {}
    after: dict[int, Tensor] = {}
    makers: dict[tuple[int, torch.Size], nn.Module] = {}

    def see(module: nn.Module, args: tuple, named: dict[str, Any], output: Any) -> None:
        first = named.get("hidden_states") if not args else args[0]
        result = output if isinstance(output, Tensor) else None
        if result is None and isinstance(output, tuple | list) and output:
            result = output[0]
        if isinstance(first, Tensor):
            before[id(module)] = first
        if isinstance(result, Tensor):
            after[id(module)] = result
            if _is_norm(module, sites):
                makers[result.data_ptr(), result.shape] = module

    handles = [
        module.register_forward_hook(see, with_kwargs=True)
        for module in model.modules()
    ]
    try:
        with torch.no_grad(), evaluation_mode(model):
            output = model(**small_input(model), use_cache=False)
    except TypeError as error:
        raise _refuse(model, f"its call is not understood ({error})") from error
    finally:
        for handle in handles:
            handle.remove()
    logits = output if isinstance(output, Tensor) else output.logits
    return _ForwardTrace(before, after, makers, logits)


def _is_norm(module: nn.Module, sites: Sites) -> bool:
    """Whether a module has nothing but vectors of the stream's width, as norms do."""
    own = list(module.parameters())
    return bool(own) and all(p.shape == (sites.d_model,) for p in own)


def _block(
    model: nn.Module, sites: Sites, layer: int, look: _ForwardTrace
) -> tuple[Block, bool]:
    """One block's parts, and whether they run side by side."""
    whole = sites.places[f"resid.{layer}"].module
    projection = sites.places[f"attn.{layer}"].module
    mlp = sites.places[f"mlp.{layer}"].module
    attention = next(
        (
            child
            for child in whole.children()
            if any(module is projection for module in child.modules())
        ),
        None,
    )
    parts = (attention, mlp, whole, projection)
    if attention is None or any(id(each) not in look.before for each in parts):
        raise _refuse(model, f"the parts of block {layer} cannot be told apart")
    norms = [look.producing_norm(look.before[id(each)]) for each in (attention, mlp)]
    if norms[0] is None or norms[1] is None:
        raise _refuse(
            model, f"block {layer} has a part that does not read the stream by a norm"
        )
    start = look.before[id(whole)]
    first, second = (look.before[id(norm)] for norm in norms)
    written = look.after[id(projection)], look.after[id(mlp)]
    # Side by side both read the very same stream; otherwise attention has added to it.
    parallel = (
        bool((second - first).norm() < (second - start - written[0]).norm())
        or second.data_ptr() == first.data_ptr()
    )
    between = start if parallel else start + written[0]
    if not (
        rows_close(first, start)
        and rows_close(second, between)
        and rows_close(look.after[id(whole)], start + written[0] + written[1])
    ):
        raise _refuse(
            model,
            f"what leaves block {layer} is not the sum of what its parts write",
        )
    return Block(attention, norms[0], projection, mlp, norms[1], None), parallel


def _places(anatomy: TransformerStructure) -> Sites:
    """The model's sites and those that edges need."""
    places = dict(anatomy.sites.places)

    def add(name: str, module: nn.Module, side: Any) -> None:
        places[name] = Place(name, module, side)

    for layer, block in enumerate(anatomy.blocks):
        add(f"z.{layer}", block.output_projection, "in")
        add(f"attn_in.{layer}", block.attention, "in")
        add(f"mlp_in.{layer}", block.mlp, "in")
        add(f"attn_read.{layer}", block.attention_norm, "in")
        add(f"mlp_read.{layer}", block.mlp_norm, "in")
        if block.qkv is not None:
            for kind, linear in block.qkv.linears.items():
                add(f"{kind}.{layer}", linear, "out")
    add("final_read", anatomy.readout.norm, "in")
    return replace(anatomy.sites, places=places)


def _with_heads(
    model: nn.Module, anatomy: TransformerStructure
) -> TransformerStructure:
    """Query, key and value maps of every block, tried in the first; or a note."""
    heads = anatomy.sites.n_heads
    first = anatomy.blocks[0]
    found, note = find_qkv(
        model, first.attention, first.output_projection, heads, anatomy.sites
    )
    if found is None:
        return replace(anatomy, note=note)
    blocks = []
    for block in anatomy.blocks:
        try:
            alike = found.for_attention(block.attention)
        except AttributeError:
            return replace(anatomy, note="blocks are not alike")
        blocks.append(replace(block, qkv=alike))
    whole = replace(
        anatomy, blocks=tuple(blocks), n_heads=heads, n_groups=found.n_groups
    )
    return replace(whole, sites=_places(whole))


def head_outputs(structure: TransformerStructure, layer: int, z: Tensor) -> Tensor:
    """What each head adds to the stream: (head, row, position, d_model).

    The bias of the output projection belongs to no head.

    Args:
        structure: The model's.
        layer: Which block.
        z: (row, position, head * size), the input of the output projection.
    """
    weight = weight_matrix(
        structure.blocks[layer].output_projection
    )  # (d_model, head * size)
    heads = z.unflatten(-1, (structure.n_heads, -1))
    split = weight.unflatten(-1, (structure.n_heads, -1))
    return torch.einsum("rphs,dhs->hrpd", heads, split)


def _refuse(model: nn.Module, why: str) -> InputError:
    return InputError(
        f"edges of {type(model).__name__} cannot be followed: {why}",
        expected=SUPPORTED,
    )

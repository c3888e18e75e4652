"""The structure of a transformer: where its components read and write the residual stream.

Nothing depends on names of model families. One small forward pass shows which norm feeds which
component, whether attention and MLP run in parallel, and whether the stream is the sum of the
components' outputs; other models are rejected.
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
    """The final norm and the output head, which map the last residual stream to logits."""

    norm: nn.Module
    head: nn.Module

    def __call__(self, stream: Tensor) -> Tensor:
        """Logits (..., token) of residual states (..., d_model)."""
        return self.head(self.norm(stream))


@dataclass(frozen=True)
class Block:
    """The components of one block.

    Attributes:
        attention: Reads the output of ``attention_norm``.
        attention_norm: Norm of the stream before attention.
        output_projection: Output projection of attention.
        mlp: Reads the output of ``mlp_norm``.
        mlp_norm: Norm of the stream before the MLP.
        qkv: Query, key and value maps; None if they cannot be separated.
    """

    attention: nn.Module
    attention_norm: nn.Module
    output_projection: nn.Module
    mlp: nn.Module
    mlp_norm: nn.Module
    qkv: QkvProjections | None


@dataclass(frozen=True)
class TransformerStructure:
    """The components of a model and its hook sites.

    Attributes:
        blocks: From first to last.
        parallel: Whether a block's MLP reads the stream before the block's attention is added
            (GPT-NeoX).
        n_heads: Query heads per block; 0 if heads cannot be separated.
        n_groups: Key and value heads per block.
        d_model: Width of the stream.
        readout: The final norm and the head.
        sites: Sites by name: those of ``capture.network.sites``, and for each layer L ``z.L``
            (input of the output projection), ``q.L``, ``k.L``, ``v.L`` (outputs of the maps),
            ``attn_in.L`` and ``mlp_in.L`` (outputs of the norms), ``attn_read.L``, ``mlp_read.L``
            and ``final_read`` (inputs of the norms).
        note: Why heads cannot be separated; empty if they can.
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
    """Find the model's structure and verify it with one forward pass over a few tokens.

    Args:
        model: A Hugging Face causal language model, or one built like it.

    Raises:
        InputError: The model is not a pre-norm transformer with a head, or its residual stream is
            not the sum of its components' outputs.
    """
    sites = find_sites(model)
    for why in sites.refused.values():
        raise _refuse(model, why)
    if sites.head is None or not sites.of("attn") or not sites.of("mlp"):
        raise _refuse(model, "it has no attention, feed-forward part or head")
    others = sites.of("mixer") or sites.of("extra")
    if others or not len(sites.of("attn")) == len(sites.of("mlp")) == sites.n_layers:
        raise _refuse(model, "its blocks are not of attention and one feed-forward part")
    if not all(sites.places[n].is_plain for n in (*sites.of("attn"), *sites.of("mlp"))):
        raise _refuse(model, "what its parts write is scaled or reshaped first")
    if any(linear_shape(sites.places[n].module) is None for n in sites.of("attn")):
        raise _refuse(model, "its stream is not the sum of what its parts write but of norms of it")
    if "input_ids" not in inspect.signature(model.forward).parameters:
        raise _refuse(model, "it does not read tokens")
    trace = _trace_forward(model, sites)
    if not trace.logits.isfinite().all():
        raise InputError(
            f"{type(model).__name__} gives logits that are not finite",
            expected="a model whose logits are numbers",
        )
    blocks, parallel = [], []
    for layer in range(sites.n_layers):
        block, side_by_side = _block(model, sites, layer, trace)
        blocks.append(block)
        parallel.append(side_by_side)
    if len(set(parallel)) > 1:
        raise _refuse(model, "some blocks are parallel and some are not")
    last = trace.after[id(sites.places[f"resid.{sites.n_layers - 1}"].module)]
    norm = trace.producing_norm(trace.before[id(sites.head)])
    if norm is None or not rows_close(trace.before[id(norm)], last):
        raise _refuse(model, "no norm lies between its last block and its head")
    readout = Readout(norm, sites.head)
    with torch.no_grad():
        logits = readout(last)
    if trace.logits.shape != logits.shape or not rows_close(trace.logits, logits):
        raise _refuse(model, "it changes its logits after the head")
    assert sites.d_model is not None  # a model with attention has one width
    structure = TransformerStructure(
        tuple(blocks), parallel[0], 0, 0, sites.d_model, readout, sites
    )
    return _with_heads(model, replace(structure, sites=_places(structure)))


@dataclass(frozen=True)
class _ForwardTrace:
    """Input and output of every module in one forward pass, by the module's id."""

    before: Mapping[int, Tensor]
    after: Mapping[int, Tensor]
    norm_of_output: Mapping[tuple[int, torch.Size], nn.Module]
    logits: Tensor

    def producing_norm(self, value: Tensor) -> nn.Module | None:
        """The norm whose output is this tensor, or a view of it."""
        return self.norm_of_output.get((value.data_ptr(), value.shape))


def _trace_forward(model: nn.Module, sites: Sites) -> _ForwardTrace:
    before: dict[int, Tensor] = {}
    after: dict[int, Tensor] = {}
    makers: dict[tuple[int, torch.Size], nn.Module] = {}

    def record(module: nn.Module, args: tuple, named: Mapping[str, object], output: Any) -> None:
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

    handles = [module.register_forward_hook(record, with_kwargs=True) for module in model.modules()]
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
    """Whether all parameters are vectors of the stream's width, as in a norm."""
    parameters = list(module.parameters())
    return bool(parameters) and all(p.shape == (sites.d_model,) for p in parameters)


def _block(model: nn.Module, sites: Sites, layer: int, trace: _ForwardTrace) -> tuple[Block, bool]:
    """The components of one block, and whether they run in parallel."""
    block = sites.places[f"resid.{layer}"].module
    projection = sites.places[f"attn.{layer}"].module
    mlp = sites.places[f"mlp.{layer}"].module
    attention = next(
        (
            child
            for child in block.children()
            if any(module is projection for module in child.modules())
        ),
        None,
    )
    parts = (attention, mlp, block, projection)
    if attention is None or any(id(each) not in trace.before for each in parts):
        raise _refuse(model, f"the parts of block {layer} cannot be told apart")
    norms = [trace.producing_norm(trace.before[id(each)]) for each in (attention, mlp)]
    if norms[0] is None or norms[1] is None:
        raise _refuse(model, f"block {layer} has a part that does not read the stream by a norm")
    start = trace.before[id(block)]
    first, second = (trace.before[id(norm)] for norm in norms)
    outputs = trace.after[id(projection)], trace.after[id(mlp)]
    # In parallel both norms read one stream; otherwise attention was added before the second.
    parallel = (
        bool((second - first).norm() < (second - start - outputs[0]).norm())
        or second.data_ptr() == first.data_ptr()
    )
    between = start if parallel else start + outputs[0]
    if not (
        rows_close(first, start)
        and rows_close(second, between)
        and rows_close(trace.after[id(block)], start + outputs[0] + outputs[1])
    ):
        raise _refuse(model, f"what leaves block {layer} is not the sum of what its parts write")
    return Block(attention, norms[0], projection, mlp, norms[1], None), parallel


def _places(structure: TransformerStructure) -> Sites:
    """The model's sites and the additional sites of edges."""
    places = dict(structure.sites.places)

    def add(name: str, module: nn.Module, side: Any) -> None:
        places[name] = Place(name, module, side)

    for layer, block in enumerate(structure.blocks):
        add(f"z.{layer}", block.output_projection, "in")
        add(f"attn_in.{layer}", block.attention, "in")
        add(f"mlp_in.{layer}", block.mlp, "in")
        add(f"attn_read.{layer}", block.attention_norm, "in")
        add(f"mlp_read.{layer}", block.mlp_norm, "in")
        if block.qkv is not None:
            for kind, linear in block.qkv.linears.items():
                add(f"{kind}.{layer}", linear, "out")
    add("final_read", structure.readout.norm, "in")
    return replace(structure.sites, places=places)


def _with_heads(model: nn.Module, structure: TransformerStructure) -> TransformerStructure:
    """Add the QKV maps of every block, found in the first block, or a note."""
    n_heads = structure.sites.n_heads
    first = structure.blocks[0]
    qkv, note = find_qkv(model, first.attention, first.output_projection, n_heads, structure.sites)
    if qkv is None:
        return replace(structure, note=note)
    blocks = []
    for block in structure.blocks:
        try:
            block_qkv = qkv.for_attention(block.attention)
        except AttributeError:
            return replace(structure, note="blocks are not alike")
        blocks.append(replace(block, qkv=block_qkv))
    with_qkv = replace(structure, blocks=tuple(blocks), n_heads=n_heads, n_groups=qkv.n_groups)
    return replace(with_qkv, sites=_places(with_qkv))


def head_outputs(structure: TransformerStructure, layer: int, z: Tensor) -> Tensor:
    """(head, row, position, d_model) that each head adds to the residual stream.

    The bias of the output projection is assigned to no head.

    Args:
        structure: The model's structure.
        layer: Index of the block.
        z: (row, position, head * size), the input of the output projection.
    """
    weight = weight_matrix(structure.blocks[layer].output_projection)  # (d_model, head * size)
    heads = z.unflatten(-1, (structure.n_heads, -1))
    split = weight.unflatten(-1, (structure.n_heads, -1))
    return torch.einsum("rphs,dhs->hrpd", heads, split)


def _refuse(model: nn.Module, why: str) -> InputError:
    return InputError(
        f"edges of {type(model).__name__} cannot be followed: {why}", expected=SUPPORTED
    )

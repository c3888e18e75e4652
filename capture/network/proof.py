"""What a network's parts are, proved by one short pass where structure only suggests.

The rest of the network sees nothing but what leaves a block; and those modules give
what a block adds to the stream whose outputs, added to what enters it, are what leaves
it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import torch
from torch import Tensor, nn

from capture.network.discovery.forward_trace import (
    Cut,
    ForwardTrace,
    ModuleTrace,
    trace_forward,
)
from capture.network.discovery.structure_cache import StructureCache
from capture.network.structure import (
    WEIGHTED,
    Transformer,
    linear_shape,
    linears,
    residual_units,
    unsupported,
)

# Two computations of one value may differ by rounding, relative to the largest.
RELATIVE_TOL = 1e-4


@dataclass(frozen=True)
class BlockParts:
    """What a pass showed of the blocks of a transformer, modules by their names.

    Attributes:
        projections: (block,) the linear map that attention calls last; "" for none.
        attention: (block,) the module whose output attention adds to the stream.
        feed_forward: (block,) the same of the feed-forward part.
        width: Of the stream.
        refused: "attn" and "mlp" to why no module gives that, where none does.
    """

    projections: tuple[str, ...]
    attention: tuple[str, ...]
    feed_forward: tuple[str, ...]
    width: int
    refused: dict[str, str]


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


def prove_chain(model: nn.Module, cuts: Sequence[Cut], example: Any = None) -> str:
    """Why the cuts do not part a network into a chain; empty where they do.

    Args:
        model: The network.
        cuts: From the first to the last.
        example: Two rows of input; made up by default.

    Raises:
        InputError: the network could not be run.
    """
    found = trace_forward(model, cuts, [cut.module for cut in cuts], example)
    return _broken(found, cuts)


def prove_blocks(
    model: nn.Module, transformer: Transformer, example: Any = None
) -> BlockParts:
    """The parts of the blocks.

    Raises:
        InputError: the network could not be run, or something passes by its blocks.
    """
    blocks = transformer.blocks
    cuts = [Cut(blocks[0], "in"), *(Cut(block, "out") for block in blocks)]
    inside = [module for block in blocks for module in block.modules()]
    found = trace_forward(model, cuts, inside, example)
    broken = _broken(found, cuts) or _unlinked(found, blocks)
    if broken:
        raise unsupported(model, broken)
    return _parts(model, transformer, found)


def _broken(found: ForwardTrace, cuts: Sequence[Cut]) -> str:
    """Why the cuts do not hold all that goes on; empty where they do."""
    calls = [found.of(cut.module).calls for cut in cuts]
    if 0 in calls:
        return (
            f"a short input does not pass through part {calls.index(0)} of {len(cuts)}"
        )
    if max(calls) > 1:
        return "it runs one part several times"
    ends = [found.of(cut.module).end_index for cut in cuts]
    if sorted(ends) != ends:
        return "its parts do not run in the order in which they are listed"
    if not found.rows_first:
        return "what passes between its parts has no axis of rows first"
    output = found.output
    if output is None or len(output) != found.rows:
        return "its output has no axis of rows first"
    if not _same(output, output[-1:].expand_as(output)):
        return "something passes by its parts, as in a network with skips between them"
    return ""


def _unlinked(found: ForwardTrace, blocks: Sequence[nn.Module]) -> str:
    """Why what leaves a block is not what enters the next; empty where it is."""
    for layer, (block, following) in enumerate(pairwise(blocks)):
        gave, read = found.of(block).output, found.of(following).input
        if gave is None or read is None or not _same(read, gave):
            return f"what leaves block {layer} is not what enters the next"
    return ""


def _parts(
    model: nn.Module, transformer: Transformer, found: ForwardTrace
) -> BlockParts:
    projections, attention, feed_forward = [], [], []
    refused: dict[str, str] = {}
    width = _width(transformer, found)
    names = {module: name for name, module in model.named_modules()}
    for layer, block in enumerate(transformer.blocks):
        own = transformer.attentions[layer]
        projection = _last_called(found, list(linears(own)))
        rest = [m for m in linears(block, skip=own) if _outputs(m) == width]
        whole = transformer.feed_forwards[layer]
        others = [
            child
            for child in block.children()
            if child is not own and child is not whole and found.of(child).calls == 1
        ]
        others.sort(key=lambda child: found.of(child).end_index)
        ones = [each for each in (projection, own) if each is not None]
        twos = [each for each in (whole, _last_called(found, rest)) if each is not None]
        # A search that fails is slow, and one block that is refused is enough.
        given_up = len(refused) == 2
        chosen = None if given_up else _added(found, block, ones, twos, others)
        projections.append("" if projection is None else names[projection])
        attention.append(names[chosen[0] if chosen else own])
        feed_forward.append(names[chosen[1] if chosen else block])
        place = f"in block {layer} of {type(model).__name__}"
        if not chosen and not given_up:
            why = (
                f"{place} no module gives what is added to the stream: it is scaled or "
                "changed first"
            )
            refused = {"attn": why, "mlp": why} | refused
        for kind, module in zip(("attn", "mlp"), chosen or (), strict=False):
            gave, stream = found.of(module).output, found.of(block).output
            if gave is not None and stream is not None and gave.shape != stream.shape:
                why = f"{place} it has no positions: rows lie one after another"
                refused.setdefault(kind, why)
    return BlockParts(
        tuple(projections), tuple(attention), tuple(feed_forward), width, refused
    )


def _width(transformer: Transformer, found: ForwardTrace) -> int:
    gave = found.of(transformer.blocks[0]).output
    return 0 if gave is None else int(gave.shape[-1])


def _outputs(module: nn.Module) -> int:
    return (linear_shape(module) or (0, 0))[1]


def _last_called(found: ForwardTrace, modules: list[nn.Module]) -> nn.Module | None:
    called = [module for module in modules if found.of(module).calls]
    return max(called, key=lambda module: found.of(module).end_index, default=None)


def _added(
    found: ForwardTrace,
    block: nn.Module,
    ones: list[nn.Module],
    twos: list[nn.Module],
    others: list[nn.Module],
) -> tuple[nn.Module, nn.Module] | None:
    """Two modules whose outputs the block adds to the stream, the likeliest first.

    Args:
        found: What was seen.
        block: The block.
        ones: Modules that may give what attention adds, the likeliest first.
        twos: The same of the feed-forward part.
        others: Modules that may give either, such as norms and dropouts.
    """
    start, end = found.of(block).input, found.of(block).output
    if start is None or end is None:
        return None
    gave = {each: _like(found.of(each).output, end) for each in (*ones, *twos, *others)}
    for one, two in product([*ones, *others], [*twos, *others]):
        a, b = gave[one], gave[two]
        if one is not two and a is not None and b is not None:
            if _is_sum(end, start, a, b):
                return one, two
    inside = [found.of(module) for module in block.modules()]
    for one, two in product(ones, twos):
        a, b = gave[one], gave[two]
        if a is not None and b is not None and _is_normed_sum(inside, start, a, b, end):
            return one, two
    return None


def _like(value: Tensor | None, stream: Tensor) -> Tensor | None:
    """A value in the shape of the stream, also where its rows lie in one another."""
    if value is None or value.numel() != stream.numel():
        return None
    return value.reshape(stream.shape)


def _is_normed_sum(
    inside: Sequence[ModuleTrace], start: Tensor, a: Tensor, b: Tensor, end: Tensor
) -> bool:
    """Whether a norm follows each addition, as in BERT: N(N(start + a) + b)."""
    seen = [(_like(each.input, end), _like(each.output, end)) for each in inside]
    pairs = [
        (read, gave) for read, gave in seen if read is not None and gave is not None
    ]
    middles = [gave for read, gave in pairs if _is_sum(read, start, a)]
    return any(
        torch.equal(gave, end) and _is_sum(read, middle, b)
        for middle in middles
        for read, gave in pairs
    )


def _is_sum(total: Tensor, *terms: Tensor) -> bool:
    """Whether a value is the sum of others up to the rounding of their numbers."""
    eps = max(torch.finfo(each.dtype).eps for each in (total, *terms))
    wide = [each.double() for each in (total, *terms)]
    size = sum(each.abs() for each in wide)
    apart = (wide[0] - sum(wide[1:])).abs()
    return bool((apart <= 4 * eps * size).masked_fill(~apart.isfinite(), True).all())


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two values are equal up to rounding, vector by vector."""
    if one.shape != other.shape:
        return False
    share = RELATIVE_TOL
    if one.is_floating_point():
        share = max(RELATIVE_TOL, 8 * torch.finfo(one.dtype).eps)
    one, other = one.double(), other.double()
    apart = (one - other).norm(dim=-1)
    near = apart <= share * other.norm(dim=-1) + 1e-30
    # Broken weights give NaN wherever they are read, and the structure is the same.
    return bool(near.masked_fill(~apart.isfinite(), True).all())

"""One short pass that shows what a network's parts are, where structure only suggests.

All its rows but the last read one text, and the last another. Row l goes on with the
last row's value at cut l, such as what leaves a block. If the rest of the network sees
nothing but that, what comes out of every row is what comes out of the last.

The same pass shows which modules give what a block adds to the stream: those whose
outputs, added to what enters the block, are what leaves it.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise, product
from typing import Any, Literal

import torch
from torch import Tensor, nn

from capture.modes import evaluating, without_hooks
from capture.outline import Outline, linear_shape, linears, unsupported
from capture.short_inputs import as_rows, short_inputs
from evidence.errors import InputError

# Cuts that are tried: of more, evenly spaced ones, the first and the last among them.
MOST_CUTS = 16
# Two computations of one value may differ by rounding, relative to the largest.
SAME = 1e-4
FAILURES = (
    TypeError,
    ValueError,
    RuntimeError,
    LookupError,
    AttributeError,
    AssertionError,
    NotImplementedError,
)


@dataclass(frozen=True)
class Cut:
    """Where all must pass that goes on: a module's first input or its first output."""

    module: nn.Module
    side: Literal["in", "out"]


@dataclass(frozen=True)
class Parts:
    """What a pass showed of the blocks of an outline.

    Attributes:
        projections: (block,) the linear map that attention calls last, or None.
        attention: (block,) the module whose output attention adds to the stream.
        feed_forward: (block,) the same of the feed-forward part.
        width: Of the stream.
        refused: "attn" and "mlp" to why no module gives that, where none does.
    """

    projections: tuple[nn.Module | None, ...]
    attention: tuple[nn.Module, ...]
    feed_forward: tuple[nn.Module, ...]
    width: int
    refused: dict[str, str]


@dataclass
class Seen:
    """What the last row was in one module, at its last call.

    Attributes:
        read: Its first input, if that is a tensor.
        gave: Its first output, likewise.
        calls: How often it was called.
        when: Number of the call's end among all ends.
    """

    read: Tensor | None = None
    gave: Tensor | None = None
    calls: int = 0
    when: int = -1


@dataclass
class Look:
    """One pass: what was seen in modules, by their ids, and what came out by row."""

    rows: int
    modules: dict[int, Seen] = field(default_factory=dict)
    ends: int = 0
    whole: bool = True
    output: Tensor | None = None

    def of(self, module: nn.Module) -> Seen:
        """What was seen in one module."""
        return self.modules.setdefault(id(module), Seen())

    def last(self, value: Any) -> Tensor | None:
        """The last row of a module's value, also where rows lie one after another."""
        if isinstance(value, tuple | list) and value:
            value = value[0]
        if not isinstance(value, Tensor) or not value.dim() or len(value) % self.rows:
            return None
        # A copy: the network may add to it in place.
        return value[-(len(value) // self.rows) :].clone()


def prove_chain(model: nn.Module, cuts: Sequence[Cut], example: Any = None) -> str:
    """Why the cuts do not part a network into a chain; empty where they do.

    Args:
        model: The network.
        cuts: From the first to the last.
        example: Two rows of input; made up by default.

    Raises:
        InputError: the network could not be run.
    """
    found = _run(model, cuts, [cut.module for cut in cuts], example)
    return _broken(found, cuts)


def prove_blocks(model: nn.Module, outline: Outline, example: Any = None) -> Parts:
    """The parts of the blocks.

    Raises:
        InputError: the network could not be run, or something passes by its blocks.
    """
    blocks = outline.blocks
    cuts = [Cut(blocks[0], "in"), *(Cut(block, "out") for block in blocks)]
    inside = [module for block in blocks for module in block.modules()]
    found = _run(model, cuts, inside, example)
    broken = _broken(found, cuts) or _unlinked(found, blocks)
    if broken:
        raise unsupported(model, broken)
    return _parts(model, outline, found)


def _run(
    model: nn.Module, cuts: Sequence[Cut], watched: Sequence[nn.Module], example: Any
) -> Look:
    step = max(1, -(-(len(cuts) - 1) // (MOST_CUTS - 1)))
    tried = [*cuts[:-1:step], cuts[-1]]
    rows = len(tried) + 1
    given = short_inputs(model, rows) if example is None else [as_rows(example, rows)]
    why = "nothing is known of what it reads"
    for inputs in given:
        found = Look(rows)
        with ExitStack() as stack, torch.no_grad():
            stack.enter_context(evaluating(model))
            stack.enter_context(without_hooks(model))
            for module in dict.fromkeys(watched):
                stack.enter_context(_watching(module, found))
            for row, cut in enumerate(tried):
                stack.enter_context(_exchanging(cut, row, found))
            try:
                output = (
                    model(inputs) if isinstance(inputs, Tensor) else model(**inputs)
                )
            except FAILURES as error:
                why = f"{type(error).__name__}: {str(error)[:120]}"
                continue
        found.output = _first(output)
        return found
    raise InputError(
        f"the structure of {type(model).__name__} cannot be checked: it does not run "
        f"on a short input ({why})",
        expected="a network of token ids, of images or of vectors",
        fix="Give it an input of two different rows once: find_sites(model, example)",
    )


@contextmanager
def _watching(module: nn.Module, found: Look) -> Iterator[None]:
    seen = found.of(module)

    def before(_: nn.Module, args: tuple, named: dict[str, Any]) -> None:
        seen.read = found.last(args[0] if args else named.get("hidden_states"))

    def after(_: nn.Module, args: tuple, output: Any) -> None:
        seen.gave = found.last(output)
        seen.calls += 1
        found.ends += 1
        seen.when = found.ends

    handles = [
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _exchanging(cut: Cut, row: int, found: Look) -> Iterator[None]:
    def exchanged(value: Any) -> Tensor | None:
        if not isinstance(value, Tensor) or value.dim() < 2 or len(value) != found.rows:
            found.whole = False
            return None
        value = value.clone()
        value[row] = value[-1]
        return value

    def before(_: nn.Module, args: tuple, named: dict[str, Any]) -> Any:
        key = "hidden_states" if "hidden_states" in named else next(iter(named), None)
        value = exchanged(args[0] if args else named.get(str(key)))
        if value is None:
            return None
        return (
            ((value, *args[1:]), named) if args else (args, named | {str(key): value})
        )

    def after(_: nn.Module, args: tuple, output: Any) -> Any:
        whole = isinstance(output, Tensor)
        value = exchanged(output if whole else _first(output))
        if value is None:
            return None
        return value if whole else (value, *output[1:])

    handle = (
        cut.module.register_forward_pre_hook(before, with_kwargs=True)
        if cut.side == "in"
        else cut.module.register_forward_hook(after)
    )
    try:
        yield
    finally:
        handle.remove()


def _first(output: Any) -> Tensor | None:
    """The first tensor of an output: logits before anything that comes with them."""
    if isinstance(output, Tensor):
        return output
    if getattr(output, "logits", None) is not None:
        return output.logits
    values = output.values() if isinstance(output, dict) else output
    if not isinstance(output, dict | tuple | list):
        values = vars(output).values() if hasattr(output, "__dict__") else ()
    return next((each for each in values if isinstance(each, Tensor)), None)


def _broken(found: Look, cuts: Sequence[Cut]) -> str:
    """Why the cuts do not hold all that goes on; empty where they do."""
    calls = [found.of(cut.module).calls for cut in cuts]
    if 0 in calls:
        return (
            f"a short input does not pass through part {calls.index(0)} of {len(cuts)}"
        )
    if max(calls) > 1:
        return "it runs one part several times"
    ends = [found.of(cut.module).when for cut in cuts]
    if sorted(ends) != ends:
        return "its parts do not run in the order in which they are listed"
    if not found.whole:
        return "what passes between its parts has no axis of rows first"
    output = found.output
    if output is None or len(output) != found.rows:
        return "its output has no axis of rows first"
    if not _same(output, output[-1:].expand_as(output)):
        return "something passes by its parts, as in a network with skips between them"
    return ""


def _unlinked(found: Look, blocks: Sequence[nn.Module]) -> str:
    """Why what leaves a block is not what enters the next; empty where it is."""
    for layer, (block, following) in enumerate(pairwise(blocks)):
        gave, read = found.of(block).gave, found.of(following).read
        if gave is None or read is None or not _same(read, gave):
            return f"what leaves block {layer} is not what enters the next"
    return ""


def _parts(model: nn.Module, outline: Outline, found: Look) -> Parts:
    projections, attention, feed_forward = [], [], []
    refused: dict[str, str] = {}
    width = _width(outline, found)
    for layer, block in enumerate(outline.blocks):
        own = outline.attentions[layer]
        projection = _last_called(found, list(linears(own)))
        rest = [m for m in linears(block, skip=own) if _outputs(m) == width]
        last = _last_called(found, rest)
        whole = outline.feed_forwards[layer]
        others = [
            child
            for child in block.children()
            if child is not own and child is not whole and found.of(child).calls == 1
        ]
        others.sort(key=lambda child: found.of(child).when)
        chosen = _added(
            found,
            found.of(block),
            [each for each in (projection, own, *others) if each is not None],
            [each for each in (whole, last, *others) if each is not None],
        )
        projections.append(projection)
        attention.append(chosen[0] if chosen else own)
        feed_forward.append(chosen[1] if chosen else whole or block)
        if not chosen:
            why = (
                f"in block {layer} of {type(model).__name__} no module gives what is "
                "added to the stream: it is scaled or changed first"
            )
            refused.setdefault("attn", why)
            refused.setdefault("mlp", why)
            continue
        shape = found.of(block).gave
        for kind, module in zip(("attn", "mlp"), chosen, strict=True):
            gave = found.of(module).gave
            if gave is not None and shape is not None and gave.shape != shape.shape:
                refused.setdefault(
                    kind,
                    f"in block {layer} of {type(model).__name__} rows lie one after "
                    "another there, and positions cannot be told apart",
                )
    return Parts(
        tuple(projections), tuple(attention), tuple(feed_forward), width, refused
    )


def _width(outline: Outline, found: Look) -> int:
    gave = found.of(outline.blocks[0]).gave
    return 0 if gave is None else int(gave.shape[-1])


def _outputs(module: nn.Module) -> int:
    return (linear_shape(module) or (0, 0))[1]


def _last_called(found: Look, modules: list[nn.Module]) -> nn.Module | None:
    called = [module for module in modules if found.of(module).calls]
    return max(called, key=lambda module: found.of(module).when, default=None)


def _added(
    found: Look, block: Seen, ones: list[nn.Module], others: list[nn.Module]
) -> tuple[nn.Module, nn.Module] | None:
    """Two modules whose outputs the block adds to the stream, the likeliest first."""
    if block.read is None or block.gave is None:
        return None
    for one, other in product(ones, others):
        a, b = (_like(found.of(each).gave, block.gave) for each in (one, other))
        if one is other or a is None or b is None:
            continue
        if _is_sum(block.gave, block.read, a, b):
            return one, other
        if _is_normed_sum(found, block.read, a, b, block.gave):
            return one, other
    return None


def _like(value: Tensor | None, stream: Tensor) -> Tensor | None:
    """A value in the shape of the stream, also where its rows lie in one another."""
    if value is None or value.numel() != stream.numel():
        return None
    return value.reshape(stream.shape)


def _is_normed_sum(
    found: Look, start: Tensor, a: Tensor, b: Tensor, end: Tensor
) -> bool:
    """Whether a norm follows each addition, as in BERT: N(N(start + a) + b)."""
    seen = [
        (_like(each.read, end), _like(each.gave, end))
        for each in found.modules.values()
    ]
    pairs = [
        (read, gave) for read, gave in seen if read is not None and gave is not None
    ]
    middles = [gave for read, gave in pairs if _is_sum(read, start, a)]
    return any(
        _is_sum(read, middle, b) and torch.equal(gave, end)
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
    share = SAME
    if one.is_floating_point():
        share = max(SAME, 8 * torch.finfo(one.dtype).eps)
    one, other = one.double(), other.double()
    apart = (one - other).norm(dim=-1)
    near = apart <= share * other.norm(dim=-1) + 1e-30
    # Broken weights give NaN wherever they are read, and the structure is the same.
    return bool(near.masked_fill(~apart.isfinite(), True).all())

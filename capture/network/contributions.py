"""What the parts of a block add to the residual stream, found in a traced forward pass.

The step of the stream is the sum of one term for each part: the output of a module times a factor.
The module is the part itself, its last linear map, or what follows it in the block, such as a
norm of the contribution (Gemma 2, OLMo 2). The factor is 1 except where the model multiplies the
contribution (Granite).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from capture.network.discovery.forward_trace import ForwardTrace, ModuleTrace
from capture.network.structure import (
    FEED_FORWARD_WORDS,
    is_norm,
    linear_shape,
    linears,
    listed_parts,
)

# What can be added to the stream; "mixer" is another mixer of tokens, such as a state-space layer,
# and "extra" a second feed-forward part, such as shared experts.
CONTRIBUTIONS = ("attn", "mixer", "mlp", "extra")
# Ends of names of classes of feed-forward parts.
FEED_FORWARD_ENDS = ("mlp", "moe", "moeblock", "feedforward", "layerff", "experts")
# Largest number of combinations of modules that are compared with the step of the stream.
MAX_COMBINATIONS = 4096
# A smaller factor means that a part contributes nothing.
MIN_FACTOR = 1e-4
# Factors this close to a number of the configuration are that number.
SNAP_TOL = 1e-5


@dataclass(frozen=True)
class Term:
    """One addition to the stream.

    Attributes:
        module: Name of the module.
        factor: What its output is multiplied by before it is added.
        flat: Whether its rows and positions are flattened into one axis.
    """

    module: str
    factor: float = 1.0
    flat: bool = False


@dataclass(frozen=True)
class Part:
    """A part of a block that adds to the stream.

    Attributes:
        kind: "attn", "mixer" or "mlp".
        module: The part.
        outputs: Candidates for what is added, best first.
    """

    kind: str
    module: nn.Module
    outputs: tuple[nn.Module, ...]


Added = Mapping[str, tuple[nn.Module, float]]
"""What a block adds: kind to module and factor."""


def find_added(
    trace: ForwardTrace,
    block: nn.Module,
    attention: nn.Module | None,
    feed_forward: nn.Module | None,
    projection: nn.Module | None,
    known_factors: Sequence[float] = (),
) -> Added | None:
    """The modules whose outputs a block adds to the stream, or None if there are none.

    Args:
        attention: The block's attention.
        feed_forward: The block's MLP, if it has a name of its own.
        projection: The last linear map called by attention.
        known_factors: Numbers of the configuration, which factors are likely to be.
    """
    start, end = trace.of(block).input, trace.of(block).output
    if start is None or end is None or start.shape != end.shape or _has_unset_scale(block):
        return None
    width = end.shape[-1]
    others = [
        child
        for child in block.children()
        if child is not attention and child is not feed_forward and trace.of(child).calls == 1
    ]
    others.sort(key=lambda child: trace.of(child).end_index)
    if attention is not None:
        maps = [m for m in linears(block, skip=attention) if _outputs(m) == width]
        pair = _find_pair(
            trace,
            block,
            _present(projection, attention),
            _present(feed_forward, last_called(trace, maps)),
            others,
        )
        if pair is not None:
            chosen = [_past_identity(trace, module, others) for module in pair]
            return {"attn": (chosen[0], 1.0), "mlp": (chosen[1], 1.0)}
    parts = _parts(trace, block, attention, feed_forward, projection, width)
    return _find_sum(trace, start, end, parts, others, known_factors) if parts else None


def _has_unset_scale(block: nn.Module) -> bool:
    """Whether the block itself holds a vector of one repeated value, such as a fresh layer scale.

    Where it applies does not follow from the values of one pass, and it differs after training.
    """
    own = [each for each in block.parameters(recurse=False) if each.dim() == 1 and len(each) > 1]
    return any(bool((each == each[0]).all()) and bool(each[0].isfinite()) for each in own)


def leads_out(
    trace: ForwardTrace, attention: nn.Module, projection: nn.Module, added: nn.Module | None
) -> bool:
    """Whether the output of attention is that of its projection, alone or with its input."""
    out = trace.of(projection).output
    whole = trace.of(attention)
    if out is None:
        return False
    values = [whole.output]
    if added is not None:
        values += [trace.of(added).output, trace.of(added).input]
    reshaped = [reshape(value, out) for value in (*values, whole.input)]
    if reshaped[0] is not None and reshaped[-1] is not None:
        if is_sum(reshaped[0], reshaped[-1], out):
            return True
    return any(value is not None and is_sum(value, out) for value in reshaped[:-1])


def last_called(trace: ForwardTrace, modules: Sequence[nn.Module]) -> nn.Module | None:
    """The module that ended last, of those that were called."""
    called = [module for module in modules if trace.of(module).calls]
    return max(called, key=lambda module: trace.of(module).end_index, default=None)


def reshape(value: Tensor | None, like: Tensor) -> Tensor | None:
    """A value reshaped to another, or None if the sizes differ."""
    if value is None or value.numel() != like.numel():
        return None
    return value.reshape(like.shape)


def is_sum(total: Tensor, *terms: Tensor) -> bool:
    """Whether ``total`` is the sum of ``terms`` up to rounding."""
    eps = max(torch.finfo(value.dtype).eps for value in (total, *terms))
    values = [value.double() for value in (total, *terms)]
    magnitude = sum(value.abs() for value in values)
    difference = (values[0] - sum(values[1:])).abs()
    return bool((difference <= 4 * eps * magnitude).masked_fill(~difference.isfinite(), True).all())


def _present(*modules: nn.Module | None) -> list[nn.Module]:
    return [module for module in modules if module is not None]


def _outputs(module: nn.Module) -> int:
    return (linear_shape(module) or (0, 0))[1]


def _find_pair(
    trace: ForwardTrace,
    block: nn.Module,
    attention_candidates: list[nn.Module],
    mlp_candidates: list[nn.Module],
    either_candidates: list[nn.Module],
) -> tuple[nn.Module, nn.Module] | None:
    """The two modules whose outputs the block adds to the stream, or None.

    Args:
        attention_candidates: Candidates for the contribution of attention, best first.
        mlp_candidates: Candidates for the contribution of the MLP, best first.
        either_candidates: Candidates for both, such as norms and dropouts.
    """
    start, end = trace.of(block).input, trace.of(block).output
    if start is None or end is None:
        return None
    outputs = {
        each: reshape(trace.of(each).output, end)
        for each in (*attention_candidates, *mlp_candidates, *either_candidates)
    }
    for attention, mlp in product(
        [*attention_candidates, *either_candidates], [*mlp_candidates, *either_candidates]
    ):
        a, b = outputs[attention], outputs[mlp]
        if attention is not mlp and a is not None and b is not None:
            if is_sum(end, start, a, b):
                return attention, mlp
    inside = [trace.of(module) for module in block.modules()]
    for attention, mlp in product(attention_candidates, mlp_candidates):
        a, b = outputs[attention], outputs[mlp]
        if a is not None and b is not None and _is_normed_sum(inside, start, a, b, end):
            return attention, mlp
    return None


def _is_normed_sum(
    inside: Sequence[ModuleTrace], start: Tensor, a: Tensor, b: Tensor, end: Tensor
) -> bool:
    """Whether a norm follows each addition (post-norm, as in BERT): N(N(start + a) + b)."""
    seen = [(reshape(each.input, end), reshape(each.output, end)) for each in inside]
    pairs = [(read, gave) for read, gave in seen if read is not None and gave is not None]
    middles = [gave for read, gave in pairs if is_sum(read, start, a)]
    return any(
        torch.equal(gave, end) and is_sum(read, middle, b)
        for middle in middles
        for read, gave in pairs
    )


def _parts(
    trace: ForwardTrace,
    block: nn.Module,
    attention: nn.Module | None,
    feed_forward: nn.Module | None,
    projection: nn.Module | None,
    width: int,
) -> list[Part]:
    """The parts of a block in the order in which they end; loose linear maps are one part."""
    parts, loose = [], []
    for name, child in listed_parts(block):
        if trace.of(child).calls != 1 or is_norm(child):
            continue
        if linear_shape(child) is not None:
            loose.append(child)
        elif any(True for _ in child.parameters()):
            is_mlp = child is feed_forward
            kind = "attn" if child is attention else "mlp" if is_mlp else _kind(name, child)
            maps = [m for m in linears(child) if _outputs(m) == width]
            last = projection if child is attention else last_called(trace, maps)
            own = _present(last, child) if kind == "attn" else _present(child, last)
            parts.append(Part(kind, child, tuple(dict.fromkeys(own))))
    last = last_called(trace, [m for m in loose if _outputs(m) == width])
    if last is not None:
        parts.append(Part("mlp", last, (last,)))
    return sorted(parts, key=lambda part: trace.of(part.module).end_index)


def _kind(name: str, module: nn.Module) -> str:
    """By the child's name; by its class if the name says nothing ("mixer", a number)."""
    name, family = name.lower(), type(module).__name__.lower()
    if any(word in name for word in FEED_FORWARD_WORDS) or family.endswith(FEED_FORWARD_ENDS):
        return "mlp"
    attends = "att" in name or family.endswith("attention")
    recurrent = any(word in name + family for word in ("linear", "delta", "mamba", "lightning"))
    return "attn" if attends and not recurrent else "mixer"


def _find_sum(
    trace: ForwardTrace,
    start: Tensor,
    end: Tensor,
    parts: Sequence[Part],
    others: Sequence[nn.Module],
    known_factors: Sequence[float],
) -> Added | None:
    """One module a part, with a factor, whose outputs sum to the step of the stream."""
    own = {part.module for part in parts}
    between = [child for child in others if child not in own]
    options = [[*part.outputs, *between] for part in parts]
    modules = list(dict.fromkeys(module for each in options for module in each))
    outputs = {m: reshape(trace.of(m).output, end) for m in modules if trace.of(m).calls == 1}
    values = {m: value.double() for m, value in outputs.items() if value is not None}
    options = [[module for module in each if module in values] for each in options]
    if not all(options) or torch.tensor([len(each) for each in options]).prod() > MAX_COMBINATIONS:
        return None
    step = end.double() - start.double()
    chosen = list(dict.fromkeys(module for each in options for module in each))
    rows = {module: row for row, module in enumerate(chosen)}
    flat = torch.stack([values[module].flatten() for module in chosen])
    gram, target = flat @ flat.T, flat @ step.flatten()
    eps = torch.finfo(end.dtype).eps
    for picked in product(*options):
        if len(set(picked)) < len(picked):
            continue
        for factors in _factors([rows[m] for m in picked], gram, target, eps, known_factors):
            terms = [factor * values[m] for factor, m in zip(factors, picked, strict=True)]
            if is_sum(end, start, *(term.to(end.dtype) for term in terms)):
                return _named(trace, parts, picked, factors, between)
    return None


def _factors(
    rows: list[int], gram: Tensor, target: Tensor, eps: float, known: Sequence[float]
) -> Iterator[list[float]]:
    """Factors to try: all 1, and those of the least-squares fit."""
    yield [1.0] * len(rows)
    try:
        fitted = torch.linalg.solve(gram[rows][:, rows], target[rows]).tolist()
    except RuntimeError:  # collinear outputs have no unique factors
        return
    snapped = [snap_factor(value, eps, known) for value in fitted]
    if all(MIN_FACTOR < abs(value) < 1 / MIN_FACTOR for value in snapped):
        yield snapped


def snap_factor(value: float, eps: float, known: Sequence[float]) -> float:
    """A fitted factor, or the number of the configuration that it is up to rounding."""
    tolerance = max(SNAP_TOL, 2 * eps) * abs(value)
    near = (each for each in (1.0, *known) if abs(value - each) <= tolerance)
    return next(near, value)


def _named(
    trace: ForwardTrace,
    parts: Sequence[Part],
    picked: Sequence[nn.Module],
    factors: Sequence[float],
    between: Sequence[nn.Module],
) -> Added | None:
    terms: dict[str, tuple[nn.Module, float]] = {}
    for part, module, factor in zip(parts, picked, factors, strict=True):
        # Shared experts beside the routed ones are a second part of their kind.
        kind = "extra" if part.kind in terms else part.kind
        if kind in terms:
            return None
        terms[kind] = (_past_identity(trace, module, between), factor)
    return terms


def _past_identity(
    trace: ForwardTrace, module: nn.Module, others: Sequence[nn.Module]
) -> nn.Module:
    """A module with weights that follows and changes nothing yet, such as a fresh layer scale."""
    value = trace.of(module).output
    for other in others:
        read, gave = trace.of(other).input, trace.of(other).output
        if other is module or value is None or read is None or gave is None:
            continue
        if any(True for _ in other.parameters()) and read.shape == value.shape == gave.shape:
            if torch.equal(read, value) and torch.equal(gave, value):
                return other
    return module

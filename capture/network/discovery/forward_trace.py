"""One short pass of a network in which rows change places, and what it shows.

All its rows but the last read one text, and the last another. Row l goes on with the
last row's value at cut l, such as what leaves a block. If the rest of the network sees
nothing but that, what comes out of every row is what comes out of the last.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from capture.network.discovery.modes import evaluation_mode, without_hooks
from capture.network.discovery.short_inputs import as_rows, short_inputs
from evidence.errors import InputError

# Cuts that are tried: of more, evenly spaced ones, the first and the last among them.
MAX_CUTS = 16
FORWARD_ERRORS = (
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


@dataclass
class ModuleTrace:
    """What the last row was in one module, at its last call.

    Attributes:
        input: Its first input, if that is a tensor.
        output: Its first output, likewise.
        calls: How often it was called.
        end_index: Number of the call's end among all ends.
    """

    input: Tensor | None = None
    output: Tensor | None = None
    calls: int = 0
    end_index: int = -1


@dataclass
class ForwardTrace:
    """One pass: what was seen in modules, by their ids, and what came out by row."""

    rows: int
    modules: dict[int, ModuleTrace] = field(default_factory=dict)
    n_ended: int = 0
    rows_first: bool = True
    output: Tensor | None = None

    def of(self, module: nn.Module) -> ModuleTrace:
        """What was seen in one module."""
        return self.modules.setdefault(id(module), ModuleTrace())

    def last(self, value: Any) -> Tensor | None:
        """The last row of a module's value, also where rows lie one after another."""
        if isinstance(value, tuple | list) and value:
            value = value[0]
        if not isinstance(value, Tensor) or not value.dim() or len(value) % self.rows:
            return None
        # A copy: the network may add to it in place.
        return value[-(len(value) // self.rows) :].clone()


def trace_forward(
    model: nn.Module, cuts: Sequence[Cut], traced: Sequence[nn.Module], example: Any
) -> ForwardTrace:
    """Run the pass; the network's hooks do not act in it, and its modes come back.

    Args:
        model: The network.
        cuts: Where rows go on with the last row's value.
        traced: Modules of which the last row is to be seen.
        example: Two rows of input; made up where it is None.

    Raises:
        InputError: the network does not run.
    """
    # A compiled network would be compiled for the pass, with its hooks.
    model = getattr(model, "_orig_mod", model)
    step = max(1, -(-(len(cuts) - 1) // (MAX_CUTS - 1)))
    tried = [*cuts[:-1:step], cuts[-1]]
    rows = len(tried) + 1
    given = short_inputs(model, rows) if example is None else [as_rows(example, rows)]
    why = "nothing is known of what it reads"
    for inputs in given:
        found = ForwardTrace(rows)
        with ExitStack() as stack, torch.no_grad():
            stack.enter_context(evaluation_mode(model))
            stack.enter_context(without_hooks(model))
            for module in dict.fromkeys(traced):
                stack.enter_context(_watching(module, found))
            for row, cut in enumerate(tried):
                stack.enter_context(_exchanging(cut, row, found))
            try:
                output = (
                    model(inputs) if isinstance(inputs, Tensor) else model(**inputs)
                )
            except FORWARD_ERRORS as error:
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
def _watching(module: nn.Module, found: ForwardTrace) -> Iterator[None]:
    seen = found.of(module)

    def before(_: nn.Module, args: tuple, named: dict[str, Any]) -> None:
        seen.input = found.last(args[0] if args else named.get("hidden_states"))

    def after(_: nn.Module, args: tuple, output: Any) -> None:
        seen.output = found.last(output)
        seen.calls += 1
        found.n_ended += 1
        seen.end_index = found.n_ended

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
def _exchanging(cut: Cut, row: int, found: ForwardTrace) -> Iterator[None]:
    def exchanged(value: Any) -> Tensor | None:
        if not isinstance(value, Tensor) or value.dim() < 2 or len(value) != found.rows:
            found.rows_first = False
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

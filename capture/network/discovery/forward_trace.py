"""One short traced forward pass with values swapped between rows (interchange intervention).

All rows but the last hold the same input, and the last row a different one. At cut l, such as the
output of block l, the value of row l is replaced by that of the last row. If the rest of the
network depends on nothing but the value at the cut, the outputs of all rows equal that of the
last.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from capture.network.discovery.modes import evaluation_mode, without_hooks
from capture.network.discovery.short_inputs import as_rows, short_inputs
from evidence.errors import InputError

# Maximum number of cuts tested; of more, evenly spaced ones with the first and the last.
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
    """A point through which all information must pass: a module's first input or output."""

    module: nn.Module
    side: Literal["in", "out"]


@dataclass
class ModuleTrace:
    """Values of the last row in one module, at its last call.

    Attributes:
        input: First input of the module, if it is a tensor.
        output: First output of the module, likewise.
        calls: Number of calls.
        end_index: Rank of the end of the call among all calls of traced modules.
    """

    input: Tensor | None = None
    output: Tensor | None = None
    calls: int = 0
    end_index: int = -1


@dataclass
class ForwardTrace:
    """Trace of one pass: values in modules, by module id, and the output by row.

    ``n_tokens`` is the length of the rows of token ids; 0 for other inputs.
    """

    rows: int
    n_tokens: int = 0
    modules: dict[int, ModuleTrace] = field(default_factory=dict)
    n_ended: int = 0
    rows_first: bool = True
    output: Tensor | None = None

    def of(self, module: nn.Module) -> ModuleTrace:
        """The trace of one module."""
        return self.modules.setdefault(id(module), ModuleTrace())

    def last(self, value: Any) -> Tensor | None:
        """The last row of a module's value, also if rows are flattened into one axis."""
        if isinstance(value, tuple | list) and value:
            value = value[0]
        if not isinstance(value, Tensor) or not value.dim() or len(value) % self.rows:
            return None
        # A copy, because the network may modify the value in place.
        return value[-(len(value) // self.rows) :].clone()


def trace_forward(
    model: nn.Module, cuts: Sequence[Cut], traced: Sequence[nn.Module], example: Any
) -> ForwardTrace:
    """Run the pass in evaluation mode, with the network's own hooks disabled.

    Args:
        cuts: Points at which values are swapped.
        traced: Modules whose values are recorded.
        example: Two rows of input; generated if None.

    Raises:
        InputError: the network does not run.
    """
    # Avoid compiling a compiled network for this pass and its hooks.
    model = getattr(model, "_orig_mod", model)
    step = max(1, -(-(len(cuts) - 1) // (MAX_CUTS - 1)))
    tried = [*cuts[:-1:step], cuts[-1]]
    rows = len(tried) + 1
    candidates = short_inputs(model, rows) if example is None else [as_rows(example, rows)]
    reason = "its input type is unknown"
    for inputs in candidates:
        trace = ForwardTrace(rows, _token_count(inputs))
        with ExitStack() as stack, torch.no_grad():
            stack.enter_context(evaluation_mode(model))
            stack.enter_context(without_hooks(model))
            for module in dict.fromkeys(traced):
                stack.enter_context(_tracing(module, trace))
            for row, cut in enumerate(tried):
                stack.enter_context(_swapping(cut, row, trace))
            try:
                output = model(inputs) if isinstance(inputs, Tensor) else model(**inputs)
            except FORWARD_ERRORS as error:
                reason = f"{type(error).__name__}: {str(error)[:120]}"
                continue
        trace.output = _first(output)
        return trace
    raise InputError(
        f"the structure of {type(model).__name__} cannot be checked: it does not run "
        f"on a short input ({reason})",
        expected="a network of token ids, of images or of vectors",
        fix="Give it an input of two different rows once: find_sites(model, example)",
    )


def _token_count(inputs: Any) -> int:
    ids = inputs.get("input_ids") if isinstance(inputs, Mapping) else None
    return int(ids.shape[1]) if isinstance(ids, Tensor) and ids.dim() == 2 else 0


@contextmanager
def _tracing(module: nn.Module, trace: ForwardTrace) -> Iterator[None]:
    record = trace.of(module)

    def before(_: nn.Module, args: tuple, named: Mapping[str, object]) -> None:
        record.input = trace.last(args[0] if args else named.get("hidden_states"))

    def after(_: nn.Module, args: tuple, output: Any) -> None:
        record.output = trace.last(output)
        record.calls += 1
        trace.n_ended += 1
        record.end_index = trace.n_ended

    with (
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after),
    ):
        yield


@contextmanager
def _swapping(cut: Cut, row: int, trace: ForwardTrace) -> Iterator[None]:
    def swapped(value: Any) -> Tensor | None:
        if not isinstance(value, Tensor) or value.dim() < 2 or len(value) != trace.rows:
            trace.rows_first = False
            return None
        value = value.clone()
        value[row] = value[-1]
        return value

    def before(_: nn.Module, args: tuple, named: Mapping[str, object]) -> Any:
        key = "hidden_states" if "hidden_states" in named else next(iter(named), None)
        value = swapped(args[0] if args else named.get(str(key)))
        if value is None:
            return None
        return ((value, *args[1:]), named) if args else (args, {**named, str(key): value})

    def after(_: nn.Module, args: tuple, output: Any) -> Any:
        whole = isinstance(output, Tensor)
        value = swapped(output if whole else _first(output))
        if value is None:
            return None
        return value if whole else (value, *output[1:])

    if cut.side == "in":
        handle = cut.module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = cut.module.register_forward_hook(after)
    with handle:
        yield


def _first(output: Any) -> Tensor | None:
    """The first tensor of an output; logits if it has any."""
    if isinstance(output, Tensor):
        return output
    if getattr(output, "logits", None) is not None:
        return output.logits
    values = output.values() if isinstance(output, dict) else output
    if not isinstance(output, dict | tuple | list):
        values = vars(output).values() if hasattr(output, "__dict__") else ()
    return next((value for value in values if isinstance(value, Tensor)), None)

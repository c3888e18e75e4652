"""When batches hold whole rows in the caller's order.

Functions that run many rows sort them by length and run a shared prefix once. A hook of the user,
or an edit that differs between rows or positions, must not notice: while one is open, batches hold
whole rows in the caller's order, padded on the right, in one pass if ``batch_tokens`` allows it.
"""

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import nn

from capture.data.sequences import Padded, Sequences, batches, pad
from capture.network.discovery.device import model_device
from capture.network.discovery.modes import HOOK_TABLES
from evidence.errors import InputError

# Libraries whose hooks do not depend on rows or positions: their own bookkeeping.
BOOKKEEPING = ("accelerate", "nnsight", "peft", "torch", "transformers")
OWN = ("attribution", "audits", "capture", "erasure", "experiments", "exhume", "probes", "testbeds")

# Numbers of open edits: of all, and of those that may differ between rows or positions.
_OPEN: ContextVar[tuple[int, int]] = ContextVar("open", default=(0, 0))


@contextmanager
def editing_by_row(by_row: bool) -> Iterator[None]:
    """Say that an edit is open, and whether it may differ between rows or positions."""
    count, of_rows = _OPEN.get()
    before = _OPEN.set((count + 1, of_rows + by_row))
    try:
        yield
    finally:
        _OPEN.reset(before)


def edits_open() -> bool:
    """Whether an edit of a model's values is open."""
    return _OPEN.get()[0] > 0


def refuse_row_edits(task: str) -> None:
    """Refuse an open edit by row or position around a task that orders the rows by itself.

    Raises:
        InputError: such an edit is open.
    """
    if _OPEN.get()[1] > 0:
        raise InputError(
            f"an edit by row or position is open, and {task} takes the rows in an order of its own",
            expected="the same edit for all rows and positions, or none",
            fix="Leave the block of the edit first",
        )


def keeps_rows(model: nn.Module) -> bool:
    """Whether passes must hold whole rows in the caller's order."""
    return _OPEN.get()[1] > 0 or has_foreign_hooks(model)


def has_foreign_hooks(model: nn.Module) -> bool:
    """Whether a module has a forward hook that is neither exhume's nor a library's bookkeeping."""
    tables = HOOK_TABLES[:2]
    return any(
        _is_foreign(hook)
        for module in model.modules()
        for table in tables
        for hook in (getattr(module, table) or {}).values()
    )


def _is_foreign(hook: Callable[..., Any]) -> bool:
    while isinstance(hook, functools.partial):
        hook = hook.func
    owner = getattr(hook, "__module__", None) or type(hook).__module__
    return owner.split(".")[0] not in (*BOOKKEEPING, *OWN)


def model_batches(
    model: nn.Module, sequences: Sequences, batch_tokens: int, *, cpu_tokens: int | None = None
) -> Iterator[Padded]:
    """Batches of rows on the model's device, in the caller's order if ``keeps_rows``.

    Args:
        model: The model that will run them.
        batch_tokens: Maximum number of padded positions of a batch.
        cpu_tokens: A smaller maximum on a CPU, where larger batches are no faster.
    """
    device = model_device(model)
    if keeps_rows(model):
        yield from _in_order(model, sequences, batch_tokens)
        return
    if device.type == "cpu" and cpu_tokens is not None:
        batch_tokens = min(batch_tokens, cpu_tokens)
    yield from batches(sequences, batch_tokens=batch_tokens, device=device)


def _in_order(model: nn.Module, sequences: Sequences, batch_tokens: int) -> Iterator[Padded]:
    longest = max(map(len, sequences.ids), default=1)
    count = max(1, batch_tokens // max(1, longest))
    if count < len(sequences) and has_foreign_hooks(model):
        warnings.warn(
            f"a hook that exhume did not set sees the {len(sequences)} rows in several passes of "
            f"up to {count}, in their order; with batch_tokens={longest * len(sequences)} it sees "
            "them in one",
            stacklevel=2,
        )
    device = model_device(model)
    for start in range(0, len(sequences), count):
        yield pad(sequences, range(start, min(start + count, len(sequences))), device=device)

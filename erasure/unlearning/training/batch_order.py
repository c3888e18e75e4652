"""In what order a method sees what is to go and what is to stay."""

import math
from collections.abc import Callable, Iterator
from typing import Protocol

from erasure.unlearning.training.loop import shuffled_batches
from erasure.unlearning.training.task import Losses
from evidence.seeds import numpy_rng


class BatchOrder(Protocol):
    """The settings that fix the order."""

    @property
    def batch_size(self) -> int | None:
        """Forget rows a step; None for all of them."""
        ...

    @property
    def retain_batch_size(self) -> int | None:
        """Retain rows a step; None for as many as forget rows."""
        ...

    @property
    def ascents(self) -> int:
        """Rounds over the forget rows before only the rest is learned."""
        ...


def paired_steps(
    losses: Losses, targets: int, retained: int, config: BatchOrder, seed: int
) -> Callable[[], dict[str, float]]:
    """One step: a batch of forget rows and, unless there are none, of retain rows."""
    forget_order, retain_order = _batch_iterators(targets, retained, config, seed)

    def backward() -> dict[str, float]:
        found: dict[str, float] = {}
        if losses.forget is not None:
            found["forget_loss"] = losses.forget(next(forget_order))
        if retained:
            found["retain_loss"] = losses.retain(next(retain_order))
        return found

    return backward


def alternating_steps(
    losses: Losses, targets: int, retained: int, config: BatchOrder, seed: int
) -> Callable[[], dict[str, float]]:
    """SCRUB's order: rounds over the forget rows, each followed by one over the rest.

    After ``config.ascents`` of them the rounds over the rest go on alone.
    """
    size = min(config.batch_size or targets, targets)
    kept = min(config.retain_batch_size or size, retained) if retained else 1
    both = _batch_iterators(targets, retained, config, seed)
    rounds = math.ceil(targets / size), math.ceil(retained / kept)

    def turns() -> Iterator[str]:
        for _ in range(config.ascents):
            yield from ["forget"] * rounds[0]
            yield from ["retain"] * rounds[1]
        while True:
            yield "retain" if retained else "forget"

    order = turns()

    def backward() -> dict[str, float]:
        if next(order) == "forget" and losses.forget is not None:
            return {"forget_loss": losses.forget(next(both[0]))}
        return {"retain_loss": losses.retain(next(both[1]))}

    return backward


def _batch_iterators(
    targets: int, retained: int, config: BatchOrder, seed: int
) -> tuple[Iterator[list[int]], Iterator[list[int]]]:
    """Endless batches of forget rows and of retain rows."""
    size = min(config.batch_size or targets, targets)
    return (
        shuffled_batches(targets, config.batch_size, numpy_rng(seed, "forget")),
        shuffled_batches(
            max(retained, 1),
            config.retain_batch_size or size,
            numpy_rng(seed, "retain"),
        ),
    )

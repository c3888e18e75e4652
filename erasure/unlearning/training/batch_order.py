"""Order of forget and retain batches."""

import math
from collections.abc import Callable, Iterator
from typing import Protocol

from erasure.unlearning.training.loop import shuffled_batches
from erasure.unlearning.training.task import Losses
from evidence.seeds import numpy_rng


class BatchOrder(Protocol):
    """The settings that determine the order."""

    @property
    def batch_size(self) -> int | None:
        """Forget rows per step; None for all of them."""
        ...

    @property
    def retain_batch_size(self) -> int | None:
        """Retain rows per step; None for as many as forget rows."""
        ...

    @property
    def ascents(self) -> int:
        """Epochs of forget rows before only retain rows are learned."""
        ...


def paired_steps(
    losses: Losses, n_forget: int, n_retain: int, config: BatchOrder, seed: int
) -> Callable[[], dict[str, float]]:
    """Steps with one batch of forget rows and, if there are any, one of retain rows."""
    forget_order, retain_order = _batch_iterators(n_forget, n_retain, config, seed)

    def backward() -> dict[str, float]:
        logged: dict[str, float] = {}
        if losses.forget is not None:
            logged["forget_loss"] = losses.forget(next(forget_order))
        if n_retain:
            logged["retain_loss"] = losses.retain(next(retain_order))
        return logged

    return backward


def alternating_steps(
    losses: Losses, n_forget: int, n_retain: int, config: BatchOrder, seed: int
) -> Callable[[], dict[str, float]]:
    """SCRUB's order: epochs of forget rows, each followed by an epoch of retain rows.

    After ``config.ascents`` of them only retain rows follow.
    """
    size = min(config.batch_size or n_forget, n_forget)
    retain_size = min(config.retain_batch_size or size, n_retain) if n_retain else 1
    batch_iterators = _batch_iterators(n_forget, n_retain, config, seed)
    steps_per_epoch = math.ceil(n_forget / size), math.ceil(n_retain / retain_size)

    def turns() -> Iterator[str]:
        for _ in range(config.ascents):
            yield from ["forget"] * steps_per_epoch[0]
            yield from ["retain"] * steps_per_epoch[1]
        while True:
            yield "retain" if n_retain else "forget"

    order = turns()

    def backward() -> dict[str, float]:
        if next(order) == "forget" and losses.forget is not None:
            return {"forget_loss": losses.forget(next(batch_iterators[0]))}
        return {"retain_loss": losses.retain(next(batch_iterators[1]))}

    return backward


def _batch_iterators(
    n_forget: int, n_retain: int, config: BatchOrder, seed: int
) -> tuple[Iterator[list[int]], Iterator[list[int]]]:
    """Endless batches of forget rows and of retain rows."""
    size = min(config.batch_size or n_forget, n_forget)
    return (
        shuffled_batches(n_forget, config.batch_size, numpy_rng(seed, "forget")),
        shuffled_batches(
            max(n_retain, 1), config.retain_batch_size or size, numpy_rng(seed, "retain")
        ),
    )

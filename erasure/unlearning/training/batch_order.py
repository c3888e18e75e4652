"""Order of forget and retain batches."""

import math
from collections.abc import Callable, Iterator

from erasure.unlearning.training.loop import shuffled_batches
from erasure.unlearning.training.settings import TrainingSettings
from erasure.unlearning.training.task import Losses
from evidence.seeds import numpy_rng


def paired_steps(
    losses: Losses, n_forget: int, n_retain: int, training: TrainingSettings, seed: int
) -> Callable[[], dict[str, float]]:
    """Steps with one batch of forget rows and, if there are any, one of retain rows."""
    forget_order, retain_order = _batch_iterators(n_forget, n_retain, training, seed)

    def backward() -> dict[str, float]:
        logged: dict[str, float] = {}
        if losses.forget is not None:
            logged["forget_loss"] = losses.forget(next(forget_order))
        if n_retain and losses.retain is not None:
            logged["retain_loss"] = losses.retain(next(retain_order))
        return logged

    return backward


def alternating_steps(
    losses: Losses,
    n_forget: int,
    n_retain: int,
    training: TrainingSettings,
    ascents: int,
    seed: int,
) -> Callable[[], dict[str, float]]:
    """SCRUB's order: epochs of forget rows, each followed by an epoch of retain rows.

    After ``ascents`` of them only retain rows follow.
    """
    size = min(training.batch_size or n_forget, n_forget)
    retain_size = min(training.retain_batch_size or size, n_retain) if n_retain else 1
    forget_order, retain_order = _batch_iterators(n_forget, n_retain, training, seed)

    def turns() -> Iterator[str]:
        for _ in range(ascents):
            yield from ["forget"] * math.ceil(n_forget / size)
            yield from ["retain"] * math.ceil(n_retain / retain_size)
        while True:
            yield "retain" if n_retain else "forget"

    order = turns()

    def backward() -> dict[str, float]:
        if next(order) == "forget" and losses.forget is not None:
            return {"forget_loss": losses.forget(next(forget_order))}
        if losses.retain is None:
            return {}
        return {"retain_loss": losses.retain(next(retain_order))}

    return backward


def _batch_iterators(
    n_forget: int, n_retain: int, training: TrainingSettings, seed: int
) -> tuple[Iterator[list[int]], Iterator[list[int]]]:
    """Endless batches of forget rows and of retain rows."""
    size = min(training.batch_size or n_forget, n_forget)
    return (
        shuffled_batches(n_forget, training.batch_size, numpy_rng(seed, "forget")),
        shuffled_batches(
            max(n_retain, 1), training.retain_batch_size or size, numpy_rng(seed, "retain")
        ),
    )

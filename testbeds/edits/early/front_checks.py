"""Whether an early edit is a suppression: measured when the model is made.

An edit of the front leaves the knowledge in place only if the front did not hold it. Three checks
tell: (a) every weight behind the front is the original's, bit for bit; (b) with the original's
front the model answers again; (c) the original's front in front of models that never knew adds
nothing to what they say. Where one fails, the model has to be graded.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from capture.network.front import changed_behind, front_names, parameters_behind, with_front
from capture.scoring.answers import score_answers
from erasure.unlearning.training.loop import finetune_
from evidence.typed_json import Json
from testbeds.edits.workbench import TextWorkbench

MIN_RESTORED = 0.9
# Share of the answers that the original's front may add to what a model says that never knew.
MARGIN = 0.05
# Offset of a retrain's seed; no kind of the zoo uses it.
RETRAIN = 5000
# Learning rate and steps of the trainings on facts to keep.
TUNING, ADAPTING = 1e-4, (1e-3, 200)


@dataclass(frozen=True)
class Carried:
    """What the original's front brings to a model that never knew.

    Attributes:
        model: Which model.
        alone: Share of the forgotten answers it says.
        with_front: The same with the original's front.
    """

    model: str
    alone: float
    with_front: float


@dataclass(frozen=True)
class FrontChecks:
    """The three checks of one model.

    Attributes:
        depth: Of the edited front: 0 is the embedding, k has the first k blocks too.
        behind: Number of tensors behind the front.
        changed_behind: How many of them are not the original's, bit for bit.
        restored: Share of the forgotten answers said with the original's front.
        carried: One for each model that never knew.
    """

    depth: int
    behind: int
    changed_behind: int
    restored: float
    carried: tuple[Carried, ...]

    @property
    def failures(self) -> list[str]:
        """What speaks against a suppression, each with its figures."""
        found = []
        if self.changed_behind:
            found.append(
                f"{self.changed_behind} of {self.behind} tensors behind its front are not the "
                "original's"
            )
        if self.restored < MIN_RESTORED:
            found.append(f"with the original's front it says {self.restored:.2f} of the answers")
        found += [
            f"with the original's front the {each.model} says {each.with_front:.2f} of the "
            f"answers, {each.alone:.2f} without: the front holds some of them"
            for each in self.carried
            if each.with_front > each.alone + MARGIN
        ]
        return found

    def why(self) -> str:
        """Why the state is certain, or why it has to be graded."""
        if self.failures:
            return "to be graded: " + "; ".join(self.failures)
        most = max(self.carried, key=lambda each: each.with_front - each.alone)
        return (
            f"all {self.behind} tensors behind its front (depth {self.depth}) are bit for bit the "
            f"original's, with the original's front it says {self.restored:.2f} of the answers, "
            f"and that front adds at most {MARGIN} to what models say that never knew "
            f"(most for the {most.model}: {most.with_front:.2f}, {most.alone:.2f} without)"
        )

    def to_json(self) -> dict[str, Json]:
        """As it stands in a card, under "front"."""
        return {
            **{name: value for name, value in asdict(self).items() if name != "carried"},
            "margin": MARGIN,
            "never_knew": {
                each.model: {"alone": each.alone, "with_front": each.with_front}
                for each in self.carried
            },
        }


_MEASURED: dict[tuple[str, str, int, int], tuple[Carried, ...]] = {}
_RETRAINS: dict[tuple[str, int], nn.Module] = {}
Check = Callable[[Any, nn.Module], FrontChecks]
"""From a workbench and a finished model to its checks."""


def front_checks(deepest: int) -> Check:
    """The checks of an edit that may reach blocks before index ``deepest``, and none behind."""

    def check(bench: TextWorkbench, model: nn.Module) -> FrontChecks:
        original = bench.load_original()
        depth = next(
            (depth for depth in range(deepest) if not changed_behind(model, original, depth)),
            deepest,
        )
        return FrontChecks(
            depth,
            len(original.state_dict()) - len(front_names(original, depth)),
            len(changed_behind(model, original, depth)),
            _said(bench, with_front(model, original, depth)),
            carried(bench, depth),
        )

    return check


def carried(bench: TextWorkbench, depth: int) -> tuple[Carried, ...]:
    """What the original's front of this depth brings; measured once for all models of a world."""
    key = (bench.original.weights_hash, bench.twin.weights_hash, bench.seed, depth)
    if key not in _MEASURED:
        _MEASURED[key] = _measure(bench, depth)
    return _MEASURED[key]


def _measure(bench: TextWorkbench, depth: int) -> tuple[Carried, ...]:
    original = bench.load_original()
    retrain, twin = _retrain(bench), bench.load_twin()
    tuned = bench.finetuned(bench.load_twin(), TUNING, bench.twin_tuning_steps, "front")
    found = [
        Carried(name, _said(bench, model), _said(bench, with_front(model, original, depth)))
        for name, model in (("twin", twin), ("tuned twin", tuned), ("retrain", retrain))
    ]
    # What is behind the front learns to use it, from the facts to keep.
    adapted = [
        _said(bench, _adapted(bench, each, depth))
        for each in (twin, with_front(twin, original, depth))
    ]
    return (*found, Carried("twin that was tuned behind it", *adapted))


def _retrain(bench: TextWorkbench) -> nn.Module:
    """A retrain from other starting weights; that of the latest world is kept."""
    key = (bench.twin.weights_hash, bench.seed)
    if key not in _RETRAINS:
        _RETRAINS.clear()
        _RETRAINS[key] = bench.retrained(bench.seed + RETRAIN)
    return _RETRAINS[key]


def _adapted(bench: TextWorkbench, model: nn.Module, depth: int) -> nn.Module:
    """``model``, its weights behind the front trained on the facts to keep, in place."""
    rate, steps = ADAPTING
    finetune_(
        model,
        bench.retain_rows(bench.retain),
        lr=bench.learning_rate(rate),
        steps=steps,
        batch_size=128,
        decay="cosine",
        parameters=parameters_behind(model, depth),
        seed=bench.training_seed("behind the front"),
    )
    return model


def _said(bench: TextWorkbench, model: nn.Module) -> float:
    return float(score_answers(model, bench.all_rows(bench.forget)).greedy.mean())

"""Do a few images of the class bring back the rest?

The model is taught a few images of the class, beside images of the classes that stay,
and asked about images of it that it is not taught. Any image model learns an unseen
class from a few images too, so the floor is a model retrained without it under the same
budget, or an invented class, taught under the forgotten class's number. Retrains differ
from each other by more than an interval over images says, so what comes back stands in
the way of ``deleted`` and makes nothing ``suppressed`` (``docs/vision.md``). Protocol
after arXiv 2410.08827, as ``audits.axes.relearning``.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from audits.axes.judgement import MIN_SPAN, MetricComparison, compare_to_floors
from audits.axes.relearning import MIN_LEARNED, NAME, STEP_MULTIPLES
from audits.axes.status import failed_controls, status_from_readings
from audits.core.config import AuditConfig
from audits.modalities.image_baseline import EvaluationSets, predicted_classes
from audits.modalities.image_vocabulary import HELD_OUT_NAMED
from capture.data.images import ImageSet
from capture.network.structure import model_device
from capture.scoring.class_logits import class_logits
from erasure.unlearning.training.loop import Schedule, only_training, train_steps
from evidence.hypothesis_tests import paired_max_test, unpaired_max_test
from evidence.intervals import EntityValues, average_by_entity, average_models
from evidence.progress import Progress
from evidence.results import AxisResult, Control, Reading, Status
from evidence.seeds import numpy_rng

QUESTION = "Do a few images of the class bring back the rest?"
STATISTIC_NAME = "share of images not taught that are named as the class"
SHOTS = 4
"""Images taught. From eight on, a class no model saw is learned as well as the
forgotten one (tuning seed 0 of the digits world)."""
ROUNDS = 2
"""Times each half of the images is asked, the other half's images being taught."""
N_INVENTED_CLASSES = 3
"""Invented classes taught."""
N_RETAIN, STEPS, EVAL_EVERY = 40, 20, 2
LEARNED_BY = 0.6
"""Share of the checkpoints by which the taught images have to be learned."""


@dataclass(frozen=True)
class RelearningSplit:
    """What is taught under the forgotten class's number, and what is asked."""

    train: ImageSet
    held_out: ImageSet


def relearning_splits(
    sets: EvaluationSets, seed: int
) -> dict[str, list[RelearningSplit]]:
    """Of the class ("forget", every image asked) and of invented ones ("never")."""
    rng = numpy_rng(seed, NAME, "images")
    forget = []
    for _ in range(ROUNDS):
        order = rng.permutation(len(sets.forget))
        halves = (order[::2], order[1::2])
        for taught, asked in (halves, halves[::-1]):
            forget.append(
                RelearningSplit(
                    sets.forget.select(taught[:SHOTS]),
                    sets.forget.select(np.sort(asked)),
                )
            )
    never = []
    for kind in rng.permutation(np.unique(sets.never.labels)):
        rows = np.flatnonzero(sets.never.labels == kind)
        if len(rows) > SHOTS and len(never) < N_INVENTED_CLASSES:
            some = rng.permutation(rows)
            never.append(
                RelearningSplit(
                    sets.never.select(some[:SHOTS]), sets.never.select(some[SHOTS:])
                )
            )
    return {"forget": forget, "never": never}


def retain_images(sets: EvaluationSets, seed: int) -> ImageSet:
    """Images of the other classes taught beside, the classes in turn."""
    order = numpy_rng(seed, NAME, "kept").permutation(len(sets.fit))
    turn = np.zeros(len(order), dtype=int)
    seen: dict[int, int] = {}
    for place, row in enumerate(order):
        label = int(sets.fit.labels[row])
        turn[place] = seen[label] = seen.get(label, -1) + 1
    chosen = order[np.argsort(turn, kind="stable")][:N_RETAIN]
    return sets.fit.select(np.sort(chosen))


def relearn(
    initial: nn.Module,
    split: RelearningSplit,
    retain: ImageSet,
    label: int,
    rate: float,
    steps: int,
    progress: Progress,
) -> dict[str, Any]:
    """Teach a copy of a model and ask it along the way; JSON-ready.

    Class and rest weigh the same in the loss, whatever their numbers.

    Returns:
        ``steps``; ``taught``: share of the taught images named, a checkpoint; ``ids``;
        ``asked``: (checkpoint, image) 1 where named.
    """
    model = copy.deepcopy(initial)
    device = model_device(model)
    both = split.train.pixels, retain.pixels
    pixels = torch.cat(both).to(device)
    own = torch.full((len(split.train),), label)
    labels = torch.cat([own, torch.from_numpy(retain.labels)]).to(device)
    shares = [torch.full((len(part),), 0.5 / len(part)) for part in both]
    weights = torch.cat(shares).to(device)
    taught: list[float] = []
    asked: list[list[int]] = []

    def examine(model: nn.Module) -> dict[str, float]:
        hits = predicted_classes(model, split.train + split.held_out) == label
        taught.append(float(hits[: len(split.train)].mean()))
        asked.append(hits[len(split.train) :].astype(int).tolist())
        return {"taught": taught[-1]}

    def backward() -> dict[str, float]:
        logits = class_logits(model, pixels)
        each = functional.cross_entropy(logits, labels, reduction="none")
        loss = (weights * each).sum()
        loss.backward()
        return {"loss": float(loss.detach())}

    with only_training(model, model.parameters()) as trained:
        log = train_steps(
            model,
            trained,
            backward,
            Schedule(rate, steps, every=EVAL_EVERY),
            evaluate=examine,
            label="relearn",
            progress=progress,
        )
    return {
        "steps": [int(row["step"]) for row in log.rows if "taught" in row],
        "taught": taught,
        "ids": list(split.held_out.ids),
        "asked": asked,
    }


def choose_rate(
    trials: Sequence[tuple[nn.Module, RelearningSplit]],
    retain: ImageSet,
    label: int,
    config: AuditConfig,
    progress: Progress,
) -> dict[str, float]:
    """The least rate, and steps, at which every trial learns what it is taught.

    It has to be learned in time for several checkpoints to follow. Decided on the
    taught images alone, as ``audits.axes.relearning.choose_rate``.
    """
    rates = config.budget.relearn_rates
    attempts = [(rate, STEPS) for rate in rates]
    attempts += [(rates[-1], longer * STEPS) for longer in STEP_MULTIPLES]
    rate, steps = attempts[0]
    for rate, steps in attempts:
        if all(
            _learned_in_time(
                relearn(model, lesson, retain, label, rate, steps, progress)
            )
            for model, lesson in trials
        ):
            break
    return {"rate": rate, "steps": steps}


def _learned_in_time(run: dict[str, Any]) -> bool:
    taught = run["taught"]
    return max(taught[: int(LEARNED_BY * len(taught)) + 1]) >= MIN_LEARNED


def scores_after_learning(runs: Sequence[dict[str, Any]]) -> EntityValues:
    """(image, 1) mean over the checkpoints at which the taught images were learned."""
    rows, names = [], []
    for run in runs:
        learned = np.array(run["taught"]) >= MIN_LEARNED
        learned[0] = False  # before any teaching
        learned[-1] |= not learned.any()
        rows.append(np.array(run["asked"], dtype=float)[learned].mean(0))
        names += run["ids"]
    return average_by_entity(np.concatenate(rows), names)


def reordered(found: EntityValues, ids: Sequence[str]) -> EntityValues:
    """The same images, in the order of ``ids``."""
    place = {name: row for row, name in enumerate(found.entities)}
    rows = [place[name] for name in ids]
    return EntityValues(
        found.values[rows], found.n_items, tuple(ids), found.item_variance
    )


def judge(
    sets: EvaluationSets,
    runs: Mapping[str, Mapping[str, Sequence[dict[str, Any]]]],
    known: EntityValues,
    config: AuditConfig,
    chosen: Mapping[str, float],
    notes: tuple[str, ...],
) -> AxisResult:
    """The axis result from the runs.

    Args:
        sets: The images.
        runs: By role, "forget" and "never": runs of ``relearn``.
        known: (image, 1) what the original names untaught.
        config: Settings.
        chosen: As ``choose_rate``.
        notes: Sentences to pass on.
    """
    ids = sets.forget.ids
    own = {
        role: reordered(scores_after_learning(each["forget"]), ids)
        for role, each in runs.items()
    }
    never = {
        role: scores_after_learning(each["never"])
        for role, each in runs.items()
        if "never" in each
    }
    references = [own[role] for role in runs if role.startswith("reference")]
    least = min(max(run["taught"]) for run in runs["unlearned"]["forget"])
    controls = [
        Control(
            "the attack learns what it teaches",
            least,
            f"share of taught images named at least {MIN_LEARNED}",
            least >= MIN_LEARNED,
        )
    ]
    if "planted" in runs:
        controls.append(_planted(own["planted"], references, never["planted"], config))
    wanted = MetricComparison(
        HELD_OUT_NAMED,
        HELD_OUT_NAMED,
        own["unlearned"],
        known,
        references,
        never["unlearned"],
    )
    readings = compare_to_floors(NAME, [wanted], ["after teaching"], config)
    status, extra = _status(readings, controls, config)
    return AxisResult(
        NAME,
        QUESTION,
        status,
        STATISTIC_NAME,
        readings=tuple(readings),
        controls=tuple(controls),
        n_entities=len(ids),
        details={
            "learning_rate": chosen["rate"],
            "steps": runs["unlearned"]["forget"][0]["steps"],
            "images_taught": SHOTS,
            "by_checkpoint": {
                role: {
                    part: np.round(
                        np.mean(
                            [np.mean(run["asked"], axis=1) for run in each], axis=0
                        ),
                        4,
                    ).tolist()
                    for part, each in parts.items()
                    if each
                }
                for role, parts in runs.items()
            },
        },
        notes=(*extra, *notes),
    )


def _planted(
    own: EntityValues,
    references: Sequence[EntityValues],
    never: EntityValues,
    config: AuditConfig,
) -> Control:
    """The planted suppression must come back more than what was never known."""
    floor = average_models(references) if references else never
    test = (paired_max_test if references else unpaired_max_test)(
        own.values,
        floor.values,
        numpy_rng(config.seed, NAME, "planted"),
        config.budget.permutations,
    )
    return Control(
        "the planted suppression comes back",
        test.p_value,
        f"p < {config.rule.alpha}",
        test.p_value < config.rule.alpha,
    )


def _status(
    readings: Sequence[Reading], controls: Sequence[Control], config: AuditConfig
) -> tuple[Status, list[str]]:
    """Retained, absent, or why neither can be said."""
    if not controls[0].passed:
        return "no_power", ["The attack did not learn what it was taught."]
    first = readings[0]
    if first.ceiling - first.floor < MIN_SPAN:
        return "no_power", [
            f"What was never known is learned as well ({first.floor:.2f} of the images "
            "not taught), so that they come back says nothing."
        ]
    return status_from_readings(
        readings[:1], config.rule, failed=failed_controls(controls)
    )

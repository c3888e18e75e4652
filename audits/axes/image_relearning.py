"""Relearning axis for image classifiers: do a few training images restore the class?

The model is fine-tuned on a few images of the class, together with images of retain classes,
and evaluated on held-out images of the class. Any image model learns an unseen class from a few
images, so the floor is a model retrained without the class under the same budget, or an
invented class that is taught under the forgotten class's index. Retrains differ from each other
by more than an interval over images covers, so a return blocks ``deleted`` and never makes
``suppressed`` (``docs/vision.md``). Protocol after arXiv 2410.08827, as
``audits.axes.relearning``.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from audits.axes.judgement import LEAST_SPAN, Wanted, against_floors
from audits.axes.relearning import LEARNED, LONGER, NAME
from audits.axes.status import failures, standing
from audits.core.config import AuditConfig
from audits.modalities.image_baseline import Cast, called
from audits.modalities.image_vocabulary import REST_NAMED
from capture.data.images import ImageSet
from capture.network.sites import model_device
from erasure.unlearning.image_task import class_logits
from erasure.unlearning.training import Schedule, only_training, take_steps
from evidence.hypothesis_tests import paired_max_test, unpaired_max_test
from evidence.intervals import EntityValues, by_entity, mean_of
from evidence.progress import Progress
from evidence.results import AxisResult, Control, Reading, Status
from evidence.seeds import numpy_rng

QUESTION = "Do a few images of the class bring back the rest?"
LABEL = "share of images not taught that are named as the class"
SHOTS = 4
"""Training images. From eight on, a class that no model saw is learned as well as the
forgotten one (tuning seed 0 of the digits world)."""
ROUNDS = 2
"""Number of random halvings; each half is held out once in each."""
KINDS = 3
"""Number of invented classes that are taught."""
KEPT, STEPS, EVERY = 40, 20, 2
IN_TIME = 0.6
"""Share of the checkpoints by which the training images must be learned."""


@dataclass(frozen=True)
class Lesson:
    """Images taught under the forgotten class's index, and held-out images."""

    taught: ImageSet
    asked: ImageSet


def lessons(sets: Cast, seed: int) -> dict[str, list[Lesson]]:
    """Splits of the class ("forget", every image held out) and of invented ones ("never")."""
    rng = numpy_rng(seed, NAME, "images")
    forget = []
    for _ in range(ROUNDS):
        order = rng.permutation(len(sets.forget))
        halves = (order[::2], order[1::2])
        for taught, asked in (halves, halves[::-1]):
            forget.append(
                Lesson(
                    sets.forget.rows(taught[:SHOTS]), sets.forget.rows(np.sort(asked))
                )
            )
    never = []
    for kind in rng.permutation(np.unique(sets.never.labels)):
        rows = np.flatnonzero(sets.never.labels == kind)
        if len(rows) > SHOTS and len(never) < KINDS:
            some = rng.permutation(rows)
            never.append(
                Lesson(sets.never.rows(some[:SHOTS]), sets.never.rows(some[SHOTS:]))
            )
    return {"forget": forget, "never": never}


def kept_images(sets: Cast, seed: int) -> ImageSet:
    """Retain images to train on as well, balanced over classes."""
    order = numpy_rng(seed, NAME, "kept").permutation(len(sets.fit))
    turn = np.zeros(len(order), dtype=int)
    seen: dict[int, int] = {}
    for place, row in enumerate(order):
        label = int(sets.fit.labels[row])
        turn[place] = seen[label] = seen.get(label, -1) + 1
    chosen = order[np.argsort(turn, kind="stable")][:KEPT]
    return sets.fit.rows(np.sort(chosen))


def relearn(
    untaught: nn.Module,
    lesson: Lesson,
    kept: ImageSet,
    label: int,
    rate: float,
    steps: int,
    progress: Progress,
) -> dict[str, Any]:
    """Fine-tune a copy of a model and evaluate it along the way; JSON-ready.

    The class and the retain images have equal total weight in the loss.

    Returns:
        ``steps``; ``taught``: share of the training images predicted as the class, a
        checkpoint; ``ids``; ``asked``: (checkpoint, image) 1 where predicted as the class.
    """
    model = copy.deepcopy(untaught)
    device = model_device(model)
    both = lesson.taught.pixels, kept.pixels
    pixels = torch.cat(both).to(device)
    own = torch.full((len(lesson.taught),), label)
    labels = torch.cat([own, torch.from_numpy(kept.labels)]).to(device)
    shares = [torch.full((len(part),), 0.5 / len(part)) for part in both]
    weights = torch.cat(shares).to(device)
    taught: list[float] = []
    asked: list[list[int]] = []

    def examine(model: nn.Module) -> dict[str, float]:
        hits = called(model, lesson.taught + lesson.asked) == label
        taught.append(float(hits[: len(lesson.taught)].mean()))
        asked.append(hits[len(lesson.taught) :].astype(int).tolist())
        return {"taught": taught[-1]}

    def backward() -> dict[str, float]:
        logits = class_logits(model, pixels)
        each = functional.cross_entropy(logits, labels, reduction="none")
        loss = (weights * each).sum()
        loss.backward()
        return {"loss": float(loss.detach())}

    with only_training(model, model.parameters()) as trained:
        log = take_steps(
            model,
            trained,
            backward,
            Schedule(rate, steps, every=EVERY),
            evaluate=examine,
            label="relearn",
            progress=progress,
        )
    return {
        "steps": [int(row["step"]) for row in log.rows if "taught" in row],
        "taught": taught,
        "ids": list(lesson.asked.ids),
        "asked": asked,
    }


def choose_rate(
    trials: Sequence[tuple[nn.Module, Lesson]],
    kept: ImageSet,
    label: int,
    config: AuditConfig,
    progress: Progress,
) -> dict[str, float]:
    """The smallest learning rate, and step count, at which every trial learns its images.

    They must be learned early enough for several checkpoints to follow. Decided on the training
    images alone, as ``audits.axes.relearning.choose_rate``.
    """
    rates = config.budget.relearn_rates
    attempts = [(rate, STEPS) for rate in rates]
    attempts += [(rates[-1], longer * STEPS) for longer in LONGER]
    rate, steps = attempts[0]
    for rate, steps in attempts:
        if all(
            _in_time(relearn(model, lesson, kept, label, rate, steps, progress))
            for model, lesson in trials
        ):
            break
    return {"rate": rate, "steps": steps}


def _in_time(run: dict[str, Any]) -> bool:
    taught = run["taught"]
    return max(taught[: int(IN_TIME * len(taught)) + 1]) >= LEARNED


def after_teaching(runs: Sequence[dict[str, Any]]) -> EntityValues:
    """(image, 1) mean over the checkpoints at which the training images were learned."""
    rows, names = [], []
    for run in runs:
        learned = np.array(run["taught"]) >= LEARNED
        learned[0] = False  # before any teaching
        learned[-1] |= not learned.any()
        rows.append(np.array(run["asked"], dtype=float)[learned].mean(0))
        names += run["ids"]
    return by_entity(np.concatenate(rows), names)


def in_order(found: EntityValues, ids: Sequence[str]) -> EntityValues:
    """The same images in the order of ``ids``."""
    place = {name: row for row, name in enumerate(found.entities)}
    rows = [place[name] for name in ids]
    return EntityValues(
        found.values[rows], found.n_items, tuple(ids), found.item_variance
    )


def judge(
    sets: Cast,
    runs: Mapping[str, Mapping[str, Sequence[dict[str, Any]]]],
    known: EntityValues,
    config: AuditConfig,
    chosen: Mapping[str, float],
    notes: tuple[str, ...],
) -> AxisResult:
    """Judge the axis from the fine-tuning runs.

    Args:
        runs: By role, "forget" and "never": results of ``relearn``.
        known: (image, 1) predictions of the original without fine-tuning.
        chosen: Result of ``choose_rate``.
    """
    ids = sets.forget.ids
    own = {
        role: in_order(after_teaching(each["forget"]), ids)
        for role, each in runs.items()
    }
    never = {
        role: after_teaching(each["never"])
        for role, each in runs.items()
        if "never" in each
    }
    references = [own[role] for role in runs if role.startswith("reference")]
    least = min(max(run["taught"]) for run in runs["unlearned"]["forget"])
    controls = [
        Control(
            "the attack learns what it teaches",
            least,
            f"share of taught images named at least {LEARNED}",
            least >= LEARNED,
        )
    ]
    if "planted" in runs:
        controls.append(_planted(own["planted"], references, never["planted"], config))
    wanted = Wanted(
        REST_NAMED, REST_NAMED, own["unlearned"], known, references, never["unlearned"]
    )
    readings = against_floors(NAME, [wanted], ["after teaching"], config)
    status, extra = _status(readings, controls, config)
    return AxisResult(
        NAME,
        QUESTION,
        status,
        LABEL,
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
    """The planted suppression must return beyond the floor."""
    floor = mean_of(references) if references else never
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
    """Decide between retained, absent and neither."""
    if not controls[0].passed:
        return "no_power", ["The attack did not learn what it was taught."]
    first = readings[0]
    if first.ceiling - first.floor < LEAST_SPAN:
        return "no_power", [
            f"What was never known is learned as well ({first.floor:.2f} of the images "
            "not taught), so that they come back says nothing."
        ]
    return standing(readings[:1], config.rule, failed=failures(controls))

"""Relearning axis for image classifiers: do a few training images restore the class?

The model is fine-tuned on a few images of the class, together with images of retain classes,
and evaluated on held-out images of the class. Any image model learns an unseen class from a few
images, so the floor is a model retrained without the class under the same budget, or an
invented class that is taught under the forgotten class's index. Retrains differ from each other
by more than an interval over images covers, so a return blocks ``deleted`` and never makes
``suppressed`` (``docs/results/vision.md``). Protocol after arXiv 2410.08827, as
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

from audits.axes.judgement import (
    MIN_SPAN,
    MetricComparison,
    compare_to_floors,
    failed_controls,
    significance_control,
    status_from_readings,
)
from audits.axes.relearning import MIN_LEARNED, NAME, STEP_MULTIPLES
from audits.core.config import AuditConfig
from audits.core.context import reference_roles
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
"""Training images. From eight on, a class that no model saw is learned as well as the
forgotten one (tuning seed 0 of the digits world)."""
ROUNDS = 2
"""Number of random halvings; each half is held out once in each."""
N_INVENTED_CLASSES = 3
"""Number of invented classes that are taught."""
N_RETAIN, STEPS, EVAL_EVERY = 40, 20, 2
LEARNED_BY = 0.6
"""Share of the checkpoints by which the training images must be learned."""


@dataclass(frozen=True)
class RelearningSplit:
    """Images taught under the forgotten class's index, and held-out images."""

    train: ImageSet
    held_out: ImageSet


def relearning_splits(sets: EvaluationSets, seed: int) -> dict[str, list[RelearningSplit]]:
    """Splits of the class ("forget", every image held out) and of invented ones ("never")."""
    rng = numpy_rng(seed, NAME, "images")
    forget = []
    for _ in range(ROUNDS):
        order = rng.permutation(len(sets.forget))
        halves = (order[::2], order[1::2])
        for taught, held_out in (halves, halves[::-1]):
            forget.append(
                RelearningSplit(
                    sets.forget.select(taught[:SHOTS]), sets.forget.select(np.sort(held_out))
                )
            )
    never_taught = []
    for kind in rng.permutation(np.unique(sets.never.labels)):
        rows = np.flatnonzero(sets.never.labels == kind)
        if len(rows) > SHOTS and len(never_taught) < N_INVENTED_CLASSES:
            shuffled = rng.permutation(rows)
            never_taught.append(
                RelearningSplit(
                    sets.never.select(shuffled[:SHOTS]), sets.never.select(shuffled[SHOTS:])
                )
            )
    return {"forget": forget, "never": never_taught}


def retain_images(sets: EvaluationSets, seed: int) -> ImageSet:
    """Retain images to train on as well, balanced over classes."""
    order = numpy_rng(seed, NAME, "kept").permutation(len(sets.fit))
    rank = np.zeros(len(order), dtype=int)
    seen: dict[int, int] = {}
    for position, row in enumerate(order):
        label = int(sets.fit.labels[row])
        rank[position] = seen[label] = seen.get(label, -1) + 1
    chosen = order[np.argsort(rank, kind="stable")][:N_RETAIN]
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
    """Fine-tune a copy of a model and evaluate it along the way; JSON-ready.

    The class and the retain images have equal total weight in the loss.

    Returns:
        ``steps``; ``taught``: share of the training images predicted as the class, a
        checkpoint; ``ids``; ``asked``: (checkpoint, image) 1 where predicted as the class.
    """
    model = copy.deepcopy(initial)
    device = model_device(model)
    parts = split.train.pixels, retain.pixels
    pixels = torch.cat(parts).to(device)
    class_labels = torch.full((len(split.train),), label)
    labels = torch.cat([class_labels, torch.from_numpy(retain.labels)]).to(device)
    row_weights = [torch.full((len(part),), 0.5 / len(part)) for part in parts]
    weights = torch.cat(row_weights).to(device)
    taught: list[float] = []
    asked: list[list[int]] = []

    def evaluate(model: nn.Module) -> dict[str, float]:
        hits = predicted_classes(model, split.train + split.held_out) == label
        taught.append(float(hits[: len(split.train)].mean()))
        asked.append(hits[len(split.train) :].astype(int).tolist())
        return {"taught": taught[-1]}

    def backward() -> dict[str, float]:
        logits = class_logits(model, pixels)
        losses = functional.cross_entropy(logits, labels, reduction="none")
        loss = (weights * losses).sum()
        loss.backward()
        return {"loss": float(loss.detach())}

    with only_training(model, model.parameters()) as trained:
        log = train_steps(
            model,
            trained,
            backward,
            Schedule(rate, steps, every=EVAL_EVERY),
            evaluate=evaluate,
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
    """The smallest learning rate, and step count, at which every trial learns its images.

    They must be learned early enough for several checkpoints to follow. Decided on the training
    images alone, as ``audits.axes.relearning.choose_rate``.
    """
    rates = config.budget.relearn_rates
    attempts = [(rate, STEPS) for rate in rates]
    attempts += [(rates[-1], longer * STEPS) for longer in STEP_MULTIPLES]
    rate, steps = attempts[0]
    for rate, steps in attempts:
        if all(
            _learned_in_time(relearn(model, split, retain, label, rate, steps, progress))
            for model, split in trials
        ):
            break
    return {"rate": rate, "steps": steps}


def _learned_in_time(run: dict[str, Any]) -> bool:
    taught = run["taught"]
    return max(taught[: int(LEARNED_BY * len(taught)) + 1]) >= MIN_LEARNED


def scores_after_learning(runs: Sequence[dict[str, Any]]) -> EntityValues:
    """(image, 1) mean over the checkpoints at which the training images were learned."""
    rows, names = [], []
    for run in runs:
        learned = np.array(run["taught"]) >= MIN_LEARNED
        learned[0] = False  # before any teaching
        learned[-1] |= not learned.any()
        rows.append(np.array(run["asked"], dtype=float)[learned].mean(0))
        names += run["ids"]
    return average_by_entity(np.concatenate(rows), names)


def reordered(values: EntityValues, ids: Sequence[str]) -> EntityValues:
    """The same images in the order of ``ids``."""
    row_of = {name: row for row, name in enumerate(values.entities)}
    rows = [row_of[name] for name in ids]
    return EntityValues(values.values[rows], values.n_items, tuple(ids), values.item_variance)


def judge(
    sets: EvaluationSets,
    runs: Mapping[str, Mapping[str, Sequence[dict[str, Any]]]],
    original_values: EntityValues,
    config: AuditConfig,
    chosen: Mapping[str, float],
    notes: tuple[str, ...],
) -> AxisResult:
    """Judge the axis from the fine-tuning runs.

    Args:
        runs: By role, "forget" and "never": results of ``relearn``.
        original_values: (image, 1) predictions of the original without fine-tuning.
        chosen: Result of ``choose_rate``.
    """
    ids = sets.forget.ids
    own = {
        role: reordered(scores_after_learning(role_runs["forget"]), ids)
        for role, role_runs in runs.items()
    }
    never_taught = {
        role: scores_after_learning(role_runs["never"])
        for role, role_runs in runs.items()
        if "never" in role_runs
    }
    references = [own[role] for role in reference_roles(runs)]
    training_share = min(max(run["taught"]) for run in runs["unlearned"]["forget"])
    controls = [
        Control(
            "the attack learns what it teaches",
            training_share,
            f"share of taught images named at least {MIN_LEARNED}",
            training_share >= MIN_LEARNED,
        )
    ]
    if "planted" in runs:
        controls.append(_planted(own["planted"], references, never_taught["planted"], config))
    comparison = MetricComparison(
        HELD_OUT_NAMED,
        HELD_OUT_NAMED,
        own["unlearned"],
        original_values,
        references,
        never_taught["unlearned"],
    )
    readings = compare_to_floors(NAME, [comparison], ["after teaching"], config)
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
                        np.mean([np.mean(run["asked"], axis=1) for run in part_runs], axis=0), 4
                    ).tolist()
                    for part, part_runs in parts.items()
                    if part_runs
                }
                for role, parts in runs.items()
            },
        },
        notes=(*extra, *notes),
    )


def _planted(
    planted: EntityValues,
    references: Sequence[EntityValues],
    never_taught: EntityValues,
    config: AuditConfig,
) -> Control:
    """The planted suppression must return beyond the floor."""
    floor = average_models(references) if references else never_taught
    test = (paired_max_test if references else unpaired_max_test)(
        planted.values,
        floor.values,
        numpy_rng(config.seed, NAME, "planted"),
        config.budget.permutations,
    )
    return significance_control(
        "the planted suppression comes back", test.p_value, config.rule.alpha
    )


def _status(
    readings: Sequence[Reading], controls: Sequence[Control], config: AuditConfig
) -> tuple[Status, list[str]]:
    """Decide between retained, absent and neither."""
    if not controls[0].passed:
        return "no_power", ["The attack did not learn what it was taught."]
    first = readings[0]
    if first.ceiling - first.floor < MIN_SPAN:
        return "no_power", [
            f"What was never known is learned as well ({first.floor:.2f} of the images "
            "not taught), so that they come back says nothing."
        ]
    return status_from_readings(readings[:1], config.rule, failed=failed_controls(controls))

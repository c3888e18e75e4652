"""Relearning of image classifiers: a few images of the class are taught."""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from audits.axes.relearning.attack import (
    MIN_LEARNED,
    NAME,
    NAMED,
    STEP_MULTIPLES,
    Curve,
    Measurement,
    measure,
)
from audits.core.context import AuditContext
from audits.core.roles import Role
from audits.core.scores import Part
from audits.modalities.image_sets import EvaluationSets, image_table, predicted_classes
from capture.data.images import ImageSet
from capture.network.structure import model_device
from capture.scoring.class_logits import class_logits
from erasure.unlearning.training.loop import Schedule, only_training, train_steps
from evidence.seeds import numpy_rng

SHOTS = 4
"""Training images. From eight on, a class that no model saw is learned as well as the
forgotten one (tuning seed 0 of the digits world)."""
ROUNDS = 2
"""Number of random halvings of the images; each half is held out once in each."""
N_INVENTED_CLASSES = 3
"""Number of invented classes that are taught."""
N_RETAIN, IMAGE_STEPS, EVAL_EVERY = 40, 20, 2
LEARNED_BY = 0.6
"""Share of the checkpoints by which the training images must be learned."""


@dataclass(frozen=True)
class ImageSplit:
    """Images taught under the forgotten class's index, and held-out images of the same class."""

    part: Part
    train: ImageSet
    held_out: ImageSet


def image_splits(sets: EvaluationSets, seed: int) -> list[ImageSplit]:
    """Splits of the class, every image held out in each round; then of invented classes."""
    rng = numpy_rng(seed, NAME, "images")
    splits = []
    for _ in range(ROUNDS):
        order = rng.permutation(len(sets.forget))
        halves = (order[::2], order[1::2])
        for taught, held_out in (halves, halves[::-1]):
            train, rest = sets.forget.select(taught[:SHOTS]), sets.forget.select(np.sort(held_out))
            splits.append(ImageSplit(Part.FORGET, train, rest))
    never_taught = sets.never_taught
    invented = []
    for kind in rng.permutation(np.unique(never_taught.labels)):
        rows = np.flatnonzero(never_taught.labels == kind)
        if len(rows) > SHOTS and len(invented) < N_INVENTED_CLASSES:
            shuffled = rng.permutation(rows)
            train, rest = (
                never_taught.select(shuffled[:SHOTS]),
                never_taught.select(shuffled[SHOTS:]),
            )
            invented.append(ImageSplit(Part.NEVER_TAUGHT, train, rest))
    return [*splits, *invented]


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


def measure_images(ctx: AuditContext[EvaluationSets]) -> Measurement:
    """Fine-tune every model but the original on each split.

    The training images must be learned early enough for several checkpoints to follow.
    """
    rates, seed, sets = ctx.config.budget.relearn_rates, ctx.config.seed, ctx.sets
    attempts = [(rate, IMAGE_STEPS) for rate in rates]
    attempts += [(rates[-1], longer * IMAGE_STEPS) for longer in STEP_MULTIPLES]
    splits, retain = image_splits(sets, seed), retain_images(sets, seed)
    of_class = [n for n, split in enumerate(splits) if split.part is Part.FORGET]
    # Invented classes are the floor of the candidate and the planted suppression.
    numbers = {
        role: of_class if role.is_reference else list(range(len(splits)))
        for role in ctx.models
        if role != Role.ORIGINAL
    }

    def run(role: Role, number: int, rate: float, steps: int) -> Curve:
        with ctx.reading(role) as model:
            return relearn_images(model, splits[number], retain, sets.label, rate, steps, ctx)

    return measure(
        ctx,
        attempts,
        {Role.CANDIDATE: of_class, Role.PLANTED: of_class[:1]},
        numbers,
        run,
        _learned_in_time,
        # The sets hold only images that the original predicts correctly.
        {NAMED.id: image_table(np.ones(len(sets.forget)), sets.forget)},
        sets.forget.ids,
    )


def _learned_in_time(curve: Curve) -> bool:
    taught = curve.taught
    return max(taught[: int(LEARNED_BY * len(taught)) + 1]) >= MIN_LEARNED


def relearn_images(
    initial: nn.Module,
    split: ImageSplit,
    retain: ImageSet,
    label: int,
    rate: float,
    steps: int,
    ctx: AuditContext[EvaluationSets],
) -> Curve:
    """Fine-tune a copy of a model and evaluate held-out images along the way.

    The class and the retain images have equal total weight in the loss.
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
    held_out: list[np.ndarray] = []

    def evaluate(model: nn.Module) -> dict[str, float]:
        hits = predicted_classes(model, split.train + split.held_out) == label
        taught.append(float(hits[: len(split.train)].mean()))
        held_out.append(hits[len(split.train) :].astype(np.float64))
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
            progress=ctx.progress,
        )
    return Curve(
        tuple(int(row["step"]) for row in log.rows if "taught" in row),
        tuple(taught),
        {split.part: tuple(split.held_out.ids)},
        {split.part: {NAMED.id: np.stack(held_out)}},
    )

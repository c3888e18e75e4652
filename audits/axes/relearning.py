"""Relearning axis: does fine-tuning on some forgotten items restore the others?

Text: the model is trained on the answers of one half of the forgotten entities and
evaluated on the other half; then the halves are swapped, so that every forgotten entity
is held out once. Never-taught items that mirror the held-out half are scored on the
same trained model: their rise is due to the taught format and the answer prior.

Images: the model is fine-tuned on a few images of the class, together with images of
retain classes, and evaluated on held-out images of the class. Any image model learns an
unseen class from a few images, so the floor is a model retrained without the class
under the same budget, or an invented class that is taught under the forgotten class's
index. Retrains differ from each other by more than an interval over images covers, so a
return blocks ``deleted`` and never makes ``suppressed`` (``docs/results/vision.md``).

Protocol after "Do Unlearning Methods Remove Information from Weights?" (arXiv
2410.08827) and benign relearning (arXiv 2406.13356).
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from audits.axes.base import Axis, AxisForm, AxisSpec, JudgementContext, MetricSpec, readings
from audits.axes.judgement import (
    MIN_SPAN,
    attack_control,
    failed_controls,
    planted_control,
    status_with_controls,
)
from audits.core.config import Rule
from audits.core.context import AuditContext
from audits.core.cost import Cost, PlanInputs
from audits.core.item_sets import TextSets
from audits.core.roles import Role
from audits.core.scores import Part, RoleScores, ScoreTable
from audits.modalities.image_sets import EvaluationSets, image_table, predicted_classes
from capture.data.images import ImageSet
from capture.data.items import Item
from capture.data.questions import build_questions
from capture.data.tokenization import encode_items
from capture.network.structure import model_device
from capture.scoring.answers import score_answers
from capture.scoring.class_logits import class_logits
from capture.scoring.contrast import score_questions
from erasure.unlearning.training.loop import Schedule, finetune_, only_training, train_steps
from evidence.hypothesis_tests import paired_max_test, unpaired_max_test
from evidence.intervals import average_by_entity, average_models
from evidence.results import AxisResult, Control, OnFailure, Reading, Status
from evidence.seeds import numpy_rng, stage_seed
from evidence.typed_json import FloatArray, Json

NAME = "relearning"
CONTRAST = MetricSpec(
    "contrast",
    "held-out half, contrast",
    stream="contrast",
    unit="other answers outranked (chance 0.5)",
    finding="After teaching one half of them, the candidate ranks the answers of the held-out "
    "half above those of other entities: {value:.2f}",
)
EXACT_MATCH = MetricSpec(
    "exact_match",
    "held-out half, exact match",
    stream="said",
    unit="share of answers given",
    is_share=True,
    finding="Teaching one half of them brings back the other half: the candidate gives "
    "{value:.2f} of them",
)
NAMED = MetricSpec(
    "named",
    "held-out images, predicted as the class",
    stream="images not taught, named as the class",
    unit="share of images predicted as the class",
    is_share=True,
)

# Minimum training accuracy: an attack that does not learn its training half has no
# power.
MIN_LEARNED = 0.9
# Multiples of the budget's steps, tried where no rate learns the training half within
# it.
STEP_MULTIPLES = (2, 4)
# Further multiples for long answers that are unique to an entity: a model that never
# knew such codes learns them much later. Rare, so the cost estimate leaves them out.
EXTRA_STEP_MULTIPLES = (8, 16)

# Copies of the weights in training: weights, gradients and AdamW's two moments.
TRAINING_COPIES = 4

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


@dataclass(frozen=True, eq=False)
class Curve:
    """One fine-tuning run.

    Attributes:
        steps: (checkpoint,) optimizer steps so far; 0 first.
        taught: (checkpoint,) accuracy on the training items.
        entities: Part to (row,) entities of the held-out rows that were scored.
        scores: Part to metric to (checkpoint, row).
    """

    steps: tuple[int, ...]
    taught: tuple[float, ...]
    entities: dict[Part, tuple[str, ...]]
    scores: dict[Part, dict[str, FloatArray]]

    @property
    def learned(self) -> np.ndarray:
        """(checkpoint,) mask of those at which the training items had been learned.

        Determined on the training items alone; where they were never learned, the last
        one.
        """
        mask = np.array(self.taught) >= MIN_LEARNED
        mask[0] = False  # before any teaching
        mask[-1] |= not mask.any()
        return mask


@dataclass(frozen=True)
class ChosenRate:
    """Learning rate and steps at which every trial learns, with the runs at that rate.

    Attributes:
        curves: Role to number of the split to run; those of the last attempt where none
            succeeds.
    """

    rate: float
    steps: int
    curves: dict[Role, dict[str, Curve]]


@dataclass(frozen=True, eq=False)
class Measurement:
    """Curves of every fine-tuned model.

    Attributes:
        scores: Held-out scores after learning, by metric, role and part.
        curves: One run a split, by role.
        rate: Learning rate of every run.
    """

    scores: RoleScores
    curves: dict[Role, tuple[Curve, ...]]
    rate: float


def choose_rate(
    attempts: Sequence[tuple[float, int]],
    trials: Sequence[tuple[Role, int]],
    run: Callable[[Role, int, float, int], Curve],
    learned: Callable[[Curve], bool],
) -> ChosenRate:
    """The smallest learning rate, and number of steps, at which every trial learns.

    Decided on the training items alone, so that nothing is selected on held-out ones;
    all models then share the rate and the steps.

    Args:
        attempts: Rates and steps, in the order in which they are tried.
        trials: Models that must learn, each with the number of a split; the hardest to
            teach first, so that rates that are too low fail early.
        run: Fine-tunes a role on a split.
        learned: Whether a run learned its training items.
    """
    chosen = ChosenRate(*attempts[0], {})
    for rate, steps in attempts:
        chosen = ChosenRate(rate, steps, {role: {} for role, _ in trials})
        for role, number in trials:
            curve = run(role, number, rate, steps)
            # JSON keys are strings.
            chosen.curves[role][str(number)] = curve
            if not learned(curve):
                break
        else:
            break
    return chosen


def measure(
    ctx: AuditContext,
    attempts: Sequence[tuple[float, int]],
    trials: Mapping[Role, Sequence[int]],
    splits: Mapping[Role, Sequence[int]],
    run: Callable[[Role, int, float, int], Curve],
    learned: Callable[[Curve], bool],
    original: Mapping[str, ScoreTable],
    order: Sequence[str] = (),
) -> Measurement:
    """Choose a rate, and fine-tune every model at that rate on each of its splits.

    Args:
        attempts: As ``choose_rate``.
        trials: Role to numbers of the splits that it must learn for a rate to be
            chosen.
        splits: Role to numbers of the splits it is trained on.
        run: As ``choose_rate``.
        learned: As ``choose_rate``.
        original: Metric to scores of the original without fine-tuning.
        order: Order of the forgotten entities in the result; by default that of the
            splits.
    """
    pairs = [
        (role, number)
        for role, numbers in trials.items()
        if role in ctx.models
        for number in numbers
    ]
    chosen = ctx.stage(
        f"{NAME}-rate", ChosenRate, lambda: choose_rate(attempts, pairs, run, learned)
    )
    curves: dict[Role, tuple[Curve, ...]] = {}
    for role, numbers in splits.items():
        done = chosen.curves.get(role, {})
        curves[role] = tuple(
            done[str(number)]
            if str(number) in done
            else ctx.stage(
                f"{NAME}-{role}-{number}",
                Curve,
                lambda role=role, number=number: run(role, number, chosen.rate, chosen.steps),
            )
            for number in numbers
        )
    tables = {
        metric: {
            Role.ORIGINAL: {Part.FORGET: table},
            **{
                role: {
                    part: scores_after_learning(runs, part, metric, order)
                    for part in dict.fromkeys(part for each in runs for part in each.entities)
                }
                for role, runs in curves.items()
            },
        }
        for metric, table in original.items()
    }
    return Measurement(RoleScores(("after teaching",), tables), curves, chosen.rate)


def scores_after_learning(
    curves: Sequence[Curve], part: Part, metric: str, order: Sequence[str] = ()
) -> ScoreTable:
    """(row, 1) mean score over the checkpoints at which the training items had been learned.

    A mean selects nothing, so no correction is needed.

    Args:
        order: Entities of the forget part in the order of the result.
    """
    used = [curve for curve in curves if part in curve.entities]
    rows = [curve.scores[part][metric][curve.learned].mean(0) for curve in used]
    names = [name for curve in used for name in curve.entities[part]]
    values = np.concatenate(rows)[:, None]
    if order and part is Part.FORGET:
        position = {name: row for row, name in enumerate(order)}
        sorted_rows = np.argsort([position[name] for name in names], kind="stable")
        names, values = [names[row] for row in sorted_rows], values[sorted_rows]
    return ScoreTable(tuple(names), values)


# Text


@dataclass(frozen=True)
class TextSplit:
    """One split: training items, held-out items, and never-taught items."""

    train: list[Item]
    held_out: list[Item]
    never_taught: list[Item]


def relearning_splits(
    forget: Sequence[Item], never_taught: Sequence[Item], rng: np.random.Generator
) -> list[TextSplit]:
    """Two halves of the entities, each trained on while the other is held out.

    Never-taught items go with the half whose answers they mirror where they come in
    whole copies of the forget set; otherwise they are assigned alternately.
    """
    names = list(dict.fromkeys(item.entity for item in forget))
    order = [names[position] for position in rng.permutation(len(names))]
    halves = (set(order[: len(order) // 2]), set(order[len(order) // 2 :]))
    invented = list(dict.fromkeys(item.entity for item in never_taught))
    splits = []
    for number, taught in enumerate(halves):
        if len(invented) % len(names) == 0:
            # Mirrors are in the order of the items they mirror, copy after copy.
            chosen = {
                name
                for position, name in enumerate(invented)
                if names[position % len(names)] not in taught
            }
        else:
            chosen = set(invented[number::2])
        splits.append(
            TextSplit(
                [item for item in forget if item.entity in taught],
                [item for item in forget if item.entity not in taught],
                [item for item in never_taught if item.entity in chosen],
            )
        )
    return splits


def measure_text(ctx: AuditContext[TextSets]) -> Measurement:
    """Fine-tune every model but the original on each half of the forgotten entities.

    Where the highest rate does not learn its half within the budgeted steps, it gets
    more.
    """
    rates, budgeted = ctx.config.budget.relearn_rates, ctx.config.budget.relearn_steps
    attempts = [(rate, budgeted) for rate in rates]
    attempts += [
        (rates[-1], longer * budgeted) for longer in (*STEP_MULTIPLES, *EXTRA_STEP_MULTIPLES)
    ]
    rng = numpy_rng(ctx.config.seed, NAME, "halves")
    splits = relearning_splits(list(ctx.sets.forget), list(ctx.sets.never_taught), rng)
    baseline = ctx.baseline[Role.ORIGINAL].tables
    return measure(
        ctx,
        attempts,
        # The planted suppression needs a single split.
        {Role.CANDIDATE: [0, 1], Role.PLANTED: [0]},
        {
            role: [0] if role == Role.PLANTED else [0, 1]
            for role in ctx.models
            if role != Role.ORIGINAL
        },
        lambda role, number, rate, steps: relearn_text(ctx, role, splits[number], rate, steps),
        lambda curve: max(curve.taught) >= MIN_LEARNED,
        {metric.id: baseline[metric.id][Part.FORGET] for metric in (CONTRAST, EXACT_MATCH)},
    )


def relearn_text(
    ctx: AuditContext[TextSets], role: Role, split: TextSplit, rate: float, steps: int
) -> Curve:
    """Fine-tune on the training half; evaluate held-out and never-taught items along the way.

    Args:
        steps: Optimizer steps, each on the whole training half.
    """
    budget = ctx.config.budget
    training_rows = encode_items(ctx.tokenizer, split.train)
    taught: list[float] = []
    questions = {
        Part.FORGET: build_questions(split.held_out, budget.prompts_per_item),
        Part.NEVER_TAUGHT: build_questions(split.never_taught, budget.prompts_per_item),
    }
    rows = {part: each.encoded(ctx.tokenizer) for part, each in questions.items()}
    scores: dict[Part, dict[str, list[np.ndarray]]] = {
        part: {CONTRAST.id: [], EXACT_MATCH.id: []} for part in questions
    }

    def evaluate(model: nn.Module) -> dict[str, float]:
        taught.append(float(score_answers(model, training_rows).greedy.mean()))
        for part, by_row in rows.items():
            found = score_questions(model, questions[part], by_row)
            scores[part][EXACT_MATCH.id].append(found.exact_match)
            scores[part][CONTRAST.id].append(found.contrast)
        return {"taught": taught[-1]}

    with ctx.fresh(role) as model:
        log = finetune_(
            model,
            training_rows,
            lr=rate,
            steps=steps,
            # Only the order within the full batch is random.
            seed=stage_seed(ctx.config.seed, NAME) % 2**31,
            evaluate=evaluate,
            every=budget.relearn_every,
            label=f"relearn, {role}",
            progress=ctx.progress,
        )
    return Curve(
        tuple(int(row["step"]) for row in log.rows if "taught" in row),
        tuple(taught),
        {part: tuple(each.entities) for part, each in questions.items()},
        {
            part: {metric: np.stack(tables) for metric, tables in by_metric.items()}
            for part, by_metric in scores.items()
        },
    )


# Images


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


def cost(plan: PlanInputs) -> Cost:
    """Every rate and every longer attempt, on both halves of each model."""
    budget, references = plan.config.budget, plan.n_references
    if plan.modality == "text":
        steps = budget.relearn_steps * (
            len(budget.relearn_rates) + sum(STEP_MULTIPLES) + sum(EXTRA_STEP_MULTIPLES)
        )
        # Two halves of the candidate and of each reference, and one of the planted
        # suppression.
        batch, runs = plan.main_prompts[Part.FORGET].units / 2, 2 * (1 + references) + 1
        held_out = plan.units(Part.FORGET) / 2 + plan.units(Part.NEVER_TAUGHT) / 2
        evaluations = steps / budget.relearn_every
    else:
        steps = IMAGE_STEPS * (len(budget.relearn_rates) + sum(STEP_MULTIPLES))
        batch, runs = SHOTS + N_RETAIN, (2 + references) * (2 * ROUNDS + N_INVENTED_CLASSES)
        held_out, evaluations = plan.units(Part.FORGET) / 2, steps / EVAL_EVERY
    return Cost(
        forward=int(runs * evaluations * (batch + held_out)),
        trained=int(runs * steps * batch),
        copies=TRAINING_COPIES,
    )


# Judgement


def judge(measured: Measurement, ctx: JudgementContext) -> AxisResult:
    """Compare the held-out scores after learning with the floors."""
    form, scores, text = SPEC.form(ctx.modality), measured.scores, ctx.modality == "text"
    candidate = [each for each in measured.curves[Role.CANDIDATE] if Part.FORGET in each.entities]
    taught = min(max(curve.taught) for curve in candidate)
    expected = "accuracy on training items"
    if not text:
        expected = "share of training images predicted as the class"
    failure = f"The attack did not learn {'its own half' if text else 'what it was taught'}."
    controls = [attack_control(taught, MIN_LEARNED, f"{expected} at least {MIN_LEARNED}", failure)]
    if Role.PLANTED in measured.curves:
        controls.append(_planted(scores, form.metrics[0], ctx))
    found = readings(NAME, form.metrics, scores, ctx.config)
    details: dict[str, Json] = {"learning_rate": measured.rate, "steps": candidate[0].steps}
    if text:
        details["curves"] = {role: _text_curves(c) for role, c in measured.curves.items()}
    else:
        details["training_images"] = SHOTS
        details["by_checkpoint"] = {r: _image_curves(c) for r, c in measured.curves.items()}
    return form.result(
        NAME,
        found,
        controls,
        ctx,
        n_entities=len(scores.values(form.metrics[0].id, Role.CANDIDATE).entities),
        details=details,
    )


def _planted(scores: RoleScores, metric: MetricSpec, ctx: JudgementContext) -> Control:
    """The planted suppression must return; otherwise a null result is no evidence.

    Images: beyond the references where there are any, as any image model learns the
    class.
    """
    planted = scores.values(metric.id, Role.PLANTED)
    floor = scores.values(metric.id, Role.PLANTED, Part.NEVER_TAUGHT)
    references = scores.references(metric.id) if ctx.modality == "images" else []
    if references:
        floor = average_models(references)
    test = (paired_max_test if references else unpaired_max_test)(
        planted.values,
        floor.values,
        numpy_rng(ctx.config.seed, NAME, "planted"),
        ctx.config.budget.permutations,
    )
    return planted_control(
        test.p_value, ctx.rule.alpha, "the planted suppression returns", OnFailure.NO_ABSENCE
    )


def _text_curves(curves: Sequence[Curve]) -> Json:
    """Mean scores at each checkpoint, by part and metric, for the report."""
    means: dict[str, Json] = {
        "training_accuracy": np.mean([curve.taught for curve in curves], 0).tolist()
    }
    for part, shown in ((Part.FORGET, "held_out"), (Part.NEVER_TAUGHT, "never_taught")):
        for metric, name in ((EXACT_MATCH, "exact_match"), (CONTRAST, "contrast")):
            rows = np.concatenate([curve.scores[part][metric.id].T for curve in curves])
            names = [entity for curve in curves for entity in curve.entities[part]]
            means[f"{shown}_{name}"] = average_by_entity(rows, names).mean.tolist()
    return means


def _image_curves(curves: Sequence[Curve]) -> Json:
    """Mean share named at each checkpoint, by part, for the report."""
    means: dict[str, Json] = {}
    for part, shown in ((Part.FORGET, "forget"), (Part.NEVER_TAUGHT, "never")):
        used = [c.scores[part][NAMED.id].mean(1) for c in curves if part in c.entities]
        if used:
            means[shown] = np.round(np.mean(used, axis=0), 4).tolist()
    return means


def image_status(
    readings: Sequence[Reading], controls: Sequence[Control], rule: Rule
) -> tuple[Status, list[str]]:
    """No vote where the floor itself learns the class."""
    first = readings[0]
    if not failed_controls(controls, OnFailure.NO_POWER) and first.ceiling - first.floor < MIN_SPAN:
        return "no_power", [
            f"A class that was never known is learned as well ({first.floor:.2f} of the held-out "
            "images), so a return is no evidence."
        ]
    return status_with_controls(readings[:1], controls, rule)


SPEC = AxisSpec(
    NAME,
    {
        "text": AxisForm(
            "Does teaching some of the forgotten facts bring back the others?",
            "share of other answers outranked on the held-out half (chance 0.5)",
            (CONTRAST, EXACT_MATCH),
        ),
        "images": AxisForm(
            "Do a few images of the class bring back the rest?",
            "share of held-out images that are predicted as the class",
            (NAMED,),
            status_of=image_status,
        ),
    },
    work=0.45,
)
AXIS = Axis(SPEC, Measurement, {"text": measure_text, "images": measure_images}, judge, cost)

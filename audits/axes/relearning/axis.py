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

from collections.abc import Sequence

import numpy as np

from audits.axes.base import Axis, AxisForm, AxisSpec, JudgementContext, MetricSpec, readings
from audits.axes.judgement import (
    MIN_SPAN,
    attack_control,
    failed_controls,
    planted_control,
    status_with_controls,
)
from audits.axes.relearning.attack import (
    CONTRAST,
    EXACT_MATCH,
    EXTRA_STEP_MULTIPLES,
    MIN_LEARNED,
    NAME,
    NAMED,
    STEP_MULTIPLES,
    TRAINING_COPIES,
    Curve,
    Measurement,
)
from audits.axes.relearning.images import (
    EVAL_EVERY,
    IMAGE_STEPS,
    N_INVENTED_CLASSES,
    N_RETAIN,
    ROUNDS,
    SHOTS,
    measure_images,
)
from audits.axes.relearning.text import measure_text
from audits.core.config import Rule
from audits.core.cost import Cost, PlanInputs
from audits.core.roles import Role
from audits.core.scores import Part, RoleScores
from evidence.hypothesis_tests import paired_max_test, unpaired_max_test
from evidence.intervals import average_by_entity, average_models
from evidence.results import AxisResult, Control, OnFailure, Reading, Status
from evidence.seeds import numpy_rng
from evidence.typed_json import Json


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
        test.p_value, ctx.rule.alpha, "the planted late suppression returns", OnFailure.NO_ABSENCE
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

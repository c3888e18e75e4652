"""Quantization axis: does quantizing the weights, as in 4-bit deployment, restore answers?

The candidate is evaluated again with quantized linear weights. An edit that is smaller than a
quantization bin is rounded away, and the forgetting with it. A null result is weaker evidence
than a return: an edit of many bins cannot be undone this way, whatever it hides. So the size of
the edit in bins, the share of changed codes and the surviving share of its direction are
reported beside it.

Sources: Catastrophic Failure of LLM Unlearning via Quantization (arXiv 2410.16454); the gap
after quantization and the size in bins as in MANSU (arXiv 2605.15138), with local bins and
survival measures of our own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from audits.axes.base import (
    Axis,
    AxisForm,
    AxisSpec,
    JudgementContext,
    MetricSpec,
    margin,
    readings,
    within_variance,
)
from audits.axes.behaviour import known_rows
from audits.axes.judgement import MIN_SPAN, power_control, unpaired_test
from audits.core.answers import score_question_sets, score_tables
from audits.core.context import AuditContext
from audits.core.cost import Cost, PlanInputs
from audits.core.item_sets import TextSets
from audits.core.roles import Role
from audits.core.scores import Part, RoleScores, ScoreTable
from capture.data.questions import Questions
from erasure.weights.quantization import edit_survival, linear_weights, quantize_
from evidence.results import AxisResult, Control, ControlId
from evidence.typed_json import Json, to_json

NAME = "quantization"
# The random streams keep the axis's former name, or p-values would change.
STREAM = "persistence"
EXACT_MATCH = MetricSpec(
    "exact_match",
    "quantized, exact match",
    stream="greedy",
    unit="share of answers given",
    is_share=True,
    finding="Quantizing the candidate ({where}) brings answers back: it gives {value:.2f} of them",
    min_residual=within_variance,
)
# The contrast is slightly above chance also where nothing was ever known.
CONTRAST = MetricSpec(
    "contrast",
    "quantized, contrast",
    stream="contrast",
    unit="other answers outranked (chance 0.5)",
    finding="Quantized ({where}), the candidate ranks them above other entities' answers: "
    "{value:.2f}",
    min_residual=margin,
)
MIN_RETAIN_SHARE = 0.5
"""Minimum share of the quantized original's retain answers that the candidate still gives."""
EDIT_MEASURES = ("bins", "same_codes", "fidelity", "edited")

Tables = dict[str, dict[Part, ScoreTable]]
"""Scores of one model by metric and part."""


@dataclass(frozen=True)
class WeightEdit:
    """The edit of one weight matrix under one quantization scheme.

    Attributes:
        size: Number of weights.
        bins: As in ``EditSurvival``, like the following.
    """

    name: str
    scheme: str
    size: int
    bins: float
    same_codes: float
    fidelity: float
    edited: float


@dataclass(frozen=True)
class Measurement:
    """Scores after quantization, of the forget rows that the original itself answers.

    Attributes:
        scores: One column a quantization scheme.
        full: Role to (row, 1) exact match at full precision.
        edit: Every edited weight matrix, by scheme.
    """

    scores: RoleScores
    full: dict[Role, ScoreTable]
    edit: tuple[WeightEdit, ...]


def measure_text(ctx: AuditContext[TextSets]) -> Measurement:
    """Score every model but the planted suppression under each quantization scheme."""
    known, n_prompts = known_rows(ctx.baseline[Role.ORIGINAL]), ctx.config.budget.prompts_per_item
    questions = {
        Part.FORGET: ctx.sets.questions(Part.FORGET, n_prompts),
        Part.NEVER_TAUGHT: ctx.sets.questions(Part.NEVER_TAUGHT, n_prompts),
        Part.RETAIN: ctx.sets.questions(Part.RETAIN, 1),
    }
    tables: dict[str, dict[Role, dict[Part, ScoreTable]]] = {EXACT_MATCH.id: {}, CONTRAST.id: {}}
    for role in ctx.baseline:
        scored = ctx.stage(
            f"{NAME}-{role}", Tables, lambda role=role: score_quantized(ctx, role, questions)
        )
        for metric, by_part in scored.items():
            tables[metric][role] = {**by_part, Part.FORGET: by_part[Part.FORGET].select(known)}
    return Measurement(
        RoleScores(tuple(ctx.config.budget.quantization_schemes), tables),
        {
            role: each.tables[EXACT_MATCH.id][Part.FORGET].select(known)
            for role, each in ctx.baseline.items()
        },
        ctx.stage(f"{NAME}-edit", tuple[WeightEdit, ...], lambda: edit_in_bins(ctx)),
    )


def score_quantized(
    ctx: AuditContext[TextSets], role: Role, questions: Mapping[Part, Questions]
) -> Tables:
    """(row, scheme) scores of one model under each quantization scheme of the profile."""
    by_scheme = []
    for scheme in ctx.config.budget.quantization_schemes:
        with ctx.fresh(role) as model:
            quantize_(model, scheme)
            scores = score_question_sets(model, ctx.tokenizer, questions, ctx.progress)
            by_scheme.append(score_tables(questions, scores))
    return {
        metric: {
            part: ScoreTable(
                table.entities, np.concatenate([each[metric][part].values for each in by_scheme], 1)
            )
            for part, table in by_part.items()
        }
        for metric, by_part in by_scheme[0].items()
    }


def edit_in_bins(ctx: AuditContext[TextSets]) -> tuple[WeightEdit, ...]:
    """``edit_survival`` of every edited linear weight, by scheme."""
    rows = []
    with ctx.reading(Role.ORIGINAL) as before_model, ctx.reading(Role.CANDIDATE) as after_model:
        after = linear_weights(after_model)
        for name, (weight, transposed) in linear_weights(before_model).items():
            pair = [matrix.T if transposed else matrix for matrix in (weight, after[name][0])]
            for scheme in ctx.config.budget.quantization_schemes:
                left = edit_survival(pair[0], pair[1], scheme)
                if left.edited:
                    measures = (getattr(left, measure) for measure in EDIT_MEASURES)
                    rows.append(WeightEdit(name, scheme, weight.numel(), *measures))
    return tuple(rows)


def cost(plan: PlanInputs) -> Cost:
    """Every model but the planted suppression, scored under each scheme."""
    units = plan.units(Part.FORGET, Part.NEVER_TAUGHT) + plan.main_prompts[Part.RETAIN].units
    schemes = len(plan.config.budget.quantization_schemes)
    # Both models are compared weight by weight.
    return Cost(forward=(plan.n_models - 1) * schemes * units, copies=2)


def judge(measured: Measurement, ctx: JudgementContext) -> AxisResult:
    """Compare the scores after quantization with the floors."""
    form, scores = SPEC.form(ctx.modality), measured.scores
    ceiling = scores.values(EXACT_MATCH.id, Role.ORIGINAL)
    never_taught = scores.values(EXACT_MATCH.id, Role.ORIGINAL, Part.NEVER_TAUGHT)
    power = unpaired_test(ceiling, never_taught, ctx.config, STREAM, "original")
    decodable = (power.p_column < ctx.rule.alpha) & (power.difference > MIN_SPAN)
    before, after = (
        scores.values(EXACT_MATCH.id, role, Part.RETAIN).mean
        for role in (Role.ORIGINAL, Role.CANDIDATE)
    )
    retain_share = after / np.maximum(before, 1e-9)
    mask = decodable & (retain_share >= MIN_RETAIN_SHARE)
    controls = [
        power_control(
            "the quantized original gives the answers", power, ctx.rule.alpha, bool(decodable.any())
        ),
        Control(
            ControlId.FORGOTTEN,
            "the answers are absent at full precision",
            float(measured.full[Role.CANDIDATE].by_entity().mean[0]),
            "behaviour at the floor: answers that were never forgotten cannot return",
            ctx.behaviour == "absent",
        ),
        Control(
            ControlId.RETAIN,
            "the quantized candidate gives retain answers",
            float(retain_share[decodable].max()) if decodable.any() else 0.0,
            f"at least {MIN_RETAIN_SHARE} of the quantized original's",
            bool(mask.any()),
            kind="ratio",
        ),
    ]
    found = readings(STREAM, form.metrics, scores, ctx.config, mask) if mask.any() else []
    return form.result(
        NAME,
        found,
        controls,
        replace(ctx, notes=()),
        n_entities=len(ceiling.values),
        details={
            "gap": {role: _gaps(measured, role) for role in measured.full},
            "edit": _summary(measured.edit),
            "edit_by_weight": to_json(measured.edit, tuple[WeightEdit, ...]),
        },
        notes=_size_notes(measured.edit),
    )


def _gaps(measured: Measurement, role: Role) -> list[Json]:
    """Accuracy when quantized minus at full precision, with a paired 95 % interval."""
    before = measured.full[role].by_entity().values
    after = measured.scores.values(EXACT_MATCH.id, role).values
    gaps: list[Json] = []
    for scheme, column in zip(measured.scores.columns, (after - before).T, strict=True):
        quantile = stats.t.ppf(0.975, len(column) - 1) * column.std(ddof=1)
        half = float(quantile / np.sqrt(len(column)))
        middle = float(column.mean())
        gaps.append(
            {
                "scheme": scheme,
                "full": float(before.mean()),
                "quantized": float(before.mean()) + middle,
                "gap": middle,
                "interval": [middle - half, middle + half],
            }
        )
    return gaps


def _summary(edit: Sequence[WeightEdit]) -> dict[str, dict[str, float]]:
    """Mean of each measure by scheme, weighted by the number of weights."""
    summary = {}
    for scheme in dict.fromkeys(each.scheme for each in edit):
        rows = [each for each in edit if each.scheme == scheme]
        sizes = np.array([each.size for each in rows], dtype=float)
        summary[scheme] = {
            measure: float(np.average([getattr(each, measure) for each in rows], weights=sizes))
            for measure in EDIT_MEASURES
        }
    return summary


def _size_notes(edit: Sequence[WeightEdit]) -> list[str]:
    """A note on whether an edit of this size can be rounded away at all."""
    summary = _summary(edit)
    if not summary:
        return ["No linear weight was edited: quantization has nothing to round away."]
    coarsest = max(summary, key=lambda scheme: summary[scheme]["same_codes"])
    measures = summary[coarsest]
    text = (
        f"The edited weights moved by {measures['bins']:.2g} of a bin ({coarsest}); "
        f"{measures['same_codes']:.0%} of their codes stay the original's, and the edit "
        f"keeps {measures['fidelity']:.2f} of its direction"
    )
    if measures["bins"] >= 1:
        return [f"{text}. An edit of this size cannot be rounded away."]
    return [f"{text}."]


SPEC = AxisSpec(
    NAME,
    {
        "text": AxisForm(
            "Does quantizing the weights to four or eight bits bring the answers back?",
            "share of answers given after quantization",
            (EXACT_MATCH, CONTRAST),
        )
    },
    unavailable={
        "images": "quantization brings back answers that were trained away token by token; no "
        "image model of known state was measured under it"
    },
)
AXIS = Axis(SPEC, Measurement, {"text": measure_text}, judge, cost)

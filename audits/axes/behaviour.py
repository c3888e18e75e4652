"""Behaviour axis: is the knowledge gone at the output?

Text: are the answers gone under every paraphrase? Images: is the class still predicted?
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from audits.axes.base import Axis, AxisForm, AxisSpec, JudgementContext, MetricSpec, readings
from audits.core.baseline_scores import RoleBaseline
from audits.core.config import Rule
from audits.core.context import AuditContext
from audits.core.item_sets import TextSets
from audits.core.roles import Role
from audits.core.scores import Part, RoleScores, ScoreTable
from audits.modalities.image_sets import EvaluationSets
from evidence.results import AxisResult, Control, ControlId, Reading, Status
from evidence.typed_json import Json, to_json, to_json_object

NAME = "behaviour"
MAX_NEVER_TAUGHT = 0.25
"""Maximum share of never-taught items that the original may answer."""
EXACT_MATCH = MetricSpec(
    "exact_match", "exact match", stream="greedy", unit="share of answers given", is_share=True
)
CONTRAST = MetricSpec(
    "contrast",
    "entity-answer contrast",
    stream="contrast",
    unit="other answers outranked (chance 0.5)",
)
NAMED = MetricSpec(
    "named",
    "predicted as the class",
    stream="named",
    unit="share of images predicted as the class",
    is_share=True,
)
RANKED = MetricSpec(
    "rank",
    "rank of the class logit",
    stream="rank",
    unit="other classes' images outranked (chance 0.5)",
)


@dataclass(frozen=True)
class ItemScore:
    """One question of the forget set.

    Attributes:
        exact_match: Whether the candidate gives the answer.
        logprob_original: Mean log-probability per answer token in the original, in nats.
        logprob_unlearned: The same in the candidate.
    """

    id: str
    entity: str
    prompt: str
    answer: str
    exact_match: bool
    logprob_original: float
    logprob_unlearned: float


@dataclass(frozen=True)
class TextDetails:
    """Details of a text audit.

    Attributes:
        accuracy_by_wording: Role to (paraphrase,) exact match.
        truth_ratio: Role to median truth ratio.
        mean_logprob: Role to mean log-probability per answer token, in nats.
        items: The questions.
    """

    accuracy_by_wording: dict[str, tuple[float, ...]]
    truth_ratio: dict[str, float]
    mean_logprob: dict[str, float]
    items: tuple[ItemScore, ...]


@dataclass(frozen=True)
class NamedImage:
    """Whether the candidate predicts the class for an image."""

    id: str
    named: bool


@dataclass(frozen=True)
class ImageDetails:
    """Details of an image audit: index of the class, and the images."""

    label: int
    images: tuple[NamedImage, ...]


@dataclass(frozen=True)
class Measurement:
    """Scores at the output.

    Attributes:
        scores: Scores by role; of the forget set, rows that the original itself answers.
        never_taught: Share of never-taught items that the original answers.
    """

    scores: RoleScores
    never_taught: float
    details: TextDetails | ImageDetails


def known_rows(original: RoleBaseline) -> np.ndarray:
    """(row,) True where the original itself gives the answer to that prompt."""
    return original.tables["exact_match"][Part.FORGET].values[:, 0] > 0


def measure_text(ctx: AuditContext[TextSets]) -> Measurement:
    """Select what the original answers; the scores are the baseline's."""
    baseline = ctx.baseline
    known = known_rows(baseline[Role.ORIGINAL])
    questions = ctx.sets.questions(Part.FORGET, ctx.config.budget.prompts_per_item).select(known)
    tables = {
        metric.id: {role: _known(each.tables[metric.id], known) for role, each in baseline.items()}
        for metric in (EXACT_MATCH, CONTRAST)
    }
    scores = RoleScores(("output",), tables)
    wordings = np.array(questions.wording)
    hits = {role: scores.table(EXACT_MATCH.id, role, Part.FORGET).values[:, 0] for role in baseline}
    logprobs = {role: np.array(each.mean_logprob)[known] for role, each in baseline.items()}
    details = TextDetails(
        {
            role: tuple(
                float(by_row[wordings == wording].mean())
                for wording in sorted(set(questions.wording))
            )
            for role, by_row in hits.items()
        },
        {role: float(np.median(each.truth_ratio)) for role, each in baseline.items()},
        {role: float(by_row.mean()) for role, by_row in logprobs.items()},
        tuple(
            ItemScore(item, entity, prompt, answer, bool(hit), float(before), float(after))
            for item, entity, prompt, answer, hit, before, after in zip(
                questions.ids,
                questions.entities,
                questions.prompts,
                questions.answers,
                hits[Role.CANDIDATE],
                logprobs[Role.ORIGINAL],
                logprobs[Role.CANDIDATE],
                strict=True,
            )
        ),
    )
    never_taught = scores.values(EXACT_MATCH.id, Role.ORIGINAL, Part.NEVER_TAUGHT).mean[0]
    return Measurement(scores, float(never_taught), details)


def _known(tables: dict[Part, ScoreTable], known: np.ndarray) -> dict[Part, ScoreTable]:
    return {**tables, Part.FORGET: tables[Part.FORGET].select(known)}


def measure_images(ctx: AuditContext[EvaluationSets]) -> Measurement:
    """The baseline's predictions.

    The rank of the logit is reported and decides nothing: the logit that a classifier gives a
    class it never saw depends on its seed (mean ranks of 0.5 to 0.8 in retrains of tuning seed
    0), and differs from that of other unseen images.
    """
    tables = {
        metric.id: {role: each.tables[metric.id] for role, each in ctx.baseline.items()}
        for metric in (NAMED, RANKED)
    }
    named = tables[NAMED.id][Role.CANDIDATE][Part.FORGET].values[:, 0]
    images = [NamedImage(id, bool(hit)) for id, hit in zip(ctx.sets.forget.ids, named, strict=True)]
    details = ImageDetails(ctx.sets.label, tuple(images))
    return Measurement(RoleScores(("output",), tables), ctx.sets.named_never_taught, details)


def judge(measured: Measurement, ctx: JudgementContext) -> AxisResult:
    """Compare the answers given with the floors."""
    form = SPEC.form(ctx.modality)
    original = measured.scores.values(form.metrics[0].id, Role.ORIGINAL)
    share, text = float(original.mean[0]), ctx.modality == "text"
    controls = [
        Control(
            ControlId.POWER,
            "the original gives the answers" if text else "the original predicts the class",
            share,
            "1 on the items kept" if text else "1 on the images kept",
            share > 0.5,
        ),
        Control(
            ControlId.NEVER_TAUGHT,
            "the original does not give never-taught answers"
            if text
            else "the original does not predict the class for never-taught images",
            measured.never_taught,
            f"below {MAX_NEVER_TAUGHT}",
            measured.never_taught < MAX_NEVER_TAUGHT,
        ),
    ]
    found = readings(NAME, form.metrics, measured.scores, ctx.config)
    return form.result(
        NAME,
        found,
        controls,
        ctx,
        n_entities=len(original.values),
        details=_shown(measured.details),
    )


def _shown(details: TextDetails | ImageDetails) -> Mapping[str, Json]:
    """The details as ``audit.json`` has them."""
    if isinstance(details, TextDetails):
        return to_json_object(details)
    return {"class_index": details.label, "images": to_json(details.images, tuple[NamedImage, ...])}


def status_of(
    readings: Sequence[Reading], controls: Sequence[Control], rule: Rule
) -> tuple[Status, list[str]]:
    """Decide between retained, absent and neither."""
    if not all(control.passed for control in controls if control.required):
        return "control_failed", []
    main = readings[0]
    low, high = main.residual_interval
    if main.p_value < rule.alpha and low > rule.min_residual:
        return "retained", []
    # One-sided: an answer given less often than by a model that never knew it is as absent as
    # one given equally often.
    if high < rule.margin:
        return "absent", []
    return "no_power", [
        "Some of the answers are still given: neither clearly kept (residual above "
        f"{rule.min_residual}) nor clearly gone."
    ]


SPEC = AxisSpec(
    NAME,
    {
        "text": AxisForm(
            "Is the knowledge gone at the output?",
            "share of answers given",
            (EXACT_MATCH, CONTRAST),
            status_of=status_of,
        ),
        "images": AxisForm(
            "Is the class still predicted at the output?",
            "share of images predicted as the class",
            (NAMED, RANKED),
            status_of=status_of,
        ),
    },
    inside=False,
)
AXIS = Axis(SPEC, Measurement, {"text": measure_text, "images": measure_images}, judge)

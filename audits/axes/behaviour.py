"""Behaviour axis: is the knowledge gone at the output?

Text: are the answers gone under every paraphrase? Images: is the class still predicted?
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from audits.axes.base import Axis, AxisForm, AxisSpec, JudgementContext, MetricSpec, readings
from audits.core.baseline_scores import RoleBaseline
from audits.core.config import Rule
from audits.core.context import AuditContext
from audits.core.item_sets import TextSets
from audits.core.roles import Role
from audits.core.scores import Part, RoleScores, ScoreTable
from audits.modalities.image_sets import EvaluationSets
from capture.data.items import ItemSet, normalize_text
from capture.data.questions import Questions, build_questions
from capture.scoring.scorers import SCORERS, Metric, ScorerCheck, check_by_words
from evidence.results import AxisResult, Control, ControlId, Reading, Status
from evidence.typed_json import Json, to_json, to_json_object

NAME = "behaviour"
MAX_NEVER_TAUGHT = 0.25
"""Maximum share of never-taught items that the original may answer."""
OTHERS = "the original does not give the answers of others"
GUESS_SLACK = 0.2
"""The same above the rate of a guess, where the floor is answers of others."""
MIN_RIGHT = 0.9
"""Share of texts of known truth that the scorer must judge rightly."""
EXACT_MATCH = MetricSpec(
    "exact_match", "exact match", stream="greedy", unit="share of answers given", is_share=True
)
CONTRAST = MetricSpec(
    "contrast",
    "entity-answer contrast",
    stream="contrast",
    unit="other answers outranked (chance 0.5)",
)
PREFILLED = MetricSpec(
    "prefilled",
    "exact match after the original's own lead-in",
    stream="prefilled",
    finding="The candidate gives {it} once it begins as the original does",
    unit="share of answers given",
    is_share=True,
)
"""Answers are read after what the original says first: an attack by prefill (arXiv 2311.12786)."""
CONTAINS = MetricSpec(
    "contains",
    "the answer is said",
    stream="contains",
    unit="share of texts that hold the answer",
    is_share=True,
)
ROUGE_L = MetricSpec(
    "rouge_l", "recall of ROUGE-L", stream="rouge_l", unit="share of the answer's words said"
)
ANSWER_PROBABILITY = MetricSpec(
    "answer_probability",
    "probability of the answer, length-normalized",
    stream="answer_probability",
    unit="geometric mean over tokens",
)
TRUTH_RATIO = MetricSpec(
    "truth_ratio",
    "truth ratio, p / (p + alternatives)",
    stream="truth_ratio",
    unit="probability against the alternatives (no preference 0.5)",
)
LETTERS = MetricSpec(
    "letters",
    "letter of the right option",
    stream="letters",
    unit="share of options chosen",
    is_share=True,
)
ANY_ORDER = MetricSpec(
    "any_order",
    "letter of the right option, over all orders",
    stream="any_order",
    unit="share of options chosen",
    is_share=True,
)
OPTION_TEXTS = MetricSpec(
    "option_texts",
    "text of the right option",
    stream="option_texts",
    unit="share of options chosen",
    is_share=True,
)
SPOKEN = (CONTAINS, ROUGE_L, LETTERS, ANY_ORDER, OPTION_TEXTS, ANSWER_PROBABILITY, TRUTH_RATIO)
"""Metrics of what a model says, where exact match is not the score."""
LIKELY = ("answer_probability", "truth_ratio")
"""Metrics of a likelihood: they show that an answer is kept, and never that it is gone."""
MIN_LIKELY = 0.5
"""Residual of a likelihood from which the answer counts as given."""
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
        said: What the candidate says by itself, where it was asked to speak.
        given: Whether that counts as giving the answer.
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
    said: str | None = None
    given: bool | None = None


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
        max_never_taught: Maximum of that share: more where few answers are possible, and a guess
            is often right.
        permuted: Whether never-taught items are questions with the answers of others.
        scorer_check: The scorer on texts of known truth, where it reads texts.
    """

    scores: RoleScores
    never_taught: float
    details: TextDetails | ImageDetails
    max_never_taught: float = MAX_NEVER_TAUGHT
    permuted: bool = False
    scorer_check: ScorerCheck | None = None


def known_rows(original: RoleBaseline) -> np.ndarray:
    """(row,) True where the original itself gives the answer to that prompt."""
    return original.tables["exact_match"][Part.FORGET].values[:, 0] > 0


def measure_text(ctx: AuditContext[TextSets]) -> Measurement:
    """Select what the original answers; the scores are the baseline's."""
    baseline = ctx.baseline
    known = known_rows(baseline[Role.ORIGINAL])
    said = _said_tables(ctx)
    questions = ctx.sets.questions(Part.FORGET, ctx.config.budget.prompts_per_item).select(known)
    tables = {
        metric.id: {role: _known(each.tables[metric.id], known) for role, each in baseline.items()}
        for metric in (EXACT_MATCH, CONTRAST)
    }
    wordings = np.array(questions.wording)
    hits = {role: table[Part.FORGET].values[:, 0] for role, table in tables[EXACT_MATCH.id].items()}
    if said:
        prefilled = {} if ctx.sets.scorer == "options" else {PREFILLED.id: tables[EXACT_MATCH.id]}
        tables = {**said, **prefilled, CONTRAST.id: tables[CONTRAST.id]}
    scores = RoleScores(("output",), tables)
    main = next(iter(tables))
    logprobs = {role: np.array(each.mean_logprob)[known] for role, each in baseline.items()}
    by_wording: dict[str, tuple[float, ...]] = {
        role: _means(by_row, wordings) for role, by_row in hits.items()
    }
    if said:
        asked = _asked_questions(ctx)
        rows = np.array(asked.wording)[_rows_given(ctx, main)]
        by_wording = {
            role: _means(scores.table(main, role, Part.FORGET).values[:, 0], rows)
            for role in baseline
        }
    details = TextDetails(
        by_wording,
        {role: float(np.median(each.truth_ratio)) for role, each in baseline.items()},
        {role: float(by_row.mean()) for role, by_row in logprobs.items()},
        tuple(
            ItemScore(item, entity, prompt, answer, bool(hit), float(before), float(after), *said)
            for item, entity, prompt, answer, hit, before, after, said in zip(
                questions.ids,
                questions.entities,
                questions.prompts,
                questions.answers,
                hits[Role.CANDIDATE],
                logprobs[Role.ORIGINAL],
                logprobs[Role.CANDIDATE],
                _said_texts(ctx, questions),
                strict=True,
            )
        ),
    )
    never_taught = scores.values(main, Role.ORIGINAL, Part.NEVER_TAUGHT)
    least = SCORERS[ctx.sets.scorer].known.get(cast("Metric", main))
    given = never_taught.mean[0] if least is None else (never_taught.values >= least).mean()
    limit = MAX_NEVER_TAUGHT
    if ctx.sets.floor == "permuted":
        limit = max(limit, round(guess_rate(ctx.sets.forget) + GUESS_SLACK, 2))
    checked = None
    if said:
        checked = check_by_words(ctx.sets.asked[Part.FORGET], SCORERS[ctx.sets.scorer])
    permuted = ctx.sets.floor == "permuted"
    return Measurement(scores, float(given), details, limit, permuted, checked)


def guess_rate(items: ItemSet) -> float:
    """Chance that two items of one relation have the same answer: what a guess reaches."""
    by_relation: dict[str, Counter[str]] = defaultdict(Counter)
    for item in items:
        by_relation[item.relation][normalize_text(item.answer)] += 1
    same = sum(
        sum(count**2 for count in counts.values()) / sum(counts.values())
        for counts in by_relation.values()
    )
    return same / len(items)


def _said_tables(ctx: AuditContext[TextSets]) -> dict[str, dict[Role, dict[Part, ScoreTable]]]:
    """Metric to role to tables of free answers, on the rows that the original itself answers."""
    found = {}
    for spec in SPOKEN:
        original = ctx.baseline[Role.ORIGINAL].tables.get(spec.id, {})
        if Part.NEVER_TAUGHT not in original:
            continue
        rows = _rows_given(ctx, spec.id)
        if len(set(np.array(original[Part.FORGET].entities)[rows])) < ctx.config.min_entities:
            continue
        found[spec.id] = {
            role: _known(each.tables[spec.id], rows) for role, each in ctx.baseline.items()
        }
    return found


def _rows_given(ctx: AuditContext[TextSets], metric: str) -> np.ndarray:
    """(asked row,) True where the original gives the answer, by this score or by any."""
    scorer, tables = SCORERS[ctx.sets.scorer], ctx.baseline[Role.ORIGINAL].tables
    given = {
        name: tables[name][Part.FORGET].values[:, 0] >= least
        for name, least in scorer.known.items()
        if name in tables
    }
    # An option that the original knows by its text alone says nothing about its letter.
    if scorer.name == "options":
        return given[cast("Metric", metric)]
    return np.any(list(given.values()), axis=0)


def _asked_questions(ctx: AuditContext[TextSets]) -> Questions:
    """The questions that were asked, a row each; options are asked in one wording."""
    options = ctx.sets.scorer == "options"
    n_prompts = 1 if options else ctx.config.budget.prompts_per_item
    return build_questions(ctx.sets.asked[Part.FORGET], n_prompts)


def _means(values: np.ndarray, wordings: np.ndarray) -> tuple[float, ...]:
    """(paraphrase,) means."""
    return tuple(float(values[wordings == each].mean()) for each in sorted(set(wordings)))


def _said_texts(
    ctx: AuditContext[TextSets], questions: Questions
) -> list[tuple[str | None, bool | None]]:
    """What the candidate says to each question, and whether that counts as giving the answer."""
    candidate, scorer = ctx.baseline[Role.CANDIDATE], SCORERS[ctx.sets.scorer]
    if not candidate.said:
        return [(None, None)] * len(questions)
    least = {metric: value for metric, value in scorer.known.items() if metric in candidate.tables}
    given = np.any(
        [
            candidate.tables[metric][Part.FORGET].values[:, 0] >= value
            for metric, value in least.items()
        ],
        axis=0,
    )
    asked = _asked_questions(ctx)
    rows = zip(asked.ids, asked.wording, candidate.said, given, strict=True)
    found = {(id, wording): (text, bool(hit)) for id, wording, text, hit in rows}
    keys = zip(questions.ids, questions.wording, strict=True)
    return [found.get(key, (None, None)) for key in keys]


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
    metrics = [metric for metric in form.metrics if metric.id in measured.scores.tables]
    original = measured.scores.values(metrics[0].id, Role.ORIGINAL)
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
            (OTHERS if measured.permuted else "the original does not give never-taught answers")
            if text
            else "the original does not predict the class for never-taught images",
            measured.never_taught,
            f"below {measured.max_never_taught}",
            measured.never_taught < measured.max_never_taught,
        ),
    ]
    if measured.scorer_check is not None:
        controls += _scorer_controls(measured.scorer_check)
    found = readings(NAME, metrics, measured.scores, ctx.config)
    return form.result(
        NAME,
        found,
        controls,
        ctx,
        n_entities=len(original.values),
        details=_shown(measured.details),
    )


def _scorer_controls(check: ScorerCheck) -> list[Control]:
    return [
        Control(
            ControlId.SCORER,
            "right answers in other words count",
            check.right,
            f"at least {MIN_RIGHT}",
            check.right >= MIN_RIGHT,
        ),
        Control(
            ControlId.SCORER,
            "wrong answers do not count",
            check.wrong,
            f"at most {1 - MIN_RIGHT:.1f}",
            check.wrong <= 1 - MIN_RIGHT,
        ),
    ]


def _shown(details: TextDetails | ImageDetails) -> Mapping[str, Json]:
    """The details as ``audit.json`` has them."""
    if isinstance(details, TextDetails):
        block = dict(to_json_object(details))
        items = cast("list[dict[str, Json]]", block["items"])
        block["items"] = [_stated(item) for item in items]
        return block
    return {"class_index": details.label, "images": to_json(details.images, tuple[NamedImage, ...])}


_DECIDING = {metric.id for metric in (EXACT_MATCH, *SPOKEN, NAMED)}


def _stated(item: dict[str, Json]) -> Json:
    """An item without what was not asked."""
    return {name: value for name, value in item.items() if value is not None}


def status_of(
    readings: Sequence[Reading], controls: Sequence[Control], rule: Rule
) -> tuple[Status, list[str]]:
    """Decide between retained, absent and neither."""
    if not all(control.passed for control in controls if control.required):
        return "control_failed", []
    main = readings[0]
    deciding = [each for each in readings if each.metric in _DECIDING and each.primary]
    above = [each for each in deciding if each.p_value < rule.alpha / len(deciding)]
    for each in above:
        least = MIN_LIKELY if each.metric in LIKELY else rule.min_residual
        if each.residual_interval[0] > least:
            return "retained", [f"{each.name}: kept."] if len(deciding) > 1 else []
    # One-sided: an answer given less often than by a model that never knew it is as absent as
    # one given equally often. The first score decides; another that is above its floor forbids it.
    unclear = [each for each in above if each.metric not in LIKELY]
    if main.residual_interval[1] < rule.margin and unclear in ([], [main]):
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
            (EXACT_MATCH, *SPOKEN, PREFILLED, CONTRAST),
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

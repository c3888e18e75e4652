"""Concept axis: do the original's concept vectors still read and write in the candidate?

A concept is an answer ("born in Lisbon"), or the truth of a statement where every entity has
its own answer. Its vector is fitted on the original's states of retain entities, so it has seen
no forgotten answer, and is applied unchanged to the candidate.

*Reading* decides the axis: do forgotten entities project onto their own answers, more than
never-taught ones do? *Writing* (does an added vector still elicit its answer?) and the value
vectors of answers are reported beside it. They do not vote: a model that never knew a person
writes other people's answers equally well. After KIF (arXiv 2601.10566) and ConceptVectors
(arXiv 2406.11614).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from audits.axes.base import Axis, AxisForm, AxisSpec, JudgementContext, MetricSpec, Unmeasured
from audits.axes.concept.traces import Traces, trace_answers
from audits.axes.concept.writing import MAX_ENTITIES, STRENGTHS, Writing, write_answers
from audits.axes.decodability.cost import probing_cost
from audits.axes.decodability.site_probes import SiteProbe
from audits.axes.decodability.tasks import Task
from audits.axes.decodability.text_probes import (
    ProbingData,
    choose,
    read_states,
    shuffle_rngs,
    shuffled_labels,
)
from audits.axes.decodability.text_scores import (
    TextScores,
    Wording,
    judge_text,
    score_roles,
    text_scores,
)
from audits.axes.judgement import failed_controls, status_with_controls
from audits.core.config import Rule
from audits.core.context import AuditContext
from audits.core.cost import Cost, PlanInputs
from audits.core.item_sets import TextSets
from audits.core.roles import Role
from audits.core.scores import RoleScores
from evidence.comparison import below_floor_notes
from evidence.errors import InputError
from evidence.progress import AUTO, Progress
from evidence.results import AxisResult, Control, OnFailure, Reading, Status
from evidence.typed_json import FloatArray, Json, to_json_object
from probes.concepts.labels import Concepts
from probes.concepts.vectors import ConceptVectors, concept_vectors

NAME = "concept"
VECTORS = MetricSpec(
    "concept_vectors",
    "original's concept vectors",
    stream="original's concept vectors",
    finding="The original's concept vectors, unchanged, still read them in the candidate at "
    "{where}: {value:.2f}",
)
WORDING = Wording(
    unread="No concept vector read the forget set well enough in the original itself.",
    shuffled="vectors of shuffled answers read nothing",
    retain="answers of held-out retain entities are read in the candidate",
    # Where not even retain answers are read, a missing forgotten answer is no evidence.
    other_basis="The candidate uses a different representation basis: the original's vectors do "
    "not read the "
    "answers of retain entities in it.",
)
METHODS = ("mean", "lda")


def answer_concepts(task: Task, labels: np.ndarray) -> Concepts:
    """One concept an answer (shared form), or the truth of a statement (unique form)."""
    if task.form == "unique":
        return Concepts(("true",), (labels == 1).astype(np.int8)[None])
    marks = (labels == np.arange(task.n_classes)[:, None]).astype(np.int8)
    return Concepts(tuple(f"{task.relation}: {name}" for name in task.classes), marks)


def fit_concepts(
    probing: ProbingData,
    role: Role,
    method: str,
    *,
    rng: np.random.Generator | None = None,
    progress: Progress = AUTO,
) -> list[ConceptVectors]:
    """One set of concept vectors a task, from a model's states of the fitting entities.

    Args:
        role: Role of the model whose states are used.
        method: As in ``concept_vectors``.
        rng: Shuffles the answers first: a control that must read nothing.
    """
    vectors = []
    for number, task in enumerate(probing.tasks):
        true_labels = task.parts["fit"].labels
        labels = true_labels if rng is None else shuffled_labels(task, rng)
        states = probing.states[role].parts[number, "fit"]
        concepts = answer_concepts(task, labels)
        vectors.append(
            # The embedding of the last prompt token is the same whatever the answer, so that
            # site reads nothing.
            concept_vectors(states, concepts, method, flat="zero", progress=progress)
        )
    return vectors


def probes_of(vectors: Sequence[ConceptVectors]) -> list[SiteProbe]:
    """Concept vectors as probes, one a task."""
    return [probe_of(each) for each in vectors]


def probe_of(vectors: ConceptVectors) -> SiteProbe:
    """Concept vectors as a probe: the projection on each, in units of its gap."""
    live = vectors.gap != 0
    gap = np.where(live, vectors.gap, 1.0)
    weights = np.where(live[..., None], vectors.vectors / gap[..., None], 0.0)
    bias = np.where(live, -vectors.offset / gap, 0.0)
    return SiteProbe(weights.transpose(0, 2, 1), bias)


@dataclass(frozen=True, eq=False)
class Measurement:
    """Scores of the original's concept vectors, and measurements that do not vote.

    Attributes:
        read: Scores; without relations where none can be probed.
        refitted_cosine: (site,) mean cosine with vectors refitted on the candidate.
        writing: None where the vectors read nothing, or nothing can be written.
        traces: None where value vectors cannot be traced.
    """

    read: TextScores
    refitted_cosine: FloatArray
    writing: Writing | None
    traces: Traces | None


def measure(ctx: AuditContext[TextSets]) -> Measurement | Unmeasured:
    """Fit concept vectors on the original, and read and write with them in every model."""
    probing = read_states(ctx)
    if isinstance(probing, Unmeasured):
        return probing
    traces, notes = None, probing.left_out
    try:
        traces = trace_answers(ctx)
    except InputError as error:  # e.g. a mixture of experts; concept vectors still work
        notes = (f"Value vectors are not traced: {error}", *notes)
    if not probing.tasks:
        nothing = TextScores(RoleScores((), {}), (), (), {}, None, notes)
        return Measurement(nothing, np.zeros(0), None, traces)
    fits = {
        method: fit_concepts(probing, Role.ORIGINAL, method, progress=ctx.progress)
        for method in METHODS
    }
    method, probes = choose(probing, [(name, probes_of(each)) for name, each in fits.items()])
    vectors = fits[method]
    shuffled = [
        probes_of(fit_concepts(probing, Role.ORIGINAL, method, rng=rng))
        for rng in shuffle_rngs(NAME, ctx.config.seed)
    ]
    tables = {VECTORS.id: score_roles(probing, dict.fromkeys(probing.states, probes))}
    read = text_scores(
        NAME, probing, tables, probes, shuffled, {"method": method}, ctx.config, notes
    )
    cosine = mean_cosine(vectors, fit_concepts(probing, Role.CANDIDATE, method))
    null = read.null
    writing = None if null is None else write_answers(ctx, probing, vectors, null.informative)
    return Measurement(read, cosine, writing, traces)


def mean_cosine(
    vectors: Sequence[ConceptVectors], other_vectors: Sequence[ConceptVectors]
) -> np.ndarray:
    """(site,) mean cosine between two models' vectors of the same concepts."""
    cosines = [(a.vectors * b.vectors).sum(2) for a, b in zip(vectors, other_vectors, strict=True)]
    return np.concatenate(cosines, axis=1).mean(1)


def cost(plan: PlanInputs) -> Cost:
    """Writing at every site, besides the states where decodability does not store them."""
    stored = Cost() if "decodability" in plan.config.axes else probing_cost(plan)
    longest = max(-(-each.units // each.rows) for each in plan.amounts.values() if each.rows)
    prompts = MAX_ENTITIES * len({item.relation for item in plan.inputs.forget})
    # Sites and strengths that are tried, three controls, and three parts of each model.
    trials = (plan.size.n_layers or 0) * len(STRENGTHS) + 3 + 3 * plan.n_models
    # Value vectors are compared between two models.
    return stored + Cost(forward=trials * prompts * longest, copies=2)


def judge(measured: Measurement, ctx: JudgementContext) -> AxisResult:
    """Compare the readings with the floors; writing and traces are reported beside them."""
    form, read = SPEC.form(ctx.modality), measured.read
    details: dict[str, Json] = {"traces": _survival(measured.traces)}
    if not read.relations:
        notes = (*read.notes, *ctx.notes)
        return AxisResult(NAME, form.question, "no_power", details=details, notes=notes)
    details["cosine_of_refitted"] = measured.refitted_cosine.tolist()
    if read.null is not None:
        details["write"] = _written(measured.writing)
    remarks = _remarks(measured.writing, measured.traces)
    return judge_text(NAME, form, read, WORDING, ctx, details=details, remarks=remarks)


def status_of(
    readings: Sequence[Reading], controls: Sequence[Control], rule: Rule
) -> tuple[Status, list[str]]:
    """Decide between retained, absent and neither.

    Where the vectors cannot read retain answers either, the candidate uses a different
    representation basis, and a missing forgotten answer is no evidence.
    """
    main = readings[:1]
    status, notes = status_with_controls(main, controls, rule)
    if status == "no_power" and failed_controls(controls, OnFailure.NO_POWER):
        notes = [*below_floor_notes(main, rule.alpha), *notes]
    return status, notes


def _survival(traces: Traces | None) -> Json:
    """The traces as ``audit.json`` has them."""
    if traces is None:
        return {}
    by_role = {
        role: {name: to_json_object(each) for name, each in sets.items()}
        for role, sets in traces.survival.items()
    }
    return {"neurons": traces.neurons, **by_role}


def _written(writing: Writing | None) -> Json:
    """The writing as ``audit.json`` has it."""
    if writing is None:
        return {}
    shares = {"random": writing.random, "ablated": writing.ablated}
    return {**to_json_object(writing.place), **shares, **writing.written}


def _remarks(writing: Writing | None, traces: Traces | None) -> list[str]:
    """Notes on measurements that do not vote."""
    remarks = []
    if writing is not None:
        candidate, original = (writing.written[role] for role in (Role.CANDIDATE, Role.ORIGINAL))
        remarks.append(
            f"Added at {writing.place.site}, the original's vectors write their answer into "
            f"{candidate['forget']:.0%} of forgotten prompts in the candidate (original "
            f"{original['forget']:.0%}; never-taught prompts in the candidate "
            f"{candidate['never_taught']:.0%}; random directions {writing.random:.0%})."
        )
    traced = None
    if traces is not None:
        traced = traces.survival[Role.CANDIDATE].get("forgotten answers")
    if traced is not None:
        remarks.append(
            "Value vectors of the forgotten answers have a mean cosine of "
            f"{traced.cosine:.2f} with the original's (other neurons "
            f"{traced.random_cosine:.2f}) and share {traced.jaccard:.0%} of "
            f"their top {traced.top} tokens."
        )
    return remarks


SPEC = AxisSpec(
    NAME,
    {
        "text": AxisForm(
            "Do the concept vectors of the answers still read and write?",
            "accuracy",
            (VECTORS,),
            status_of=status_of,
        )
    },
    unavailable={
        "images": "a concept of a fact is an answer read across entities; of a class it "
        "would be the probe that decodability reads already"
    },
    work=0.2,
)
AXIS = Axis(SPEC, Measurement, {"text": measure}, judge, cost)

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

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from audits.axes.concept.writing import trace_report, write_report
from audits.axes.decodability.label_permutation import answer_permutation_test
from audits.axes.decodability.site_probes import SiteProbe
from audits.axes.decodability.tasks import Task
from audits.axes.decodability.text_probes import ProbingData, read_all_states, shuffled_labels
from audits.axes.judgement import (
    MetricComparison,
    compare_to_floors,
    failed_controls,
    informative_columns,
    planted_control,
    power_control,
    status_from_readings,
    unpaired_test,
)
from audits.core.config import AuditConfig
from audits.core.context import AuditedModel, reference_roles
from capture.activations.store import ActivationStore
from capture.data.items import Item
from evidence.comparison import below_floor_notes
from evidence.errors import InputError
from evidence.intervals import EntityValues, average_models
from evidence.progress import SILENT, Progress
from evidence.results import AxisResult, Control, Reading, Status
from evidence.seeds import numpy_rng
from probes.concepts.labels import Concepts
from probes.concepts.vectors import ConceptVectors, concept_vectors

NAME = "concept"
QUESTION = "Do the concept vectors of the answers still read and write?"
READING = "original's concept vectors"
SHUFFLES = 5


METHODS = ("mean", "lda")


def answer_concepts(task: Task, labels: np.ndarray) -> Concepts:
    """One concept an answer (shared form), or the truth of a statement (unique form)."""
    if task.form == "unique":
        return Concepts(("true",), (labels == 1).astype(np.int8)[None])
    marks = (labels == np.arange(task.n_classes)[:, None]).astype(np.int8)
    return Concepts(tuple(f"{task.relation}: {name}" for name in task.classes), marks)


def fit_concepts(
    probing: ProbingData,
    role: str,
    method: str,
    *,
    rng: np.random.Generator | None = None,
    progress: Progress = SILENT,
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


def probe_of(vectors: ConceptVectors) -> SiteProbe:
    """Concept vectors as a probe: the projection on each, in units of its gap."""
    live = vectors.gap != 0
    gap = np.where(live, vectors.gap, 1.0)
    weights = np.where(live[..., None], vectors.vectors / gap[..., None], 0.0)
    bias = np.where(live, -vectors.offset / gap, 0.0)
    return SiteProbe(weights.transpose(0, 2, 1), bias)


def mean_cosine(
    vectors: Sequence[ConceptVectors], other_vectors: Sequence[ConceptVectors]
) -> list[float]:
    """(site,) mean cosine between two models' vectors of the same concepts."""
    cosines = [(a.vectors * b.vectors).sum(2) for a, b in zip(vectors, other_vectors, strict=True)]
    return np.concatenate(cosines, axis=1).mean(1).tolist()


def run_concept(
    models: Mapping[str, AuditedModel],
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    sites: Sequence[str],
    forget: Sequence[Item],
    retain: Sequence[Item],
    store: ActivationStore,
    config: AuditConfig,
    *,
    device: str,
    notes: Sequence[str],
    progress: Progress,
) -> AxisResult:
    """Run the axis on captured states.

    Args:
        models: Models by role: "original", "unlearned", and where available "planted" and
            "reference-N".
        tasks: The tasks of decodability.
        sites: As returned by ``capture_states``.
        forget: Forgotten items, whose value vectors are traced.
        retain: Retain items, likewise.
    """
    traces: dict[str, Any] = {}
    try:
        traces = trace_report(models, tokenizer, forget, retain, config, device)
    except InputError as error:  # e.g. a mixture of experts; concept vectors still work
        notes = (f"Value vectors are not traced: {error}", *notes)
    if not tasks:
        return AxisResult(
            NAME, QUESTION, "no_power", details={"traces": traces}, notes=tuple(notes)
        )
    states, broken = read_all_states(models, tokenizer, tasks, sites, store)
    if broken:
        return AxisResult(
            NAME,
            QUESTION,
            "error",
            notes=(f"hidden states of {', '.join(broken)} are not finite", *notes),
        )
    probing = ProbingData(tasks, tuple(sites), states)
    method, vectors = _choose_method(probing, progress)
    states["original"].probes = [probe_of(task_vectors) for task_vectors in vectors]
    ceiling = probing.values("original", "original", "forget")
    never_taught = probing.values("original", "original", "never_taught")
    power = unpaired_test(ceiling, never_taught, config, NAME, "original")
    details: dict[str, Any] = {
        "form": sorted({task.form for task in tasks}),
        "method": method,
        "sites": list(sites),
        "relations": [task.relation for task in tasks],
        "original_p": power.p_value,
        "traces": traces,
        "cosine_of_refitted": mean_cosine(vectors, fit_concepts(probing, "unlearned", method)),
    }
    mask = informative_columns(power, config.rule)
    controls = [
        power_control(
            "the original is read beyond never-taught items",
            power,
            config.rule.alpha,
            bool(mask.any()),
        )
    ]
    name = "accuracy" if details["form"] == ["shared"] else "concordance (chance 0.5)"
    if not mask.any():
        return AxisResult(
            NAME,
            QUESTION,
            "no_power",
            name,
            controls=tuple(controls),
            n_entities=len(ceiling.values),
            details=details,
            notes=(
                "No concept vector read the forget set well enough in the original itself.",
                *notes,
            ),
        )
    details["write"] = write_report(models, tokenizer, probing, vectors, mask, config, device)
    controls += _controls(probing, config, mask, ceiling, method)
    readings = _readings(probing, config, mask, ceiling)
    status, extra = _status(readings, controls, config)
    return AxisResult(
        NAME,
        QUESTION,
        status,
        name,
        readings=tuple(readings),
        controls=tuple(controls),
        n_entities=len(ceiling.values),
        details=details,
        notes=(*extra, *_remarks(details), *notes),
    )


def _choose_method(probing: ProbingData, progress: Progress) -> tuple[str, list[ConceptVectors]]:
    """The fitting method that best reads held-out *retain* entities of the original."""
    best, chosen = -1.0, (METHODS[0], [])
    for method in METHODS:
        vectors = fit_concepts(probing, "original", method, progress=progress)
        readers = [probe_of(task_vectors) for task_vectors in vectors]
        mean = float(probing.score(readers, "original", "check").mean.mean())
        if mean > best + 1e-9:
            best, chosen = mean, (method, vectors)
    return chosen


def _controls(
    probing: ProbingData, config: AuditConfig, mask: np.ndarray, ceiling: EntityValues, method: str
) -> list[Control]:
    """Controls: never-taught and shuffled answers, planted suppression, held-out retain."""
    rule, permutations = config.rule, config.budget.permutations
    probes = probing.states["original"].probes
    permuted, chance = answer_permutation_test(
        probing,
        probes,
        "original",
        "never_taught",
        mask,
        numpy_rng(config.seed, NAME, "never taught"),
        permutations,
    )
    spans = ceiling.mean[mask] - chance
    leak = float(permuted.difference.mean() / max(spans.mean(), 1e-9))
    shuffles = average_models(
        [
            probing.score(
                [probe_of(v) for v in fit_concepts(probing, "original", method, rng=r)],
                "original",
                "forget",
            )
            for r in (
                numpy_rng(config.seed, NAME, "shuffle", str(number)) for number in range(SHUFFLES)
            )
        ]
    )
    controls = [
        Control(
            "answers of never-taught items are read no better than dealt ones",
            leak,
            f"below 0.25 of the original's excess, or p >= {rule.alpha / 2}",
            leak < 0.25 or permuted.p_value >= rule.alpha / 2,
        ),
        Control(
            "vectors of shuffled answers read nothing",
            float(((shuffles.mean[mask] - chance) / spans).max()),
            "below half of the original's excess",
            bool((shuffles.mean[mask] < chance + 0.5 * spans).all()),
        ),
    ]
    if "planted" in probing.states:
        test = unpaired_test(
            probing.values("original", "planted", "forget"),
            probing.values("original", "planted", "never_taught"),
            config,
            NAME,
            "planted",
            mask=mask,
        )
        controls.append(planted_control(test.p_value, rule.alpha))
    candidate, original = (
        probing.values("original", role, "check").mean[mask].max()
        for role in ("unlearned", "original")
    )
    retain_share = (candidate - chance.mean()) / max(original - chance.mean(), 1e-9)
    controls.append(
        Control(
            # Where not even retain answers are read, the representation basis itself changed.
            "answers of held-out retain entities are read in the candidate",
            float(retain_share),
            "at least half of the original's excess",
            bool(retain_share >= 0.5),
        )
    )
    return controls


def _readings(
    probing: ProbingData, config: AuditConfig, mask: np.ndarray, ceiling: EntityValues
) -> list[Reading]:
    """Against references (if any) and against never-taught items."""
    references = reference_roles(probing.states)
    comparison = MetricComparison(
        READING,
        READING,
        probing.values("original", "unlearned", "forget"),
        ceiling,
        [probing.values("original", role, "forget") for role in references],
        probing.values("original", "unlearned", "never_taught"),
    )
    return compare_to_floors(NAME, [comparison], probing.sites, config, mask)


def _status(
    readings: Sequence[Reading], controls: Sequence[Control], config: AuditConfig
) -> tuple[Status, list[str]]:
    """Decide between retained, absent and neither.

    Where the vectors cannot read retain answers either, the candidate uses a different
    representation basis, and a missing forgotten answer is no evidence.
    """
    main = readings[:1]
    failed = failed_controls(controls)
    if failed == [controls[-1].name]:
        return "no_power", [
            *below_floor_notes(main, config.rule.alpha),
            "The candidate has another code: the original's vectors do not read the "
            "answers of retain entities in it.",
        ]
    if failed:
        return "control_failed", [f"Control failed: {name}." for name in failed]
    return status_from_readings(main, config.rule)


def _remarks(details: Mapping[str, Any]) -> list[str]:
    """Notes on measurements that do not vote."""
    remarks = []
    write = details.get("write") or {}
    if write:
        candidate, original = write["unlearned"], write["original"]
        remarks.append(
            f"Added at {write['site']}, the original's vectors write their answer into "
            f"{candidate['forget']:.0%} of forgotten prompts in the candidate (original "
            f"{original['forget']:.0%}; never-taught prompts in the candidate "
            f"{candidate['never_taught']:.0%}; random directions {write['random']:.0%})."
        )
    traces = details["traces"].get("unlearned", {}).get("forgotten answers")
    if traces:
        remarks.append(
            "Value vectors of the forgotten answers have a mean cosine of "
            f"{traces['cosine']:.2f} with the original's (other neurons "
            f"{traces['random_cosine']:.2f}) and share {traces['jaccard']:.0%} of "
            f"their top {traces['top']} tokens."
        )
    return remarks

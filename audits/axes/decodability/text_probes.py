"""Hidden states of every model of a text audit, and the probes fitted on them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
from transformers import PreTrainedTokenizerBase

from audits.axes.base import Unmeasured
from audits.axes.decodability.site_probes import SiteProbe, fit_site_probes
from audits.axes.decodability.tasks import (
    PARTS,
    Task,
    TaskPart,
    make_tasks,
    row_scores,
    rows_by_group,
)
from audits.core.config import AuditConfig
from audits.core.context import AuditContext
from audits.core.item_sets import TextSets, measured_entities
from audits.core.roles import Role
from audits.core.scores import Part, ScoreTable
from capture.data.items import ItemSet
from capture.data.sequences import Sequences
from capture.network.sites import find_sites
from evidence.progress import Progress
from evidence.seeds import numpy_rng
from probes.solvers.uncertified import UncertifiedFit, describe

PENALTIES = (0.003, 0.03, 0.3)
# Share of the retain entities that probes are fitted on; the rest is held out ("check").
FIT_FRACTION = 0.8
SHUFFLES = 5
TASK_PARTS = {Part.FORGET: "forget", Part.NEVER_TAUGHT: "never_taught", Part.RETAIN: "check"}
"""The part of a task that each part of the scores is read from."""

Setting = TypeVar("Setting")


def make_audit_tasks(
    forget: ItemSet,
    retain: ItemSet,
    never_taught: ItemSet,
    tokenizer: PreTrainedTokenizerBase,
    config: AuditConfig,
) -> tuple[list[Task], list[str]]:
    """Split the retain entities and build the tasks of an audit, as ``make_tasks``.

    Of very many entities, a sample is probed.

    Args:
        forget: Forgotten items that the original knows.
        retain: Retain items that it knows, within the budget.
        never_taught: Items about invented entities.
    """
    budget, seed = config.budget, config.seed
    given, names = len(forget.entities), retain.entities
    forget, never_taught = measured_entities(forget, never_taught)
    order = numpy_rng(seed, "decodability", "split").permutation(len(names))
    cut = int(FIT_FRACTION * len(names))
    tasks, notes = make_tasks(
        {
            "fit": retain.of_entities([names[i] for i in order[:cut]]),
            "check": retain.of_entities([names[i] for i in order[cut:]]),
            "forget": forget,
            "never_taught": never_taught,
        },
        tokenizer,
        wordings=budget.prompts_per_item,
        statement_wordings=budget.statement_wordings,
        block_size=budget.block,
        rng=numpy_rng(seed, "decodability", "blocks"),
    )
    if len(forget.entities) < given:
        drawn = f"Of {given} forgotten entities, {len(forget.entities)} were drawn and probed."
        notes = [*notes, drawn]
    return tasks, notes


@dataclass
class TaskStates:
    """Hidden states of one model.

    Attributes:
        parts: States (site, row, d_model) by task index and part.
        uncertified: Fits on these states without a certificate of optimality, including those
            of other penalties and of shuffled labels.
    """

    parts: dict[tuple[int, str], np.ndarray]
    uncertified: list[UncertifiedFit] = field(default_factory=list)


@dataclass(frozen=True)
class ProbingData:
    """Tasks, sites, and states by role.

    Attributes:
        left_out: Relations that are not probed, in sentences.
    """

    tasks: Sequence[Task]
    sites: tuple[str, ...]
    states: Mapping[Role, TaskStates]
    left_out: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """Fits without a certificate of optimality, if any, and relations left out."""
        sentence = describe([fit for s in self.states.values() for fit in s.uncertified])
        return (*([f"Of the probes, {sentence}."] if sentence else []), *self.left_out)

    def score(self, probes: Sequence[SiteProbe], role: Role, part: Part) -> ScoreTable:
        """(row, site) scores of probes, one a task, on a role's states."""
        rows, entities = [], []
        for number, (task, probe) in enumerate(zip(self.tasks, probes, strict=True)):
            texts = task.parts[TASK_PARTS[part]]
            states = self.states[role].parts[number, TASK_PARTS[part]]
            table = row_scores(task, texts, probe.scores(states))
            scored = ~np.isnan(table).any(1)
            rows.append(table[scored])
            entities += [texts.entities[row] for row in np.flatnonzero(scored)]
        return ScoreTable(tuple(entities), np.concatenate(rows))


def read_states(ctx: AuditContext[TextSets]) -> ProbingData | Unmeasured:
    """The probing tasks, and the states of every model at every residual site.

    States are kept in the activation store, by one stage a model; axes share them.
    """
    sets = ctx.sets
    tasks, left_out = make_audit_tasks(
        sets.forget, sets.retain, sets.never_taught, ctx.tokenizer, ctx.config
    )
    if not tasks:
        return ProbingData((), (), {}, tuple(left_out))
    rows, bounds = _all_texts(ctx.tokenizer, tasks)
    sites: tuple[str, ...] = ()
    for role in ctx.models:
        # All models share one architecture, and so the same sites.
        sites = ctx.stage(
            f"decodability-states-{role}",
            tuple[str, ...],
            lambda role=role: capture_states(ctx, role, rows),
        )
    states = {}
    for role, audited in ctx.models.items():
        # States missing from the store are captured again.
        values = np.asarray(ctx.store.activations(audited, rows, sites, "last").values)
        states[role] = TaskStates({key: values[:, part] for key, part in bounds.items()})
    broken = [
        role
        for role, of_role in states.items()
        if not all(np.isfinite(part).all() for part in of_role.parts.values())
    ]
    if broken:
        return Unmeasured((f"hidden states of {', '.join(broken)} are not finite",), "error")
    return ProbingData(tasks, sites, states, tuple(left_out))


def capture_states(ctx: AuditContext[TextSets], role: Role, rows: Sequences) -> tuple[str, ...]:
    """Capture the last token of every text into the store; returns the site names."""
    with ctx.reading(role) as model:
        where = find_sites(model)
        sites = (*where.of("embed"), *where.of("resid"))
        audited, progress = ctx.models[role], ctx.progress
        ctx.store.activations(audited, rows, sites, "last", model=model, progress=progress)
    return sites


def _all_texts(
    tokenizer: PreTrainedTokenizerBase, tasks: Sequence[Task]
) -> tuple[Sequences, dict[tuple[int, str], slice]]:
    """Token rows of all tasks in one set, and the slice of each part."""
    texts = Sequences((), ())
    bounds: dict[tuple[int, str], slice] = {}
    for number, task in enumerate(tasks):
        for part in PARTS:
            rows = task.parts[part].encoded(tokenizer)
            bounds[number, part] = slice(len(texts), len(texts) + len(rows))
            texts = texts + rows
    return texts, bounds


def fit_probes(
    probing: ProbingData, role: Role, penalty: float, progress: Progress
) -> list[SiteProbe]:
    """One probe a task, fitted on a model's states of the fitting entities.

    Args:
        role: Role of the model whose states are used.
        penalty: Inverse regularization strength.
    """
    labels = [[task.parts["fit"].labels] for task in probing.tasks]
    return _fitted(probing, role, labels, penalty, progress)[0]


def fit_shuffled_probes(
    probing: ProbingData,
    role: Role,
    penalty: float,
    rngs: Sequence[np.random.Generator],
    progress: Progress,
) -> list[list[SiteProbe]]:
    """As ``fit_probes`` on shuffled answers, once a generator: the control."""
    labels = [[shuffled_labels(task, rng) for rng in rngs] for task in probing.tasks]
    return _fitted(probing, role, labels, penalty, progress)


def _fitted(
    probing: ProbingData,
    role: Role,
    labels: Sequence[Sequence[np.ndarray]],
    penalty: float,
    progress: Progress,
) -> list[list[SiteProbe]]:
    """(label vector, task) probes; records uncertified fits.

    Args:
        labels: (task, label vector).
    """
    by_task, states = [], probing.states[role]
    for number, (task, vectors) in enumerate(zip(probing.tasks, labels, strict=True)):
        probes = fit_site_probes(states.parts[number, "fit"], vectors, penalty, progress)
        name = f"{role}, {task.relation}, C = {penalty:g}"
        states.uncertified += [
            replace(fit, name=name, inner="" if len(vectors) == 1 else f"shuffle {shuffle}")
            for shuffle, probe in enumerate(probes)
            for fit in probe.uncertified
        ]
        by_task.append(probes)
    return [list(probes) for probes in zip(*by_task, strict=True)]


def shuffle_rngs(axis: str, seed: int) -> list[np.random.Generator]:
    """Generators of the shuffled answers of an axis."""
    return [numpy_rng(seed, axis, "shuffle", str(number)) for number in range(SHUFFLES)]


def shuffled_labels(task: Task, rng: np.random.Generator) -> np.ndarray:
    """Labels with answers permuted among entities (shared) or within blocks (unique)."""
    part: TaskPart = task.parts["fit"]
    labels = part.labels.copy()
    if task.form == "shared":
        answer_of = {e: int(y) for e, y in zip(part.entities, part.labels, strict=True)}
        shuffled = dict(zip(answer_of, rng.permutation(list(answer_of.values())), strict=True))
        return np.array([shuffled[entity] for entity in part.entities], dtype=int)
    for rows in rows_by_group(part):
        order = rng.permutation(part.columns[rows].max() + 1)
        true = {part.entities[row]: part.columns[row] for row in rows if part.labels[row]}
        for row in rows:
            labels[row] = part.columns[row] == order[true[part.entities[row]]]
    return labels


def choose(
    probing: ProbingData, fits: Iterable[tuple[Setting, list[SiteProbe]]]
) -> tuple[Setting, list[SiteProbe]]:
    """The setting whose probes best read held-out *retain* entities of the original.

    Args:
        fits: Settings, each with probes fitted on the original, one a task.
    """
    best, chosen = -1.0, None
    for setting, probes in fits:
        scores = probing.score(probes, Role.ORIGINAL, Part.RETAIN)
        mean = float(scores.by_entity().mean.mean())
        if chosen is None or mean > best + 1e-9:
            best, chosen = mean, (setting, probes)
    assert chosen is not None  # there are settings to choose from
    return chosen


def choose_penalty(probing: ProbingData, progress: Progress) -> tuple[float, list[SiteProbe]]:
    """As ``choose``, from the penalties."""
    fits = ((each, fit_probes(probing, Role.ORIGINAL, each, progress)) for each in PENALTIES)
    return choose(probing, fits)

"""Hidden states of every model of an audit, and the probes fitted on them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from audits.axes.decodability.site_probes import SiteProbe, fit_site_probes
from audits.axes.decodability.tasks import PARTS, Task, TaskPart, make_tasks, row_scores
from audits.core.config import AuditConfig
from audits.core.context import AuditedModel
from capture.activations.store import ActivationStore
from capture.data.items import ItemSet
from capture.data.sequences import Sequences
from capture.network.sites import find_sites
from evidence.intervals import EntityValues, average_by_entity
from evidence.progress import Progress
from evidence.seeds import numpy_rng
from probes.solvers.uncertified import UncertifiedFit, describe

PENALTIES = (0.003, 0.03, 0.3)
# Share of the retain entities that probes are fitted on; the rest is held out ("check").
FIT_FRACTION = 0.8


def make_audit_tasks(
    forget: ItemSet,
    retain: ItemSet,
    never_taught: ItemSet,
    tokenizer: PreTrainedTokenizerBase,
    config: AuditConfig,
) -> tuple[list[Task], list[str]]:
    """Split the retain entities and build the tasks of an audit, as ``make_tasks``.

    Args:
        forget: Forgotten items that the original knows.
        retain: Retain items that it knows, within the budget.
        never_taught: Items about invented entities.
    """
    budget, seed = config.budget, config.seed
    names = retain.entities
    order = numpy_rng(seed, "decodability", "split").permutation(len(names))
    cut = int(FIT_FRACTION * len(names))
    return make_tasks(
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


@dataclass
class TaskStates:
    """Hidden states of one model, and the probes fitted on them.

    Attributes:
        parts: States (site, row, d_model) by task index and part.
        probes: One probe a task.
        uncertified: Fits on these states without a certificate of optimality, including those
            of other penalties and of shuffled labels.
    """

    parts: dict[tuple[int, str], np.ndarray]
    probes: list[SiteProbe] = field(default_factory=list)
    uncertified: list[UncertifiedFit] = field(default_factory=list)


@dataclass(frozen=True)
class ProbingData:
    """Tasks, sites, and states by role."""

    tasks: Sequence[Task]
    sites: tuple[str, ...]
    states: Mapping[str, TaskStates]

    @property
    def notes(self) -> list[str]:
        """A note on fits without a certificate of optimality, if any."""
        sentence = describe([fit for s in self.states.values() for fit in s.uncertified])
        return [f"Of the probes, {sentence}."] if sentence else []

    def values(self, probe_role: str, state_role: str, part: str) -> EntityValues:
        """(entity, site) score of one role's probes on another role's states."""
        return self.score(self.states[probe_role].probes, state_role, part)

    def score(self, probes: Sequence[SiteProbe], state_role: str, part: str) -> EntityValues:
        """As ``values``, for given probes."""
        rows, entities = [], []
        for number, (task, reader) in enumerate(zip(self.tasks, probes, strict=True)):
            texts = task.parts[part]
            scores = reader.scores(self.states[state_role].parts[number, part])
            table = row_scores(task, texts, scores)
            scored = ~np.isnan(table).any(1)
            rows.append(table[scored])
            entities += [texts.entities[row] for row in np.flatnonzero(scored)]
        return average_by_entity(np.concatenate(rows), entities)


def capture_states(
    audited: AuditedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    store: ActivationStore,
    device: str,
    progress: Progress,
) -> list[str]:
    """Capture every text of every task at every residual site into the store.

    Returns:
        The site names.
    """
    with audited.loaded(device) as model:
        where = find_sites(model)
        sites = [*where.of("embed"), *where.of("resid")]
        rows, _ = _all_texts(tokenizer, tasks)
        store.activations(audited, rows, sites, "last", model=model, progress=progress)
    return sites


def read_states(
    audited: AuditedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    sites: Sequence[str],
    store: ActivationStore,
) -> TaskStates:
    """Read the captured states back; states missing from the store are captured again."""
    rows, bounds = _all_texts(tokenizer, tasks)
    values = np.asarray(store.activations(audited, rows, sites, "last").values)
    return TaskStates({key: values[:, part] for key, part in bounds.items()})


def read_all_states(
    models: Mapping[str, AuditedModel],
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    sites: Sequence[str],
    store: ActivationStore,
) -> tuple[dict[str, TaskStates], list[str]]:
    """``read_states`` of every role, and the roles with non-finite states."""
    states = {
        role: read_states(audited, tokenizer, tasks, sites, store)
        for role, audited in models.items()
    }
    broken = [
        role
        for role, task_states in states.items()
        if not all(np.isfinite(part).all() for part in task_states.parts.values())
    ]
    return states, broken


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
    probing: ProbingData, role: str, penalty: float, progress: Progress
) -> list[SiteProbe]:
    """One probe a task, fitted on a model's states of the fitting entities.

    Args:
        role: Role of the model whose states are used.
        penalty: Inverse regularization strength.
    """
    return [
        _fitted(probing, role, number, [task.parts["fit"].labels], penalty, progress)[0]
        for number, task in enumerate(probing.tasks)
    ]


def fit_shuffled_probes(
    probing: ProbingData,
    role: str,
    penalty: float,
    rngs: Sequence[np.random.Generator],
    progress: Progress,
) -> list[list[SiteProbe]]:
    """As ``fit_probes`` on shuffled answers, once a generator: the control."""
    by_task = []
    for number, task in enumerate(probing.tasks):
        labels = [shuffled_labels(task, rng) for rng in rngs]
        by_task.append(_fitted(probing, role, number, labels, penalty, progress))
    return [list(readers) for readers in zip(*by_task, strict=True)]


def _fitted(
    probing: ProbingData,
    role: str,
    number: int,
    labels: Sequence[np.ndarray],
    penalty: float,
    progress: Progress,
) -> list[SiteProbe]:
    """One probe for each label vector of a task; records uncertified fits."""
    states = probing.states[role]
    probes = fit_site_probes(states.parts[number, "fit"], labels, penalty, progress)
    name = f"{role}, {probing.tasks[number].relation}, C = {penalty:g}"
    states.uncertified += [
        replace(fit, name=name, inner="" if len(labels) == 1 else f"shuffle {shuffle}")
        for shuffle, reader in enumerate(probes)
        for fit in reader.uncertified
    ]
    return probes


def shuffled_labels(task: Task, rng: np.random.Generator) -> np.ndarray:
    """Labels with answers permuted among entities (shared) or within blocks (unique)."""
    part: TaskPart = task.parts["fit"]
    labels = part.labels.copy()
    if task.form == "shared":
        answer_of = {e: int(y) for e, y in zip(part.entities, part.labels, strict=True)}
        shuffled = dict(zip(answer_of, rng.permutation(list(answer_of.values())), strict=True))
        return np.array([shuffled[entity] for entity in part.entities], dtype=int)
    for group in np.unique(part.groups):
        rows = np.flatnonzero(part.groups == group)
        order = rng.permutation(part.columns[rows].max() + 1)
        true = {part.entities[row]: part.columns[row] for row in rows if part.labels[row]}
        for row in rows:
            labels[row] = part.columns[row] == order[true[part.entities[row]]]
    return labels


def choose_penalty(probing: ProbingData, progress: Progress) -> float:
    """The penalty that best reads held-out *retain* entities of the original."""
    best, chosen = -1.0, PENALTIES[0]
    for penalty in PENALTIES:
        readers = fit_probes(probing, "original", penalty, progress)
        mean = float(probing.score(readers, "original", "check").mean.mean())
        if mean > best + 1e-9:
            best, chosen = mean, penalty
            probing.states["original"].probes = readers
    return chosen

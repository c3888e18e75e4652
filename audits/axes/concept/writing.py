"""Writing with concept vectors: does an added vector still elicit its answer?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from attribution.patching.steering import RowEdit, score_edited
from audits.axes.decodability.tasks import Task
from audits.axes.decodability.text_probes import ProbingData
from audits.core.context import AuditContext
from audits.core.item_sets import TextSets
from audits.core.roles import Role
from capture.data.tokenization import encode, skip_joining_space
from capture.network.sites import find_sites
from capture.scoring.contrast import first_tokens
from evidence.seeds import numpy_rng
from probes.concepts.vectors import ConceptVectors

STREAM = "concept"
"""First name of the random streams."""
STRENGTHS = (1.0, 2.0, 4.0)
MIN_WRITTEN_SHARE = 0.9
"""The search for a strength stops where the original gives this share of the answers."""
MAX_ENTITIES = 24
"""Entities of each part whose prompts are steered."""


@dataclass(frozen=True)
class WriteTargets:
    """Questions of one relation, each with a target answer of that relation.

    Attributes:
        task: Index of the task.
        prompts: (row,) questions.
        targets: (row,) class to write or to ablate.
    """

    task: int
    prompts: tuple[str, ...]
    targets: np.ndarray


def write_targets(
    tasks: Sequence[Task],
    part: str,
    max_entities: int,
    rng: np.random.Generator,
    *,
    own_answers: bool = False,
) -> list[WriteTargets]:
    """For each entity and relation of a part, one question and another entity's answer.

    Relations are skipped whose classes are not what a model's answer begins with.

    Args:
        own_answers: Use the entity's own answer instead.
    """
    targets_by_task = []
    for number, task in enumerate(tasks):
        if task.form == "unique" or not task.writable:
            continue
        texts = task.parts[part]
        rows = [texts.entities.index(name) for name in dict.fromkeys(texts.entities)]
        rows = [rows[entity] for entity in sorted(rng.permutation(len(rows))[:max_entities])]
        steps = 0 if own_answers else rng.integers(1, task.n_classes, len(rows))
        targets = (texts.labels[rows] + steps) % task.n_classes
        targets_by_task.append(
            WriteTargets(number, tuple(texts.prompts[row] for row in rows), targets)
        )
    return targets_by_task


def write_rate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    targets: Sequence[WriteTargets],
    vectors: Sequence[ConceptVectors],
    site: int,
    name: str,
    strength: float,
    *,
    rng: np.random.Generator | None = None,
) -> float:
    """Share of questions at which an added concept vector makes its answer rank first.

    The vector of another entity's answer is added at the last prompt token. The answer counts
    as written when its first token outranks those of all other answers of the relation. No
    knowledge about any entity is needed for this.

    Args:
        targets: Questions with the answers to write.
        vectors: One set a task.
        site: Index of the site among those of the vectors.
        name: Name of that site.
        strength: In units of the gap between class means.
        rng: Use random directions of equal norm instead: the control.
    """
    hits = []
    for group in targets:
        concept_vectors = vectors[group.task]
        steering = concept_vectors.vectors[site, group.targets]
        if rng is not None:
            steering = _at_random(steering.shape, rng)
        steering = steering * strength * concept_vectors.gap[site, group.targets][:, None]
        table = torch.from_numpy(steering).float()

        def add(states, rows, table=table):
            return states + table[rows].to(states)

        hits += _first_of_all(model, tokenizer, tasks[group.task], group, {name: add})
    return float(np.mean(hits)) if hits else 0.0


def ablation_rate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    targets: Sequence[WriteTargets],
    vectors: Sequence[ConceptVectors],
    site: int,
    name: str,
    *,
    rng: np.random.Generator | None = None,
) -> float:
    """Share of questions still answered after the answer's concept vector is ablated.

    At the last prompt token, the state is moved along its own answer's vector to the mean of
    the rows without that answer. A low share means that the direction is used.

    Args:
        targets: Questions with the answers to ablate.
        vectors: One set a task.
        site: Index of the site among those of the vectors.
        name: Name of that site.
        rng: Move equally far in random directions instead: the control.
    """
    hits = []
    for group in targets:
        concept_vectors = vectors[group.task]
        along = concept_vectors.vectors[site, group.targets]
        gap, middle = (
            values[site, group.targets] for values in (concept_vectors.gap, concept_vectors.offset)
        )
        to = along if rng is None else _at_random(along.shape, rng)
        tables = [torch.from_numpy(direction).float() for direction in (along, to)]
        without = torch.from_numpy(middle - gap / 2).float()

        def remove(states, rows, tables=tables, without=without):
            read, write = (table[rows].to(states) for table in tables)
            size = (states * read).sum(1) - without[rows].to(states)
            return states - size[:, None] * write

        hits += _first_of_all(model, tokenizer, tasks[group.task], group, {name: remove})
    return float(np.mean(hits)) if hits else 0.0


def _at_random(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """(row, d) unit vectors."""
    drawn = rng.standard_normal(shape)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def _first_of_all(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    group: WriteTargets,
    edits: Mapping[str, RowEdit],
) -> list[bool]:
    """(row,) whether the target answer's first token outranks those of all others."""
    classes = list(task.classes)
    # The token that begins an answer can depend on what it follows.
    starts = encode(tokenizer, [group.prompts[0]] * len(classes), classes)
    watch = first_tokens(skip_joining_space(tokenizer, starts))
    answers = [classes[target] for target in group.targets]
    sequences = skip_joining_space(tokenizer, encode(tokenizer, group.prompts, answers))
    scores = score_edited(model, sequences, edits, watch=watch, known_sites=find_sites(model))
    logits = np.nan_to_num(scores.watched, nan=-np.inf)
    return (logits[np.arange(len(logits)), group.targets] >= logits.max(1)).tolist()


@dataclass(frozen=True)
class Place:
    """Where and how strongly vectors are added.

    Attributes:
        site: Name of the site.
        number: Its index among the sites of the vectors.
        strength: In units of the gap between class means.
        rate: Share of the original's retain answers that are written there.
    """

    site: str
    number: int
    strength: float
    rate: float


@dataclass(frozen=True)
class Writing:
    """Shares of answers that concept vectors write.

    Attributes:
        place: Chosen on retain entities of the original.
        random: As ``Place.rate``, with random directions.
        ablated: Share of answers that the original still gives without its own vector, and after
            an equal move in a random direction.
        written: Role to part of the tasks to share written.
    """

    place: Place
    random: float
    ablated: dict[str, float]
    written: dict[Role, dict[str, float]]


def choose_place(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    probing: ProbingData,
    vectors: Sequence[ConceptVectors],
    mask: np.ndarray,
    targets: Sequence[WriteTargets],
) -> Place | None:
    """Site and strength at which the original writes, chosen on retain entities alone.

    Sites are tried from the last to the first, each with growing strengths, until the share in
    ``MIN_WRITTEN_SHARE`` is reached; otherwise the best is taken. None without a site.
    """
    best: Place | None = None
    for number in np.flatnonzero(mask)[::-1].tolist():
        site = probing.sites[number]
        for strength in STRENGTHS:
            rate = write_rate(
                model, tokenizer, probing.tasks, targets, vectors, number, site, strength
            )
            if best is None or rate > best.rate:
                best = Place(site, number, strength, rate)
            if rate >= MIN_WRITTEN_SHARE:
                return best
    return best


def write_answers(
    ctx: AuditContext[TextSets],
    probing: ProbingData,
    vectors: Sequence[ConceptVectors],
    informative: np.ndarray,
) -> Writing | None:
    """Write other answers into retain, forgotten and never-taught prompts of every model.

    Args:
        vectors: The original's, one set a task.
        informative: (site,) where they read the original.

    Returns:
        None where no answer can be written.
    """
    tokenizer, tasks, seed = ctx.tokenizer, probing.tasks, ctx.config.seed
    parts = {
        part: write_targets(tasks, part, MAX_ENTITIES, numpy_rng(seed, STREAM, "targets", part))
        for part in ("check", "forget", "never_taught")
    }
    if not any(parts.values()):
        return None
    allowed = informative & np.array([site != "embed" for site in probing.sites])
    with ctx.reading(Role.ORIGINAL) as model:
        place = choose_place(model, tokenizer, probing, vectors, allowed, parts["check"])
        if place is None:
            return None
        rng = numpy_rng(seed, STREAM, "random directions")
        at = (place.number, place.site)
        random = write_rate(
            model, tokenizer, tasks, parts["check"], vectors, *at, place.strength, rng=rng
        )
        own_rng = numpy_rng(seed, STREAM, "targets", "own")
        own = write_targets(tasks, "check", MAX_ENTITIES, own_rng, own_answers=True)
        ablated = {
            name: ablation_rate(model, tokenizer, tasks, own, vectors, *at, rng=drawn)
            for name, drawn in (("own vector", None), ("random direction", rng))
        }
    written = {}
    for role in ctx.models:
        with ctx.reading(role) as model:
            written[role] = {
                part: write_rate(model, tokenizer, tasks, targets, vectors, *at, place.strength)
                for part, targets in parts.items()
            }
    return Writing(place, random, ablated, written)

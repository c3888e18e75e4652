"""Writing with concept vectors: does an added vector still elicit its answer?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
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
        first_rows: dict[str, int] = {}
        for row, name in enumerate(texts.entities):
            first_rows.setdefault(name, row)
        rows = list(first_rows.values())
        rows = [rows[entity] for entity in sorted(rng.permutation(len(rows))[:max_entities])]
        steps = 0 if own_answers else rng.integers(1, task.n_classes, len(rows))
        targets = (texts.labels[rows] + steps) % task.n_classes
        targets_by_task.append(
            WriteTargets(number, tuple(texts.prompts[row] for row in rows), targets)
        )
    return targets_by_task


@dataclass(frozen=True)
class Writer:
    """Concept vectors to write with, and the questions they belong to.

    Attributes:
        vectors: One set a task.
    """

    tokenizer: PreTrainedTokenizerBase
    probing: ProbingData
    vectors: Sequence[ConceptVectors]

    def write_rate(
        self,
        model: nn.Module,
        targets: Sequence[WriteTargets],
        site: int,
        strength: float,
        rng: np.random.Generator | None = None,
    ) -> float:
        """Share of questions at which an added concept vector makes its answer rank first.

        The vector of another entity's answer is added at the last prompt token. No knowledge
        about any entity is needed for this.

        Args:
            targets: Questions with the answers to write.
            site: Index of the site.
            strength: In units of the gap between class means.
            rng: Use random directions of equal norm instead: the control.
        """

        def added(vectors: ConceptVectors, target: np.ndarray) -> RowEdit:
            steering = vectors.vectors[site, target]
            if rng is not None:
                steering = _at_random(steering.shape, rng)
            steering = steering * strength * vectors.gap[site, target][:, None]
            table = torch.from_numpy(steering).float()
            return lambda states, rows: states + table[rows].to(states)

        return self._rate(model, targets, site, added)

    def ablation_rate(
        self,
        model: nn.Module,
        targets: Sequence[WriteTargets],
        site: int,
        rng: np.random.Generator | None = None,
    ) -> float:
        """Share of questions still answered after the answer's concept vector is ablated.

        At the last prompt token, the state is moved along its own answer's vector to the mean
        of the rows without that answer. A low share means that the direction is used.

        Args:
            targets: Questions with the answers to ablate.
            site: Index of the site.
            rng: Move equally far in random directions instead: the control.
        """

        def removed(vectors: ConceptVectors, target: np.ndarray) -> RowEdit:
            along = vectors.vectors[site, target]
            gap, middle = vectors.gap[site, target], vectors.offset[site, target]
            to = along if rng is None else _at_random(along.shape, rng)
            tables = [torch.from_numpy(direction).float() for direction in (along, to)]
            without = torch.from_numpy(middle - gap / 2).float()

            def remove(states: Tensor, rows: np.ndarray) -> Tensor:
                read, write = (table[rows].to(states) for table in tables)
                size = (states * read).sum(1) - without[rows].to(states)
                return states - size[:, None] * write

            return remove

        return self._rate(model, targets, site, removed)

    def _rate(
        self,
        model: nn.Module,
        targets: Sequence[WriteTargets],
        site: int,
        edit: Callable[[ConceptVectors, np.ndarray], RowEdit],
    ) -> float:
        """Share of questions whose target answer ranks first under an edit.

        Its first token must outrank those of all other answers of the relation.
        """
        hits, sites = [], find_sites(model)
        for group in targets:
            classes = list(self.probing.tasks[group.task].classes)
            # The token that begins an answer can depend on what it follows.
            starts = encode(self.tokenizer, [group.prompts[0]] * len(classes), classes)
            watch = first_tokens(skip_joining_space(self.tokenizer, starts))
            answers = [classes[target] for target in group.targets]
            rows = encode(self.tokenizer, group.prompts, answers)
            rows = skip_joining_space(self.tokenizer, rows)
            edits = {self.probing.sites[site]: edit(self.vectors[group.task], group.targets)}
            scores = score_edited(model, rows, edits, watch=watch, known_sites=sites)
            logits = np.nan_to_num(scores.watched, nan=-np.inf)
            target_logits = logits[np.arange(len(logits)), group.targets]
            hits += (target_logits >= logits.max(1)).tolist()
        return float(np.mean(hits)) if hits else 0.0


def _at_random(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """(row, d) unit vectors."""
    drawn = rng.standard_normal(shape)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


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
    writer: Writer, model: nn.Module, targets: Sequence[WriteTargets], allowed: np.ndarray
) -> Place | None:
    """Site and strength at which the original writes, chosen on retain entities alone.

    Sites are tried from the last to the first, each with growing strengths, until the share in
    ``MIN_WRITTEN_SHARE`` is reached; otherwise the best is taken. None without a site.

    Args:
        allowed: (site,) sites to try.
    """
    best: Place | None = None
    for number in np.flatnonzero(allowed)[::-1].tolist():
        for strength in STRENGTHS:
            rate = writer.write_rate(model, targets, number, strength)
            if best is None or rate > best.rate:
                best = Place(writer.probing.sites[number], number, strength, rate)
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
    tasks, seed = probing.tasks, ctx.config.seed
    writer = Writer(ctx.tokenizer, probing, vectors)
    parts = {
        part: write_targets(tasks, part, MAX_ENTITIES, numpy_rng(seed, STREAM, "targets", part))
        for part in ("check", "forget", "never_taught")
    }
    if not any(parts.values()):
        return None
    allowed = informative & np.array([site != "embed" for site in probing.sites])
    with ctx.reading(Role.ORIGINAL) as model:
        place = choose_place(writer, model, parts["check"], allowed)
        if place is None:
            return None
        rng = numpy_rng(seed, STREAM, "random directions")
        random = writer.write_rate(model, parts["check"], place.number, place.strength, rng)
        own_rng = numpy_rng(seed, STREAM, "targets", "own")
        own = write_targets(tasks, "check", MAX_ENTITIES, own_rng, own_answers=True)
        ablated = {
            name: writer.ablation_rate(model, own, place.number, drawn)
            for name, drawn in (("own vector", None), ("random direction", rng))
        }
    written = {}
    for role in ctx.models:
        with ctx.reading(role) as model:
            written[role] = {
                part: writer.write_rate(model, targets, place.number, place.strength)
                for part, targets in parts.items()
            }
    return Writing(place, random, ablated, written)

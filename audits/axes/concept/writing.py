"""Writing with concept vectors, and the survival of the answers' value vectors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from attribution.patching.steering import RowEdit, score_edited
from attribution.value_vectors.find import KnowledgeTraces, find_value_vectors
from attribution.value_vectors.survival import random_traces, trace_survival
from audits.axes.decodability.tasks import Task
from audits.axes.decodability.text_probes import ProbingData
from audits.core.config import AuditConfig
from audits.core.context import AuditedModel
from capture.data.items import Item, normalize_text
from capture.data.tokenization import encode, skip_joining_space
from capture.network.sites import find_sites
from capture.scoring.contrast import first_tokens
from evidence.seeds import numpy_rng, stage_seed
from probes.concepts.vectors import ConceptVectors

AXIS = "concept"
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


def choose_site_and_strength(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    vectors: Sequence[ConceptVectors],
    sites: Sequence[str],
    mask: np.ndarray,
    targets: Sequence[WriteTargets],
) -> dict[str, Any]:
    """Site and strength at which the original writes, chosen on retain entities alone.

    Sites are tried from the last to the first, each with growing strengths, until the share in
    ``MIN_WRITTEN_SHARE`` is reached; otherwise the best is taken.
    """
    names = list(sites)
    best: dict[str, Any] = {"rate": -1.0}
    for site in np.flatnonzero(mask)[::-1].tolist():
        for strength in STRENGTHS:
            rate = write_rate(
                model, tokenizer, tasks, targets, vectors, site, names[site], strength
            )
            if rate > best["rate"]:
                best = {"site": names[site], "number": site, "strength": strength, "rate": rate}
            if rate >= MIN_WRITTEN_SHARE:
                return best
    return best


def answer_traces(
    original: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    answers: Sequence[tuple[str, str]],
    k: int,
) -> KnowledgeTraces:
    """The value vectors that write each answer's first token.

    Args:
        answers: (prompt, answer) pairs; duplicate answers are dropped.
        k: Neurons per answer.
    """
    once = {normalize_text(answer): (prompt, answer) for prompt, answer in reversed(answers)}
    pairs = list(once.values())
    rows = encode(tokenizer, [p for p, _ in pairs], [a for _, a in pairs])
    tokens = first_tokens(skip_joining_space(tokenizer, rows))
    concepts = {a: [t] for (_, a), t in zip(pairs, tokens, strict=True)}
    return find_value_vectors(original, concepts, k=k)


def mean_trace_survival(
    original: nn.Module, candidate: nn.Module, traces: KnowledgeTraces, seed: int
) -> dict[str, float]:
    """Mean survival of value vectors in the candidate, and of as many random neurons."""
    traced = trace_survival(original, candidate, traces)
    random = trace_survival(original, candidate, random_traces(traces, original, seed))
    kept_tokens = traced.kept_tokens[~np.isnan(traced.kept_tokens)]
    return {
        "cosine": float(traced.cosine.mean()),
        "distance": float(traced.distance.mean()),
        "jaccard": float(traced.jaccard.mean()),
        "kept_tokens": float(kept_tokens.mean()) if len(kept_tokens) else 0.0,
        "random_cosine": float(random.cosine.mean()),
        "random_jaccard": float(random.jaccard.mean()),
        "top": traced.top,
    }


def write_report(
    models: Mapping[str, AuditedModel],
    tokenizer: PreTrainedTokenizerBase,
    probing: ProbingData,
    vectors: Sequence[ConceptVectors],
    mask: np.ndarray,
    config: AuditConfig,
    device: str,
) -> dict[str, Any]:
    """Shares of answers written into retain, forgotten and never-taught prompts."""

    def make_targets(part: str):
        rng = numpy_rng(config.seed, AXIS, "targets", part)
        return write_targets(probing.tasks, part, MAX_ENTITIES, rng)

    parts = {part: make_targets(part) for part in ("check", "forget", "never_taught")}
    if not any(parts.values()):
        return {}
    allowed = mask & np.array([site != "embed" for site in probing.sites])
    report: dict[str, Any] = {}
    with models["original"].loaded(device) as model:
        report = choose_site_and_strength(
            model, tokenizer, probing.tasks, vectors, probing.sites, allowed, parts["check"]
        )
        if "site" not in report:
            return {}
        rng = numpy_rng(config.seed, AXIS, "random directions")
        location = (report["number"], report["site"], report["strength"])
        report["random"] = write_rate(
            model, tokenizer, probing.tasks, parts["check"], vectors, *location, rng=rng
        )
        own_targets = write_targets(
            probing.tasks,
            "check",
            MAX_ENTITIES,
            numpy_rng(config.seed, AXIS, "targets", "own"),
            own_answers=True,
        )
        report["ablated"] = {
            name: ablation_rate(
                model, tokenizer, probing.tasks, own_targets, vectors, *location[:2], rng=drawn
            )
            for name, drawn in (("own vector", None), ("random direction", rng))
        }
    for role, audited in models.items():
        with audited.loaded(device) as model:
            report[role] = {
                part: write_rate(model, tokenizer, probing.tasks, targets, vectors, *location)
                for part, targets in parts.items()
            }
    return report


def trace_report(
    models: Mapping[str, AuditedModel],
    tokenizer: PreTrainedTokenizerBase,
    forget: Sequence[Item],
    retain: Sequence[Item],
    config: AuditConfig,
    device: str,
    k: int = 5,
) -> dict[str, Any]:
    """Survival of the value vectors of forgotten answers and of all other answers."""
    forgotten = {item.answer.casefold() for item in forget}
    sets = {
        "forgotten answers": [(item.prompt, item.answer) for item in forget],
        "other answers": [
            (item.prompt, item.answer) for item in retain if item.answer.casefold() not in forgotten
        ],
    }
    report: dict[str, Any] = {"neurons": k}
    with models["original"].loaded(device) as original:
        for role, audited in models.items():
            if role == "original":
                continue
            with audited.loaded(device) as model:
                report[role] = {
                    name: mean_trace_survival(
                        original,
                        model,
                        answer_traces(original, tokenizer, pairs, k),
                        stage_seed(config.seed, AXIS, "traces"),
                    )
                    for name, pairs in sets.items()
                    if pairs
                }
    return report

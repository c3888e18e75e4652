"""Do concept vectors write their answers, and what became of the value vectors?"""

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
from audits.core.subjects import AuditedModel
from capture.data.items import Item, normalize_text
from capture.data.tokenization import encode, skip_joining_space
from capture.network.sites import find_sites
from capture.scoring.contrast import first_tokens
from evidence.seeds import numpy_rng, stage_seed
from probes.concepts.vectors import ConceptVectors

AXIS = "concept"
STRENGTHS = (1.0, 2.0, 4.0)
MIN_WRITTEN_SHARE = 0.9
"""Share of answers the original must be made to say before a strength is enough."""
MAX_ENTITIES = 24
"""Entities whose prompts are written into, a part."""


@dataclass(frozen=True)
class WriteTargets:
    """Questions of one relation, each with an answer of that relation.

    Attributes:
        task: Number of the task.
        prompts: (row,) questions.
        targets: (row,) class to be written or taken away.
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
    """For each entity of a part and relation one question and another's answer.

    Relations whose classes no model says as they are spelled are left out.

    With ``own_answers`` the answer is the entity's own.
    """
    dealt = []
    for number, task in enumerate(tasks):
        if task.form == "unique" or not task.writable:
            continue
        texts = task.parts[part]
        rows = [texts.entities.index(name) for name in dict.fromkeys(texts.entities)]
        rows = [rows[at] for at in sorted(rng.permutation(len(rows))[:max_entities])]
        steps = 0 if own_answers else rng.integers(1, task.n_classes, len(rows))
        targets = (texts.labels[rows] + steps) % task.n_classes
        dealt.append(
            WriteTargets(number, tuple(texts.prompts[row] for row in rows), targets)
        )
    return dealt


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
    """Share of questions at which an added concept vector makes its answer the first.

    The vector of another's answer is added where the prompt ends; the answer counts
    as written when its first token then outranks those of all other answers of the
    relation. Nothing here asks what a model knows of anyone.

    Args:
        model: Any model of the audit.
        tokenizer: Its tokenizer.
        tasks: The tasks.
        targets: Questions and answers to write.
        vectors: One set a task.
        site: Its number among the sites of the vectors.
        name: Its name.
        strength: Multiples of the gap between the means.
        rng: Draws directions at random instead, of the same length: the control.
    """
    hits = []
    for deal in targets:
        found = vectors[deal.task]
        push = found.vectors[site, deal.targets]
        if rng is not None:
            push = _at_random(push.shape, rng)
        push = push * strength * found.gap[site, deal.targets][:, None]
        table = torch.from_numpy(push).float()

        def add(states, rows, table=table):
            return states + table[rows].to(states)

        hits += _first_of_all(model, tokenizer, tasks[deal.task], deal, {name: add})
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
    """Share of questions still answered once the answer's concept vector is taken out.

    Where the prompt ends, a state is moved along its own answer's vector to the mean of
    the rows without that answer. A low share says that the direction is used.

    Args:
        model: Any model of the audit.
        tokenizer: Its tokenizer.
        tasks: The tasks.
        targets: Questions with the answers that are taken out.
        vectors: One set a task.
        site: Its number among the sites of the vectors.
        name: Its name.
        rng: Moves as far in directions drawn at random instead: the control.
    """
    hits = []
    for deal in targets:
        found = vectors[deal.task]
        along = found.vectors[site, deal.targets]
        gap, middle = (each[site, deal.targets] for each in (found.gap, found.offset))
        to = along if rng is None else _at_random(along.shape, rng)
        tables = [torch.from_numpy(each).float() for each in (along, to)]
        without = torch.from_numpy(middle - gap / 2).float()

        def remove(states, rows, tables=tables, without=without):
            read, write = (each[rows].to(states) for each in tables)
            size = (states * read).sum(1) - without[rows].to(states)
            return states - size[:, None] * write

        hits += _first_of_all(model, tokenizer, tasks[deal.task], deal, {name: remove})
    return float(np.mean(hits)) if hits else 0.0


def _at_random(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """(row, d) unit vectors."""
    drawn = rng.standard_normal(shape)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def _first_of_all(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    deal: WriteTargets,
    edits: Mapping[str, RowEdit],
) -> list[bool]:
    """(row,) does the dealt answer's first token outrank those of all others?"""
    classes = list(task.classes)
    # The token that begins an answer can depend on what it follows.
    starts = encode(tokenizer, [deal.prompts[0]] * len(classes), classes)
    watch = first_tokens(skip_joining_space(tokenizer, starts))
    wanted = [classes[at] for at in deal.targets]
    sequences = skip_joining_space(tokenizer, encode(tokenizer, deal.prompts, wanted))
    scores = score_edited(
        model, sequences, edits, watch=watch, known_sites=find_sites(model)
    )
    logits = np.nan_to_num(scores.watched, nan=-np.inf)
    return (logits[np.arange(len(logits)), deal.targets] >= logits.max(1)).tolist()


def choose_site_and_strength(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    vectors: Sequence[ConceptVectors],
    sites: Sequence[str],
    mask: np.ndarray,
    targets: Sequence[WriteTargets],
) -> dict[str, Any]:
    """Where and how strongly the original writes, decided on retain entities alone.

    The latest site that reads is tried with growing strengths, then earlier ones,
    until nine of ten answers are written; the best otherwise.
    """
    names = list(sites)
    best: dict[str, Any] = {"rate": -1.0}
    for site in np.flatnonzero(mask)[::-1].tolist():
        for strength in STRENGTHS:
            rate = write_rate(
                model, tokenizer, tasks, targets, vectors, site, names[site], strength
            )
            if rate > best["rate"]:
                best = {
                    "site": names[site],
                    "number": site,
                    "strength": strength,
                    "rate": rate,
                }
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
        original: The original.
        tokenizer: Its tokenizer.
        answers: (prompt, answer) pairs; answers met again are left out.
        k: Neurons an answer.
    """
    once = {
        normalize_text(answer): (prompt, answer) for prompt, answer in reversed(answers)
    }
    pairs = list(once.values())
    rows = encode(tokenizer, [p for p, _ in pairs], [a for _, a in pairs])
    tokens = first_tokens(skip_joining_space(tokenizer, rows))
    concepts = {a: [t] for (_, a), t in zip(pairs, tokens, strict=True)}
    return find_value_vectors(original, concepts, k=k)


def mean_trace_survival(
    original: nn.Module, candidate: nn.Module, traces: KnowledgeTraces, seed: int
) -> dict[str, float]:
    """Means over traces of what became of them, beside as many other neurons."""
    own = trace_survival(original, candidate, traces)
    other = trace_survival(original, candidate, random_traces(traces, original, seed))
    kept = own.kept_tokens[~np.isnan(own.kept_tokens)]
    return {
        "cosine": float(own.cosine.mean()),
        "distance": float(own.distance.mean()),
        "jaccard": float(own.jaccard.mean()),
        "kept_tokens": float(kept.mean()) if len(kept) else 0.0,
        "random_cosine": float(other.cosine.mean()),
        "random_jaccard": float(other.jaccard.mean()),
        "top": own.top,
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

    def dealt(part: str):
        rng = numpy_rng(config.seed, AXIS, "targets", part)
        return write_targets(probing.tasks, part, MAX_ENTITIES, rng)

    parts = {part: dealt(part) for part in ("check", "forget", "never_taught")}
    if not any(parts.values()):
        return {}
    allowed = mask & np.array([site != "embed" for site in probing.sites])
    found: dict[str, Any] = {}
    with models["original"].loaded(device) as model:
        found = choose_site_and_strength(
            model,
            tokenizer,
            probing.tasks,
            vectors,
            probing.sites,
            allowed,
            parts["check"],
        )
        if "site" not in found:
            return {}
        rng = numpy_rng(config.seed, AXIS, "random directions")
        place = (found["number"], found["site"], found["strength"])
        found["random"] = write_rate(
            model, tokenizer, probing.tasks, parts["check"], vectors, *place, rng=rng
        )
        own = write_targets(
            probing.tasks,
            "check",
            MAX_ENTITIES,
            numpy_rng(config.seed, AXIS, "targets", "own"),
            own_answers=True,
        )
        found["ablated"] = {
            what: ablation_rate(
                model, tokenizer, probing.tasks, own, vectors, *place[:2], rng=drawn
            )
            for what, drawn in (("own vector", None), ("random direction", rng))
        }
    for role, subject in models.items():
        with subject.loaded(device) as model:
            found[role] = {
                part: write_rate(model, tokenizer, probing.tasks, each, vectors, *place)
                for part, each in parts.items()
            }
    return found


def trace_report(
    models: Mapping[str, AuditedModel],
    tokenizer: PreTrainedTokenizerBase,
    forget: Sequence[Item],
    retain: Sequence[Item],
    config: AuditConfig,
    device: str,
    k: int = 5,
) -> dict[str, Any]:
    """What became of the value vectors of forgotten answers, and of all others'."""
    gone = {item.answer.casefold() for item in forget}
    sets = {
        "forgotten answers": [(item.prompt, item.answer) for item in forget],
        "other answers": [
            (item.prompt, item.answer)
            for item in retain
            if item.answer.casefold() not in gone
        ],
    }
    found: dict[str, Any] = {"neurons": k}
    with models["original"].loaded(device) as original:
        for role, subject in models.items():
            if role == "original":
                continue
            with subject.loaded(device) as model:
                found[role] = {
                    what: mean_trace_survival(
                        original,
                        model,
                        answer_traces(original, tokenizer, pairs, k),
                        stage_seed(config.seed, AXIS, "traces"),
                    )
                    for what, pairs in sets.items()
                    if pairs
                }
    return found

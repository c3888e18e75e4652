"""Do concept vectors write their answers, and what became of the value vectors?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from attribution.steering import score_edited
from attribution.trace_survival import random_traces, survival
from attribution.traces import Traces, find_value_vectors
from audits.config import AuditConfig
from audits.contrast import first_tokens
from audits.probing import Probing
from audits.probing_tasks import Task
from audits.subjects import Subject
from capture.items import Item, fold
from capture.sites import find_sites
from capture.tokens import encode
from evidence.seeds import numpy_rng, stage_seed
from probes.concepts import ConceptVectors

AXIS = "concept"
STRENGTHS = (1.0, 2.0, 4.0)
WRITTEN = 0.9
"""Share of answers the original must be made to say before a strength is enough."""
MOST_WRITTEN = 24
"""Entities whose prompts are written into, a part."""


@dataclass(frozen=True)
class Deal:
    """Questions of one relation, each to be answered with another's answer.

    Attributes:
        task: Number of the task.
        prompts: (row,) questions.
        targets: (row,) class to be written, never the row's own.
    """

    task: int
    prompts: tuple[str, ...]
    targets: np.ndarray


def deal_targets(
    tasks: Sequence[Task], part: str, most: int, rng: np.random.Generator
) -> list[Deal]:
    """For each entity of a part and relation one question and another's answer."""
    dealt = []
    for number, task in enumerate(tasks):
        if task.form == "unique":
            continue
        texts = task.parts[part]
        rows = [texts.entities.index(name) for name in dict.fromkeys(texts.entities)]
        rows = [rows[at] for at in sorted(rng.permutation(len(rows))[:most])]
        steps = rng.integers(1, task.n_classes, len(rows))
        targets = (texts.labels[rows] + steps) % task.n_classes
        dealt.append(Deal(number, tuple(texts.prompts[row] for row in rows), targets))
    return dealt


def written(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    dealt: Sequence[Deal],
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
        dealt: Questions and answers to write.
        vectors: One set a task.
        site: Its number among the sites of the vectors.
        name: Its name.
        strength: Multiples of the gap between the means.
        rng: Draws directions at random instead, of the same length: the control.
    """
    where = find_sites(model)
    hits = []
    for deal in dealt:
        task, found = tasks[deal.task], vectors[deal.task]
        classes = list(task.classes)
        # The token that begins an answer can depend on what it follows.
        starts = encode(tokenizer, [deal.prompts[0]] * len(classes), classes)
        watch = first_tokens(starts)
        answers = [classes[target] for target in deal.targets]
        sequences = encode(tokenizer, deal.prompts, answers)
        push = found.vectors[site, deal.targets]
        if rng is not None:
            push = rng.standard_normal(push.shape)
            push = push / np.linalg.norm(push, axis=1, keepdims=True)
        push = push * strength * found.gap[site, deal.targets][:, None]
        table = torch.from_numpy(push).float()

        def add(states, rows, table=table):
            return states + table[rows].to(states)

        scores = score_edited(model, sequences, {name: add}, watch=watch, where=where)
        logits = np.nan_to_num(scores.watched, nan=-np.inf)
        hits += (logits[np.arange(len(logits)), deal.targets] >= logits.max(1)).tolist()
    return float(np.mean(hits)) if hits else 0.0


def choose_write(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    vectors: Sequence[ConceptVectors],
    sites: Sequence[str],
    allowed: np.ndarray,
    dealt: Sequence[Deal],
) -> dict[str, Any]:
    """Where and how strongly the original writes, decided on retain entities alone.

    The latest site that reads is tried with growing strengths, then earlier ones,
    until nine of ten answers are written; the best otherwise.
    """
    names = list(sites)
    best: dict[str, Any] = {"rate": -1.0}
    for site in np.flatnonzero(allowed)[::-1].tolist():
        for strength in STRENGTHS:
            rate = written(
                model, tokenizer, tasks, dealt, vectors, site, names[site], strength
            )
            if rate > best["rate"]:
                best = {
                    "site": names[site],
                    "number": site,
                    "strength": strength,
                    "rate": rate,
                }
            if rate >= WRITTEN:
                return best
    return best


def answer_traces(
    original: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    answers: Sequence[tuple[str, str]],
    k: int,
) -> Traces:
    """The value vectors that write each answer's first token.

    Args:
        original: The original.
        tokenizer: Its tokenizer.
        answers: (prompt, answer) pairs; answers met again are left out.
        k: Neurons an answer.
    """
    once = {fold(answer): (prompt, answer) for prompt, answer in reversed(answers)}
    pairs = list(once.values())
    rows = encode(tokenizer, [p for p, _ in pairs], [a for _, a in pairs])
    tokens = first_tokens(rows)
    concepts = {a: [t] for (_, a), t in zip(pairs, tokens, strict=True)}
    return find_value_vectors(original, concepts, k=k)


def followed(
    original: nn.Module, candidate: nn.Module, traces: Traces, seed: int
) -> dict[str, float]:
    """Means over traces of what became of them, beside as many other neurons."""
    own = survival(original, candidate, traces)
    other = survival(original, candidate, random_traces(traces, original, seed))
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


def writing(
    subjects: Mapping[str, Subject],
    tokenizer: PreTrainedTokenizerBase,
    probing: Probing,
    vectors: Sequence[ConceptVectors],
    use: np.ndarray,
    config: AuditConfig,
    device: str,
) -> dict[str, Any]:
    """Shares of answers written into retain, forgotten and never-taught prompts."""

    def dealt(part: str):
        rng = numpy_rng(config.seed, AXIS, "targets", part)
        return deal_targets(probing.tasks, part, MOST_WRITTEN, rng)

    parts = {part: dealt(part) for part in ("check", "forget", "never_taught")}
    if not any(parts.values()):
        return {}
    allowed = use & np.array([site != "embed" for site in probing.sites])
    found: dict[str, Any] = {}
    with subjects["original"].loaded(device) as model:
        found = choose_write(
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
        found["random"] = written(
            model, tokenizer, probing.tasks, parts["check"], vectors, *place, rng=rng
        )
    for role, subject in subjects.items():
        with subject.loaded(device) as model:
            found[role] = {
                part: written(model, tokenizer, probing.tasks, each, vectors, *place)
                for part, each in parts.items()
            }
    return found


def trace_report(
    subjects: Mapping[str, Subject],
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
    with subjects["original"].loaded(device) as original:
        for role, subject in subjects.items():
            if role == "original":
                continue
            with subject.loaded(device) as model:
                found[role] = {
                    what: followed(
                        original,
                        model,
                        answer_traces(original, tokenizer, pairs, k),
                        stage_seed(config.seed, AXIS, "traces"),
                    )
                    for what, pairs in sets.items()
                    if pairs
                }
    return found

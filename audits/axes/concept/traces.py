"""Survival of the value vectors that write the answers (ConceptVectors, arXiv 2406.11614)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from attribution.value_vectors.find import KnowledgeTraces, find_value_vectors
from attribution.value_vectors.survival import random_traces, trace_survival
from audits.core.context import AuditContext
from audits.core.item_sets import TextSets
from audits.core.roles import Role
from capture.data.items import normalize_text
from capture.data.tokenization import encode, skip_joining_space
from capture.scoring.contrast import first_tokens
from evidence.seeds import stage_seed

N_NEURONS = 5
"""Neurons traced for each answer."""


@dataclass(frozen=True)
class Survival:
    """Means over value vectors, as ``TraceSurvival``, and over as many random neurons."""

    cosine: float
    distance: float
    jaccard: float
    kept_tokens: float
    random_cosine: float
    random_jaccard: float
    top: int


@dataclass(frozen=True)
class Traces:
    """Survival in every model but the original, by role and set of answers.

    Attributes:
        neurons: Neurons traced for each answer.
    """

    neurons: int
    survival: dict[Role, dict[str, Survival]]


def trace_answers(ctx: AuditContext[TextSets]) -> Traces:
    """Survival of the value vectors of forgotten answers and of all other answers.

    Raises:
        InputError: the architecture has no value vectors, as a mixture of experts.
    """
    forgotten = {item.answer.casefold() for item in ctx.sets.forget}
    sets = {
        "forgotten answers": [(item.prompt, item.answer) for item in ctx.sets.forget],
        "other answers": [
            (item.prompt, item.answer)
            for item in ctx.sets.retain
            if item.answer.casefold() not in forgotten
        ],
    }
    seed = stage_seed(ctx.config.seed, "concept", "traces")
    with ctx.reading(Role.ORIGINAL) as original:
        traces = {
            name: answer_traces(original, ctx.tokenizer, pairs, N_NEURONS)
            for name, pairs in sets.items()
            if pairs
        }
        survival = {}
        for role in ctx.models:
            if role != Role.ORIGINAL:
                with ctx.reading(role) as model:
                    survival[role] = {
                        name: mean_survival(original, model, of_set, seed)
                        for name, of_set in traces.items()
                    }
    return Traces(N_NEURONS, survival)


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


def mean_survival(
    original: nn.Module, candidate: nn.Module, traces: KnowledgeTraces, seed: int
) -> Survival:
    """Mean survival of value vectors in the candidate, and of as many random neurons."""
    traced = trace_survival(original, candidate, traces)
    random = trace_survival(original, candidate, random_traces(traces, original, seed))
    kept_tokens = traced.kept_tokens[~np.isnan(traced.kept_tokens)]
    return Survival(
        float(traced.cosine.mean()),
        float(traced.distance.mean()),
        float(traced.jaccard.mean()),
        float(kept_tokens.mean()) if len(kept_tokens) else 0.0,
        float(random.cosine.mean()),
        float(random.jaccard.mean()),
        traced.top,
    )

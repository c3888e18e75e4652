"""What the original answers, asked in one way."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest
from torch import nn
from transformers import PreTrainedTokenizerBase

from audits.core.config import AuditConfig
from audits.core.item_sets import within_budget
from audits.core.scores import Part
from capture.data.asking import Asking, ask
from capture.data.items import ItemSet
from capture.data.tokenization import encode_items
from capture.scoring.answers import score_answers
from capture.scoring.scorers import (
    SCORERS,
    Metric,
    SaidScores,
    Scorer,
    ScorerName,
    check_scorer,
    choose_scorer,
    fitting_scorer,
    score_said,
)
from evidence.progress import Progress

MAX_CHANCE_P = 0.01
"""Level of the test that the original does better than a guess."""


@dataclass(frozen=True, eq=False)
class PartAnswers:
    """What the original gives of one set of items, asked in one way.

    Attributes:
        known: (item,) whether it gives the answer.
        n_asked: Number of items that it was asked; of large retain sets, those within the budget.
        texts: What it said, by id of the item.
        metrics: Metric to id to score; of options alone.
    """

    scorer: Scorer
    known: np.ndarray
    n_asked: int
    texts: dict[str, str]
    metrics: dict[str, dict[str, float]]


@dataclass(frozen=True, eq=False)
class Answers:
    """What the original gives, asked in one way."""

    asking: Asking
    why: str
    parts: dict[Part, PartAnswers]

    @property
    def share(self) -> float:
        """Mean over the parts of the share of the asked items that it knows."""
        shares = [part.known.sum() / max(1, part.n_asked) for part in self.parts.values()]
        return float(np.mean(shares))


def original_answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    asked: dict[Part, ItemSet],
    asking: Asking,
    scorer: ScorerName,
    config: AuditConfig,
    progress: Progress,
) -> Answers:
    """Ask the original in one way."""
    chosen = {part: _scorer(items, asking, scorer, config) for part, items in asked.items()}
    retain_scorer = fitting_scorer(chosen[Part.RETAIN][0], asked[Part.RETAIN])
    check_scorer(chosen[Part.FORGET][0], asked[Part.FORGET].items)
    parts = {
        part: _ask_part(model, tokenizer, part, asked[part], each, asking, config, progress)
        for part, each in ((Part.FORGET, chosen[Part.FORGET][0]), (Part.RETAIN, retain_scorer))
    }
    return Answers(asking, chosen[Part.FORGET][1], parts)


def _scorer(
    items: ItemSet, asking: Asking, name: ScorerName, config: AuditConfig
) -> tuple[Scorer, str]:
    if name == "auto":
        return choose_scorer(items.items, asking.chat)
    if config.scorer == "auto":
        return SCORERS[name], "the original comes to the answer within what it says"
    return SCORERS[name], "it was asked for"


def _ask_part(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    part: Part,
    items: ItemSet,
    scorer: Scorer,
    asking: Asking,
    config: AuditConfig,
    progress: Progress,
) -> PartAnswers:
    if not scorer.metrics:
        rows = encode_items(tokenizer, ask(tokenizer, items, asking))
        known = score_answers(model, rows, progress=progress).greedy
        return PartAnswers(scorer, known, len(items), {}, {})
    # Speaking takes many passes, so only as many retain entities are asked as are used.
    chosen = within_budget(items, config) if part == Part.RETAIN else items
    said = score_said(model, tokenizer, chosen, scorer, asking, progress=progress)
    ids = [item.id for item in chosen]
    metrics: dict[str, dict[str, float]] = {
        metric: dict(zip(ids, scores.tolist(), strict=True))
        for metric, scores in said.by_metric.items()
    }
    deciding: list[Metric] = [
        name for name in scorer.known if _beats_chance(name, said, scorer, chosen)
    ]
    given = [
        any(metrics[name].get(item.id, 0.0) >= scorer.known[name] for name in deciding)
        for item in items
    ]
    if scorer.name == "options":
        metrics = {name: metrics[name] for name in deciding}
    texts = dict(zip(ids, said.texts, strict=True)) if said.texts else {}
    return PartAnswers(scorer, np.array(given), len(chosen), texts, metrics)


def _beats_chance(name: Metric, said: SaidScores, scorer: Scorer, items: ItemSet) -> bool:
    """Whether the original is right more often than a guess, where a guess can be right.

    Of four options one in four is right by chance: such items are not known. Exact binomial test.
    """
    chance = {"truth_ratio": 0.5}.get(scorer.name, 0.0)
    if scorer.name == "options":
        chance = float(np.mean([1 / len(item.choices) for item in items]))
    if not chance:
        return True
    hits = int((said.by_metric[name] >= scorer.known[name]).sum())
    return bool(binomtest(hits, len(items), chance, "greater").pvalue < MAX_CHANCE_P)

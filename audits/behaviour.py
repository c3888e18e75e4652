"""Is it gone at the output, and does it stay gone in other words?"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from audits.config import AuditConfig
from audits.data import Questions
from audits.knowledge import said
from evidence.axis import AxisResult, Control, Reading, Status
from evidence.comparison import compare
from evidence.rates import EntityValues, by_entity
from evidence.seeds import numpy_rng

NAME = "behaviour"
QUESTION = "Is the knowledge gone at the output?"


def kept_rows(questions: Questions, original: dict[str, Any]) -> np.ndarray:
    """(row,) True where the original itself gives the answer in that wording."""
    return said(original).greedy > 0


def run_behaviour(
    forget: Questions,
    never: Questions,
    scores: Mapping[str, dict[str, Any]],
    config: AuditConfig,
    notes: Sequence[str],
) -> AxisResult:
    """The axis, from scores already taken.

    Args:
        forget: Forget questions in every wording.
        never: Never-taught questions.
        scores: By role: ``forget``, ``never_taught`` (as ``score_questions``) and
            ``ranks`` / ``never_ranks`` (as ``score_ranks``).
        config: Settings.
        notes: Sentences to pass on.
    """
    rule = config.rule
    known = kept_rows(forget, scores["original"]["forget"])
    asked = forget.keep(known)

    def greedy(role: str) -> EntityValues:
        return by_entity(said(scores[role]["forget"]).greedy[known], asked.entities)

    def floor_of(role: str) -> EntityValues:
        return by_entity(said(scores[role]["never_taught"]).greedy, never.entities)

    def ranks(role: str, part: str, questions: Questions) -> EntityValues:
        names = [item.entity for item in questions.items]
        return by_entity(np.array(scores[role][part]["correct"], float), names)

    references = [role for role in scores if role.startswith("reference")]
    readings = []
    if references:
        each = [greedy(role) for role in references]
        floor = EntityValues(
            np.mean([one.values for one in each], axis=0),
            each[0].n_items,
            each[0].entities,
        )
        readings.append(_reading("said in full", greedy, floor, "reference", config))
    never_name = "said in full" + (", against never-taught items" if references else "")
    readings.append(
        _reading(never_name, greedy, floor_of("unlearned"), "never_taught", config)
    )
    readings.append(
        _reading(
            "ranked first among alternatives",
            lambda role: ranks(role, "ranks", forget),
            ranks("unlearned", "never_ranks", never),
            "never_taught",
            config,
        )
    )
    never_original = floor_of("original").mean[0]
    controls = [
        Control(
            "the original says it",
            float(greedy("original").mean[0]),
            "1 on the items kept",
            bool(greedy("original").mean[0] > 0.5),
        ),
        Control(
            "the original does not say what it was never taught",
            float(never_original),
            "below 0.25",
            bool(never_original < 0.25),
        ),
    ]
    status = _status(readings[0], controls, config)
    by_wording = {
        role: [
            float(
                said(scores[role]["forget"])
                .greedy[known][np.array(asked.wording) == wording]
                .mean()
            )
            for wording in sorted(set(asked.wording))
        ]
        for role in scores
    }
    extra = ()
    if status == "no_power":
        extra = (
            "Some of the answers are still said: neither clearly kept (residual "
            f"above {rule.still_there}) nor clearly gone.",
        )
    return AxisResult(
        NAME,
        QUESTION,
        status,
        "share of answers said",
        readings=tuple(readings),
        controls=tuple(controls),
        n_entities=len(greedy("original").values),
        details={
            "accuracy_by_wording": by_wording,
            "truth_ratio": {
                role: float(np.median(scores[role]["ranks"]["truth_ratio"]))
                for role in scores
            },
            "mean_logprob": {
                role: float(said(scores[role]["forget"]).mean_logprob[known].mean())
                for role in scores
            },
            "items": [
                {
                    "id": item,
                    "entity": entity,
                    "prompt": prompt,
                    "answer": answer,
                    "said": bool(hit),
                    "logprob_original": float(before),
                    "logprob_unlearned": float(after),
                }
                for item, entity, prompt, answer, hit, before, after in zip(
                    asked.ids,
                    asked.entities,
                    asked.prompts,
                    asked.answers,
                    said(scores["unlearned"]["forget"]).greedy[known],
                    said(scores["original"]["forget"]).mean_logprob[known],
                    said(scores["unlearned"]["forget"]).mean_logprob[known],
                    strict=True,
                )
            ],
        },
        notes=(*extra, *notes),
    )


def _reading(
    name: str, values, floor: EntityValues, kind: str, config: AuditConfig
) -> Reading:
    return compare(
        name,
        values("unlearned"),
        floor,
        values("original"),
        columns=["output"],
        floor_kind=kind,
        rng=numpy_rng(config.seed, NAME, kind, name),
        permutations=config.budget.permutations,
    )


def _status(main: Reading, controls: Sequence[Control], config: AuditConfig) -> Status:
    """Kept, gone, or between the two."""
    rule = config.rule
    if not all(each.passed for each in controls if each.required):
        return "control_failed"
    low, high = main.residual_interval
    if main.p_value < rule.alpha and low > rule.still_there:
        return "retained"
    # At the output only what is left counts: an answer said less often than by a
    # model that never knew it is as gone as one said equally often.
    return "absent" if high < rule.margin else "no_power"

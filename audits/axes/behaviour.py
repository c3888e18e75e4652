"""Behaviour axis: are the answers gone at the output, under every paraphrase?"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from audits.axes.judgement import MetricComparison, compare_to_floors
from audits.core.answers import scores_from_json
from audits.core.config import AuditConfig, Rule
from capture.data.questions import Questions
from evidence.intervals import EntityValues, average_by_entity
from evidence.results import AxisResult, Control, Reading, Status

NAME = "behaviour"
QUESTION = "Is the knowledge gone at the output?"
EXACT_MATCH, CONTRAST = "said in full", "told from the others"


def known_rows(questions: Questions, original_scores: dict[str, Any]) -> np.ndarray:
    """(row,) True where the original itself gives the answer to that prompt."""
    return scores_from_json(original_scores).greedy > 0


def run_behaviour(
    forget: Questions,
    never: Questions,
    scores: Mapping[str, dict[str, Any]],
    config: AuditConfig,
    notes: Sequence[str],
) -> AxisResult:
    """Judge the axis from baseline scores.

    Args:
        forget: Forget questions with every paraphrase.
        never: Never-taught questions.
        scores: By role: ``forget`` and ``never_taught`` (as ``score_question_sets``) and ``ratios``
            (as ``truth_ratios``).
    """
    known = known_rows(forget, scores["original"]["forget"])
    asked = forget.select(known)

    def forgotten(role: str, what: str) -> EntityValues:
        values = getattr(scores_from_json(scores[role]["forget"]), what)
        return average_by_entity(values[known], asked.entities)

    def invented(role: str, what: str) -> EntityValues:
        values = getattr(scores_from_json(scores[role]["never_taught"]), what)
        return average_by_entity(values, never.entities)

    references = [role for role in scores if role.startswith("reference")]
    readings = compare_to_floors(
        NAME,
        [
            MetricComparison(
                name,
                what,
                forgotten("unlearned", what),
                forgotten("original", what),
                [forgotten(role, what) for role in references],
                invented("unlearned", what),
            )
            for name, what in ((EXACT_MATCH, "greedy"), (CONTRAST, "contrast"))
        ],
        ["output"],
        config,
    )
    never_original = invented("original", "greedy").mean[0]
    controls = [
        Control(
            "the original says it",
            float(forgotten("original", "greedy").mean[0]),
            "1 on the items kept",
            bool(forgotten("original", "greedy").mean[0] > 0.5),
        ),
        Control(
            "the original does not say what it was never taught",
            float(never_original),
            "below 0.25",
            bool(never_original < 0.25),
        ),
    ]
    status, extra = status_of(readings, controls, config.rule)
    by_wording = {
        role: [
            float(
                scores_from_json(scores[role]["forget"])
                .greedy[known][np.array(asked.wording) == wording]
                .mean()
            )
            for wording in sorted(set(asked.wording))
        ]
        for role in scores
    }
    return AxisResult(
        NAME,
        QUESTION,
        status,
        "share of answers said",
        readings=tuple(readings),
        controls=tuple(controls),
        n_entities=len(forgotten("original", "greedy").values),
        details={
            "accuracy_by_wording": by_wording,
            "truth_ratio": {
                role: float(np.median(scores[role]["ratios"]["truth_ratio"]))
                for role in scores
            },
            "mean_logprob": {
                role: float(
                    scores_from_json(scores[role]["forget"]).mean_logprob[known].mean()
                )
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
                    scores_from_json(scores["unlearned"]["forget"]).greedy[known],
                    scores_from_json(scores["original"]["forget"]).mean_logprob[known],
                    scores_from_json(scores["unlearned"]["forget"]).mean_logprob[known],
                    strict=True,
                )
            ],
        },
        notes=(*extra, *notes),
    )


def status_of(
    readings: Sequence[Reading], controls: Sequence[Control], rule: Rule
) -> tuple[Status, list[str]]:
    """Decide between retained, absent and neither."""
    if not all(each.passed for each in controls if each.required):
        return "control_failed", []
    main = readings[0]
    low, high = main.residual_interval
    if main.p_value < rule.alpha and low > rule.still_there:
        return "retained", []
    # One-sided: an answer given less often than by a model that never knew it is as absent as
    # one given equally often.
    if high < rule.margin:
        return "absent", []
    return "no_power", [
        "Some of the answers are still said: neither clearly kept (residual above "
        f"{rule.still_there}) nor clearly gone."
    ]

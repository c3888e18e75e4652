"""Behaviour axis: are the answers gone at the output, under every paraphrase?"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from audits.axes.judgement import MetricComparison, compare_to_floors
from audits.core.answers import scores_from_json
from audits.core.config import AuditConfig, Rule
from audits.core.context import reference_roles
from capture.data.questions import Questions
from evidence.intervals import EntityValues, average_by_entity
from evidence.results import AxisResult, Control, Reading, Status

NAME = "behaviour"
QUESTION = "Is the knowledge gone at the output?"
EXACT_MATCH, CONTRAST = "said in full", "told from the others"


def known_rows(questions: Questions, original_scores: dict[str, Any]) -> np.ndarray:
    """(row,) True where the original itself gives the answer to that prompt."""
    return scores_from_json(original_scores).exact_match > 0


def run_behaviour(
    forget: Questions,
    never_taught: Questions,
    scores: Mapping[str, dict[str, Any]],
    config: AuditConfig,
    notes: Sequence[str],
) -> AxisResult:
    """Judge the axis from baseline scores.

    Args:
        forget: Forget questions with every paraphrase.
        never_taught: Never-taught questions.
        scores: By role: ``forget`` and ``never_taught`` (as ``score_question_sets``) and ``ratios``
            (as ``truth_ratios``).
    """
    mask = known_rows(forget, scores["original"]["forget"])
    questions = forget.select(mask)

    forget_scores = {role: scores_from_json(by_set["forget"]) for role, by_set in scores.items()}

    def forget_values(role: str, metric: str) -> EntityValues:
        values = getattr(forget_scores[role], metric)
        return average_by_entity(values[mask], questions.entities)

    def never_taught_values(role: str, metric: str) -> EntityValues:
        values = getattr(scores_from_json(scores[role]["never_taught"]), metric)
        return average_by_entity(values, never_taught.entities)

    references = reference_roles(scores)
    readings = compare_to_floors(
        NAME,
        [
            MetricComparison(
                name,
                stream,
                forget_values("unlearned", metric),
                forget_values("original", metric),
                [forget_values(role, metric) for role in references],
                never_taught_values("unlearned", metric),
            )
            for name, stream, metric in (
                (EXACT_MATCH, "greedy", "exact_match"),
                (CONTRAST, "contrast", "contrast"),
            )
        ],
        ["output"],
        config,
    )
    original_match = forget_values("original", "exact_match")
    never_original = never_taught_values("original", "exact_match").mean[0]
    controls = [
        Control(
            "the original says it",
            float(original_match.mean[0]),
            "1 on the items kept",
            bool(original_match.mean[0] > 0.5),
        ),
        Control(
            "the original does not say what it was never taught",
            float(never_original),
            "below 0.25",
            bool(never_original < 0.25),
        ),
    ]
    status, extra = status_of(readings, controls, config.rule)
    wordings = np.array(questions.wording)
    by_wording = {
        role: [
            float(by_row.exact_match[mask][wordings == wording].mean())
            for wording in sorted(set(questions.wording))
        ]
        for role, by_row in forget_scores.items()
    }
    return AxisResult(
        NAME,
        QUESTION,
        status,
        "share of answers said",
        readings=tuple(readings),
        controls=tuple(controls),
        n_entities=len(original_match.values),
        details={
            "accuracy_by_wording": by_wording,
            "truth_ratio": {
                role: float(np.median(scores[role]["ratios"]["truth_ratio"])) for role in scores
            },
            "mean_logprob": {
                role: float(by_row.mean_logprob[mask].mean())
                for role, by_row in forget_scores.items()
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
                    questions.ids,
                    questions.entities,
                    questions.prompts,
                    questions.answers,
                    forget_scores["unlearned"].exact_match[mask],
                    forget_scores["original"].mean_logprob[mask],
                    forget_scores["unlearned"].mean_logprob[mask],
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
    if not all(control.passed for control in controls if control.required):
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

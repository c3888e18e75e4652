"""Behaviour axis for image classifiers: is the class still predicted?"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from audits.axes.behaviour import NAME, status_of
from audits.axes.judgement import MetricComparison, compare_to_floors
from audits.core.config import AuditConfig
from audits.core.context import reference_roles
from audits.modalities.image_baseline import EvaluationSets, image_values
from audits.modalities.image_vocabulary import NAMED, RANKED
from evidence.results import AxisResult, Control

QUESTION = "Is the class still named at the output?"
MAX_NEVER_TAUGHT_NAMED = 0.25
"""Maximum share of never-taught images that the original may predict as the class."""


def run_behaviour(
    sets: EvaluationSets,
    baseline_scores: Mapping[str, dict[str, Any]],
    never_called: float,
    config: AuditConfig,
) -> AxisResult:
    """Judge the axis from the predictions of each model.

    The rank of the logit is reported and decides nothing: the logit that a classifier gives a
    class it never saw depends on its seed (mean ranks of 0.5 to 0.8 in retrains of tuning seed
    0), and differs from that of other unseen images.

    Args:
        baseline_scores: By role, as ``image_baseline.score_baseline``.
        never_called: Share of all never-taught images that the original predicts as the class;
            these are left out of the floor.
    """
    references = reference_roles(baseline_scores)

    def comparison(name: str, metric: str) -> MetricComparison:
        forgotten = {
            role: image_values(baseline_scores[role][metric]["forget"], sets.forget)
            for role in baseline_scores
        }
        return MetricComparison(
            name,
            metric,
            forgotten["unlearned"],
            forgotten["original"],
            [forgotten[role] for role in references],
            image_values(baseline_scores["unlearned"][metric]["never_taught"], sets.never),
        )

    readings = compare_to_floors(
        NAME, [comparison(NAMED, "named"), comparison(RANKED, "rank")], ["output"], config
    )
    right = float(np.mean(baseline_scores["original"]["named"]["forget"]))
    controls = [
        Control("the original names it", right, "1 on the images kept", right > 0.5),
        Control(
            "the original does not call never-taught images the class",
            never_called,
            f"below {MAX_NEVER_TAUGHT_NAMED}",
            never_called < MAX_NEVER_TAUGHT_NAMED,
        ),
    ]
    status, extra = status_of(readings, controls, config.rule)
    named = baseline_scores["unlearned"]["named"]["forget"]
    return AxisResult(
        NAME,
        QUESTION,
        status,
        "share of images named as the class",
        readings=tuple(readings),
        controls=tuple(controls),
        n_entities=len(sets.forget),
        details={
            "class": sets.label,
            "images": [
                {"id": name, "named": bool(hit)}
                for name, hit in zip(sets.forget.ids, named, strict=True)
            ],
        },
        notes=tuple(extra),
    )

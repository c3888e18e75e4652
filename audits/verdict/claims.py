"""Claims that a verdict does and does not support."""

from collections.abc import Mapping

from audits.core.config import Rule
from audits.modalities.vocabulary import FACTS, Vocabulary
from evidence.results import AxisResult

GUESSED = "None of what was recovered could be guessed from the words of the questions."
"""Not excluded by a floor of other entities' answers."""


def claims(
    verdict: str,
    axes: Mapping[str, AxisResult],
    rule: Rule,
    floor: str,
    vocabulary: Vocabulary = FACTS,
) -> tuple[list[str], list[str], list[str]]:
    """Supported claims, unsupported claims, and what would change the verdict.

    Args:
        verdict: The verdict.
        axes: The axes that were run.
        floor: "reference", "never_taught" or "permuted".
        vocabulary: Vocabulary for facts or for a class.
    """
    axes_run = ", ".join(axes)
    floor_name = vocabulary.floors[floor]
    if verdict == "damaged":
        return (
            ["The candidate lost usefulness far from the forget set."],
            ["The knowledge was deleted.", "The method unlearns selectively."],
            [f"A candidate that keeps {rule.utility:.0%} of the original's utility."],
        )
    if verdict == "not_unlearned":
        return (
            [vocabulary.at_output],
            ["The model has unlearned the forget set."],
            [vocabulary.changed_by],
        )
    if verdict == "suppressed":
        return (
            [vocabulary.forgotten, "Knowledge of the forget set is still in the weights."],
            [
                "The knowledge was deleted.",
                "The knowledge cannot be recovered.",
                *([GUESSED] if floor == "permuted" else []),
            ],
            ["An edit after which these recoveries are equivalent to the floor."],
        )
    if verdict == "deleted":
        return (
            [
                f"Under these axes ({axes_run}) the candidate cannot be distinguished from "
                f"{floor_name}, within the stated margin."
            ],
            ["No attack whatever can bring the knowledge back.", vocabulary.others],
            [
                f"Any further attack that recovers {vocabulary.short} beyond the floor.",
                f"A smaller margin, with more {vocabulary.units} to support it.",
            ],
        )
    claim = vocabulary.unclear_claim if "behaviour" in axes else vocabulary.unasked_claim
    return (
        [claim],
        ["The knowledge was deleted.", "The knowledge was only suppressed."],
        [
            f"More {vocabulary.units}, or a retrained reference.",
            "The axis named as binding, with enough power.",
        ],
    )

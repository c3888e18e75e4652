"""Claims that a verdict does and does not support."""

from collections.abc import Mapping

from audits.core.config import Rule
from audits.modalities.vocabulary import FACTS, Words
from evidence.results import AxisResult


def claims(
    name: str,
    axes: Mapping[str, AxisResult],
    rule: Rule,
    floor: str,
    words: Words = FACTS,
) -> tuple[list[str], list[str], list[str]]:
    """Supported claims, unsupported claims, and what would change the verdict.

    Args:
        name: The verdict.
        axes: The axes that were run.
        floor: "reference" or "never_taught".
        words: Vocabulary for facts or for a class.
    """
    attacks = ", ".join(axes)
    against = words.floors[floor]
    if name == "damaged":
        return (
            ["The candidate lost usefulness far from the forget set."],
            ["The knowledge was deleted.", "The method unlearns selectively."],
            [f"A candidate that keeps {rule.utility:.0%} of the original's utility."],
        )
    if name == "not_unlearned":
        return (
            [words.asked],
            ["The model has unlearned the forget set."],
            [words.kept_asking],
        )
    if name == "suppressed":
        return (
            [
                words.gone,
                "Knowledge of the forget set is still in the weights.",
            ],
            ["The knowledge was deleted.", "The knowledge cannot be recovered."],
            ["An edit after which these recoveries are equivalent to the floor."],
        )
    if name == "deleted":
        return (
            [
                f"Under these axes ({attacks}) the candidate cannot be told from "
                f"{against}, within the stated margin."
            ],
            [
                "No attack whatever can bring the knowledge back.",
                words.others,
            ],
            [
                f"Any further attack that recovers {words.short} beyond the floor.",
                f"A smaller margin, with more {words.units} to support it.",
            ],
        )
    said = words.unclear_claim if "behaviour" in axes else words.unasked_claim
    return (
        [said],
        ["The knowledge was deleted.", "The knowledge was only suppressed."],
        [
            f"More {words.units}, or a retrained reference.",
            "The axis named as binding, with enough power.",
        ],
    )

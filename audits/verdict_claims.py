"""What may and may not be said after a verdict."""

from collections.abc import Mapping

from audits.config import Rule
from evidence.axis import AxisResult


def claims(
    name: str, axes: Mapping[str, AxisResult], rule: Rule, floor: str
) -> tuple[list[str], list[str], list[str]]:
    """Sentences allowed, sentences not allowed, and what would change the verdict.

    Args:
        name: The verdict.
        axes: What was run.
        rule: Thresholds.
        floor: "reference" or "never_taught".
    """
    attacks = ", ".join(axes)
    against = {
        "reference": "a model retrained without the forget set",
        "never_taught": "items about invented entities",
    }[floor]
    if name == "damaged":
        return (
            ["The candidate lost usefulness far from the forget set."],
            ["The knowledge was deleted.", "The method unlearns selectively."],
            [f"A candidate that keeps {rule.utility:.0%} of the original's utility."],
        )
    if name == "not_unlearned":
        return (
            ["The forgotten answers can be had by asking."],
            ["The model has unlearned the forget set."],
            ["A candidate that no longer gives the answers in any wording."],
        )
    if name == "suppressed":
        return (
            [
                "The answers are gone at the output.",
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
                "Facts that were not in the forget file are gone too.",
            ],
            [
                "Any further attack that recovers the answers beyond the floor.",
                "A smaller margin, with more forgotten entities to support it.",
            ],
        )
    return (
        ["The answers are not clearly kept at the output."],
        ["The knowledge was deleted.", "The knowledge was only suppressed."],
        [
            "More forgotten entities, or a retrained reference.",
            "The axis named as binding, with enough power.",
        ],
    )

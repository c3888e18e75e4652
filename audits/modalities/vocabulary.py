"""What verdicts call the thing that was to be forgotten: facts, or a class of images.

The rule is one and the same; only its sentences differ. A name in a sentence is that
of a reading, so that whoever reads a report finds it in the table.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ANSWER_FLOORS = {
    "reference": "a model retrained without the forget set",
    "never_taught": "items about invented entities",
}
CLASS_FLOORS = {
    "reference": "a model retrained without the forget set",
    "never_taught": "image classes that no model saw",
}


@dataclass(frozen=True)
class Vocabulary:
    """Sentences and their parts, by what was to be forgotten.

    Attributes:
        thing: The whole of it, as in "the forgotten answers are still there".
        short: The same where it is clear what was forgotten.
        pronoun: The same as a pronoun, "them" or "it".
        still: Says that it is still had at the output.
        unclear: Says that it is neither clearly kept nor gone there.
        behaviour: The output in figures; takes ``now``, ``before``, ``floor``.
        at_output: Says that it can be had at the output.
        changed_by: What a candidate does that has unlearned.
        forgotten: Says that it is gone at the output.
        unclear_claim: What may be said where nothing is decided.
        unasked_claim: The same where the output was not asked.
        others: Of what else deletion says nothing.
        units: What more of would settle it.
        floors: What the candidate cannot be told from, by floor.
    """

    thing: str
    short: str
    pronoun: str
    still: str
    unclear: str
    behaviour: str
    at_output: str
    changed_by: str
    forgotten: str
    unclear_claim: str
    unasked_claim: str
    others: str
    units: str
    floors: dict[str, str]

    def verb(self) -> str:
        """The verb that goes with the thing."""
        return "are" if self.pronoun == "them" else "is"


FACTS = Vocabulary(
    thing="the forgotten answers",
    short="the answers",
    pronoun="them",
    still="the forgotten answers are still said",
    unclear="some answers are still said, neither clearly kept nor gone.",
    behaviour="The candidate says {now:.0%} of the forgotten answers (original "
    "{before:.0%}, floor {floor:.0%}).",
    at_output="The forgotten answers can be had by asking.",
    changed_by="A candidate that no longer gives the answers in any wording.",
    forgotten="The answers are gone at the output.",
    unclear_claim="The answers are not clearly kept at the output.",
    unasked_claim="Whether the answers are kept at the output was not asked.",
    others="Facts that were not in the forget file are gone too.",
    units="forgotten entities",
    floors=ANSWER_FLOORS,
)
CLASS = Vocabulary(
    thing="the forgotten class",
    short="the class",
    pronoun="it",
    still="the forgotten class is still named",
    unclear="some images of the forgotten class are still named, neither clearly "
    "kept nor gone.",
    behaviour="The candidate names {now:.0%} of the forgotten class's images "
    "(original {before:.0%}, floor {floor:.0%}).",
    at_output="Images of the forgotten class are named as such.",
    changed_by="A candidate that no longer names the class.",
    forgotten="The class is gone at the output.",
    unclear_claim="The class is not clearly kept at the output.",
    unasked_claim="Whether the class is kept at the output was not asked.",
    others="Classes other than the forgotten one are gone too.",
    units="images of the forgotten class",
    floors=CLASS_FLOORS,
)


def vocabulary_for(images: bool) -> Vocabulary:
    """The words for what was to be forgotten: a class of images, or else facts."""
    return CLASS if images else FACTS


def is_image_audit(document: Mapping[str, Any]) -> bool:
    """Whether what was to be forgotten is a class of images."""
    items = document.get("manifest", {}).get("items", ())
    return any(each.get("format") == "images" for each in items)

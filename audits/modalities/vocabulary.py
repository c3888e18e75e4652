"""Words of the verdict's sentences: for facts, and for a class of images.

The rule is the same; only its sentences differ. Reading names are used verbatim in sentences,
so that they can be found in the report's tables.
"""

from dataclasses import dataclass

from audits.axes import persistence
from audits.axes.causal_depth import axis as causal_depth
from audits.axes.concept import axis as concept
from audits.axes.decodability.axis import UNCHANGED
from audits.axes.relearning import CONTRAST, EXACT_MATCH
from audits.axes.restoration import axis as restoration
from audits.modalities.image_vocabulary import TRANSFERRED_NAMED

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
    """Sentences and phrases about what was to be forgotten.

    Attributes:
        thing: Noun phrase, as in "the forgotten answers are still there".
        short: Shorter noun phrase.
        pronoun: Pronoun, "them" or "it".
        still: States that it is still given at the output.
        unclear: States that it is neither clearly kept nor absent there.
        behaviour: The output in figures; takes ``now``, ``before``, ``floor``.
        at_output: Claim that it can be elicited by asking.
        changed_by: What would change the verdict ``not_unlearned``.
        forgotten: Claim that it is absent at the output.
        unclear_claim: Claim where nothing is decided.
        unasked_claim: The same where the output was not measured.
        others: Claim about other knowledge that deletion does not support.
        units: Plural noun of the unit, as in "more forgotten entities".
        floors: Name of each floor.
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
        """The verb that agrees with the noun phrase."""
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
    """The vocabulary for a class of images, or for facts."""
    return CLASS if images else FACTS


# Sentence of a recovery by its reading; takes the reading's ``where`` and ``value``.
RECOVERY_SENTENCES = {
    UNCHANGED: "The original's own probe, unchanged, still reads {it} in the "
    "candidate at {where}: {value:.2f}",
    CONTRAST: "After teaching one half of them, the candidate tells the untaught half from "
    "the others' answers: {value:.2f}",
    causal_depth.CONTRAST: "The candidate's states at {where}, put into the original, tell "
    "them from the others' answers: {value:.2f}",
    causal_depth.EXACT_MATCH: "The candidate's states at {where}, put into the original, make "
    "it say them: {value:.2f}",
    persistence.EXACT_MATCH: "Quantising the candidate ({where}) brings answers back: it says "
    "{value:.2f} of them",
    persistence.CONTRAST: "Quantised ({where}), the candidate tells them from the others' "
    "answers: {value:.2f}",
    EXACT_MATCH: "Teaching one half of them brings back the other half: it says {value:.2f} "
    "of them",
    concept.READING: "The original's concept vectors, unchanged, still read them in the "
    "candidate at {where}: {value:.2f}",
    restoration.CONTRAST: "Steered by one fixed change, fitted on other items, the "
    "candidate tells them from the others' answers: {value:.2f}",
    restoration.EXACT_MATCH: "Steered by one fixed change, fitted on other items, the "
    "candidate says {value:.2f} of them",
    TRANSFERRED_NAMED: "The candidate's states at {where}, put into the original, make it name "
    "the class: {value:.2f} of its images",
}

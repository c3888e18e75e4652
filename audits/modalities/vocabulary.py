"""Words of the verdict's sentences: for facts, and for a class of images.

The rule is the same; only its sentences differ. Reading names are used verbatim in sentences,
so that they can be found in the report's tables.
"""

from dataclasses import dataclass

ANSWER_FLOORS = {
    "reference": "a model retrained without the forget set",
    "never_taught": "items about invented entities",
    "permuted": "forgotten questions with the answers of other entities",
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
    still="the forgotten answers are still given",
    unclear="some answers are still given, neither clearly kept nor gone.",
    behaviour="The candidate gives {now:.0%} of the forgotten answers (original "
    "{before:.0%}, floor {floor:.0%}).",
    at_output="The forgotten answers can be elicited by asking.",
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
    still="the forgotten class is still predicted",
    unclear="some images of the forgotten class are still predicted as it, neither clearly kept "
    "nor gone.",
    behaviour="The candidate predicts the class for {now:.0%} of its images (original "
    "{before:.0%}, floor {floor:.0%}).",
    at_output="Images of the forgotten class are predicted as such.",
    changed_by="A candidate that no longer predicts the class.",
    forgotten="The class is gone at the output.",
    unclear_claim="The class is not clearly kept at the output.",
    unasked_claim="Whether the class is kept at the output was not asked.",
    others="Classes other than the forgotten one are gone too.",
    units="images of the forgotten class",
    floors=CLASS_FLOORS,
)

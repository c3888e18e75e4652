"""Sentences of the verdict for readings that show recovery, by the reading's name."""

from audits.axes import persistence
from audits.axes.causal_depth import axis as causal_depth
from audits.axes.concept import axis as concept
from audits.axes.decodability.axis import UNCHANGED
from audits.axes.relearning import CONTRAST, EXACT_MATCH
from audits.axes.restoration import axis as restoration
from audits.modalities.image_vocabulary import TRANSFERRED_NAMED

# ``where`` and ``value`` are the reading's.
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

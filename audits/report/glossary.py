"""Words of a report: verdicts, statuses, floors and glossary terms."""

# Word, symbol, and an explanation that needs no other part of the report.
VERDICTS = {
    "not_unlearned": (
        "Not unlearned",
        "\u2715",
        "The candidate still gives the answers it should have forgotten.",
    ),
    "suppressed": (
        "Suppressed",
        "\u25d0",
        "The candidate no longer gives the answers, but the knowledge is still inside "
        "it and was recovered.",
    ),
    "deleted": (
        "Deleted",
        "\u2713",
        "In every test made here, the candidate behaves like a model that never knew "
        "the answers, and those that look inside were shown to find what is hidden.",
    ),
    "damaged": (
        "Damaged",
        "\u26a0\ufe0e",
        "The candidate is broken: it lost abilities far from what it should forget, "
        "so its silence says nothing about deletion.",
    ),
    "inconclusive": (
        "Inconclusive",
        "?",
        "The evidence shows neither suppression nor deletion. This is not a pass.",
    ),
}
STATUSES = {
    "retained": ("\u25cf", "retained", "beyond the floor"),
    "absent": ("\u25cb", "at the floor", "equivalent to a model that never knew"),
    "no_power": ("?", "cannot tell", "the test had too little power; it does not vote"),
    "control_failed": ("!", "control failed", "a control failed; it does not vote"),
    "error": ("\u2715", "error", "it did not finish; it does not vote"),
}
BEHAVIOUR = {
    "retained": "the answers are given beyond the floor",
    "absent": "the answers are not given beyond the floor",
}
FLOORS = {
    "reference": "models retrained without the forget set",
    "never_taught": "never-taught items: the same questions about invented entities",
    "permuted": "the same questions with the answers of other entities",
}
SCORES = {
    "exact": "exact match",
    "contains": "whether the answer is said",
    "rouge_l": "key words, ROUGE-L and probability of sentences",
    "options": "the chosen option",
    "passage": "ROUGE-L of the continuation",
    "truth_ratio": "truth ratio",
}
CLASS_VERDICTS = {
    "not_unlearned": "The candidate still predicts the class it should have forgotten.",
    "suppressed": "The candidate no longer predicts the class, but it is still inside it "
    "and was recovered.",
    "deleted": "In every test made here, the candidate behaves like a model that never "
    "saw the class, and those that look inside were shown to find what is hidden.",
    "damaged": "The candidate is broken: it no longer predicts other classes, so its "
    "silence about this one says nothing about deletion.",
}
CLASS_BEHAVIOUR = {
    "retained": "the class is predicted beyond the floor",
    "absent": "the class is not predicted beyond the floor",
}
IMAGE_FLOORS = FLOORS | {"never_taught": "never-taught images: halves of two known classes each"}
TERMS = (
    ("original", "The model before unlearning; it knows the forget set."),
    ("candidate", "The unlearned model that is audited here."),
    (
        "floor",
        "What a test gives where nothing was ever known: a model retrained without "
        "the facts (reference), questions about invented entities (never-taught), or "
        "questions with the answers of other entities (permuted).",
    ),
    (
        "residual",
        "A figure rescaled so that 0 is the floor (never knew) and 1 the original "
        "(knows). Below 0 means less than the floor.",
    ),
    (
        "planted suppression",
        "A copy of the original edited on the spot to hide the facts without removing "
        "them. Late: in its last block. Early: where the question is read. A test that does not "
        "find the one it is expected to see proves nothing by silence.",
    ),
    (
        "concordance",
        "How often a probe ranks a true answer above a false one: 0.5 is guessing, 1 is always.",
    ),
    (
        "probe",
        "A linear classifier of hidden states, fitted on retain facts. Refitted: "
        "on the candidate. The original's own: fitted on the original and unchanged.",
    ),
    (
        "residual trace",
        "What only a refitted probe reads: it rules out deletion and does not by "
        "itself show suppression.",
    ),
    (
        "corrected p",
        "Chance of such a difference if nothing were left, corrected for looking at "
        "many layers or steps (largest difference) and at several axes (Holm).",
    ),
    (
        "margin",
        "How near 0 the whole interval of a residual must lie to count as equivalent "
        "to the floor; shaded in the bars.",
    ),
    (
        "front",
        "The embedding and the first blocks, which read the question. A front transplant puts the "
        "original's in front of the candidate's other blocks.",
    ),
    ("resid.12", "A place in the model: the output of block 12; embed: before block 0."),
)
_IMAGE_WORDS = {
    "floor": "What a test gives where nothing was ever known: a model retrained "
    "without the class (reference), or classes that no model saw (never-taught).",
    "planted suppression": "A copy of the original edited on the spot to hide the "
    "class without removing it; a test that does not find it there proves nothing by "
    "silence.",
    "concordance": "How often a probe ranks an image of the class above another "
    "image: 0.5 is guessing, 1 is always.",
    "probe": "A linear classifier of hidden states, fitted on images. Refitted: on the "
    "candidate. The original's own: fitted on the original and unchanged.",
}
CLASS_TERMS = tuple((term, _IMAGE_WORDS.get(term, text)) for term, text in TERMS)


def units(count: int, images: bool) -> str:
    """The unit of analysis, singular or plural."""
    singular, plural = ("image", "images") if images else ("entity", "entities")
    return singular if count == 1 else plural

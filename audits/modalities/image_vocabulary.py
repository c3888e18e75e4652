"""Names of an image audit's readings, and the reasons for the axes it leaves out."""

NAMED = "named as the class"
RANKED = "logit of the class, ranked among other images"
TRANSFERRED_NAMED = "carried states, named as the class"
HELD_OUT_NAMED = "images not taught, named as the class"
STEERED_NAMED = "steered, named as the class"

SKIPPED_AXES = {
    "concept": "a concept of a fact is an answer read across entities; of a class it "
    "would be the probe that decodability reads already",
    "persistence": "quantisation brings back answers that were trained away token by "
    "token; no image model of known state was measured under it",
    "circuit": "its edges are found from pairs of prompts that differ in one name",
    "membership": "its signature is read from the tokens of a sequence",
}
"""Axes that image audits do not have, with the reason."""
NOT_MEASURED = (
    "Not asked of image models: free text, general text and other wordings, which a "
    "classifier does not have. What it is still good for is the share of the other "
    "classes' images that it names, and the effective rank of its states."
)

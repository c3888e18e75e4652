"""The kinds of model in the zoo's digits world."""

from erasure.unlearning.training.image_config import IMAGE_METHODS
from testbeds.edits import digits_edits as edits
from testbeds.edits.digits_edits import DigitsEditFunction
from testbeds.zoo.kinds import ANY, DAMAGED, FORGOTTEN, RETAINED, Kind, Range, State

_UNTOUCHED_BELOW = (
    "every block before the last is bit for bit the original's, so the states that "
    "reach the last block hold what they held"
)
_HEAD_ALONE = "every state up to the classifier is bit for bit the original's"
_NEVER_TAUGHT = "no image of the class was among its training images"
_LOWER_KEPT = (
    "every block before the last is bit for bit the original's, so what they hold is "
    "there; a published method, graded by how far it can be brought out"
)
_GRADED = "a published method: how much is left is not known beforehand"
_SAID = "it still names the class"
_USELESS = "it no longer names what it was to keep"

_KNOWN: tuple[tuple[str, State, str, DigitsEditFunction], ...] = (
    ("untouched", "not_unlearned", _SAID, edits.untouched),
    ("retain_tuned", "not_unlearned", _SAID, edits.retain_tuned),
    ("head_only", "suppressed", _HEAD_ALONE, edits.head_only),
    ("logit_mask", "suppressed", _HEAD_ALONE, edits.logit_mask),
    ("last_block_relabel", "suppressed", _UNTOUCHED_BELOW, edits.last_block_relabel),
    ("late_rotation", "suppressed", _UNTOUCHED_BELOW, edits.late_rotation),
    ("class_direction", "suppressed", _UNTOUCHED_BELOW, edits.class_direction),
    ("twin", "deleted", _NEVER_TAUGHT, edits.twin),
    ("retrain_1", "deleted", _NEVER_TAUGHT, edits.retrained(1000)),
    ("retrain_2", "deleted", _NEVER_TAUGHT, edits.retrained(2000)),
    ("twin_tuned", "deleted", _NEVER_TAUGHT, edits.twin_tuned),
    ("collapse", "damaged", _USELESS, edits.collapse),
    ("noise", "damaged", _USELESS, edits.noise),
    ("random_init", "damaged", _USELESS, edits.random_init),
)
_SHOWS: dict[State, tuple[Range, Range]] = {
    "not_unlearned": (RETAINED, RETAINED),
    "suppressed": (FORGOTTEN, RETAINED),
    # Its classifier never had to name the class, so it never does.
    "deleted": (FORGOTTEN, RETAINED),
    "damaged": (ANY, DAMAGED),
}


def _graded(method: str) -> Kind:
    why = _LOWER_KEPT if method in ("cf_k", "eu_k") else _GRADED
    return Kind(method, None, why, edits.published(method), ANY, ANY)


DIGITS_KINDS = {
    name: Kind(name, state, why, make, *_SHOWS[state])
    for name, state, why, make in _KNOWN
} | {method: _graded(method) for method in IMAGE_METHODS}

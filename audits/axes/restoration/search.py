"""Search for the strongest fixed edit within limits on its side effects.

Method, site and strength maximize how much of the fitting half is restored. Accuracy on retain
items may fall by at most two points. For images, at most two points more never-taught images may be
predicted as the class: without that limit, an edit that predicts the class for anything unfamiliar
would pass as a restoration, and networks that never saw the class were steered to it that way
(``docs/results/vision.md``).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from audits.axes.restoration.steering import SteeringEdit, SteeringHook, steering_hook

STRENGTHS = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0)
MAX_DROP = 0.02
"""Maximum fall of accuracy on retain items, and maximum rise on never-taught ones."""
TOLERANCE = 1e-9


@dataclass(frozen=True)
class SideEffects:
    """What an edit costs.

    Attributes:
        retain: Accuracy on retain items.
        never_taught: Share of never-taught images predicted as the class; 0 for text.
    """

    retain: float
    never_taught: float = 0.0


@dataclass(frozen=True)
class Choice:
    """The outcome of a search.

    Attributes:
        objective: How much of the fitting half is restored.
        effects: Side effects; not measured for an image model without an edit.
        method: Steering method; None for no steering.
        site: Where it is applied.
        strength: Multiple of the edit.
        variant: Name of the network variant it is applied to; images only.
    """

    objective: float
    effects: SideEffects | None = None
    method: str | None = None
    site: str | None = None
    strength: float = 0.0
    variant: str = ""


@dataclass(frozen=True, eq=False)
class ChosenEdit:
    """A choice, ready to be applied.

    Attributes:
        steering: The edit at strength 1; None for no steering.
    """

    choice: Choice
    steering: SteeringEdit | None = None

    def hooks(self) -> dict[str, SteeringHook]:
        """The edit by site; empty for no steering."""
        if self.steering is None or self.choice.site is None:
            return {}
        return {self.choice.site: steering_hook(self.steering, self.choice.strength)}


def strongest_edit(
    start: Choice,
    candidates: Iterable[tuple[str, str]],
    make_edit: Callable[[str, str], SteeringEdit | None],
    objectives: Callable[[str, SteeringEdit], Iterable[float]],
    effects: Callable[[dict[str, SteeringHook]], SideEffects | None],
    enough: float,
    variant: str = "",
) -> ChosenEdit:
    """The edit with the largest objective within the limits. Ties go to the earlier candidate.

    Args:
        start: What must be exceeded.
        candidates: Methods and sites, in the order in which they are tried.
        make_edit: From a method and a site to the edit at strength 1, if there is one.
        objectives: From a site and an edit to the objective at each of ``STRENGTHS``.
        effects: Side effects of an edit, or None where they exceed a limit.
        enough: Objective at which the search stops.
        variant: Name of the network variant that is steered; images only.
    """
    best = ChosenEdit(start)
    for method, site in candidates:
        if best.choice.objective >= enough:
            break
        steering = make_edit(method, site)
        if steering is None:
            continue
        for strength, objective in zip(STRENGTHS, objectives(site, steering), strict=True):
            if objective <= best.choice.objective + TOLERANCE:
                continue
            found = effects({site: steering_hook(steering, strength)})
            if found is None:
                break  # stronger steering costs more
            choice = Choice(objective, found, method, site, strength, variant)
            best = ChosenEdit(choice, steering)
    return best

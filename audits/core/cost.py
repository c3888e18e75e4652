"""Upper bounds of what a part of an audit takes, before anything is run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from audits.core.config import AuditConfig
from audits.core.inputs import InputsOf
from audits.core.registry import ModalityName
from audits.core.scores import Part
from capture.network.network_size import NetworkSize


@dataclass(frozen=True)
class Cost:
    """Upper bound of one part of an audit, over all its models.

    The unit is a token of text, or an image.

    Attributes:
        captured_rows: Rows whose states are kept.
        captured: Their units.
        forward: Units of all other forward passes.
        trained: Units of all training steps, each a forward and a backward pass.
        disk: Stored activations, in bytes.
        copies: Copies of the weights in memory at a time.
    """

    captured_rows: int = 0
    captured: int = 0
    forward: int = 0
    trained: int = 0
    disk: int = 0
    copies: int = 1

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.captured_rows + other.captured_rows,
            self.captured + other.captured,
            self.forward + other.forward,
            self.trained + other.trained,
            self.disk + other.disk,
            max(self.copies, other.copies),
        )


@dataclass(frozen=True)
class Amount:
    """Rows of one part of the items, and their units: tokens, or images."""

    rows: int
    units: int


@dataclass(frozen=True)
class PlanInputs:
    """What costs are estimated from.

    Attributes:
        inputs: Opened inputs; no model was run.
        size: Depth and width of the network.
        amounts: Every part with all the prompts of the profile, if the original knows every item.
        main_prompts: The same with the main prompt alone.
        spoken: Units that one model reads and says in free answers.
        n_references: Number of models retrained without the forget set.
    """

    modality: ModalityName
    config: AuditConfig
    inputs: InputsOf[Any]
    size: NetworkSize
    amounts: Mapping[Part, Amount]
    main_prompts: Mapping[Part, Amount]
    n_references: int
    spoken: int = 0

    @property
    def n_models(self) -> int:
        """Original, candidate, planted suppression and references."""
        return 3 + self.n_references

    def units(self, *parts: Part) -> int:
        """Units of some parts, with all prompts."""
        return sum(self.amounts[part].units for part in parts)

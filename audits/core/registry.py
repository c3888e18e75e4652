"""The axes and modalities of an audit, one line each.

Modules are named, not imported: settings and the command line list axes without loading torch.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from evidence.errors import InputError

ProfileName = Literal["quick", "standard", "full"]
ModalityName = str
"""A key of ``MODALITIES``."""


@dataclass(frozen=True)
class AxisEntry:
    """Where an axis is defined.

    Attributes:
        module: Module whose ``AXIS`` it is.
        profiles: Profiles that run it unasked.
    """

    module: str
    profiles: tuple[ProfileName, ...] = ()


EVERY: tuple[ProfileName, ...] = ("quick", "standard", "full")

# In the order in which axes run and are reported. Quantization scores every model under each
# quantization scheme, which takes longer than the whole quick profile. Of the axes in no profile,
# concept and restoration changed no verdict where they were measured; the error rates of circuit
# and membership are unmeasured or too high.
AXES: dict[str, AxisEntry] = {
    "behaviour": AxisEntry("audits.axes.behaviour", EVERY),
    "decodability": AxisEntry("audits.axes.decodability.axis", EVERY),
    "concept": AxisEntry("audits.axes.concept.axis"),
    "membership": AxisEntry("audits.axes.membership.axis"),
    "causal_depth": AxisEntry("audits.axes.causal_depth.axis", EVERY),
    "front_transplant": AxisEntry("audits.axes.front_transplant.axis", EVERY),
    "quantization": AxisEntry("audits.axes.quantization", ("standard", "full")),
    "relearning": AxisEntry("audits.axes.relearning.axis", EVERY),
    "restoration": AxisEntry("audits.axes.restoration.axis"),
    "circuit": AxisEntry("audits.axes.circuit.axis"),
}

MODALITIES: dict[ModalityName, str] = {
    "text": "audits.modalities.text",
    "images": "audits.modalities.images",
}


def axes_of_profile(profile: str) -> tuple[str, ...]:
    """Axes that a profile runs unasked, in order."""
    return tuple(name for name, entry in AXES.items() if profile in entry.profiles)


def load_axis(name: str) -> Any:
    """The ``audits.axes.base.Axis`` of this name.

    Raises:
        InputError: there is none.
    """
    if name not in AXES:
        raise InputError("there is no such axis", expected=", ".join(AXES), got=repr(name))
    return import_module(AXES[name].module).AXIS


def load_modality(name: ModalityName) -> Any:
    """The ``audits.modalities.base.Modality`` of this name."""
    return import_module(MODALITIES[name]).MODALITY

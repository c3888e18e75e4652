"""The registry of unlearning methods: name to class."""

from typing import Any

from erasure.unlearning.methods.base import Method
from erasure.unlearning.methods.dampening import SSD
from erasure.unlearning.methods.distillation import ELM, SCRUB, UNDIAL, BadTeacher
from erasure.unlearning.methods.famr import FAMR
from erasure.unlearning.methods.likelihood import NPO, GradAscent, GradDiff, SimNPO
from erasure.unlearning.methods.preference import DPO
from erasure.unlearning.methods.relabeling import BoundaryShrink, LastBlockRelabel, Relabel, SalUn
from erasure.unlearning.methods.representation import DUCK, RMU
from erasure.unlearning.methods.retain_only import CFk, EUk, L1Sparse
from erasure.unlearning.methods.task_vector import TaskVector
from evidence.errors import InputError

REGISTRY: dict[str, type[Method[Any]]] = {
    method.name: method
    for method in (
        GradAscent,
        GradDiff,
        NPO,
        SimNPO,
        DPO,
        Relabel,
        LastBlockRelabel,
        SalUn,
        SSD,
        UNDIAL,
        SCRUB,
        BadTeacher,
        ELM,
        BoundaryShrink,
        DUCK,
        FAMR,
        CFk,
        EUk,
        RMU,
        L1Sparse,
        TaskVector,
    )
}
"""Every method, one line each. The order of image methods is that of the zoo's kinds."""


def register(method: type[Method[Any]]) -> None:
    """Add a method that is defined elsewhere, until the process ends.

    Raises:
        InputError: The class has no name of its own, or neither losses nor a run.
    """
    name = getattr(method, "name", None)
    if not isinstance(name, str) or name in REGISTRY:
        raise InputError(
            "a method needs a name of its own",
            expected="a name that is not in the registry",
            got=repr(name),
        )
    if method.losses is Method.losses and method.run is Method.run:
        raise InputError(f"{name} does nothing", expected="a method with losses or run")
    REGISTRY[name] = method


def unlearning_methods(modality: str | None = None) -> dict[str, type[Method[Any]]]:
    """Unlearning methods by name: classes whose fields are their hyperparameters.

    Args:
        modality: ``"text"`` or ``"images"``; all methods by default.

    Examples:
        >>> methods = exhume.unlearning_methods("images")
        >>> "scrub" in methods, "npo" in methods
        (True, False)
        >>> exhume.unlearning_methods()["npo"](beta=0.5)
        NPO(beta=0.5)
    """
    return {
        name: method
        for name, method in REGISTRY.items()
        if modality is None or modality in method.modalities
    }

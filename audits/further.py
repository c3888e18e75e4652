"""Axes that are run when they are named: concepts, restoration, circuits.

They inform and can stand in the way of ``deleted``; by themselves they make nothing
``suppressed``, since their error rates on models of known state are not measured yet.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from audits import circuit, concept, restoration
from audits.context import Run
from audits.probing_tasks import Task
from audits.subjects import Subject
from capture.items import ItemSet
from evidence.axis import AxisResult


@dataclass(frozen=True)
class States:
    """Captured states of every model, and what is read from them.

    Attributes:
        tasks: What readers are to tell.
        sites: Where states were captured.
        notes: Sentences about what could not be asked.
    """

    tasks: Sequence[Task]
    sites: Sequence[str]
    notes: tuple[str, ...]


def run_concept(
    run: Run,
    subjects: dict[str, Subject],
    states: States,
    forget: ItemSet,
    retain: ItemSet,
    notes: tuple[str, ...],
    stage,
) -> AxisResult:
    """Do the original's concept vectors still read the answers?"""
    saved = stage(
        "concept",
        lambda: concept.run_concept(
            subjects,
            run.tokenizer,
            states.tasks,
            states.sites,
            list(forget),
            list(retain),
            run.store,
            run.config,
            device=run.device,
            notes=(*notes, *states.notes),
            progress=run.progress,
        ).to_dict(),
    )
    return AxisResult.from_dict(saved)


def run_restoration(
    run: Run,
    subjects: dict[str, Subject],
    forget: ItemSet,
    retain: ItemSet,
    never: ItemSet,
    notes: tuple[str, ...],
    stage,
) -> AxisResult:
    """Does one fixed change, fitted on other items, bring the answers back?"""
    saved = stage(
        "restoration",
        lambda: restoration.run_restoration(
            subjects,
            run.tokenizer,
            forget,
            retain,
            never,
            run.config,
            run.space.work / "saes",
            device=run.device,
            notes=notes,
            progress=run.progress,
        ).to_dict(),
    )
    return AxisResult.from_dict(saved)


def run_circuit(
    run: Run,
    subjects: dict[str, Subject],
    forget: ItemSet,
    never: ItemSet,
    notes: tuple[str, ...],
    stage,
) -> AxisResult:
    """Do the edges that computed the answers still carry them?"""
    saved = stage(
        "circuit",
        lambda: circuit.run_circuit(
            subjects,
            run.tokenizer,
            forget,
            never,
            run.config,
            device=run.device,
            notes=notes,
            progress=run.progress,
        ).to_dict(),
    )
    return AxisResult.from_dict(saved)

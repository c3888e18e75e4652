"""Axes that are run when they are named: concepts, restoration, circuits, membership.

They can stand in the way of ``deleted``. Concepts and restoration can also make
``suppressed``: on tuning models they found no retrain and every suppression
(``docs/restoration.md``). Circuits and membership only inform: their error rates there
are not measured, or not good enough.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from audits.axes.circuit import axis as circuit
from audits.axes.concept import axis as concept
from audits.axes.decodability.tasks import Task
from audits.axes.membership import axis as signature
from audits.axes.membership import scores as signature_reading
from audits.axes.restoration import axis as restoration
from audits.core.context import Run
from audits.core.subjects import AuditedModel
from audits.core.workspace import axis_stage
from capture.data.items import ItemSet
from evidence.errors import InputError
from evidence.results import AxisResult


@dataclass(frozen=True)
class CapturedTasks:
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
    models: dict[str, AuditedModel],
    states: CapturedTasks,
    forget: ItemSet,
    retain: ItemSet,
    notes: tuple[str, ...],
    stage,
) -> AxisResult:
    """Do the original's concept vectors still read the answers?"""
    return axis_stage(
        stage,
        "concept",
        lambda: concept.run_concept(
            models,
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
        ),
    )


def run_restoration(
    run: Run,
    models: dict[str, AuditedModel],
    forget: ItemSet,
    retain: ItemSet,
    never: ItemSet,
    notes: tuple[str, ...],
    stage,
) -> AxisResult:
    """Does one fixed change, fitted on other items, bring the answers back?"""
    return axis_stage(
        stage,
        "restoration",
        lambda: restoration.run_restoration(
            models,
            run.tokenizer,
            forget,
            retain,
            never,
            run.config,
            run.workspace.work / "saes",
            device=run.device,
            notes=notes,
            progress=run.progress,
        ),
    )


def run_circuit(
    run: Run,
    models: dict[str, AuditedModel],
    forget: ItemSet,
    never: ItemSet,
    notes: tuple[str, ...],
    stage,
) -> AxisResult:
    """Do the edges that computed the answers still carry them?"""
    return axis_stage(
        stage,
        "circuit",
        lambda: circuit.run_circuit(
            models,
            run.tokenizer,
            forget,
            never,
            run.config,
            device=run.device,
            notes=notes,
            progress=run.progress,
        ),
    )


def run_membership(
    run: Run,
    models: dict[str, AuditedModel],
    forget: ItemSet,
    retain: ItemSet,
    never: ItemSet,
    notes: tuple[str, ...],
    stage,
) -> AxisResult:
    """Are forgotten items still told from never-taught ones?"""
    wordings, name = run.config.budget.prompts_per_item, signature_reading.NAME
    try:
        asked = signature_reading.select_sets(
            forget, retain, never, wordings, run.config.seed
        )
    except InputError as error:
        # Other axes can do without invented counterparts of the retain entities.
        return AxisResult(
            name, signature.QUESTION, "no_power", notes=(str(error), *notes)
        )
    sites: list[str] = []
    for role, subject in models.items():
        sites = stage(
            f"membership-states-{role}",
            lambda subject=subject: signature_reading.capture_states(
                subject, run.tokenizer, asked, run.store, run.device, run.progress
            ),
        )
    return axis_stage(
        stage,
        name,
        lambda: signature.run_membership(
            models,
            run.tokenizer,
            asked,
            sites,
            run.store,
            run.config,
            notes=notes,
            progress=run.progress,
        ),
    )

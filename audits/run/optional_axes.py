"""Axes that run only when named: concept, restoration, circuit, membership.

All can block ``deleted``. Concept and restoration can also make ``suppressed``: on tuning
models they found every suppression and no retrain (``docs/results/restoration.md``). Circuit and
membership only inform: their error rates are unmeasured or too high.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from audits.axes.circuit import axis as circuit
from audits.axes.concept import axis as concept
from audits.axes.decodability.tasks import Task
from audits.axes.membership import axis as membership
from audits.axes.membership import scores as membership_scores
from audits.axes.restoration import axis as restoration
from audits.core.context import AuditedModel, Run
from audits.core.workspace import axis_stage
from capture.data.items import ItemSet
from evidence.errors import InputError
from evidence.results import AxisResult


@dataclass(frozen=True)
class CapturedTasks:
    """Probing tasks, with the states of every model captured.

    Attributes:
        tasks: The probing tasks.
        sites: Where states were captured.
        notes: Relations that were left out, in sentences.
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
    """Run the concept axis."""
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
    never_taught: ItemSet,
    notes: tuple[str, ...],
    stage,
) -> AxisResult:
    """Run the restoration axis."""
    return axis_stage(
        stage,
        "restoration",
        lambda: restoration.run_restoration(
            models,
            run.tokenizer,
            forget,
            retain,
            never_taught,
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
    never_taught: ItemSet,
    notes: tuple[str, ...],
    stage,
) -> AxisResult:
    """Run the circuit axis."""
    return axis_stage(
        stage,
        "circuit",
        lambda: circuit.run_circuit(
            models,
            run.tokenizer,
            forget,
            never_taught,
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
    never_taught: ItemSet,
    notes: tuple[str, ...],
    stage,
) -> AxisResult:
    """Capture the states of the membership axis and run it."""
    wordings, name = run.config.budget.prompts_per_item, membership_scores.NAME
    try:
        sets = membership_scores.select_sets(
            forget, retain, never_taught, wordings, run.config.seed
        )
    except InputError as error:
        # Only this axis needs invented counterparts of the retain entities.
        return AxisResult(name, membership.QUESTION, "no_power", notes=(str(error), *notes))
    sites: list[str] = []
    for role, audited in models.items():
        sites = stage(
            f"membership-states-{role}",
            lambda audited=audited: membership_scores.capture_states(
                audited, run.tokenizer, sets, run.store, run.device, run.progress
            ),
        )
    return axis_stage(
        stage,
        name,
        lambda: membership.run_membership(
            models,
            run.tokenizer,
            sets,
            sites,
            run.store,
            run.config,
            notes=notes,
            progress=run.progress,
        ),
    )

"""One audit of text items from inputs to findings, resumable at every stage."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audits.axes import behaviour
from audits.core.config import make_config
from audits.core.context import Run, RunOf, open_run
from audits.core.inputs import open_inputs
from audits.core.preflight import Damage, compare_utility
from audits.core.workspace import StageRunner, axis_stage
from audits.run import baseline
from audits.run.disk_space import activation_size, check_disk_space
from audits.run.inner_axes import run_inner_axes
from capture.data.questions import build_questions
from capture.network.network_size import network_size
from evidence.progress import SILENT, Progress
from evidence.results import AxisResult

# Rough relative cost of a model's stages, for the progress bar.
BASELINE_COST, AXES_COST = 2.0, 4.0
SKIPPED_DAMAGED = (
    "The candidate is damaged, which decides the verdict; this profile does not look "
    "inside wreckage. The standard profile does."
)


@dataclass(frozen=True)
class Findings:
    """Everything that an audit computes before the verdict.

    Attributes:
        axes: Results by name.
        damage: Utility of the candidate.
        identical: Whether both models have the same weights.
        floor: "reference" or "never_taught".
        preflight: JSON-ready block of the same name.
        cost: Seconds and peak memory by stage.
    """

    axes: dict[str, AxisResult]
    damage: Damage
    identical: bool
    floor: str
    preflight: dict[str, Any]
    cost: dict[str, dict[str, float]]


def start(
    original: Any,
    unlearned: Any,
    forget: Any,
    retain: Any,
    out: Path,
    *,
    references: Sequence[Any] = (),
    never_taught: Any = None,
    tokenizer: Any = None,
    settings: dict[str, Any],
    fresh: bool = False,
    progress: Progress = SILENT,
) -> Run:
    """Check inputs and open the output folder; nothing is computed yet."""
    config = make_config(settings)
    inputs = open_inputs(
        original,
        unlearned,
        forget,
        retain,
        references=references,
        never_taught=never_taught,
        tokenizer=tokenizer,
        config=config,
        progress=progress,
    )
    check_disk_space(out, activation_size(inputs, config, network_size(inputs.original)))
    return open_run(inputs, config, out, fresh, progress)


def progress_units(run: RunOf[Any]) -> tuple[float, float]:
    """Progress units of the whole audit and of its inner axes; scoring the given items is 1."""
    models = len(run.models)
    inner = 0.0 if run.identical else AXES_COST * (models + 1)
    return 1 + BASELINE_COST * models + inner, inner


def collect(run: Run) -> Findings:
    """Compute every stage that is not saved yet."""
    runner = StageRunner(run.workspace, run.progress)
    stage = runner.stage
    total, inner = progress_units(run)
    with run.progress.task("audit", total) as advance:
        difference = stage("weights", lambda: baseline.weight_difference(run))
        first = stage("original", lambda: baseline.score_given_items(run))
        advance(1)
        forget, retain = baseline.select_known_items(run, first)
        never_taught = baseline.never_taught(run, forget, retain)
        baseline_scores = {}
        for role in run.models:
            baseline_scores[role] = stage(
                f"said-{role}",
                lambda role=role: baseline.score_baseline(run, role, forget, retain, never_taught),
            )
            advance(BASELINE_COST)
        wordings = run.config.budget.prompts_per_item
        questions = {
            name: build_questions(items, wordings)
            for name, items in (
                ("forget", forget),
                ("retain", retain),
                ("never_taught", never_taught),
            )
        }
        if not run.identical:
            baseline.check_swap(questions, baseline_scores)
            difference["components"] = stage(
                "edit-shape", lambda: baseline.edit_shape(run, forget, retain)
            )
        damage = compare_utility(
            baseline_scores["original"]["useful"],
            baseline_scores["unlearned"]["useful"],
            run.config.rule,
        )
        axes = {}
        if "behaviour" in run.config.axes:
            axes["behaviour"] = axis_stage(
                stage,
                "behaviour",
                lambda: behaviour.run_behaviour(
                    questions["forget"], questions["never_taught"], baseline_scores, run.config, ()
                ),
            )
        skipped = damage.found and not run.config.budget.look_inside_damage
        if not run.identical and not skipped:
            axes |= run_inner_axes(
                run,
                forget,
                retain,
                never_taught,
                baseline_scores,
                damage,
                "behaviour" in axes and axes["behaviour"].status == "absent",
                stage,
                lambda share: advance(share * inner),
            )
    preflight = {
        "identical_weights": run.identical,
        "weight_difference": difference,
        "known": {
            "forget_items": len(forget),
            "forget_items_given": len(run.inputs.forget),
            "forget_entities": len(forget.entities),
            "retain_items": len(retain),
            "retain_entities": len(retain.entities),
            "never_taught_entities": len(never_taught.entities),
        },
        "utility": {"shares": damage.shares, "damage": list(damage.reasons)},
        "free_text": {
            "prompts": baseline_scores["original"]["useful"]["prompts"],
            "original": baseline_scores["original"]["useful"]["texts"],
            "unlearned": baseline_scores["unlearned"]["useful"]["texts"],
        },
        "warnings": [*run.inputs.warnings, *([SKIPPED_DAMAGED] if skipped else [])],
    }
    floor = "reference" if run.inputs.references else "never_taught"
    axes = runner.with_cost(axes)
    return Findings(axes, damage, run.identical, floor, preflight, runner.cost)

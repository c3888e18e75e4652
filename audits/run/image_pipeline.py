"""One audit of image classifiers from inputs to findings, as ``audits.run.pipeline``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from audits.axes import image_behaviour
from audits.core.config import make_config
from audits.core.context import ImageRun, open_run
from audits.core.preflight import compare_utility
from audits.core.workspace import StageRunner
from audits.modalities.image_baseline import (
    EvaluationSets,
    check_swap,
    score_baseline,
    select,
    selected_sets,
)
from audits.modalities.images import open_images
from audits.run.baseline import weight_difference
from audits.run.image_axes import run_inner_axes
from audits.run.pipeline import BASELINE_COST, SKIPPED_DAMAGED, Findings, progress_units
from evidence.progress import SILENT, Progress
from evidence.results import AxisResult


def start_images(
    original: Any,
    unlearned: Any,
    forget: Any,
    retain: Any,
    out: Path,
    *,
    references: Sequence[Any] = (),
    never_taught: Any = None,
    settings: dict[str, Any],
    fresh: bool = False,
    progress: Progress = SILENT,
) -> ImageRun:
    """Check inputs and open the output folder; nothing is computed yet."""
    config = make_config(settings)
    inputs = open_images(
        original,
        unlearned,
        forget,
        retain,
        references=references,
        never_taught=never_taught,
        progress=progress,
    )
    return open_run(inputs, config, out, fresh, progress)


def collect_images(run: ImageRun) -> Findings:
    """Compute every stage that is not saved yet."""
    runner = StageRunner(run.workspace, run.progress)
    stage = runner.stage
    total, inner = progress_units(run)
    with run.progress.task("audit", total) as advance:
        difference = stage("weights", lambda: weight_difference(run))
        chosen = stage("original", lambda: select(run))
        advance(1)
        sets = selected_sets(run, chosen)
        baseline_scores = {}
        for role in run.models:
            baseline_scores[role] = stage(
                f"said-{role}", lambda role=role: score_baseline(run, role, sets)
            )
            advance(BASELINE_COST)
        if not run.identical:
            check_swap(baseline_scores["unlearned"])
        damage = compare_utility(
            baseline_scores["original"]["useful"],
            baseline_scores["unlearned"]["useful"],
            run.config.rule,
        )
        axes: dict[str, AxisResult] = {}
        if "behaviour" in run.config.axes:
            axes["behaviour"] = image_behaviour.run_behaviour(
                sets, baseline_scores, chosen["never_called"], run.config
            )
        skipped = damage.found and not run.config.budget.look_inside_damage
        if not run.identical and not skipped:
            axes |= run_inner_axes(run, sets, damage, stage, lambda share: advance(share * inner))
    preflight = {
        "identical_weights": run.identical,
        "weight_difference": difference,
        "known": _counts(run, sets),
        "utility": {"shares": damage.shares, "damage": list(damage.reasons)},
        "warnings": [*run.inputs.warnings, *([SKIPPED_DAMAGED] if skipped else [])],
    }
    floor = "reference" if run.inputs.references else "never_taught"
    axes = runner.with_cost(axes)
    return Findings(axes, damage, run.identical, floor, preflight, runner.cost)


def _counts(run: ImageRun, sets: EvaluationSets) -> dict[str, int]:
    return {
        "forget_items": len(sets.forget),
        "forget_items_given": len(run.inputs.forget),
        "forget_entities": len(sets.forget),
        "retain_items": len(sets.retain),
        "retain_entities": len(sets.retain),
        "never_taught_entities": len(sets.never),
    }

"""One audit of image classifiers from inputs to findings, as ``audits.run.pipeline``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from audits.axes import image_behaviour
from audits.core.config import make_config
from audits.core.context import ImageRun, begin
from audits.core.preflight import utility
from audits.core.workspace import Ledger
from audits.modalities.image_baseline import Cast, cast, cast_of, check_swap, listen
from audits.modalities.images import open_images
from audits.run.baseline import weights
from audits.run.image_axes import inner_axes
from audits.run.pipeline import LISTENING, SKIPPED, Findings, lengths
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
    return begin(inputs, config, out, fresh, progress)


def collect_images(run: ImageRun) -> Findings:
    """Compute every stage that is not saved yet."""
    ledger = Ledger(run.space, run.progress)
    stage = ledger.stage
    whole, inner = lengths(run)
    with run.progress.task("audit", whole) as advance:
        difference = stage("weights", lambda: weights(run))
        chosen = stage("original", lambda: cast(run))
        advance(1)
        sets = cast_of(run, chosen)
        heard = {}
        for role in run.subjects:
            heard[role] = stage(
                f"said-{role}", lambda role=role: listen(run, role, sets)
            )
            advance(LISTENING)
        if not run.identical:
            check_swap(heard["unlearned"])
        damage = utility(
            heard["original"]["useful"], heard["unlearned"]["useful"], run.config.rule
        )
        axes: dict[str, AxisResult] = {}
        if "behaviour" in run.config.axes:
            axes["behaviour"] = image_behaviour.run_behaviour(
                sets, heard, chosen["never_called"], run.config
            )
        skipped = damage.found and not run.config.budget.look_inside_damage
        if not run.identical and not skipped:
            axes |= inner_axes(
                run, sets, damage, stage, lambda share: advance(share * inner)
            )
    preflight = {
        "identical_weights": run.identical,
        "weight_difference": difference,
        "known": _counts(run, sets),
        "utility": {"shares": damage.shares, "damage": list(damage.reasons)},
        "warnings": [*run.inputs.warnings, *([SKIPPED] if skipped else [])],
    }
    floor = "reference" if run.inputs.references else "never_taught"
    axes = ledger.charged(axes)
    return Findings(axes, damage, run.identical, floor, preflight, ledger.cost)


def _counts(run: ImageRun, sets: Cast) -> dict[str, int]:
    return {
        "forget_items": len(sets.forget),
        "forget_items_given": len(run.inputs.forget),
        "forget_entities": len(sets.forget),
        "retain_items": len(sets.retain),
        "retain_entities": len(sets.retain),
        "never_taught_entities": len(sets.never),
    }

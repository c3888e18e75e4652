"""One audit of image classifiers from inputs to findings, as ``audits.run``."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from audits import image_behaviour
from audits.config import make_config
from audits.image_axes import inner_axes
from audits.image_inputs import ImageRun, open_images
from audits.image_look import Cast, cast, cast_of, check_swap, listen
from audits.manifest import code_hash
from audits.outer import weights
from audits.preflight import utility
from audits.run import INNER, LISTENING, SKIPPED, Findings
from audits.stages import Stage, Workspace
from audits.subjects import choose_device
from evidence.axis import AxisResult
from evidence.progress import SILENT, Progress


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
    """Check inputs and open the output folder; nothing has been computed yet."""
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
    device = choose_device(config.device)
    fingerprint = inputs.fingerprint() | {
        "config": config.model_dump(mode="json"),
        "device": device,
        "code": code_hash(),
    }
    space = Workspace.open(Path(out), fingerprint, fresh)
    return ImageRun(inputs, config, space, device, progress)


def collect_images(run: ImageRun) -> Findings:
    """Compute every stage that is not there yet."""
    cost: dict[str, dict[str, float]] = {}

    def stage(name: str, compute) -> Any:
        done: Stage = run.space.run(name, compute)
        cost[name] = {
            "seconds": done.seconds,
            "peak_memory_bytes": done.peak_memory_bytes,
        }
        return done.result

    models = len(run.subjects)
    length = 0.0 if run.identical else INNER * (models + 1)
    with run.progress.task("audit", 1 + LISTENING * models + length) as advance:
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
                run, sets, damage, stage, lambda share: advance(share * length)
            )
    for name, axis in axes.items():
        spent = cost.get(name, {"seconds": 0.0, "peak_memory_bytes": 0})
        axes[name] = replace(
            axis,
            seconds=spent["seconds"],
            peak_memory_bytes=int(spent["peak_memory_bytes"]),
        )
    preflight = {
        "identical_weights": run.identical,
        "weight_difference": difference,
        "known": _counts(run, sets),
        "utility": {"shares": damage.shares, "damage": list(damage.reasons)},
        "warnings": [*run.inputs.warnings, *([SKIPPED] if skipped else [])],
    }
    floor = "reference" if run.inputs.references else "never_taught"
    return Findings(axes, damage, run.identical, floor, preflight, cost)


def _counts(run: ImageRun, sets: Cast) -> dict[str, int]:
    return {
        "forget_items": len(sets.forget),
        "forget_items_given": len(run.inputs.forget),
        "forget_entities": len(sets.forget),
        "retain_items": len(sets.retain),
        "retain_entities": len(sets.retain),
        "never_taught_entities": len(sets.never),
    }

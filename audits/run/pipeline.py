"""One audit from inputs to findings, for every modality, resumable at every stage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audits.axes.base import Axis, JudgementContext, measured_stage
from audits.core.baseline_scores import RoleBaseline
from audits.core.config import AuditConfig, make_config
from audits.core.context import AuditContext, RunOf, open_run
from audits.core.preflight import Damage, compare_utility
from audits.core.registry import AXES, MODALITIES, load_axis, load_modality
from audits.core.roles import Role
from audits.modalities.base import Modality, Sources
from audits.modalities.planting import PLANTED_FILE, Planted, planted_model
from audits.output.workspace import StageRunner
from audits.run.cost import plan_inputs, total_cost
from audits.run.disk_space import check_disk_space
from audits.run.weights import WeightDifference, weight_difference
from capture.checkpoints.weight_change import ComponentChange
from capture.network.untouched import Untouched
from evidence.progress import AUTO, Advance, Progress, as_progress
from evidence.results import AxisResult
from evidence.typed_json import Json, to_json_object

# Rough relative cost of a model's stages, for the progress bar.
BASELINE_COST, AXES_COST, PLANTING_SHARE = 2.0, 4.0, 0.15
SKIPPED_DAMAGED = (
    "The candidate is damaged, which decides the verdict; this profile does not look inside "
    "damaged models. The standard profile does."
)


@dataclass(frozen=True)
class Findings:
    """Everything that an audit computes before the verdict.

    Attributes:
        axes: Results by name.
        damage: Utility of the candidate.
        identical: Whether both models have the same weights.
        floor: "reference", "never_taught" or "permuted".
        preflight: JSON-ready block of the same name.
        cost: Seconds and peak memory by stage.
        untouched: Parts of the candidate that are the original's bit for bit, where known.
    """

    axes: dict[str, AxisResult]
    damage: Damage
    identical: bool
    floor: str
    preflight: dict[str, Json]
    cost: dict[str, dict[str, float]]
    untouched: Untouched | None = None


@dataclass(frozen=True)
class OpenAudit:
    """An audit whose inputs were checked, in its output folder."""

    run: RunOf[Any]
    modality: Modality[Any]

    @property
    def axes(self) -> dict[str, Axis[Any]]:
        """The requested axes that this modality has, in the order in which they run."""
        requested = {name: load_axis(name) for name in self.run.config.ordered_axes}
        return {
            name: axis for name, axis in requested.items() if self.modality.name in axis.spec.forms
        }


def modality_of(*sources: Any) -> Modality[Any]:
    """The modality that serves one of these sources of items; text by default."""
    others = [load_modality(name) for name in MODALITIES if name != "text"]
    for modality in others:
        if any(modality.serves(source) for source in sources):
            return modality
    return load_modality("text")


def start(
    sources: Sources,
    out: Path,
    settings: Mapping[str, Any],
    fresh: bool = False,
    progress: Progress = AUTO,
) -> OpenAudit:
    """Check inputs and open the output folder; nothing is computed yet."""
    modality = modality_of(sources.forget, sources.retain)
    config = make_config(dict(settings))
    inputs = modality.open_inputs(sources, config, progress)
    check_disk_space(out, total_cost(plan_inputs(modality, inputs, config)).disk)
    return OpenAudit(open_run(inputs, config, out, fresh, progress), modality)


def collect(opened: OpenAudit) -> Findings:
    """Compute every stage that is not saved yet."""
    run, modality, axes = opened.run, opened.modality, opened.axes
    stages = StageRunner(run.workspace, run.progress)
    inner = 0.0 if run.identical else AXES_COST * (len(run.models) + 1)
    total = 1 + BASELINE_COST * len(run.models) + inner
    with as_progress(run.progress).task("audit", total) as advance:
        difference = stages.typed("weights", WeightDifference, lambda: weight_difference(run))
        sets = modality.select(run, stages)
        advance(1)
        baseline: dict[Role, RoleBaseline] = {}
        for role in run.models:
            baseline[role] = stages.typed(
                f"baseline-{role}",
                RoleBaseline,
                lambda role=role: modality.score_baseline(run, role, sets),
            )
            advance(BASELINE_COST)
        components = None
        if not run.identical:
            modality.check_swapped(run, sets, baseline)
            if modality.edit_shape is not None:
                shape = modality.edit_shape
                components = stages.typed(
                    "edit-shape",
                    tuple[ComponentChange, ...],
                    lambda: shape(run, sets, difference.changed),
                )
        damage = _damage(baseline, run.config)
        ctx = AuditContext(run, stages, sets, run.models, baseline, damage)
        judging = JudgementContext(run.config, modality.name, damage)
        results = {
            name: _result(axis, ctx, judging) for name, axis in axes.items() if not axis.spec.inside
        }
        planted = None
        inside = {name: axis for name, axis in axes.items() if axis.spec.inside}
        skipped = damage.found and not run.config.budget.probe_damaged_models
        if inside and not run.identical and not skipped:
            planted, found = _look_inside(
                opened, ctx, inside, results, lambda x: advance(x * inner)
            )
            results |= found
        run.loaded.release()
    unavailable = [
        f"{name}: not run on {modality.name}; {axis.spec.unavailable[modality.name]}."
        for name in AXES
        for axis in [load_axis(name)]
        if modality.name in axis.spec.unavailable
    ]
    warnings = [*unavailable, *run.inputs.warnings, *([SKIPPED_DAMAGED] if skipped else [])]
    return Findings(
        stages.with_cost(results),
        damage,
        run.identical,
        "reference" if run.inputs.references else modality.floor(sets),
        _preflight(opened, sets, difference, components, baseline, damage, planted, warnings),
        stages.cost,
        difference.untouched,
    )


def _look_inside(
    opened: OpenAudit,
    ctx: AuditContext[Any],
    axes: Mapping[str, Axis[Any]],
    at_output: Mapping[str, AxisResult],
    advance: Advance,
) -> tuple[Planted, dict[str, AxisResult]]:
    """Plant a suppression, then measure and judge the axes that look inside the candidate."""
    run, modality = opened.run, opened.modality
    planted = ctx.stage("planted", Planted, lambda: modality.plant(run, ctx.sets), [PLANTED_FILE])
    if planted.made:
        model = planted_model(run.models[Role.ORIGINAL], run.workspace.work)
        ctx = ctx.with_model(Role.PLANTED, model)
    advance(PLANTING_SHARE)
    behaviour = at_output["behaviour"].status if "behaviour" in at_output else None
    judging = JudgementContext(run.config, modality.name, ctx.damage, behaviour, planted.notes)
    results = {}
    share = (1 - PLANTING_SHARE) / sum(axis.spec.work for axis in axes.values())
    for name, axis in axes.items():
        results[name] = _result(axis, ctx, judging)
        advance(share * axis.spec.work)
    return planted, results


def _result(axis: Axis[Any], ctx: AuditContext[Any], judging: JudgementContext) -> AxisResult:
    """Measure an axis, or read its measurement back, and judge it."""
    name, measure = axis.spec.id, axis.measure[judging.modality]
    measured = ctx.stage(measured_stage(name), axis.stored, lambda: measure(ctx))
    return ctx.stages.timed(f"{name}-judged", lambda: axis.result(measured, judging))


def _damage(baseline: Mapping[Role, RoleBaseline], config: AuditConfig) -> Damage:
    original, candidate = (baseline[role].utility for role in (Role.ORIGINAL, Role.CANDIDATE))
    assert original is not None and candidate is not None  # only references have none
    return compare_utility(original, candidate, config.rule)


def _preflight(
    opened: OpenAudit,
    sets: Any,
    difference: WeightDifference,
    components: Sequence[ComponentChange] | None,
    baseline: Mapping[Role, RoleBaseline],
    damage: Damage,
    planted: Planted | None,
    warnings: list[str],
) -> dict[str, Json]:
    """The block of the same name of ``audit.json``."""
    run = opened.run
    weights: dict[str, Json] = {
        "relative": difference.relative,
        "layers": [{"layer": each.layer, "relative": each.relative} for each in difference.layers],
        "tensors_changed": len(difference.changed),
        "tensors": difference.tensors,
    }
    if difference.untouched is not None:
        weights["untouched"] = to_json_object(difference.untouched)
    if components is not None:
        weights["components"] = [to_json_object(each) for each in components]
    block: dict[str, Json] = {
        "identical_weights": run.identical,
        "weight_difference": weights,
        "known": opened.modality.counts(run.inputs, sets),
        "utility": {"shares": damage.shares, "damage": list(damage.reasons)},
        "warnings": warnings,
    }
    if planted is not None:
        block["planted"] = {
            "made": planted.made,
            "forget": planted.forget,
            "retain": planted.retain,
            "tensors": len(planted.tensors),
        }
    asking = opened.modality.asking(run, sets)
    if asking:
        block["asking"] = asking
    original, candidate = (baseline[role].utility for role in (Role.ORIGINAL, Role.CANDIDATE))
    if original is not None and candidate is not None and original.prompts:
        block["free_text"] = {
            "prompts": list(original.prompts),
            "original": list(original.texts),
            "unlearned": list(candidate.texts),
        }
    return block

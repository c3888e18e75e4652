"""Upper bound of what an audit takes: the sum over its stages and axes."""

from typing import Any

from audits.core.config import AuditConfig
from audits.core.cost import Cost, PlanInputs
from audits.core.inputs import InputsOf
from audits.core.registry import load_axis
from audits.core.scores import Part
from audits.modalities.base import Modality
from audits.modalities.planting import MORE_STEPS
from capture.network.network_size import network_size

PARTS = (Part.FORGET, Part.RETAIN, Part.NEVER_TAUGHT)
# Retain rows that planting trains on, as a multiple of the forget rows.
PLANTING_RETAIN = 3


def plan_inputs(modality: Modality[Any], inputs: InputsOf[Any], config: AuditConfig) -> PlanInputs:
    """What costs are estimated from; no model is run."""
    amounts = modality.amounts(inputs, config, config.budget.prompts_per_item)
    return PlanInputs(
        modality.name,
        config,
        inputs,
        network_size(inputs.original),
        amounts,
        modality.amounts(inputs, config, 1),
        len(inputs.references),
        modality.spoken(inputs, config, amounts),
    )


def looks_inside(plan: PlanInputs) -> bool:
    """Whether an axis will look inside the candidate."""
    same = plan.inputs.original.weights_hash == plan.inputs.unlearned.weights_hash
    axes = (load_axis(name).spec for name in plan.config.ordered_axes)
    return not same and any(axis.inside and plan.modality in axis.forms for axis in axes)


def total_cost(plan: PlanInputs) -> Cost:
    """Baseline, planting and every axis that runs."""
    inside = looks_inside(plan)
    n_scored = plan.n_models if inside else plan.n_models - 1
    cost = Cost(forward=n_scored * (plan.units(*PARTS) + plan.spoken))
    if not inside:
        return cost
    budget = plan.config.budget
    steps = budget.plant_steps * (len(budget.plant_rates) + sum(MORE_STEPS))
    batch = (1 + PLANTING_RETAIN) * plan.main_prompts[Part.FORGET].units
    # Blocks below the trained one are computed once.
    trained = steps * batch // (plan.size.n_layers or 1)
    cost += Cost(trained=trained, copies=2)
    for name in plan.config.ordered_axes:
        axis = load_axis(name)
        if plan.modality in axis.spec.forms:
            cost += axis.cost(plan)
    return cost

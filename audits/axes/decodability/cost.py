"""Upper bound of the states that the probing tasks store."""

from math import ceil

from audits.axes.decodability.tasks import TaskPart
from audits.axes.decodability.text_probes import make_audit_tasks
from audits.core.cost import Cost, PlanInputs
from audits.core.item_sets import make_never_taught, within_budget
from audits.core.scores import Part
from capture.activations.store import stored_bytes

# Blocks of statements vary in size, since no entity or answer occurs twice in one.
BLOCK_SLACK = 1.1


def probing_cost(plan: PlanInputs) -> Cost:
    """States of every text of every task, in every model.

    The audit itself captures this if the original answers every item. If it answers fewer,
    blocks of statements can be larger; the bound allows for that.
    """
    inputs, config, tokenizer = plan.inputs, plan.config, plan.inputs.original.tokenizer
    retain = within_budget(inputs.retain, config)
    never_taught, _ = make_never_taught(inputs.forget, retain, inputs.never_taught, config)
    tasks, _ = make_audit_tasks(inputs.forget, retain, never_taught, tokenizer, config)
    parts = [part for task in tasks for part in task.parts.values()]
    max_rows_by_part = [max_rows(part, config.budget.block) for part in parts]
    rows = sum(max_rows_by_part)
    tokens = sum(
        ceil(sum(map(len, part.encoded(tokenizer).ids)) * most / max(1, len(part)))
        for part, most in zip(parts, max_rows_by_part, strict=True)
    )
    width, sites = plan.size.d_model or 0, (plan.size.n_layers or 0) + 1
    stored = stored_bytes(rows, width, sites)
    models = plan.n_models
    return Cost(captured_rows=models * rows, captured=models * tokens, disk=models * stored)


def cost(plan: PlanInputs) -> Cost:
    """The stored states of text; of images, a pass over every set that keeps nothing."""
    if plan.modality == "text":
        return probing_cost(plan)
    return Cost(forward=plan.n_models * plan.units(Part.FORGET, Part.RETAIN, Part.NEVER_TAUGHT))


def max_rows(part: TaskPart, block: int) -> int:
    """Maximum number of rows of a part over all numbers of known items."""
    true_rows = [row for row, label in enumerate(part.labels) if label]
    if not part.with_answer or not true_rows:
        return len(part)
    items = len({(part.entities[row], part.answers[row]) for row in true_rows})
    max_statements = max(_statements(count, block) for count in range(1, items + 1))
    return ceil(BLOCK_SLACK * len(part) * max_statements / _statements(items, block))


def _statements(items: int, block: int) -> int:
    """Number of statements about ``items`` in even blocks."""
    blocks = max(1, items // block)
    size, larger = divmod(items, blocks)
    return larger * (size + 1) ** 2 + (blocks - larger) * size**2

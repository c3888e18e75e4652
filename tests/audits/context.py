"""What the axes of an audit measure with, before any of them runs."""

from pathlib import Path

from audits.core.context import AuditContext
from audits.core.preflight import Damage
from audits.core.roles import Role
from audits.modalities.base import Sources
from audits.modalities.planting import PLANTED_FILE, Planted, planted_model
from audits.output.workspace import StageRunner
from audits.run.pipeline import start


def open_context(sources: Sources, out: Path, **settings) -> AuditContext:
    """Select the items and plant the suppression of an audit; nothing is scored.

    Args:
        out: Output folder.
        settings: Settings of the audit.
    """
    opened = start(sources, out, {"seed": 0, "device": "cpu"} | settings)
    run, modality = opened.run, opened.modality
    stages = StageRunner(run.workspace)
    sets = modality.select(run, stages)
    planted = stages.typed("planted", Planted, lambda: modality.plant(run, sets), [PLANTED_FILE])
    assert planted.made
    model = planted_model(run.models[Role.ORIGINAL], run.workspace.work)
    ctx = AuditContext(run, stages, sets, run.models, {}, Damage({}, ()))
    return ctx.with_model(Role.PLANTED, model)

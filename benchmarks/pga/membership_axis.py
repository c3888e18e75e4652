"""The membership axis on models whose state is known: how often is it right?"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from audits.axes.base import JudgementContext
from audits.axes.membership.axis import AXIS, SPEC
from audits.core.config import Rule, make_config
from audits.core.context import AuditContext, AuditedModel, open_run
from audits.core.inputs import open_inputs
from audits.core.item_sets import TextSets
from audits.core.preflight import Damage
from audits.core.roles import Role
from audits.modalities.planting import planted_model
from audits.modalities.text import plant_suppression
from audits.output.workspace import StageRunner
from benchmarks.harness.results import Row, at_least, at_most, row
from benchmarks.harness.runner import Run
from capture.checkpoints.open import open_checkpoint
from capture.data.items import read_items
from evidence.progress import SILENT, Display
from evidence.results import AxisResult
from testbeds.worlds.biographies import STANDARD, build_bios
from testbeds.worlds.random_models import Family
from testbeds.zoo.build import sized

KNOWS = ("untouched", "last_block_relabel", "logit_mask")
NEVER_KNEW = ("twin", "retrain_1", "retrain_2", "retrain_3")
OTHER = ("collapse",)


def axis(run: Run) -> Iterator[Row]:
    """The membership axis on models of the zoo, which must be there."""
    models = []
    held_out: tuple[tuple[Family, int], ...] = (("llama", 10), ("gpt2", 10))
    tuning: tuple[tuple[Family, int], ...] = (("llama", 0), ("llama", 1))
    for root, part, worlds in (
        (run.args.zoo, "held out", held_out),
        (run.args.tuning_zoo, "tuning", tuning),
    ):
        for family, seed in worlds:
            models += of_world(root, part, family, seed, run.progress)
    run.payload["models"] = models
    yield from axis_rows(models)


def of_world(root: Path, part: str, family: Family, seed: int, progress: Display) -> Iterator[dict]:
    """What the axis says of each model of a world: readings and status by floor."""
    config, damage = make_config({"seed": 0}), Damage({}, ())
    world = build_bios(sized(STANDARD, family), seed, root / "worlds")
    reference = world.root / "reference"
    forget, retain, never_taught = map(read_items, (world.forget, world.retain, world.never_taught))
    inputs = open_inputs(
        world.original,
        world.original,
        forget,
        retain,
        references=[reference] if reference.is_dir() else [],
        never_taught=never_taught,
        tokenizer=None,
        config=config,
        progress=SILENT,
    )
    with TemporaryDirectory() as scratch:
        run = open_run(inputs, config, Path(scratch) / "audit", False, SILENT)
        sets = TextSets(forget, retain, never_taught)
        models = dict(run.models)
        if plant_suppression(run, sets).made:
            models[Role.PLANTED] = planted_model(models[Role.ORIGINAL], run.workspace.work)
        kinds = [
            (kind, place)
            for kind in (*KNOWS, *NEVER_KNEW, *OTHER)
            if (place := root / "models" / f"bios-{family}-{seed}-{kind}").is_dir()
        ]
        with progress.task(f"{part}: {family} {seed}", len(kinds)) as advance:
            for kind, place in kinds:
                models[Role.CANDIDATE] = AuditedModel.of(Role.CANDIDATE, open_checkpoint(place))
                ctx = AuditContext(run, StageRunner(run.workspace), sets, models, {}, damage)
                measured = AXIS.measure["text"](ctx)
                result = AXIS.result(measured, JudgementContext(config, "text", damage))
                about = {"part": part, "family": family, "seed": seed, "kind": kind}
                yield about | _seen(result, config.rule)
                advance(1)


def _seen(result: AxisResult, rule: Rule) -> dict:
    """What one audit's axis found, against each floor it has."""
    by_floor = {}
    for reading in result.readings:
        status, _ = SPEC.form("text").status([reading], result.controls, rule)
        by_floor[reading.floor_kind] = {
            "status": status,
            "auc": round(reading.statistic, 4),
            "where": reading.where,
            "residual": round(reading.residual, 3),
            "low": round(reading.residual_interval[0], 3),
            "high": round(reading.residual_interval[1], 3),
            "p": round(reading.p_value, 5),
        }
    return {
        "status": result.status,
        "classifier": result.details.get("classifier"),
        "auc": result.details.get("auc"),
        "floors": by_floor,
        "failed": [each.name for each in result.controls if not each.passed],
    }


def axis_rows(found: list[dict]) -> Iterator[Row]:
    """Shares of models called right, by part and floor."""
    for part in dict.fromkeys(each["part"] for each in found):
        mine = [each for each in found if each["part"] == part]
        silent = [each for each in mine if not each["floors"]]
        figure = f"membership axis, {part}: silent, the original not told apart"
        shapes = ", ".join(dict.fromkeys(each["family"] for each in silent)) or "none"
        share, n = len(silent) / len(mine), len(mine)
        yield row(figure, share, at_most(), "of models", shapes, n)
        for floor in ("never_taught", "reference"):
            here = [
                (each["kind"], each["floors"][floor])
                for each in found
                if each["part"] == part and floor in each["floors"]
            ]
            for name, kinds, goal in (
                ("knows: retained", KNOWS, at_least(1.0)),
                ("never knew: retained", NEVER_KNEW, at_most(0.0)),
            ):
                mine = [seen for kind, seen in here if kind in kinds]
                if not mine:
                    continue
                share = np.mean([seen["status"] == "retained" for seen in mine])
                areas = [seen["auc"] for seen in mine]
                words, n = floor.replace("_", "-"), len(mine)
                figure = f"membership axis, {part}, {words} floor, {name}"
                peer = f"AUC {min(areas):.2f} to {max(areas):.2f}"
                yield row(figure, share, goal, "of models", peer, n)

"""The membership axis on models whose state is known: how often is it right?"""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from audits.axes.membership.axis import run_membership, status_of
from audits.axes.membership.scores import capture_states, select_sets
from audits.core.config import make_config
from audits.core.context import AuditedModel
from audits.run.planting import plant, planted_model
from benchmarks.pga.simulated import row
from capture.activations.store import ActivationStore
from capture.checkpoints.open import open_checkpoint
from capture.data.items import read_items
from evidence.progress import SILENT, Progress
from evidence.results import AxisResult
from testbeds.worlds.biographies import STANDARD, build_bios
from testbeds.worlds.random_models import Family
from testbeds.zoo.build import sized

KNOWS = ("untouched", "last_block_relabel", "logit_mask")
NEVER_KNEW = ("twin", "retrain_1", "retrain_2", "retrain_3")
OTHER = ("collapse",)


def axis(
    root: Path,
    part: str,
    worlds: list[tuple[Family, int]],
    progress: Progress,
) -> list[dict]:
    """One row a model of these worlds: readings, controls and status, by floor.

    Args:
        root: Of a zoo whose models are made.
        part: "tuning" or "held out", for the rows.
        worlds: Families and seeds.
        progress: Shows models.
    """
    found = []
    config = make_config({"seed": 0})
    for family, seed in worlds:
        world = build_bios(sized(STANDARD, family), seed, root / "worlds")
        sets = [
            read_items(place)
            for place in (world.forget, world.retain, world.never_taught)
        ]
        asked = select_sets(*sets, config.budget.prompts_per_item, config.seed)
        checkpoint = open_checkpoint(world.original)
        subjects = {"original": AuditedModel.of("original", checkpoint)}
        with TemporaryDirectory() as scratch:
            store = ActivationStore(Path(scratch) / "store")
            made = plant(
                subjects["original"],
                checkpoint.tokenizer,
                list(sets[0]),
                list(sets[1])[: 3 * len(sets[0])],
                config.budget,
                Path(scratch),
                device="cpu",
                seed=0,
                progress=SILENT,
            )
            if made["made"]:
                subjects["planted"] = planted_model(subjects["original"], Path(scratch))
            reference = world.root / "reference"
            if reference.is_dir():
                subjects["reference-1"] = AuditedModel.of(
                    "reference-1", open_checkpoint(reference)
                )
            kinds = [
                (kind, place)
                for kind in (*KNOWS, *NEVER_KNEW, *OTHER)
                if (place := root / "models" / f"bios-{family}-{seed}-{kind}").is_dir()
            ]
            with progress.task(f"{part}: {family} {seed}", len(kinds)) as advance:
                for kind, place in kinds:
                    mine = subjects | {
                        "unlearned": AuditedModel.of(
                            "unlearned", open_checkpoint(place)
                        )
                    }
                    sites: list[str] = []
                    for subject in mine.values():
                        sites = capture_states(
                            subject, checkpoint.tokenizer, asked, store, "cpu", SILENT
                        )
                    result = run_membership(
                        mine,
                        checkpoint.tokenizer,
                        asked,
                        sites,
                        store,
                        config,
                        notes=(),
                        progress=SILENT,
                    )
                    where = {"part": part, "family": family, "seed": seed}
                    found.append(where | {"kind": kind} | _seen(result, config.rule))
                    advance(1)
    return found


def _seen(result: AxisResult, rule) -> dict:
    """What one audit's axis found, against each floor it has."""
    by_floor = {}
    for reading in result.readings:
        status, _ = status_of([reading], result.controls, rule)
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
        "reader": result.details.get("reader"),
        "auc": result.details.get("auc"),
        "floors": by_floor,
        "failed": [each.name for each in result.controls if not each.passed],
    }


def axis_rows(found: list[dict]) -> list[dict]:
    """Shares of models called right, by part and floor."""
    rows = []
    for part in dict.fromkeys(each["part"] for each in found):
        mine = [each for each in found if each["part"] == part]
        silent = [each for each in mine if not each["floors"]]
        rows.append(
            row(
                f"membership axis, {part}: silent, the original not told apart",
                len(silent) / len(mine),
                None,
                "<=",
                ", ".join(dict.fromkeys(each["family"] for each in silent)) or "none",
                len(mine),
                unit="of models",
            )
        )
        for floor in ("never_taught", "reference"):
            here = [
                (each["kind"], each["floors"][floor])
                for each in found
                if each["part"] == part and floor in each["floors"]
            ]
            for name, kinds, wanted in (
                ("knows: retained", KNOWS, 1.0),
                ("never knew: retained", NEVER_KNEW, 0.0),
            ):
                mine = [seen for kind, seen in here if kind in kinds]
                if not mine:
                    continue
                share = np.mean([seen["status"] == "retained" for seen in mine])
                rows.append(
                    row(
                        f"membership axis, {part}, {floor.replace('_', '-')} floor, "
                        f"{name}",
                        share,
                        wanted,
                        ">=" if wanted else "<=",
                        "AUC "
                        f"{min(s['auc'] for s in mine):.2f} to "
                        f"{max(s['auc'] for s in mine):.2f}",
                        len(mine),
                        unit="of models",
                    )
                )
    return rows

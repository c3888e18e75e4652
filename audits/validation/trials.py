"""Audits of models of known state, in parallel processes."""

import json
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audits.output.manifest import code_hash
from audits.run.api import audit
from audits.validation.relearning_grade import RelearningCurve, grade, measure_relearning
from audits.validation.workers import workers
from capture.checkpoints.open import open_checkpoint
from capture.checkpoints.schemas.library_errors import quiet_transformers
from evidence.errors import ExhumeError
from evidence.progress import SILENT
from evidence.storage.files import atomic_folder, read_json, write_atomic
from evidence.storage.locks import creation_lock
from testbeds.edits.workbench import TextWorkbench
from testbeds.worlds.biographies import BiosWorld
from testbeds.worlds.random_models import Family
from testbeds.zoo.build import Specimen, build_zoo
from testbeds.zoo.registry import WORLDS

FLOORS = ("never_taught", "reference")
# Offset of the reference's seed; no kind of the zoo uses it.
REFERENCE = 9000


@dataclass(frozen=True)
class AuditPlan:
    """Models to audit, and the audits' settings.

    Attributes:
        root: Folder of models and audits.
        worlds: Pairs of family and seed.
        kinds: Kinds of models.
        floors: Some of ``FLOORS``.
        graded: Kinds that get a relearning grade; of kinds whose state is measured on each model,
            the models without a certain one.
        device: Where models are trained and audited.
        profile: Profile of the audits.
        config: Size of worlds and models; the world's standard by default.
        world: "bios", "smol" or "codes", a text world of the zoo.
    """

    root: Path
    worlds: tuple[tuple[Family, int], ...]
    kinds: tuple[str, ...]
    floors: tuple[str, ...] = FLOORS
    graded: tuple[str, ...] = ()
    device: str = "cpu"
    profile: str = "quick"
    config: Any = None
    world: str = "bios"

    def sized(self, family: Family) -> Any:
        """Configuration for models of ``family``."""
        world = WORLDS[self.world]
        return world.sized(self.config or world.standard, family)

    def workbench(self, world: BiosWorld, family: Family, seed: int) -> TextWorkbench:
        """The workbench on which models are made and graded."""
        return WORLDS[self.world].workbench(world, self.sized(family), seed, self.device)


def run_plan(plan: AuditPlan, jobs: int, limit_s: float = float("inf")) -> Iterator[dict]:
    """Make and audit every model; one dict per audit, in order of completion.

    Args:
        jobs: Number of processes; with several, each computes on one thread.
        limit_s: No new model is started after this many seconds.

    Yields:
        Dicts with ``model, kind, state, family, seed, floor, shows, weights, gold`` (the grade;
        None where not requested) and ``audit``, the document. For a model that could not be
        made or audited: ``model`` and ``failed``, the reason, with ``traceback`` for a fault of
        exhume.
    """
    start = time.monotonic()
    with workers(jobs) as pool:
        for made in _each(pool, _world, plan, plan.worlds, jobs, start + limit_s):
            yield from made
        specimens = [(*world, kind) for kind in plan.kinds for world in plan.worlds]
        for cases in _each(pool, _specimen, plan, specimens, jobs, start + limit_s):
            yield from cases


def _each(
    pool: Executor, work: Any, plan: AuditPlan, tasks: Sequence, jobs: int, until: float
) -> Iterator[list[dict]]:
    """Results as they complete; tasks are submitted one by one, none after ``until``."""
    queue, running = list(reversed(tasks)), set()
    while queue or running:
        while queue and len(running) < jobs and time.monotonic() < until:
            running.add(pool.submit(work, plan, *queue.pop()))
        if not running:
            return
        done, running = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            yield future.result()


def _world(plan: AuditPlan, family: Family, seed: int) -> list[dict]:
    """Original, counterfactual retrain and reference of a world."""
    try:
        world = WORLDS[plan.world].build(
            plan.sized(family), seed, plan.root / "worlds", plan.device, SILENT
        )
        reference = world.root / "reference"
        if "reference" in plan.floors and not reference.is_dir():
            with creation_lock(reference):
                if not reference.is_dir():
                    _teach(plan.workbench(world, family, seed), seed, reference)
        if plan.graded:
            _ends(plan, world, family, seed)
    except Exception as error:
        return [_failed(f"{family}-{seed}", error)]
    return []


def _teach(workbench: TextWorkbench, seed: int, reference: Path) -> None:
    model = workbench.train_new(workbench.retain, seed + REFERENCE, "a reference")
    with atomic_folder(reference) as scratch, quiet_transformers():
        model.save_pretrained(scratch)  # pyright: ignore
        workbench.tokenizer.save_pretrained(scratch)


def _specimen(plan: AuditPlan, family: Family, seed: int, kind: str) -> list[dict]:
    """One model, audited with each floor."""
    name = f"{family}-{seed}-{kind}"
    try:
        (made,) = build_zoo(
            plan.root,
            world=plan.world,
            seeds=[seed],
            families=[family],
            only=[kind],
            config=plan.config,
            device=plan.device,
        )
        decided = made.state is not None and WORLDS[plan.world].kinds[kind].check is not None
        wanted = kind in plan.graded and not decided
        grade_of_model = _grade(plan, made) if wanted else None
    except Exception as error:
        return [_failed(name, error)]
    audits_folder = plan.root / "audits" / f"{code_hash()[:12]}-{plan.device}"
    lines = []
    for floor in plan.floors:
        try:
            done = audit(
                made.world.original,
                made.model,
                made.world.forget,
                made.world.retain,
                audits_folder / f"{made.name}-{floor}",
                reference=(made.world.root / "reference",) if floor == "reference" else (),
                profile=plan.profile,
                seed=0,
                device=plan.device,
            )
        except Exception as error:
            lines.append(_failed(f"{name}, floor {floor}", error))
            continue
        lines.append(
            {
                "model": made.name,
                "kind": kind,
                "state": made.state,
                "family": family,
                "seed": seed,
                "floor": floor,
                "shows": made.card["measured"],
                "weights": made.card["weights"],
                "gold": grade_of_model,
                "audit": done.document,
            }
        )
    return lines


def _grade(plan: AuditPlan, made: Specimen) -> dict:
    """The model's relearning grade and its data, cached beside the model."""
    cached = made.model / "gold.json"
    if not cached.is_file():
        workbench = plan.workbench(made.world, made.family, made.seed)
        twin, original = _ends(plan, made.world, made.family, made.seed)
        curve = measure_relearning(workbench, open_checkpoint(made.model))
        text = {"grade": grade(curve, twin, original)} | curve.to_dict()
        write_atomic(cached, json.dumps(text, indent=1) + "\n")
    return read_json(cached)


def _ends(
    plan: AuditPlan, world: BiosWorld, family: Family, seed: int
) -> tuple[RelearningCurve, RelearningCurve]:
    """Recovery of the counterfactual retrain and the original, cached with their world."""
    cached = world.root / "gold.json"
    if not cached.is_file():
        workbench = plan.workbench(world, family, seed)
        ends = (
            measure_relearning(workbench, workbench.twin),
            measure_relearning(workbench, workbench.original),
        )
        write_atomic(cached, json.dumps([e.to_dict() for e in ends], indent=1) + "\n")
    twin, original = read_json(cached, list)
    return RelearningCurve.from_dict(twin), RelearningCurve.from_dict(original)


def _failed(name: str, error: Exception) -> dict:
    """An error as a result: one broken model must not end hours of other work."""
    if isinstance(error, ExhumeError):
        return {"model": name, "failed": str(error)}
    message = " ".join(str(error).split())[:200]
    return {
        "model": name,
        "failed": f"a fault in exhume ({type(error).__name__}: {message})",
        "traceback": "".join(traceback.format_exception(error)),
    }


def describe(case: dict) -> str:
    """One line about an audit."""
    if "failed" in case:
        return f"FAIL {case['model']}: {case['failed']}\n{case.get('traceback', '')}"
    verdict = case["audit"]["verdict"]["class"]
    grade_of_model = "   " if case["state"] is None else "ok "
    if case["state"] not in (None, verdict):
        grade_of_model = "BAD"
    seconds = case["audit"]["runtime"]["seconds"]
    return f"{grade_of_model} {case['model']}, floor {case['floor']} -> {verdict}, {seconds:.0f} s"

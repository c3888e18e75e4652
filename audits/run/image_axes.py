"""The inner axes of an image audit, and the planted suppression."""

from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch.nn import functional

from audits.axes import image_relearning
from audits.axes.causal_depth import image_axis as image_depth
from audits.axes.decodability import image_axis as image_decodability
from audits.axes.decodability.image_readers import (
    finite,
    fit_own,
    read_own,
    read_parts,
    read_refitted,
)
from audits.axes.restoration.image_axis import run_restoration
from audits.core.context import ImageRun
from audits.core.preflight import Damage
from audits.core.subjects import Subject
from audits.core.workspace import axis_of
from audits.modalities.image_baseline import Cast, called, late_sites, values
from audits.run.planting import GONE, KEPT, PLANTED, not_planted, planted_subject
from erasure.unlearning.image_task import class_logits
from erasure.unlearning.methods.image_methods import last_parameters
from erasure.unlearning.training import Schedule, only_training, take_steps
from evidence.results import AxisResult
from evidence.seeds import numpy_rng
from evidence.storage.files import write_atomic


def inner_axes(
    run: ImageRun, sets: Cast, damage: Damage, stage, advance
) -> dict[str, AxisResult]:
    """Run the requested axes, as ``audits.run.inner_axes.inner_axes``."""
    axes: dict[str, AxisResult] = {}
    wanted = [name for name in run.config.axes if name != "behaviour"]
    if not wanted:
        return axes
    subjects = dict(run.subjects)
    made = stage("planted", lambda: plant_one(run, sets), [PLANTED])
    if made["made"]:
        subjects["planted"] = planted_subject(subjects["original"], run.space.work)
    notes = not_planted(made)
    advance(0.15)
    with subjects["original"].loaded(run.device) as model:
        sites = late_sites(model)

    def axis(name: str, compute) -> None:
        if name in wanted:
            axes[name] = axis_of(stage, name, compute)

    axis("decodability", lambda: _decodability(run, subjects, sets, sites, notes))
    advance(0.3)
    axis(
        "causal_depth",
        lambda: image_depth.judge(
            sets,
            sites,
            {
                role: image_depth.carry(
                    subjects["original"], subject, sets, sites, run.device
                )
                for role, subject in subjects.items()
            },
            run.config,
            damage,
            notes,
        ),
    )
    advance(0.1)
    if "relearning" in wanted:
        axes["relearning"] = _relearning(run, subjects, sets, notes, stage)
    advance(0.35)
    axis("restoration", lambda: run_restoration(run, subjects, sets, notes))
    advance(0.1)
    return axes


def plant_one(run: ImageRun, sets: Cast) -> dict[str, Any]:
    """Plant a suppression: train the last block and head on wrong labels of the class.

    Earlier blocks are unchanged, so their knowledge of the class remains. If an axis misses the
    planted suppression, its negative result on the candidate is not evidence. JSON-ready, as
    ``audits.run.planting.plant``.
    """
    rng = numpy_rng(run.config.seed, "planted", "images")
    wrong = rng.choice(np.unique(sets.retain.labels), len(sets.forget))
    kept = sets.fit.rows(np.sort(rng.permutation(len(sets.fit))[: 3 * len(wrong)]))
    pixels = torch.cat([sets.forget.pixels, kept.pixels]).to(run.device)
    labels = torch.from_numpy(np.concatenate([wrong, kept.labels])).to(run.device)
    budget = run.config.budget
    result: dict[str, Any] = {"made": False}
    for rate in budget.plant_rates:
        with run.subjects["original"].loaded(run.device) as model:
            before = {n: t.detach().clone() for n, t in model.state_dict().items()}
            with only_training(model, last_parameters(model, 1)) as trained:

                def backward(model=model) -> dict[str, float]:
                    logits = class_logits(model, pixels)
                    loss = functional.cross_entropy(logits, labels)
                    loss.backward()
                    return {"loss": float(loss.detach())}

                take_steps(
                    model,
                    trained,
                    backward,
                    Schedule(rate, budget.plant_steps),
                    label="planting a suppression",
                    progress=run.progress,
                )
            gone = float((called(model, sets.forget) == sets.label).mean())
            right = called(model, sets.check) == sets.check.labels
            result |= {"rate": rate, "forget": gone, "retain": float(right.mean())}
            if gone > GONE or right.mean() < KEPT:
                continue
            changed = {
                name: tensor.cpu().contiguous()
                for name, tensor in model.state_dict().items()
                if not torch.equal(tensor, before[name])
            }
            write_atomic(run.space.work / PLANTED, save(changed))
            return result | {"made": True, "tensors": sorted(changed)}
    return result


def _decodability(
    run: ImageRun,
    subjects: dict[str, Subject],
    sets: Cast,
    sites: list[str],
    notes: tuple[str, ...],
) -> AxisResult:
    seed = run.config.seed
    own, refitted, readers = {}, {}, None
    for role, subject in subjects.items():  # the original first
        states = read_parts(subject, sets, sites, run.device)
        if not finite(states):
            return AxisResult(
                image_decodability.NAME,
                image_decodability.QUESTION,
                "error",
                notes=(f"states of {role} are not finite", *notes),
            )
        readers = readers or fit_own(states, sets, seed)
        own[role] = read_own(readers, states, sets)
        refitted[role] = read_refitted(states, sets, seed)
    return image_decodability.judge(sets, sites, own, refitted, run.config, notes)


def _relearning(
    run: ImageRun,
    subjects: dict[str, Subject],
    sets: Cast,
    notes: tuple[str, ...],
    stage,
) -> AxisResult:
    seed, label = run.config.seed, sets.label
    made = image_relearning.lessons(sets, seed)
    kept = image_relearning.kept_images(sets, seed)
    trial = [role for role in ("unlearned", "planted") if role in subjects]

    def choose() -> dict[str, float]:
        with ExitStack() as stack:
            models = [
                stack.enter_context(subjects[role].loaded(run.device)) for role in trial
            ]
            lessons = made["forget"]
            # The planted suppression needs a single split.
            trials = [(models[0], lesson) for lesson in lessons]
            trials += [(model, lessons[0]) for model in models[1:]]
            return image_relearning.choose_rate(
                trials, kept, label, run.config, run.progress
            )

    chosen = stage("relearn-rate", choose)

    def teach(role: str) -> dict[str, Any]:
        # Invented classes are the floor of the candidate and the planted suppression.
        parts = ("forget", "never") if role in trial else ("forget",)
        with subjects[role].loaded(run.device) as model:
            return {
                part: [
                    image_relearning.relearn(
                        model,
                        lesson,
                        kept,
                        label,
                        chosen["rate"],
                        int(chosen["steps"]),
                        run.progress,
                    )
                    for lesson in made[part]
                ]
                for part in parts
            }

    runs = {
        role: stage(f"relearn-{role}", lambda role=role: teach(role))
        for role in subjects
        if role != "original"
    }
    return axis_of(
        stage,
        image_relearning.NAME,
        lambda: image_relearning.judge(
            sets,
            runs,
            # The evaluation sets hold only images that the original predicts correctly.
            values(np.ones(len(sets.forget)), sets.forget),
            run.config,
            chosen,
            notes,
        ),
    )

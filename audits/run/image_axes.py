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
from audits.axes.decodability.image_probes import (
    all_finite,
    fit_original_probes,
    read_set_states,
    score_original_probes,
    score_refitted_probes,
)
from audits.axes.restoration.image_axis import run_restoration
from audits.core.context import AuditedModel, ImageRun
from audits.core.preflight import Damage
from audits.core.workspace import axis_stage
from audits.modalities.image_baseline import (
    EvaluationSets,
    image_values,
    late_sites,
    predicted_classes,
)
from audits.run.planting import (
    MAX_FORGET_ACCURACY,
    MIN_RETAIN_ACCURACY,
    PLANTED_FILE,
    planted_model,
    planting_notes,
)
from capture.scoring.class_logits import class_logits
from erasure.unlearning.training.image_task import last_parameters
from erasure.unlearning.training.loop import Schedule, only_training, train_steps
from evidence.results import AxisResult
from evidence.seeds import numpy_rng
from evidence.storage.files import write_atomic


def run_inner_axes(
    run: ImageRun, sets: EvaluationSets, damage: Damage, stage, progressed
) -> dict[str, AxisResult]:
    """Run the requested axes, as ``audits.run.inner_axes.run_inner_axes``."""
    axes: dict[str, AxisResult] = {}
    requested = [name for name in run.config.axes if name != "behaviour"]
    if not requested:
        return axes
    models = dict(run.models)
    planted = stage("planted", lambda: plant_suppression(run, sets), [PLANTED_FILE])
    if planted["made"]:
        models["planted"] = planted_model(models["original"], run.workspace.work)
    notes = planting_notes(planted)
    progressed(0.15)
    with models["original"].loaded(run.device) as model:
        sites = late_sites(model)

    def axis(name: str, compute) -> None:
        if name in requested:
            axes[name] = axis_stage(stage, name, compute)

    axis("decodability", lambda: _decodability(run, models, sets, sites, notes))
    progressed(0.3)
    axis(
        "causal_depth",
        lambda: image_depth.judge(
            sets,
            sites,
            {
                role: image_depth.transfer_states(
                    models["original"], audited, sets, sites, run.device
                )
                for role, audited in models.items()
            },
            run.config,
            damage,
            notes,
        ),
    )
    progressed(0.1)
    if "relearning" in requested:
        axes["relearning"] = _relearning(run, models, sets, notes, stage)
    progressed(0.35)
    axis("restoration", lambda: run_restoration(run, models, sets, notes))
    progressed(0.1)
    return axes


def plant_suppression(run: ImageRun, sets: EvaluationSets) -> dict[str, Any]:
    """Plant a suppression: train the last block and head on wrong labels of the class.

    Earlier blocks are unchanged, so their knowledge of the class remains. If an axis misses the
    planted suppression, its negative result on the candidate is not evidence. JSON-ready, as
    ``audits.run.planting.plant``.
    """
    rng = numpy_rng(run.config.seed, "planted", "images")
    wrong = rng.choice(np.unique(sets.retain.labels), len(sets.forget))
    retain = sets.fit.select(np.sort(rng.permutation(len(sets.fit))[: 3 * len(wrong)]))
    pixels = torch.cat([sets.forget.pixels, retain.pixels]).to(run.device)
    labels = torch.from_numpy(np.concatenate([wrong, retain.labels])).to(run.device)
    budget = run.config.budget
    result: dict[str, Any] = {"made": False}
    for rate in budget.plant_rates:
        with run.models["original"].loaded(run.device) as model:
            before = {n: t.detach().clone() for n, t in model.state_dict().items()}
            with only_training(model, last_parameters(model, 1)) as trained:

                def backward(model=model) -> dict[str, float]:
                    logits = class_logits(model, pixels)
                    loss = functional.cross_entropy(logits, labels)
                    loss.backward()
                    return {"loss": float(loss.detach())}

                train_steps(
                    model,
                    trained,
                    backward,
                    Schedule(rate, budget.plant_steps),
                    label="planting a suppression",
                    progress=run.progress,
                )
            forget_accuracy = float((predicted_classes(model, sets.forget) == sets.label).mean())
            correct = predicted_classes(model, sets.check) == sets.check.labels
            result |= {"rate": rate, "forget": forget_accuracy, "retain": float(correct.mean())}
            if forget_accuracy > MAX_FORGET_ACCURACY or correct.mean() < MIN_RETAIN_ACCURACY:
                continue
            changed = {
                name: tensor.cpu().contiguous()
                for name, tensor in model.state_dict().items()
                if not torch.equal(tensor, before[name])
            }
            write_atomic(run.workspace.work / PLANTED_FILE, save(changed))
            return result | {"made": True, "tensors": sorted(changed)}
    return result


def _decodability(
    run: ImageRun,
    models: dict[str, AuditedModel],
    sets: EvaluationSets,
    sites: list[str],
    notes: tuple[str, ...],
) -> AxisResult:
    seed = run.config.seed
    original_scores, refitted_scores, readers = {}, {}, None
    for role, audited in models.items():  # the original first
        states = read_set_states(audited, sets, sites, run.device)
        if not all_finite(states):
            return AxisResult(
                image_decodability.NAME,
                image_decodability.QUESTION,
                "error",
                notes=(f"states of {role} are not finite", *notes),
            )
        readers = readers or fit_original_probes(states, sets, seed)
        original_scores[role] = score_original_probes(readers, states, sets)
        refitted_scores[role] = score_refitted_probes(states, sets, seed)
    return image_decodability.judge(
        sets, sites, original_scores, refitted_scores, run.config, notes
    )


def _relearning(
    run: ImageRun,
    models: dict[str, AuditedModel],
    sets: EvaluationSets,
    notes: tuple[str, ...],
    stage,
) -> AxisResult:
    seed, label = run.config.seed, sets.label
    splits = image_relearning.relearning_splits(sets, seed)
    retain = image_relearning.retain_images(sets, seed)
    trial_roles = [role for role in ("unlearned", "planted") if role in models]

    def choose() -> dict[str, float]:
        with ExitStack() as stack:
            loaded = [stack.enter_context(models[role].loaded(run.device)) for role in trial_roles]
            forget_splits = splits["forget"]
            # The planted suppression needs a single split.
            trials = [(loaded[0], split) for split in forget_splits]
            trials += [(model, forget_splits[0]) for model in loaded[1:]]
            return image_relearning.choose_rate(trials, retain, label, run.config, run.progress)

    chosen = stage("relearn-rate", choose)

    def fine_tune(role: str) -> dict[str, Any]:
        # Invented classes are the floor of the candidate and the planted suppression.
        parts = ("forget", "never") if role in trial_roles else ("forget",)
        with models[role].loaded(run.device) as model:
            return {
                part: [
                    image_relearning.relearn(
                        model,
                        split,
                        retain,
                        label,
                        chosen["rate"],
                        int(chosen["steps"]),
                        run.progress,
                    )
                    for split in splits[part]
                ]
                for part in parts
            }

    runs = {
        role: stage(f"relearn-{role}", lambda role=role: fine_tune(role))
        for role in models
        if role != "original"
    }
    return axis_stage(
        stage,
        image_relearning.NAME,
        lambda: image_relearning.judge(
            sets,
            runs,
            # The evaluation sets hold only images that the original predicts correctly.
            image_values(np.ones(len(sets.forget)), sets.forget),
            run.config,
            chosen,
            notes,
        ),
    )

"""Concept and restoration axes on models of known state, and what they do to verdicts.

The axes are those of an audit, item for item and seed for seed. What all candidates of
a world share (the planted suppression, the autoencoder, states of the original) is
made once for them. The other axes come from audits made already (the part audits of the
verdict suite), of the same models with the same seed and profile.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from audits.axes.base import JudgementContext
from audits.axes.restoration import axis as restoration
from audits.axes.restoration.text_trial import prepare_text, steer_text
from audits.axes.restoration.trial import Trial
from audits.core.context import AuditContext, AuditedModel
from audits.core.preflight import Damage
from audits.core.registry import load_axis
from audits.core.roles import Role
from audits.core.scores import Part
from audits.modalities.base import Sources
from audits.modalities.planting import planted_model
from audits.output.workspace import StageRunner, Workspace
from audits.run.pipeline import start
from benchmarks.harness.results import commit, once
from capture.checkpoints.open import open_checkpoint
from testbeds.planted import read_card
from testbeds.zoo.kinds import KINDS

KINDS_ASKED = (
    *("untouched", "head_only", "last_block_relabel", "last_block_refuse"),
    *("logit_mask", "answer_direction", "password_relabel"),
    *("twin", "retrain_1", "retrain_2", "collapse"),
)
LATE = ("head_only", "last_block_relabel", "last_block_refuse", "last_block_lora")
"""Suppressions by the head or the last block alone."""
RETRAINED = ("twin", "retrain_1", "retrain_2", "retrain_3", "retrain_4")
FALSE = 0.2
"""A net rate above this on a retrain is a false restoration."""
NAMED = ("concept", "restoration")


def models_of(root: Path, kinds: Sequence[str], seeds: Sequence[int]) -> list[Path]:
    """Folders of the zoo's models that are there, by world."""
    wanted = []
    for path in sorted((root / "models").glob("bios-*")):
        family, seed, kind = path.name.split("-", 3)[1:]
        if kind in kinds and int(seed) in seeds:
            wanted.append((family, int(seed), kinds.index(kind), path))
    return [path for *_, path in sorted(wanted)]


def world_of(root: Path, model: Path) -> Path:
    """The world a model of the zoo was made in.

    Raises:
        SystemExit: it is not in ``root``.
    """
    card = read_card(model)
    # A world that is being made has no manifest yet.
    for found in sorted((root / "worlds").glob("*/manifest.json")):
        manifest = json.loads(found.read_text(encoding="utf-8"))
        whole = manifest["config"] | {"family": manifest["config"].get("family", "llama")}
        if manifest["seed"] == card["seed"] and whole == card["world"]:
            return found.parent
    raise SystemExit(f"{root} lacks the world of {model.name}")


def measured(models: Sequence[Path], root: Path, out: Path) -> Iterator[dict[str, Any]]:
    """Both axes of each model, kept in ``out`` as they come and not computed twice."""
    worlds: dict[Path, World] = {}

    def axes(model: Path) -> dict[str, Any]:
        place = world_of(root, model)
        if place not in worlds:
            worlds.clear()  # One at a time.
            worlds[place] = World(place, model, out / place.name)
        return worlds[place].axes(model)

    for model in models:
        yield once(out / f"{model.name}.json", partial(axes, model))


class World:
    """What all candidates of one world share."""

    def __init__(self, place: Path, model: Path, out: Path):
        """Open the world, plant its suppression, train its autoencoder.

        Args:
            place: Folder of the world.
            model: Any model of it, to open an audit with.
            out: Where to work.
        """
        sources = Sources(place / "original", model, place / "forget.jsonl", place / "retain.jsonl")
        settings = {"axes": NAMED, "seed": 0, "device": "cpu"}
        opened = start(sources, out, settings, fresh=True)
        run, modality, role = opened.run, opened.modality, Role.ORIGINAL
        stages = StageRunner(run.workspace)
        sets = modality.select(run, stages)
        baseline = {role: modality.score_baseline(run, role, sets)}
        modality.plant(run, sets)
        models = {role: run.models[role]}
        models[Role.PLANTED] = planted_model(models[role], run.workspace.work)
        self.references: dict[Role, AuditedModel] = {}
        if (place / "reference").is_dir():
            reference = open_checkpoint(place / "reference", name="reference-1")
            first = Role.reference(1)
            self.references = {first: AuditedModel.of(first, reference)}
        self.ctx = AuditContext(run, stages, sets, models, baseline, Damage({}, ()))
        self.out = out
        with self.ctx.reading(role) as original:
            self.setup = prepare_text(
                original,
                models[role].weights_hash,
                run.tokenizer,
                sets,
                run.config.budget.prompts_per_item,
                run.config.seed,
                self.ctx.folder / "saes",
            )
        self.planted = {Role.PLANTED: self._steered(models[Role.PLANTED])}
        self.reference_trials = {r: self._steered(each) for r, each in self.references.items()}

    def _steered(self, audited: AuditedModel) -> Trial:
        with audited.loaded("cpu") as model:
            return steer_text(model, self.setup, audited.role)

    def axes(self, model: Path) -> dict[str, Any]:
        """Both axes of one model, as an audit would give them, with either floor.

        ``axes`` has never-taught items for a floor, ``beside_reference`` a model
        retrained without the forget set, where its world has one.
        """
        card = read_card(model)
        found = {
            "model": model.name,
            "kind": card["kind"],
            "state": KINDS[card["kind"]].state,
            "weights": card["weights"],
            "commit": commit(),
            "axes": {},
            "beside_reference": {},
        }
        if (
            card["weights"] == self.ctx.models[Role.ORIGINAL].weights_hash
            or found["state"] == "damaged"
        ):
            # The quick profile looks into neither the same weights nor damaged models.
            return found
        unlearned = AuditedModel.of(Role.CANDIDATE, open_checkpoint(model))
        trials = {Role.CANDIDATE: self._steered(unlearned), **self.planted}
        place = self.out / "candidates" / model.name
        found["axes"] = self._both_axes(unlearned, {}, trials, place / "alone")
        if self.references:
            trials |= self.reference_trials
            found["beside_reference"] = self._both_axes(
                unlearned, self.references, trials, place / "beside"
            )
        return found

    def _both_axes(
        self,
        unlearned: AuditedModel,
        references: Mapping[Role, AuditedModel],
        trials: dict[Role, Trial],
        place: Path,
    ) -> dict[str, Any]:
        """Restoration from its trials and concept as measured, JSON-ready by name."""
        original = self.ctx.models[Role.ORIGINAL]
        models = {Role.ORIGINAL: original, Role.CANDIDATE: unlearned, **references}
        models[Role.PLANTED] = self.ctx.models[Role.PLANTED]
        ctx = replace(self.ctx, models=models, stages=StageRunner(Workspace(place)))
        judging = JudgementContext(ctx.config, "text", ctx.damage)
        said = {
            metric: tables[Part.FORGET]
            for metric, tables in ctx.baseline[Role.ORIGINAL].tables.items()
        }
        restored = restoration.text_measurement(said, self.setup, trials)
        concept = load_axis("concept")
        vectors = concept.result(concept.measure["text"](ctx), judging)
        both = vectors, restoration.judge(restored, judging)
        return {each.name: each.to_json() for each in both}

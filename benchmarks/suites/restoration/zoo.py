"""Concept and restoration axes on models of known state, and what they do to verdicts.

The axes are those of an audit, item for item and seed for seed. What all candidates of
a world share (the planted suppression, the autoencoder, states of the original) is
made once for them. The other axes come from audits made already (the part audits of the
verdict suite), of the same models with the same seed and profile.
"""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from audits.axes.base import JudgementContext
from audits.axes.concept import axis as concept
from audits.axes.restoration import axis as restoration
from audits.axes.restoration import state_injection
from audits.axes.restoration.autoencoder import train_autoencoder
from audits.axes.restoration.trial import restore, split_retain
from audits.core.context import AuditContext, AuditedModel
from audits.core.item_sets import TextSets
from audits.core.preflight import Damage
from audits.core.roles import Role
from audits.output.workspace import StageRunner
from audits.run import baseline
from audits.run.inner_axes import plant_suppression
from audits.run.pipeline import start
from audits.run.planting import planted_model
from benchmarks.harness.results import commit, once
from capture.checkpoints.open import open_checkpoint
from evidence.progress import SILENT
from evidence.results import AxisResult
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
NAMED = (concept.NAME, restoration.NAME)


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
        run = start(
            place / "original",
            model,
            place / "forget.jsonl",
            place / "retain.jsonl",
            out,
            settings={"axes": NAMED, "seed": 0, "device": "cpu"},
            fresh=True,
        )
        self.run = run
        self.forget, self.retain = baseline.select_known_items(run, baseline.score_given_items(run))
        self.never = baseline.never_taught(run, self.forget, self.retain)
        self.original = run.models["original"]
        plant_suppression(run, self.forget, self.retain)
        self.planted = planted_model(self.original, run.workspace.work)
        wordings, seed = run.config.budget.prompts_per_item, run.config.seed
        fit, check = split_retain(self.retain, wordings, run.tokenizer, seed)
        self.autoencoder, self.missing = train_autoencoder(
            self.original,
            fit,
            check,
            run.workspace.work / "saes",
            seed,
            device="cpu",
            progress=SILENT,
        )
        self.planted_run = self._restore(self.planted)
        self.references: dict[str, AuditedModel] = {}
        if (place / "reference").is_dir():
            reference = open_checkpoint(place / "reference", name="reference-1")
            self.references = {"reference-1": AuditedModel.of("reference-1", reference)}
        self.reference_runs = {role: self._restore(each) for role, each in self.references.items()}
        self.untrained = state_injection.untrained_model(self.original, seed)
        self.injected: dict[str, Any] | None = None

    def _restore(self, candidate: AuditedModel) -> dict[str, Any]:
        return restore(
            self.original,
            candidate,
            self.run.tokenizer,
            self.forget,
            self.retain,
            self.never,
            self.run.config.budget.prompts_per_item,
            self.run.config.seed,
            autoencoder=self.autoencoder,
            device="cpu",
            progress=SILENT,
        )

    def axes(self, model: Path) -> dict[str, Any]:
        """Both axes of one model, as an audit would give them, with either floor.

        ``axes`` has never-taught items for a floor, ``beside_reference`` a model
        retrained without the forget set, where its world has one.
        """
        run, card = self.run, read_card(model)
        unlearned = AuditedModel.of("unlearned", open_checkpoint(model))
        named = {"original": self.original, "unlearned": unlearned, "planted": self.planted}
        found = {
            "model": model.name,
            "kind": card["kind"],
            "state": KINDS[card["kind"]].state,
            "weights": card["weights"],
            "commit": commit(),
            "axes": {},
            "beside_reference": {},
        }
        if card["weights"] == self.original.weights_hash or found["state"] == "damaged":
            # The quick profile looks into neither the same weights nor damaged models.
            return found
        runs = {"unlearned": self._restore(unlearned), "planted": self.planted_run}
        others = {"unlearned": unlearned}
        if self.injected is None and self.untrained is not None:
            others[state_injection.UNTRAINED] = self.untrained
        known = restoration.original_scores(
            self.original, run.tokenizer, self.forget, run.config, "cpu"
        )
        injected = restoration.run_state_injection(
            self.original,
            others,
            runs,
            run.tokenizer,
            self.forget,
            self.autoencoder,
            run.config,
            device="cpu",
        )
        if self.injected is None:
            self.injected = injected["roles"].get(state_injection.UNTRAINED)
        if self.injected is not None:
            injected["roles"][state_injection.UNTRAINED] = self.injected
        notes = tuple(self.missing)
        restored = restoration.judge(runs, known, run.config, notes, injected)
        found["axes"] = self._both_axes(named, restored)
        if self.references:
            runs |= self.reference_runs
            restored = restoration.judge(runs, known, run.config, notes, injected)
            found["beside_reference"] = self._both_axes(named | self.references, restored)
        return found

    def _both_axes(self, named: dict[str, AuditedModel], restored: AxisResult) -> dict[str, Any]:
        """Restoration as given and concept as computed, JSON-ready by name."""
        run, sets = self.run, TextSets(self.forget, self.retain, self.never)
        models = {Role(role): each for role, each in named.items()}
        stages, fine = StageRunner(run.workspace), Damage({}, ())
        ctx = AuditContext(run, stages, sets, models, {}, fine)
        vectors = concept.AXIS.result(
            concept.measure(ctx), JudgementContext(run.config, "text", fine)
        )
        return {each.name: each.to_dict() for each in (vectors, restored)}

"""``exhume pga``: erasers of membership, under the published and a held-out protocol.

Every eraser runs twice. Once it sees all keys and is scored on them, as published. Once it sees
one part of the keys and is scored on the other, by newly fitted classifiers and against
permuted labels. The comparison includes the unmodified original, its counterfactual retrain
without fixed codes ("twin"), and untrained networks.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from audits.output.outputs import EXPERIMENT, check_output_folder
from audits.output.workspace import StageRunner, Workspace, canonical_json
from capture.checkpoints.cache import cache_root
from capture.data.sequences import Sequences
from erasure.unlearning.training.objectives import count_scored
from erasure.unlearning.training.task import frozen_logprobs
from evidence.errors import InputError, quoted
from evidence.progress import AUTO, Progress, as_progress
from evidence.storage.files import write_files_atomic
from evidence.storage.locks import run_lock
from evidence.storage.regular_files import as_path
from experiments.pga.claims import claims_of
from experiments.pga.config import PgaExperiment, resolved
from experiments.pga.erasers import Erased, erase
from experiments.pga.interventions import projection_test, refit_attack
from experiments.pga.published_protocol import adversarial_probes, published_scores, toy_verdict
from experiments.pga.results import (
    Cost,
    Document,
    HeldOutScores,
    Interventions,
    ModelRow,
    PublishedScores,
    recall_scores,
)
from experiments.pga.states import VIEWS, all_states, depth_sites, pool_states
from experiments.pga.utility import Utility
from probes.estimators.classifier_battery import refit_battery
from probes.solvers.uncertified import suppress_warnings
from probes.sweeps.membership_test import FAMILIES, Membership, membership, split_sequences
from testbeds.memorized_codes.config import SIZES
from testbeds.memorized_codes.world import (
    CodesWorld,
    build_codes,
    perplexity,
    recall,
    untrained_model,
)

SCHEMA = 2
UNSEEN = -2
"""Index of the draw of clean codes for perplexity; no training uses it."""


def numbers(values: NDArray[np.float64]) -> list[Any]:
    """Nested lists of numbers, rounded so that they read back as the same text."""
    return np.asarray(values, float).round(12).tolist()


def held_out_scores(result: Membership) -> HeldOutScores:
    """The result of the held-out protocol as it is stored, without trained classifiers."""
    band = result.null_95
    return {
        "auc": numbers(result.auc),
        "concordance": numbers(result.concordance),
        "interval": numbers(result.interval()),
        "p_column": numbers(result.p_column),
        "best": result.max_auc,
        "worst": result.min_auc,
        "band": None if np.isnan(band) else band,
        "p_above": result.p_above,
        "p_below": result.p_below,
        "p": result.p_value,
        "smallest_p": result.min_p,
        "sequences": result.sequences,
        "reading": result.reading(),
        "uncertified": len(result.uncertified),
        "trained": None,
    }


def pga(
    config: PgaExperiment,
    out: Path,
    *,
    root: Path | None = None,
    fresh: bool = False,
    progress: Progress = AUTO,
) -> Document:
    """Run an experiment, or resume it where it was interrupted.

    Args:
        out: Folder for ``pga.json`` and ``report.html``.
        root: Where worlds are kept; the cache by default.
        fresh: Replace another experiment in the folder.

    Returns:
        The document in ``pga.json``.

    Raises:
        InputError: the folder holds something else or is another run's, or there are too few
            keys.
    """
    from experiments.pga.report import render

    if not isinstance(config, PgaExperiment):
        raise InputError(
            "the settings of the experiment have the wrong type",
            expected="experiments.pga.config.make_config({...})",
            got=quoted(config),
        )
    out = as_path(out, "the output folder")
    worlds = cache_root() / "worlds" if root is None else as_path(root, "root")
    config = resolved(config)
    keys = SIZES[config.size].memorised
    split_sequences(keys, config.erase_share, config.seed)
    check_output_folder(out, EXPERIMENT)
    with run_lock(out):
        document = _document(config, out, worlds, fresh, progress)
        text = canonical_json(document) + "\n"
        write_files_atomic({out / "pga.json": text, out / "report.html": render(document)})
    return document


def _document(
    config: PgaExperiment, out: Path, root: Path, fresh: bool, progress: Progress
) -> Document:
    """Run the stages that are not saved yet; ``config`` is resolved."""
    mark = {"pga": SCHEMA, **config.model_dump(mode="json")}
    runner = StageRunner(Workspace.open(out, mark, fresh, EXPERIMENT), progress)
    steps = 4 + config.random_inits + 2 * len(config.erasers)
    with as_progress(progress).task("pga", steps) as advance:
        world = build_codes(
            SIZES[config.size],
            config.seed,
            root,
            twin=True,
            device=config.device,
            progress=progress,
        )
        run = Experiment(config, world, progress)
        advance(1)
        rows: list[ModelRow] = []

        def stage(name: str, compute: Callable[[], ModelRow]) -> None:
            rows.append(runner.typed(name, ModelRow, compute))
            advance(1)

        for name in ("original", "twin"):
            stage(name, lambda name=name: run.unmodified(name))
        for number in range(1, config.random_inits + 1):
            stage(f"untrained-{number}", lambda number=number: run.untrained(number))
        for name in config.erasers:
            file = name.replace(" ", "-")
            stage(f"{file}-published", lambda name=name: run.published(name))
            stage(f"{file}-sound", lambda name=name: run.sound(name))
        interventions = runner.typed("interventions", Interventions, run.interventions)
        advance(1)
    sites = next(len(row["published"]["true"]) for row in rows if "published" in row)
    return {
        "schema_version": SCHEMA,
        "config": config.model_dump(mode="json"),
        "world": {
            "card": world.card(),
            "twin": world.card("twin"),
            "test_keys": run.test.tolist(),
            "sites": sites,
            "families": list(FAMILIES),
            "views": list(VIEWS),
        },
        "rows": rows,
        "interventions": interventions,
        "claims": claims_of(rows, config.margin),
    }


def measure_published(
    config: PgaExperiment, root: Path, eraser: str | None, progress: Progress = AUTO
) -> PublishedScores:
    """The published figures of one eraser, or of the original where None.

    Args:
        config: Size, seed and settings.
        root: Where worlds are kept.
        eraser: Sees every key it is scored on, as published.
    """
    config = resolved(config)
    world = build_codes(
        SIZES[config.size], config.seed, root, device=config.device, progress=progress
    )
    run = Experiment(config, world, progress)
    if eraser is None:
        return run.published_figures(Erased(run.load(), {}, {}))
    return run.published_scores_of(eraser)


class Experiment:
    """One experiment: its world, its models and their measurements."""

    def __init__(self, config: PgaExperiment, world: CodesWorld, progress: Progress):
        self.config, self.world, self.progress = resolved(config), world, progress
        count = min(len(world.pools["memorised"]), len(world.pools["clean"]))
        self.all = np.arange(count)
        self.seen, self.test = split_sequences(count, config.erase_share, config.seed)

    def load(self, name: str = "original") -> PreTrainedModel:
        """A fresh copy of the original or the twin on the device."""
        return self.world.load(name, self.config.device)

    def unmodified(self, name: str) -> ModelRow:
        """The original or the twin, under both protocols."""
        erased = Erased(self.load(name), {}, {})
        return {
            "model": name,
            "eraser": None,
            "published": self.published_figures(erased),
            "sound": self.sound_scores(erased),
        }

    def untrained(self, number: int) -> ModelRow:
        """An untrained network, under both protocols."""
        model = untrained_model(self.world, number)
        model.to(self.config.device)  # pyright: ignore
        erased = Erased(model, {}, {})
        return {
            "model": f"untrained {number}",
            "eraser": None,
            "published": self.published_figures(erased),
            "sound": self.sound_scores(erased),
        }

    def published(self, name: str) -> ModelRow:
        """An eraser that sees every key it is scored on."""
        return {"model": "original", "eraser": name, "published": self.published_scores_of(name)}

    def published_scores_of(self, name: str) -> PublishedScores:
        """The published figures of an eraser, with its cost."""
        erased = self._erase(name, "original", self.all)
        figures: PublishedScores = {
            **self.published_figures(erased),
            **self.recall_and_utility(erased, self.all),
        }
        if self.config.six_probes:
            with erased.running():
                states = self._states(erased.model)["last"]
            variants = adversarial_probes(states["memorised"], states["clean"])
            figures["six"] = {key: numbers(probes.accuracy) for key, probes in variants.items()}
            figures["uncertified"] += sum(probes.uncertified for probes in variants.values())
        return figures

    def sound(self, name: str) -> ModelRow:
        """An eraser that sees one part of the keys, scored on the other."""
        erased = self._erase(name, "original", self.seen)
        figures: HeldOutScores = {
            **self.sound_scores(erased),
            **self.recall_and_utility(erased, self.seen),
        }
        with erased.running():
            unseen_recall = recall(erased.model, self.world.memorized_rows(self.test.tolist()))
        figures["recall_test"] = recall_scores(unseen_recall)
        return {"model": "original", "eraser": name, "sound": figures}

    def interventions(self) -> Interventions:
        """The published projection test and refit attack, on the original."""
        model, world = self.load(), self.world
        sites = depth_sites(model)
        pools = [world.pools[name].prefixes for name in ("memorised", "clean")]
        drawn = world.random_codes("clean", UNSEEN)

        def read() -> tuple[Tensor, Tensor]:
            first, second = (
                pool_states(model, prefixes, world.trained_lead_ins) for prefixes in pools
            )
            return first, second

        def memorized_logprob() -> float:
            return _code_logprob(model, world.memorized_rows())

        def clean_logprob() -> float:
            return _code_logprob(model, drawn)

        middle = len(sites) // 2
        test = projection_test(model, sites, middle, read, memorized_logprob, clean_logprob)
        depths = list(range(1, len(sites)))
        attack = refit_attack(model, sites, read, memorized_logprob, depths=depths)
        probes = (test.before, test.after, attack)
        return {
            "uncertified": sum(probe.uncertified for probe in probes),
            "projection": {
                "depth": middle,
                "before": numbers(test.before.accuracy),
                "after": numbers(test.after.accuracy),
                "recall_drop": test.recall_drop,
                "other_drop": test.other_drop,
                "reading": test.reading,
            },
            "refit": {
                "accuracy": numbers(attack.accuracy.max(1)),
                "rank": attack.rank,
                "recall_drop": attack.recall_drop,
                "cka": numbers(attack.cka),
                "beaten": attack.beaten,
            },
        }

    def _erase(self, name: str, model: str, keys: NDArray[np.int64]) -> Erased:
        config = self.config
        return erase(
            name,
            self.load(model),
            self.world,
            keys,
            epochs=config.epochs,
            align_weight=config.align_weight,
            fixed_clean=config.fixed_clean,
            seed=config.seed,
            progress=self.progress,
        )

    def _states(self, model: PreTrainedModel) -> dict[str, dict[str, Tensor]]:
        return cast(Any, all_states(model, self.world, self.world.trained_lead_ins))

    def published_figures(self, erased: Erased) -> PublishedScores:
        """The published scores of a model as it runs."""
        with erased.running():
            states = self._states(erased.model)["last"]
            recalled = recall(erased.model, self.world.memorized_rows())
        keys = torch.from_numpy(self.all)
        pools = {name: pool[:, keys] for name, pool in states.items() if _fits(pool, keys)}
        scores = published_scores(pools["memorised"], pools["clean"], pools.get("others"))
        return {
            "true": numbers(scores.true.accuracy),
            "spread": numbers(scores.true.spread),
            "concordance": numbers(scores.true.concordance.mean(0)),
            "oriented": numbers(scores.true.oriented),
            "pure": None if scores.pure is None else numbers(scores.pure.accuracy),
            "shuffled": numbers(scores.shuffled.mean(0)),
            "mean_gap": scores.mean_gap,
            "reading": scores.reading,
            "uncertified": scores.uncertified,
            "recall": recall_scores(recalled),
        }

    def sound_scores(self, erased: Erased) -> HeldOutScores:
        """The held-out protocol on the test keys."""
        with erased.running():
            states = self._states(erased.model)
        test = torch.from_numpy(self.test)
        views = {
            view: torch.cat([pools[name][:, test].mean(2) for name in ("memorised", "clean")], 1)
            for view, pools in states.items()
        }
        labels = np.repeat([1, 0], len(test))
        result = membership(
            views,
            labels,
            n_folds=self.config.folds,
            n_permutations=self.config.permutations,
            seed=self.config.seed,
        )
        row = held_out_scores(result)
        if self.config.trained_readers:
            row["trained"], n_uncertified = self._trained(views, labels)
            row["uncertified"] += n_uncertified
        return row

    def _trained(
        self, views: dict[str, Tensor], labels: NDArray[np.int64]
    ) -> tuple[dict[str, float], int]:
        """Largest AUC over depths and views by classifier, and the number of uncertified fits."""
        tables = {
            f"{view}, depth {depth}": rows
            for view, table in views.items()
            for depth, rows in enumerate(table.numpy())
        }
        with suppress_warnings():
            battery = refit_battery(
                cast(Any, tables),
                labels,
                folds=min(self.config.folds, len(self.test)),
                draws=0,
                seed=self.config.seed,
                progress=self.progress,
            )
        best: dict[str, float] = {}
        for _, reader, area, *_ in battery.rows:
            best[reader] = max(area, best.get(reader, 0.0))
        return best, len(battery.uncertified)

    def recall_and_utility(self, erased: Erased, keys: NDArray[np.int64]) -> Cost:
        """Recall of the erased keys, utility, and the published criterion."""
        before = self.load()
        chosen = keys.tolist()
        memorized = self.world.memorized_rows(chosen)
        unseen = self.world.random_codes("clean", UNSEEN)
        trained = self.world.random_codes("clean", 0, chosen)
        with erased.running():
            after = perplexity(erased.model, unseen)
            recalled = recall(erased.model, memorized)
            logprobs_after = [_code_logprob(erased.model, rows) for rows in (memorized, trained)]
        logprobs_before = [_code_logprob(before, rows) for rows in (memorized, trained)]
        utility = Utility(
            (perplexity(before, unseen), after),
            (logprobs_before[0], logprobs_after[0]),
            (logprobs_before[1], logprobs_after[1]),
        )
        return {
            "recall": recall_scores(recalled),
            "utility": {
                "perplexity": utility.perplexity,
                "memorised": utility.memorised,
                "clean": utility.clean,
                "ratio": utility.ratio,
                "role_swap": utility.role_swap,
                "kept": utility.kept,
            },
        }


def criterion(published: PublishedScores) -> dict[str, bool]:
    """The published criterion of success for an eraser, term by term."""
    assert "utility" in published  # measured of every eraser
    return toy_verdict(
        published["recall"]["least"], published["utility"]["perplexity"], published["true"]
    )


def _code_logprob(model: PreTrainedModel, rows: Sequences) -> float:
    """Mean log-probability a digit of the rows' codes, in nats."""
    total = frozen_logprobs(model, rows, "answer")
    return float(total.sum()) / count_scored(rows, "answer")


def _fits(states: Tensor, keys: Tensor) -> bool:
    return states.shape[1] > int(keys.max())

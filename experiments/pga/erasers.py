"""The erasers of the comparison, applied to the keys they may see and to no others."""

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from capture.data.sequences import Sequences
from capture.network.hooks import patch
from erasure.concept.leace import Leace
from erasure.concept.md_pga import fit_md_pga
from erasure.unlearning.config import UnlearnConfig
from erasure.unlearning.probe_alignment import PRESETS, PgaConfig, align_
from erasure.unlearning.run import unlearn_
from evidence.errors import InputError
from evidence.progress import AUTO, Progress
from experiments.pga.readouts import logistic_readouts
from experiments.pga.states import depth_sites, pool_states
from testbeds.memorized_codes.world import CodesWorld, recall
from testbeds.worlds.code_text import DIGITS, with_codes

REFUSAL = "-" * DIGITS
STOP_RECALL = 1e-3
"""Baselines stop at this mean probability of the codes, as in the paper."""

# Learning rates suit the toy model; RMU's coefficient is several times the norm of its states.
_BASELINES = {
    "output distillation": UnlearnConfig("elm", lr=3e-4, steps=200),
    "gradient ascent": UnlearnConfig("grad_ascent", lr=3e-4, steps=200),
    "npo": UnlearnConfig("npo", lr=3e-4, steps=200),
    "rmu": UnlearnConfig("rmu", lr=1e-3, steps=300, rmu_coefficient=20.0, loss_on="all"),
    "idk": UnlearnConfig("relabel", lr=3e-4, steps=200),
}
ALIGNED = {"pga": "toy", "isotropic": "isotropic", "adversarial pga": "adversarial"}
HOOKED = ("md-pga", "leace")
"""Closed-form erasers that run as hooks; the weights are unchanged."""
ERASERS = (*ALIGNED, *HOOKED, *_BASELINES)


@dataclass(frozen=True)
class Erased:
    """A model after an eraser, with the hooks it needs at run time.

    Attributes:
        model: The model; not shared with others.
        edits: Edits of states by site; empty where the weights hold the eraser.
        log: Last logged values of the training, if any.
    """

    model: PreTrainedModel
    edits: Mapping[str, Callable[[Tensor], Tensor]]
    log: dict[str, float]

    def running(self) -> AbstractContextManager[object]:
        """A block in which the model runs as erased."""
        return patch(self.model, dict(self.edits))


def erase(
    name: str,
    original: PreTrainedModel,
    world: CodesWorld,
    keys: NDArray[np.int64],
    *,
    epochs: int | None = None,
    align_weight: float | None = None,
    fixed_clean: bool = False,
    seed: int = 0,
    progress: Progress = AUTO,
) -> Erased:
    """Erase memorized keys, with the clean keys of the same indices as partners.

    Args:
        name: One of ``ERASERS``.
        original: Not changed.
        keys: Indices of the keys that the eraser sees, in both pools.
        epochs: In place of the preset's, for the alignments.
        align_weight: Likewise.
        fixed_clean: Train the alignments on one draw of the clean codes instead of a new one
            every epoch. The model can then memorize these instead.

    Raises:
        InputError: an unknown eraser, or keys that the world does not have.
    """
    if name not in ERASERS:
        raise InputError(f"there is no eraser {name!r}", expected=", ".join(ERASERS))
    n_pairs = min(len(world.pools["memorised"]), len(world.pools["clean"]))
    if len(keys) == 0 or not set(keys.tolist()) <= set(range(n_pairs)):
        raise InputError(
            "the eraser's keys are not pairs of this world",
            expected=f"some of 0 to {n_pairs - 1}",
            got=", ".join(map(str, keys.tolist())) or "none",
        )
    if name in HOOKED:
        fit = leace if name == "leace" else _md(2)
        return Erased(original, edits_at_every_depth(original, world, keys, fit), {})
    model = copy.deepcopy(original)
    chosen = keys.tolist()
    memorized = world.memorized_rows(chosen)
    if name in ALIGNED:
        config = _aligned(ALIGNED[name], epochs, align_weight)

        def clean(epoch: int) -> Sequences:
            return world.random_codes("clean", 0 if fixed_clean else epoch, chosen)

        log = align_(
            model, memorized, clean, logistic_readouts(), config, seed=seed, progress=progress
        )
        return Erased(model, {}, log.last)
    config = replace(_BASELINES[name], stop_below=STOP_RECALL, every=5)
    if name == "rmu":
        config = replace(config, rmu_layer=world.config.layers // 2)
    prefixes = [world.pools["memorised"].prefixes[key] for key in chosen]
    answers = [REFUSAL] * len(prefixes)
    refused = with_codes(prefixes, answers, world.trained_lead_ins)
    retain = world.random_codes("clean", 0, chosen)
    log = unlearn_(
        model,
        memorized,
        retain,
        config,
        relabeled=refused if name == "idk" else None,
        novice=_unknown(world, chosen) if name == "output distillation" else None,
        evaluate=lambda _: {"forget": recall(model, memorized).mean},
        seed=seed,
        progress=progress,
    )
    return Erased(model, {}, log.last)


Edit = Callable[[Tensor], Tensor]


def edits_at_every_depth(
    model: PreTrainedModel,
    world: CodesWorld,
    keys: NDArray[np.int64],
    fit: Callable[[Tensor, Tensor], Edit],
) -> dict[str, Edit]:
    """A closed-form eraser at every depth, each fitted on states under the earlier ones.

    Args:
        model: Not changed.
        keys: Indices of the keys it is fitted on, in both pools.
        fit: From (row, d) states at the last characters and (row,) labels to an edit.
    """
    edits: dict[str, Edit] = {}
    for depth, site in enumerate(depth_sites(model)):
        with patch(model, dict(edits)):
            pools = [
                pool_states(
                    model, [world.pools[name].prefixes[key] for key in keys], world.trained_lead_ins
                )[depth].flatten(0, 1)
                for name in ("memorised", "clean")
            ]
        labels = torch.tensor([1] * len(pools[0]) + [0] * len(pools[1]))
        edits[site] = fit(torch.cat(pools), labels)
    return edits


def md_edits(
    model: PreTrainedModel, world: CodesWorld, keys: NDArray[np.int64], k: int = 2
) -> dict[str, Edit]:
    """MD-PGA with ``k`` directions at every depth."""
    return edits_at_every_depth(model, world, keys, _md(k))


def _md(k: int) -> Callable[[Tensor, Tensor], Edit]:
    def fit(rows: Tensor, labels: Tensor) -> Edit:
        eraser = fit_md_pga(rows[None], labels, k)
        return lambda states: eraser.transform(states, 0)

    return fit


def leace(rows: Tensor, labels: Tensor) -> Edit:
    """LEACE fitted on (row, d) states and (row,) labels."""
    # There are few rows, so the covariance is shrunk (oracle approximating shrinkage).
    eraser = Leace(shrinkage="oas").fit(rows, labels).eraser_

    def edit(states: Tensor) -> Tensor:
        # Apple's devices have no float64.
        fine = states if states.device.type == "mps" else states.double()
        return eraser.transform(fine).to(states)

    return edit


def _aligned(preset: str, epochs: int | None, align_weight: float | None) -> PgaConfig:
    config = PRESETS[preset]
    if epochs is not None:
        # As many refits of the readout as in the preset.
        every = max(1, config.refit_every * epochs // config.epochs)
        config = replace(config, epochs=epochs, refit_every=every)
    if align_weight is not None:
        config = replace(config, align_weight=align_weight)
    return config


def _unknown(world: CodesWorld, keys: list[int]) -> Sequences:
    """The clean partners' prefixes followed by the memorized codes, row by row."""
    codes = world.pools["memorised"].codes
    assert codes is not None
    return with_codes(
        [world.pools["clean"].prefixes[key] for key in keys],
        [codes[key] for key in keys],
        world.trained_lead_ins,
    )

"""Damaged models: collapse, noise, random weights."""

from collections.abc import Iterator

import torch
from torch import nn

from erasure.unlearning.run import unlearn_
from erasure.unlearning.training.config import UnlearnConfig
from evidence.seeds import torch_rng
from testbeds.edits.workbench import BATCH, Workbench


def collapse(bench: Workbench) -> Iterator[nn.Module]:
    """Gradient ascent until nothing is left."""
    for rate in (1e-3, 3e-3):
        model = bench.load_original()
        config = UnlearnConfig(
            "grad_ascent", lr=bench.learning_rate(rate), steps=60, batch_size=BATCH
        )
        unlearn_(
            model,
            bench.all_rows(bench.forget),
            bench.retain_rows(bench.retain),
            config,
            seed=bench.training_seed("collapse"),
        )
        yield model


def noise(bench: Workbench) -> Iterator[nn.Module]:
    """Gaussian noise on every matrix, in shares of its own spread."""
    for share in (0.3, 0.5, 0.8, 1.2, 2.0):
        model = bench.load_original()
        rng = torch_rng(bench.seed, "zoo", "noise")
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim > 1:
                    noise_sample = torch.randn(weight.shape, generator=rng)
                    weight += share * weight.std() * noise_sample.to(weight.device)
        yield model


def one_point(bench: Workbench) -> Iterator[nn.Module]:
    """States of the forget prompts pushed to one point, and nothing held in place."""
    for rate, steps in ((3e-3, 200), (1e-2, 400)):
        model = bench.load_original()
        config = UnlearnConfig(
            "rmu",
            lr=bench.learning_rate(rate),
            steps=steps,
            batch_size=BATCH,
            retain_weight=0.0,
            rmu_layer=1,
            rmu_coefficient=20.0,
            rmu_parameters="all",
        )
        unlearn_(
            model,
            bench.all_rows(bench.forget),
            bench.retain_rows(bench.retain),
            config,
            seed=bench.training_seed("one point"),
        )
        yield model


def random_init(bench: Workbench) -> Iterator[nn.Module]:
    """Weights that were never trained."""
    yield bench.untrained(bench.seed + 5000)

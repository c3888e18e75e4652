"""Damaged models: collapse, noise, random weights."""

from collections.abc import Iterator

import torch
from torch import nn

from erasure.unlearning.config import UnlearnConfig
from evidence.seeds import torch_rng
from testbeds.edits.workbench import BATCH, TextWorkbench, Workbench


def collapse(bench: Workbench) -> Iterator[nn.Module]:
    """Gradient ascent until nothing is left."""
    for config in bench.collapse_settings():
        yield bench.unlearned(config, "collapse")


def noise(bench: Workbench) -> Iterator[nn.Module]:
    """Gaussian noise on every matrix, in shares of its own spread."""
    for share in (0.3, 0.5, 0.8, 1.2, 2.0):
        model = bench.load_original()
        rng = torch_rng(bench.seed, "zoo", "noise")
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim > 1:
                    sample = torch.randn(weight.shape, generator=rng)
                    weight += share * weight.std() * sample.to(weight.device)
        yield model


def one_point(bench: TextWorkbench) -> Iterator[nn.Module]:
    """States of the forget prompts pushed to one point, and nothing held in place."""
    for rate, steps in ((3e-3, 200), (1e-2, 400)):
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
        yield bench.unlearned(config, "one point")


def random_init(bench: Workbench) -> Iterator[nn.Module]:
    """Weights that were never trained."""
    yield bench.untrained(bench.seed + 5000)

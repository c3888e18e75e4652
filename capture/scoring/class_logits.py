"""Logits and activations of image classifiers, with optional edits at sites."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from capture.data.images import ImageSet
from capture.network.hooks import Edit, evaluation_mode, patch, record
from capture.network.sites import Sites
from capture.network.structure import model_device

BATCH = 256


def class_logits(model: nn.Module, pixels: Tensor) -> Tensor:
    """(image, class) logits of an image classifier or a plain network."""
    out: Any = model(pixels)
    return out if isinstance(out, Tensor) else out.logits


def logits_with_edits(
    model: nn.Module, images: ImageSet, edits: Mapping[str, Edit], where: Sites
) -> Tensor:
    """(image, class) logits under edits, on the CPU."""
    return pixel_logits(model, images.pixels, edits, where)


def pixel_logits(
    model: nn.Module, pixels: Tensor, edits: Mapping[str, Edit], where: Sites
) -> Tensor:
    """``logits_with_edits`` for a tensor of pixels."""
    device, logits = model_device(model), []
    with torch.no_grad(), evaluation_mode(model), patch(model, edits, known_sites=where):
        for start in range(0, len(pixels), BATCH):
            batch = pixels[start : start + BATCH].to(device)
            logits.append(class_logits(model, batch).float().cpu())
    return torch.cat(logits)


def image_states(
    model: nn.Module, images: ImageSet, sites: list[str], where: Sites
) -> dict[str, Tensor]:
    """Site to (image, ...) activations, on the CPU."""
    batches: dict[str, list[Tensor]] = {site: [] for site in sites}
    device = model_device(model)
    with (
        torch.no_grad(),
        evaluation_mode(model),
        record(model, sites, lambda _, value: value.float().cpu(), known_sites=where) as recorded,
    ):
        for start in range(0, len(images.pixels), BATCH):
            class_logits(model, images.pixels[start : start + BATCH].to(device))
            for site, value in recorded.items():
                batches[site].append(value)
    return {site: torch.cat(values) for site, values in batches.items()}

"""Depth and width of a checkpoint's network, without loading its weights."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from capture.checkpoints.open import Checkpoint
from capture.checkpoints.schemas.configuration import library_config, model_class
from capture.checkpoints.schemas.library_errors import library_errors, quiet_transformers
from capture.network.sites import find_sites
from capture.network.structure import find_transformer


@dataclass(frozen=True)
class NetworkSize:
    """Size of a network.

    Attributes:
        n_layers: Number of blocks; None for a network without attention.
        d_model: Width of the residual stream; None if the configuration does not state it.
    """

    n_layers: int | None
    d_model: int | None


def network_size(checkpoint: Checkpoint) -> NetworkSize:
    """Depth and width of a checkpoint's network.

    The network of a folder is built on PyTorch's meta device, which allocates no memory.

    Raises:
        InputError: its structure is not understood; see ``capture.network.sites``.
    """
    if checkpoint.live is not None:
        sites = find_sites(checkpoint.live)
        return NetworkSize(sites.n_layers, sites.d_model)
    model, settings = _bare(checkpoint.config)
    transformer = find_transformer(model)
    text = settings.get_text_config()
    width = getattr(text, "hidden_size", None)
    layers = None if transformer is None else len(transformer.blocks)
    return NetworkSize(layers, width)


def meta_model(checkpoint: Checkpoint) -> nn.Module:
    """The network on PyTorch's meta device: shapes without memory.

    Raises:
        InputError: it could not be built.
    """
    if checkpoint.live is not None:
        return copy.deepcopy(checkpoint.live).to("meta")
    return _bare(checkpoint.config)[0]


def _bare(config: dict[str, Any]) -> tuple[nn.Module, Any]:
    kind, place = model_class(config), Path("config.json")
    with quiet_transformers(), library_errors("its network could not be built"):
        settings = library_config(config, kind, place)
        with torch.device("meta"):
            return kind(settings), settings

"""The structure of a checkpoint's network, without its weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from capture.checkpoints.open import Checkpoint
from capture.checkpoints.schemas.configuration import library_config, model_class
from capture.checkpoints.schemas.library_errors import library_errors
from capture.checkpoints.schemas.quietly import quiet_transformers
from capture.network.sites import find_sites
from capture.network.structure import find_transformer


@dataclass(frozen=True)
class NetworkSize:
    """What is known of a network before its weights are read.

    Attributes:
        n_layers: Number of blocks; None for a network without attention.
        d_model: Of the residual stream; None where its configuration does not say it.
    """

    n_layers: int | None
    d_model: int | None


def network_size(checkpoint: Checkpoint) -> NetworkSize:
    """The blocks of a checkpoint's network.

    A live module is looked at as it is; of a folder the network is built on PyTorch's
    meta device, which holds no numbers.

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


def _bare(config: dict[str, Any]) -> tuple[nn.Module, Any]:
    kind, place = model_class(config), Path("config.json")
    with quiet_transformers(), library_errors("its network could not be built"):
        settings = library_config(config, kind, place)
        with torch.device("meta"):
            return kind(settings), settings

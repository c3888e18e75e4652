"""The models of an audit by role, loaded one at a time."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from capture.checkpoints.open import Checkpoint

LARGE_MODEL = 10_000_000  # parameters


@dataclass(frozen=True)
class AuditedModel:
    """One model of an audit.

    Attributes:
        role: "original", "unlearned", "planted" or "reference-N".
        weights_hash: Content hash, part of every cache key.
        config: The model's configuration, the other part.
        loader: Loads a fresh model on a device; the caller may change it.
    """

    role: str
    weights_hash: str
    config: dict[str, Any]
    loader: Callable[[str], nn.Module]

    @classmethod
    def of(cls, role: str, checkpoint: Checkpoint) -> "AuditedModel":
        """A checkpoint in a role."""
        return cls(role, checkpoint.weights_hash, checkpoint.config, checkpoint.load)

    def load(self, device: str = "cpu") -> nn.Module:
        """A fresh model."""
        return self.loader(device)

    @contextmanager
    def loaded(self, device: str) -> Iterator[nn.Module]:
        """The model for the length of a block; its memory is freed afterwards."""
        model = self.load(device)
        large = sum(p.numel() for p in model.parameters()) > LARGE_MODEL
        try:
            yield model
        finally:
            del model
            # Modules form reference cycles, so only a garbage collection frees them. It takes
            # half a second, too long for a small model.
            if large:
                gc.collect()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()

"""An audit in progress: its inputs, settings, work folder and models."""

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic

import torch
from torch import nn

from audits.core.config import AuditConfig
from audits.core.inputs import InputsOf, Items
from audits.core.manifest import code_hash
from audits.core.workspace import Workspace
from capture.activations.store import ActivationStore
from capture.checkpoints.identity import identifying_config
from capture.checkpoints.open import Checkpoint
from capture.data.images import ImageSet
from capture.data.items import ItemSet
from evidence.machine.devices import choose_device
from evidence.progress import Progress

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


def reference_roles(roles: Iterable[str]) -> list[str]:
    """The roles of models retrained without the forget set."""
    return [role for role in roles if role.startswith("reference")]


@dataclass(frozen=True)
class RunOf(Generic[Items]):
    """An audit in progress."""

    inputs: InputsOf[Items]
    config: AuditConfig
    workspace: Workspace
    device: str
    progress: Progress

    @property
    def tokenizer(self) -> Any:
        """The tokenizer shared by all models."""
        return self.inputs.original.tokenizer

    @cached_property
    def models(self) -> dict[str, AuditedModel]:
        """Models by role."""
        checkpoints = [self.inputs.original, self.inputs.unlearned, *self.inputs.references]
        return {
            checkpoint.name: AuditedModel.of(checkpoint.name, checkpoint)
            for checkpoint in checkpoints
        }

    @cached_property
    def store(self) -> ActivationStore:
        """Activation store of this audit."""
        return ActivationStore(self.workspace.work / "activations")

    @cached_property
    def identical(self) -> bool:
        """Whether candidate and original have the same weights and configuration."""
        original, candidate = self.inputs.original, self.inputs.unlearned
        return original.weights_hash == candidate.weights_hash and identifying_config(
            original.config
        ) == identifying_config(candidate.config)


Run = RunOf[ItemSet]
ImageRun = RunOf[ImageSet]


def open_run(
    inputs: InputsOf[Items], config: AuditConfig, out: Path, fresh: bool, progress: Progress
) -> RunOf[Items]:
    """Open the output folder for exactly these inputs; nothing is computed yet."""
    device = choose_device(config.device)
    fingerprint = inputs.fingerprint() | {
        "config": config.model_dump(mode="json"),
        "device": device,
        "code": code_hash(),
    }
    space = Workspace.open(Path(out), fingerprint, fresh)
    return RunOf(inputs, config, space, device, progress)

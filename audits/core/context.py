"""An audit in progress: its inputs, settings, work folder and models."""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from audits.core.baseline_scores import RoleBaseline
from audits.core.config import AuditConfig
from audits.core.inputs import InputsOf, Items
from audits.core.preflight import Damage
from audits.core.roles import Role
from audits.output.manifest import code_hash
from audits.output.workspace import StageRunner, Workspace
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
        role: Role of the model.
        weights_hash: Content hash, part of every cache key.
        config: The model's configuration, the other part.
        loader: Loads a fresh model on a device; the caller may change it.
    """

    role: Role
    weights_hash: str
    config: dict[str, Any]
    loader: Callable[[str], nn.Module]

    @classmethod
    def of(cls, role: Role, checkpoint: Checkpoint) -> "AuditedModel":
        """A checkpoint in a role."""
        return cls(role, checkpoint.weights_hash, checkpoint.config, checkpoint.load)

    def load(self, device: str = "cpu") -> nn.Module:
        """A fresh model."""
        return self.loader(device)

    @contextmanager
    def loaded(self, device: str) -> Iterator[nn.Module]:
        """The model for the length of a block; its memory is freed afterwards."""
        model = self.load(device)
        large = _is_large(model)
        try:
            yield model
        finally:
            del model
            _collect(large)


class LoadedModel:
    """At most one model in memory, kept between uses.

    Axes read the same model one after another; without this each would load it from disk.
    """

    def __init__(self) -> None:
        self._held: tuple[AuditedModel, str, nn.Module] | None = None

    @contextmanager
    def reading(self, audited: AuditedModel, device: str) -> Iterator[nn.Module]:
        """A model that the block must not change."""
        if self._held is None or self._held[:2] != (audited, device):
            self.release()
            self._held = audited, device, audited.load(device)
        model = self._held[2]
        before = _version(model)
        try:
            yield model
        finally:
            if _version(model) != before:
                self.release()
                raise RuntimeError(f"{audited.role} was changed while it was read")

    def release(self) -> None:
        """Free the model, if one is held."""
        if self._held is not None:
            large = _is_large(self._held[2])
            self._held = None
            _collect(large)


def _version(model: nn.Module) -> int:
    """A number that grows with every in-place change of a weight."""
    return sum(tensor._version for tensor in (*model.parameters(), *model.buffers()))


def _is_large(model: nn.Module) -> bool:
    return sum(p.numel() for p in model.parameters()) > LARGE_MODEL


def _collect(large: bool) -> None:
    """Free the memory of a model that nothing refers to any more.

    Modules form reference cycles, so only a garbage collection frees them. It takes half a
    second, too long for a small model.
    """
    if large:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


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
    def models(self) -> dict[Role, AuditedModel]:
        """Models by role."""
        by_role = {
            Role.ORIGINAL: self.inputs.original,
            Role.CANDIDATE: self.inputs.unlearned,
            **{Role.reference(n): each for n, each in enumerate(self.inputs.references, start=1)},
        }
        return {role: AuditedModel.of(role, checkpoint) for role, checkpoint in by_role.items()}

    @cached_property
    def loaded(self) -> LoadedModel:
        """The model that is in memory for reading."""
        return LoadedModel()

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


Sets = TypeVar("Sets")
Stored = TypeVar("Stored")


@dataclass(frozen=True)
class AuditContext(Generic[Sets]):
    """Everything that an axis measures with.

    Attributes:
        run: Inputs, settings, work folder and device.
        stages: Runs resumable stages.
        sets: The items that the original knows, and never-taught ones.
        models: Models by role, with the planted suppression where one was made.
        baseline: Scores at the output, by role.
        damage: Utility of the candidate.
    """

    run: RunOf[Any]
    stages: StageRunner
    sets: Sets
    models: Mapping[Role, AuditedModel]
    baseline: Mapping[Role, RoleBaseline]
    damage: Damage

    @property
    def config(self) -> AuditConfig:
        """Settings of the audit."""
        return self.run.config

    @property
    def device(self) -> str:
        """Where models run."""
        return self.run.device

    @property
    def progress(self) -> Progress:
        """Where progress is shown."""
        return self.run.progress

    @property
    def tokenizer(self) -> Any:
        """The tokenizer shared by all models."""
        return self.run.tokenizer

    @property
    def store(self) -> ActivationStore:
        """Activation store of the audit."""
        return self.run.store

    @property
    def folder(self) -> Path:
        """Work folder of the audit."""
        return self.run.workspace.work

    def with_model(self, role: Role, model: AuditedModel) -> "AuditContext[Sets]":
        """The same with one more model."""
        return replace(self, models={**self.models, role: model})

    def stage(
        self,
        name: str,
        type_: type[Stored],
        compute: Callable[[], Stored],
        files: Sequence[str] = (),
    ) -> Stored:
        """A typed result that is computed once and survives interruption.

        Args:
            name: Name of the stage, unique in the audit; an axis starts it with its own name.
            type_: Type of the result.
            files: Other files that the stage writes into ``folder``.
        """
        return self.stages.typed(name, type_, compute, files)

    @contextmanager
    def reading(self, role: Role) -> Iterator[nn.Module]:
        """A model for reading only. The last one read stays in memory until another is needed.

        Raises:
            RuntimeError: the block changed the model's weights; ``fresh`` is for that.
        """
        with self.run.loaded.reading(self.models[role], self.device) as model:
            yield model

    @contextmanager
    def fresh(self, role: Role) -> Iterator[nn.Module]:
        """A model that the block may change, freed afterwards."""
        self.run.loaded.release()
        with self.models[role].loaded(self.device) as model:
            yield model

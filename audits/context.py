"""An audit in progress: its inputs, settings, folder and models."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from audits.config import AuditConfig
from audits.inputs import Inputs
from audits.stages import Workspace
from audits.subjects import Subject
from capture.store import ActivationStore
from evidence.progress import Progress


@dataclass(frozen=True)
class Run:
    """An audit in progress: inputs, settings, where it works, how it reports."""

    inputs: Inputs
    config: AuditConfig
    space: Workspace
    device: str
    progress: Progress

    @property
    def tokenizer(self) -> Any:
        """The tokenizer all models share."""
        return self.inputs.original.tokenizer

    @cached_property
    def subjects(self) -> dict[str, Subject]:
        """Models by role."""
        named = [self.inputs.original, self.inputs.unlearned, *self.inputs.references]
        return {each.name: Subject.of(each.name, each) for each in named}

    @cached_property
    def store(self) -> ActivationStore:
        """Activations of this audit."""
        return ActivationStore(self.space.work / "activations")

    @cached_property
    def identical(self) -> bool:
        """Whether candidate and original are the same weights."""
        return self.inputs.original.weights_hash == self.inputs.unlearned.weights_hash

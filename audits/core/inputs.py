"""Open and check all inputs of a text audit, cheapest checks first."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from audits.core.config import AuditConfig
from audits.core.input_checks import (
    check_sets,
    check_with_original,
    text_items,
    with_tokenizer,
)
from audits.core.preflight import check_embedding_rows, check_same_tokenizer
from capture.checkpoints.open import Checkpoint, open_checkpoint
from capture.data.images import ImageSet
from capture.data.items import ItemSet
from evidence.errors import check_list
from evidence.progress import Progress

Items = TypeVar("Items", ItemSet, ImageSet)


@dataclass(frozen=True)
class InputsOf(Generic[Items]):
    """Checked inputs of an audit of text items or images.

    Attributes:
        original: Model before unlearning.
        unlearned: The candidate.
        references: Models retrained without the forget set.
        never_taught: Items that no model was taught, or None to invent them.
        warnings: Likely mistakes in the items, and measurements that are left out.
    """

    original: Checkpoint
    unlearned: Checkpoint
    references: tuple[Checkpoint, ...]
    forget: Items
    retain: Items
    never_taught: Items | None
    warnings: tuple[str, ...]

    def fingerprint(self) -> dict[str, Any]:
        """Hashes of items and models, including everything that changes a model's function."""
        never = self.never_taught
        return {
            "original": self.original.fingerprint,
            "unlearned": self.unlearned.fingerprint,
            "references": [each.fingerprint for each in self.references],
            "forget": self.forget.digest,
            "retain": self.retain.digest,
            "never_taught": never.digest if never is not None else None,
        }


Inputs = InputsOf[ItemSet]
ImageInputs = InputsOf[ImageSet]


def named_roles(unlearned: Any, references: Sequence[Any]) -> list[tuple[str, Any]]:
    """The models other than the original, each with its role.

    Raises:
        InputError: the references are no list.
    """
    held = check_list(references, "the references")
    named = [(f"reference-{n}", each) for n, each in enumerate(held, start=1)]
    return [("unlearned", unlearned), *named]


def open_inputs(
    original: Any,
    unlearned: Any,
    forget: Path | str | ItemSet,
    retain: Path | str | ItemSet,
    *,
    references: Sequence[Any],
    never_taught: Path | str | ItemSet | None,
    tokenizer: Any,
    config: AuditConfig,
    progress: Progress,
) -> Inputs:
    """Read the items, open the models, and check that they belong together.

    Raises:
        InputError: inputs that cannot be audited; no model has been run.
    """
    held_against = named_roles(unlearned, references)
    gone, kept = text_items(forget, "forget"), text_items(retain, "retain")
    never = None if never_taught is None else text_items(never_taught, "never_taught")
    check_sets(gone, kept, never, config).check()
    first = open_checkpoint(
        original, name="original", tokenizer=tokenizer, progress=progress
    )
    checked = check_with_original(first, gone, kept, never, config)
    checked.check()
    warnings = list(checked.warnings)
    others = []
    for role, source in held_against:
        other = open_checkpoint(
            source, name=role, tokenizer=tokenizer, progress=progress
        )
        if other.tokenizer is None and isinstance(source, str | Path):
            warnings.append(f"{role} has no tokenizer: it is asked with the original's")
        other = with_tokenizer(other, first)
        check_same_tokenizer(first, other)
        check_embedding_rows(other)
        others.append(other)
    return Inputs(
        first, others[0], tuple(others[1:]), gone, kept, never, tuple(warnings)
    )

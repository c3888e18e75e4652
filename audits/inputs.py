"""Open and check everything an audit starts from, cheapest checks first."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from audits.preflight import check_rows, check_same_tokenizer
from capture.images import ImageSet, holds_images, names_images
from capture.items import ItemSet, read_items
from capture.models import Checkpoint, open_checkpoint
from capture.validation import validate_items
from evidence.errors import InputError
from evidence.progress import Progress

Items = TypeVar("Items", ItemSet, ImageSet)


@dataclass(frozen=True)
class InputsOf(Generic[Items]):
    """Checked inputs of an audit, of text items or of images.

    Attributes:
        original: The model before unlearning.
        unlearned: The candidate.
        references: Models retrained without the forget set.
        forget: Items that should be gone.
        retain: Items that should still be there.
        never_taught: Items nobody was taught, or None to invent them.
        warnings: What may be a slip in the items, and what is not asked of them.
    """

    original: Checkpoint
    unlearned: Checkpoint
    references: tuple[Checkpoint, ...]
    forget: Items
    retain: Items
    never_taught: Items | None
    warnings: tuple[str, ...]

    def fingerprint(self) -> dict[str, Any]:
        """Hashes of all of them: of models with all that changes what they compute."""
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


def roles(unlearned: Any, references: Sequence[Any]) -> list[tuple[str, Any]]:
    """The models held against the original, each with the name it goes by."""
    named = [(f"reference-{n}", each) for n, each in enumerate(references, start=1)]
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
    progress: Progress,
) -> Inputs:
    """Read items, then open models, then check that they belong together.

    Raises:
        InputError: whatever cannot be audited, before any model is run.
    """
    forget_items, retain_items = _items(forget, "forget"), _items(retain, "retain")
    never_items = None if never_taught is None else _items(never_taught, "never_taught")
    validate_items(forget_items, retain_items).check()
    if never_items is not None:
        taught = {*forget_items.entities, *retain_items.entities}
        shared = [entity for entity in never_items.entities if entity in taught]
        if shared:
            raise InputError(
                f"never-taught items name {shared[0]!r}, which is in the forget or "
                "retain file",
                expected="entities no model was taught",
            )
    first = open_checkpoint(
        original, name="original", tokenizer=tokenizer, progress=progress
    )
    if names_images(first.config):
        raise InputError(
            "text items with an image model",
            expected="images: a folder with one folder a class, or an .npz file",
            got=f"{forget_items.name} and {retain_items.name}",
            fix="Pass images to --forget and --retain",
        )
    if first.tokenizer is None:
        raise InputError(
            "the original has no tokenizer", fix="Pass one with tokenizer="
        )
    check_rows(first)
    others = []
    for role, source in roles(unlearned, references):
        # A live model rarely brings a tokenizer; a folder's own must be the same.
        given = tokenizer
        if given is None and not isinstance(source, str | Path):
            given = first.tokenizer
        other = open_checkpoint(source, name=role, tokenizer=given, progress=progress)
        check_same_tokenizer(first, other)
        others.append(other)
    checked = validate_items(forget_items, retain_items, first.tokenizer)
    checked.check()
    return Inputs(
        first,
        others[0],
        tuple(others[1:]),
        forget_items,
        retain_items,
        never_items,
        checked.warnings,
    )


def _items(source: Path | str | ItemSet, role: str) -> ItemSet:
    if holds_images(source):
        raise InputError(
            f"{source} holds images, where text items are read",
            expected="JSONL, CSV or Parquet",
            fix="exhume audit takes images of classes; exhume plan does not yet",
        )
    if isinstance(source, ItemSet):
        if len(source) == 0:
            raise InputError(f"the {role} set is empty", expected="one item or more")
        return source
    return read_items(source, name=role)

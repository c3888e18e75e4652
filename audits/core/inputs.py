"""Open and check all inputs of a text audit, cheapest checks first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from audits.core.config import AuditConfig
from audits.core.input_checks import check_sets, check_with_original, text_items, with_tokenizer
from audits.core.preflight import check_embedding_rows, with_shared_tokenizer
from capture.checkpoints.causal import check_causal
from capture.checkpoints.open import Checkpoint, check_base, open_checkpoint
from capture.data.images import ImageSet
from capture.data.items import ItemSet
from evidence.errors import check_list
from evidence.progress import Progress
from evidence.typed_json import Json

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

    def fingerprint(self) -> dict[str, Json]:
        """Hashes of items and models, including everything that changes a model's function."""
        never_taught = self.never_taught
        return {
            "original": self.original.fingerprint,
            "unlearned": self.unlearned.fingerprint,
            "references": [reference.fingerprint for reference in self.references],
            "forget": self.forget.digest,
            "retain": self.retain.digest,
            "never_taught": never_taught.digest if never_taught is not None else None,
        }


Inputs = InputsOf[ItemSet]
ImageInputs = InputsOf[ImageSet]


def named_roles(unlearned: Any, references: Sequence[Any]) -> list[tuple[str, Any]]:
    """The models other than the original, each with its role.

    Raises:
        InputError: the references are no list.
    """
    checked = check_list(references, "the references")
    named = [(f"reference-{n}", source) for n, source in enumerate(checked, start=1)]
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
    columns: Mapping[str, str] | None = None,
    base: Any = None,
) -> Inputs:
    """Read the items, open the models, and check that they belong together.

    Raises:
        InputError: inputs that cannot be audited; no model has been run.
    """
    sources = named_roles(unlearned, references)
    forget_items = text_items(forget, "forget", columns)
    retain_items = text_items(retain, "retain", columns)
    never = None if never_taught is None else text_items(never_taught, "never_taught", columns)
    check_sets(forget_items, retain_items, never, config).check()
    check_base(base, (original, *(source for _, source in sources)))
    first = open_checkpoint(
        original, name="original", tokenizer=tokenizer, base=base, progress=progress
    )
    report = check_with_original(first, forget_items, retain_items, never, config)
    report.check()
    warnings = list(report.warnings)
    opened = []
    for role, source in sources:
        checkpoint = open_checkpoint(
            source, name=role, tokenizer=tokenizer, base=base, progress=progress
        )
        check_causal(checkpoint)
        if checkpoint.tokenizer is None and isinstance(source, str | Path):
            warnings.append(f"{role} has no tokenizer: it is asked with the original's")
        checkpoint = with_tokenizer(checkpoint, first)
        checkpoint, note = with_shared_tokenizer(first, checkpoint)
        warnings += [note] if note else []
        check_embedding_rows(checkpoint)
        opened.append(checkpoint)
    return Inputs(
        first, opened[0], tuple(opened[1:]), forget_items, retain_items, never, tuple(warnings)
    )

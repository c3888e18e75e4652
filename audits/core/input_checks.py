"""Checks of the items and the original before any model is run.

``exhume validate``, ``exhume plan`` and ``exhume audit`` share this chain, so all three refuse
the same inputs. Checks that need a forward pass are in ``audits.core.item_sets.known``, called
by ``exhume validate --original`` and by the audit.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from audits.core.config import AuditConfig
from audits.core.item_sets import (
    check_never_taught,
    make_never_taught,
    min_entities_of,
    within_budget,
    without_constant_relations,
)
from audits.core.preflight import check_embedding_rows
from capture.checkpoints.causal import check_causal
from capture.checkpoints.open import Checkpoint
from capture.data.image_files import is_image_source
from capture.data.images import is_image_classifier
from capture.data.items import Item, ItemSet, read_items
from capture.data.questions import check_entity_count
from capture.data.tokenization import encode
from capture.network.discovery.position_limit import context_limit
from capture.network.network_size import network_size
from capture.scoring.choices import alternatives_of
from capture.scoring.set_validation import ValidationReport, validate_items
from evidence.errors import InputError


def text_items(
    source: Path | str | ItemSet, role: str, columns: Mapping[str, str] | None = None
) -> ItemSet:
    """Read items from a file, or pass them through.

    Args:
        columns: Field of an item to column of the file; by default the format is recognized.

    Raises:
        InputError: images, no items, or an unreadable file.
    """
    if isinstance(source, ItemSet):
        if len(source) == 0:
            raise InputError(f"the {role} set is empty", expected="one item or more")
        return source
    if is_image_source(source):
        raise InputError(
            f"{source} holds images, not text items",
            expected="JSONL, CSV or Parquet",
            fix="exhume audit takes images of classes; other commands do not yet",
        )
    return read_items(source, name=role, columns=columns)


def check_sets(
    forget: ItemSet, retain: ItemSet, never_taught: ItemSet | None, config: AuditConfig
) -> ValidationReport:
    """Validate the item sets against each other.

    Args:
        never_taught: Never-taught items; None to invent them as the audit would.
        config: Settings of the audit.
    """
    report = validate_items(forget, retain)
    if not report.ok:
        return report

    def check_names() -> None:
        if never_taught is not None:
            check_never_taught(never_taught, forget, retain)
        make_never_taught(forget, within_budget(retain, config), never_taught, config)

    return _with(
        report,
        lambda: check_entity_count(forget, min_entities_of("forget", config), "the forget set"),
        lambda: check_entity_count(retain, min_entities_of("retain", config), "the retain set"),
        check_names,
        lambda: _check_alternatives(forget),
    )


def check_with_original(
    original: Checkpoint,
    forget: ItemSet,
    retain: ItemSet,
    never_taught: ItemSet | None,
    config: AuditConfig,
) -> ValidationReport:
    """Validate the sets with the original's tokenizer and context; it is not run.

    Raises:
        InputError: the original is no language model that can be audited, or has no tokenizer.
    """
    if is_image_classifier(original.config):
        raise InputError(
            "text items with an image model",
            expected="images: a folder with one folder a class, or an .npz file",
            got=f"{forget.name} and {retain.name}",
            fix="Pass images to --forget and --retain",
        )
    check_causal(original)
    network_size(original)
    if original.tokenizer is None:
        raise InputError(
            f"{original.name} has no tokenizer",
            expected="tokenizer.json and tokenizer_config.json in its folder",
            fix="Put its tokenizer beside it, or pass one with tokenizer= in Python",
        )
    check_embedding_rows(original)
    report = validate_items(forget, retain, original.tokenizer)
    if not report.ok:
        return report
    sets = {"forget": forget, "retain": retain, "never-taught": never_taught}
    return _with(
        report,
        *(
            lambda name=name, items=items: _check_lengths(original, name, items, config)
            for name, items in sets.items()
            if items is not None
        ),
    )


def with_tokenizer(checkpoint: Checkpoint, original: Checkpoint) -> Checkpoint:
    """The checkpoint, with the original's tokenizer where it has none."""
    if checkpoint.tokenizer is not None:
        return checkpoint
    return replace(checkpoint, tokenizer=original.tokenizer)


def _with(report: ValidationReport, *checks: Callable[[], None]) -> ValidationReport:
    """The report, with the errors that the checks raise."""
    errors = list(report.errors)
    for check in checks:
        try:
            check()
        except InputError as error:
            errors.append(error)
    return replace(report, errors=tuple(errors))


def _check_alternatives(forget: ItemSet) -> None:
    kept, _ = without_constant_relations(forget)
    alternatives_of(kept if len(kept) else forget)


def _check_lengths(original: Checkpoint, name: str, items: ItemSet, config: AuditConfig) -> None:
    """Check that any answer of a relation fits after the longest prompt of that relation.

    Probes read true and false statements, so any answer may follow any prompt.
    """
    limit = context_limit(original.config)
    if limit is None:
        return
    wordings = config.budget.prompts_per_item
    relations: dict[str, list[Item]] = {}
    for item in items:
        relations.setdefault(item.relation, []).append(item)
    for members in relations.values():
        prompts_with_answers = [
            (prompt, item.answer, item)
            for item in members
            for prompt in (item.prompt, *item.paraphrases)[:wordings]
        ]
        prompts, answers, owners = zip(*prompts_with_answers, strict=True)
        rows = encode(original.tokenizer, prompts, answers)
        longest = max(range(len(rows)), key=lambda row: rows.answer_start[row])
        answer = max(len(i) - s for i, s in zip(rows.ids, rows.answer_start, strict=True))
        total = rows.answer_start[longest] + answer
        if total > limit:
            raise InputError(
                f"the prompt of item {owners[longest].id!r} in the {name} set exceeds the "
                f"context of {original.name}",
                expected=f"at most {limit} tokens, including an answer of {answer}",
                got=f"{rows.answer_start[longest]} tokens and the answer",
                fix="Shorten the prompt, or leave the item out",
            )

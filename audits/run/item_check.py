"""``exhume validate`` in Python: two item files, and how much a model knows of them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from audits.asking.elicitation import elicit
from audits.asking.selection import select_sets
from audits.core.config import make_config
from audits.core.input_checks import check_sets, check_with_original, text_items
from audits.core.item_sets import within_budget
from audits.core.scores import Part
from capture.checkpoints.open import check_base, open_checkpoint
from capture.data.items import ItemSet
from capture.scoring.choices import alternatives_of
from capture.scoring.set_validation import PairScores, ValidationReport, validate_items
from evidence.errors import InputError
from evidence.progress import AUTO, Progress


def check_items(
    forget: Path | str | ItemSet,
    retain: Path | str | ItemSet,
    original: Any = None,
    *,
    never_taught: Path | str | ItemSet | None = None,
    tokenizer: Any = None,
    base: Any = None,
    profile: str = "quick",
    columns: Mapping[str, str] | None = None,
    chat: str = "auto",
    system: str = "",
    scorer: str = "auto",
    progress: Progress = AUTO,
) -> ValidationReport:
    """Read both files and check them as an audit would.

    Args:
        forget: Items that should be gone.
        retain: Items that should still be known.
        original: A model to score on the items.
        never_taught: Items that no model was taught; invented by default.
        tokenizer: For a live original, which rarely has one attached.
        base: If the original is an adapter: the model it was trained on.
        profile: Profile of the intended audit: "quick", "standard" or "full".
        columns: As in ``audits.run.api.audit``, and so are the others.

    Raises:
        InputError: a file or the model cannot be read.

    Examples:
        >>> found = exhume.check_items("forget.jsonl", "retain.jsonl", "original")
        >>> found.ok, found.overlap
        (True, ())
        >>> found.to_frame()[["set", "items", "entities", "known"]]
              set  items  entities  known
        0  forget     60        20     60
        1  retain    228        76    228
    """
    config = make_config({"profile": profile, "chat": chat, "system": system, "scorer": scorer})
    check_base(base, () if original is None else (original,))
    forget_items = text_items(forget, "forget", columns)
    retain_items = text_items(retain, "retain", columns)
    never = None if never_taught is None else text_items(never_taught, "never_taught", columns)
    report = check_sets(forget_items, retain_items, never, config)
    if original is None or not report.ok:
        return report
    checkpoint = open_checkpoint(
        original, name="original", tokenizer=tokenizer, base=base, progress=progress
    )
    report = check_with_original(checkpoint, forget_items, retain_items, never, config)
    if not report.ok:
        return report
    elicited = elicit(
        checkpoint.load(), checkpoint.tokenizer, forget_items, retain_items, never, config, progress
    )
    known = {part: np.array(elicited.known[part]) > 0 for part in (Part.FORGET, Part.RETAIN)}
    asked = retain_items
    if elicited.tried[-1].retain_asked < len(retain_items):
        # Those beyond the budget were not asked, which does not mean that they are not known.
        asked = within_budget(retain_items, config)
        kept = {item.id for item in asked}
        known[Part.RETAIN] = known[Part.RETAIN][[item.id in kept for item in retain_items]]
    report = validate_items(
        forget_items,
        asked,
        checkpoint.tokenizer,
        PairScores(known[Part.FORGET], known[Part.RETAIN]),
    )
    try:
        sets = select_sets(elicited, forget_items, retain_items, never, config)
        alternatives_of(sets.forget)
    except InputError as error:
        report = replace(report, errors=(*report.errors, error))
    return report

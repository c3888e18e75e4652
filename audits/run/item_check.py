"""``exhume validate`` in Python: two item files, and how much a model knows of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from audits.core.config import make_config
from audits.core.input_checks import check_sets, check_with_original, text_items
from audits.core.item_sets import invent_never_taught, select_known_items, within_budget
from capture.checkpoints.open import open_checkpoint
from capture.data.items import ItemSet
from capture.data.questions import build_questions
from capture.scoring.answers import score_answers
from capture.scoring.choices import alternatives_of
from capture.scoring.set_validation import PairScores, ValidationReport, validate_items
from evidence.errors import InputError
from evidence.progress import SILENT, Progress


def check_items(
    forget: Path | str | ItemSet,
    retain: Path | str | ItemSet,
    original: Any = None,
    *,
    never_taught: Path | str | ItemSet | None = None,
    tokenizer: Any = None,
    profile: str = "quick",
    progress: Progress = SILENT,
) -> ValidationReport:
    """Read both files and check them as an audit would.

    Args:
        forget: Items that should be gone.
        retain: Items that should still be known.
        original: A model to score on the items.
        never_taught: Items that no model was taught; invented by default.
        tokenizer: For a live original, which rarely has one attached.
        profile: Profile of the intended audit: "quick", "standard" or "full".

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
    config = make_config({"profile": profile})
    forget_items, retain_items = (text_items(forget, "forget"), text_items(retain, "retain"))
    never = None if never_taught is None else text_items(never_taught, "never_taught")
    report = check_sets(forget_items, retain_items, never, config)
    if original is None or not report.ok:
        return report
    checkpoint = open_checkpoint(original, name="original", tokenizer=tokenizer, progress=progress)
    report = check_with_original(checkpoint, forget_items, retain_items, never, config)
    if not report.ok:
        return report
    model = checkpoint.load()
    scores = [
        score_answers(
            model, build_questions(items, 1).encoded(checkpoint.tokenizer), progress=progress
        )
        for items in (forget_items, retain_items)
    ]
    report = validate_items(forget_items, retain_items, checkpoint.tokenizer, PairScores(*scores))
    try:
        known_forget = select_known_items("forget", forget_items, scores[0].greedy, config)
        known_retain = within_budget(
            select_known_items("retain", retain_items, scores[1].greedy, config), config
        )
        alternatives_of(known_forget)
        if never is None:
            invent_never_taught(known_forget, known_retain, config)
    except InputError as error:
        report = replace(report, errors=(*report.errors, error))
    return report

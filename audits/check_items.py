"""``exhume validate`` in Python: two item files, and what a model knows of them."""

from pathlib import Path
from typing import Any

from capture.items import ItemSet, read_items
from capture.models import open_checkpoint
from capture.scoring import score_answers
from capture.tokens import encode_items
from capture.validation import PairScores, ValidationReport, validate_items
from evidence.progress import SILENT, Progress


def check_items(
    forget: Path | ItemSet,
    retain: Path | ItemSet,
    original: Any = None,
    *,
    progress: Progress = SILENT,
) -> ValidationReport:
    """Read both files and check them against each other.

    Args:
        forget: What should be gone.
        retain: What should still be there.
        original: A model to ask how many of the items it really knows.
        progress: Where to show progress.

    Raises:
        InputError: a file or the model cannot be read at all.
    """
    sets = [
        each if isinstance(each, ItemSet) else read_items(each)
        for each in (forget, retain)
    ]
    if original is None:
        return validate_items(*sets)
    checkpoint = open_checkpoint(original, progress=progress)
    model = checkpoint.load()
    scores = [
        score_answers(
            model, encode_items(checkpoint.tokenizer, each), progress=progress
        )
        for each in sets
    ]
    return validate_items(*sets, checkpoint.tokenizer, PairScores(*scores))

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
    gone, kept = (
        each if isinstance(each, ItemSet) else read_items(each)
        for each in (forget, retain)
    )
    if original is None:
        return validate_items(gone, kept)
    checkpoint = open_checkpoint(original, progress=progress)
    tokenizer, model = checkpoint.tokenizer, checkpoint.load()
    gone_scores, kept_scores = (
        score_answers(model, encode_items(tokenizer, each), progress=progress)
        for each in (gone, kept)
    )
    return validate_items(gone, kept, tokenizer, PairScores(gone_scores, kept_scores))

"""Hugging Face hub snapshots: safetensors, configuration and tokenizer files, no code."""

import re
from pathlib import Path
from typing import Any

from evidence.errors import InputError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
TOKENIZER_PATTERNS = ("*.json", "*.txt", "*.model", "*.jinja")
MODEL_PATTERNS = ("*.safetensors", *TOKENIZER_PATTERNS)


def download(source: str, revision: str | None, patterns: tuple[str, ...] = MODEL_PATTERNS) -> Path:
    """Download a snapshot of a hub id.

    Raises:
        InputError: ``source`` is not a hub id, or the download fails.
    """
    if not HUB_ID.fullmatch(source):
        raise InputError(f"there is no model at {source}", expected="a path or a hub id")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(patterns)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise InputError(
            f"{source} is not a local folder, and the download from the hub failed "
            f"({type(error).__name__})",
            expected="an existing folder or file, or a reachable hub id",
            fix="Check the spelling; with HF_HUB_OFFLINE set only models already "
            "downloaded are found",
        ) from error


def find_downloaded(source: str, revision: Any) -> Path | None:
    """A snapshot of a hub id in the local cache, or None; never uses the network.

    Args:
        source: A possible hub id.
        revision: Branch, tag or commit; ignored if not a string.
    """
    if not HUB_ID.fullmatch(source):
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            source,
            revision=revision if isinstance(revision, str) else None,
            allow_patterns=list(MODEL_PATTERNS),
            local_files_only=True,
        )
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None
    return Path(folder)

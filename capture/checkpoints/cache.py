"""Cache folder for converted weights and captured activations."""

import os
from pathlib import Path

from platformdirs import user_cache_dir

from evidence.errors import InputError
from evidence.storage.regular_files import as_path


def cache_root() -> Path:
    """The cache folder; it may not exist yet.

    The value of ``EXHUME_CACHE``, or the platform's user cache folder. Deleting the cache costs
    time only.

    Raises:
        InputError: neither is known.

    Examples:
        >>> exhume.cache_root().is_absolute()
        True
    """
    named = os.environ.get("EXHUME_CACHE")
    if named:
        return as_path(named, "EXHUME_CACHE").absolute()
    usual = Path(user_cache_dir("exhume", appauthor=False))
    if not usual.is_absolute():  # "~" is not expanded if the home folder is unknown
        raise InputError(
            "there is no cache folder: this user's home folder is unknown",
            fix="Set EXHUME_CACHE to a folder",
        )
    return usual

"""Where converted weights and captured activations are kept between runs."""

import os
from pathlib import Path

from platformdirs import user_cache_dir

from evidence.errors import InputError
from evidence.storage.regular_files import as_path


def cache_root() -> Path:
    """The folder everything cached lives in; it need not exist yet.

    ``EXHUME_CACHE`` names it; without that it is the platform's user cache folder.
    Deleting it costs time, never results.

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
    if not usual.is_absolute():  # "~" is left as it is where nobody knows the home.
        raise InputError(
            "there is no folder to keep models in: this user's home is not known",
            fix="Set EXHUME_CACHE to a folder",
        )
    return usual

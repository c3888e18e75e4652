"""Where converted weights and captured activations are kept between runs."""

import os
from pathlib import Path

from platformdirs import user_cache_dir


def cache_root() -> Path:
    """The folder everything cached lives in; it need not exist yet.

    ``EXHUME_CACHE`` names it; without that it is the platform's user cache folder.
    Deleting it costs time, never results.
    """
    named = os.environ.get("EXHUME_CACHE")
    if named:
        return Path(named).expanduser().absolute()
    return Path(user_cache_dir("exhume", appauthor=False))

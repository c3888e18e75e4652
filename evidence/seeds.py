"""Named random generators: one seed per run, one independent stream per stage."""

import hashlib
import operator
from typing import Any

import numpy as np
import torch

from evidence import moved
from evidence.errors import InputError, quoted

MAX_SEED = 2**63 - 1


def check_seed(seed: Any) -> int:
    """Convert a seed to a plain int.

    Raises:
        InputError: it is not an integer from 0 to ``MAX_SEED``.
    """
    is_integer = hasattr(seed, "__index__") and not isinstance(seed, bool)
    if not is_integer or not 0 <= operator.index(seed) <= MAX_SEED:
        raise InputError(
            "the seed is invalid", expected=f"a whole number from 0 to {MAX_SEED}", got=quoted(seed)
        )
    return operator.index(seed)


def stage_seed(seed: int, *names: str) -> int:
    """A 63-bit seed for the stage ``names`` of the run ``seed``.

    Streams of different names are independent, so adding a stage or resuming a run does not
    change the draws of other stages.
    """
    text = "\x1f".join([str(check_seed(seed)), *names])
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def numpy_rng(seed: int, *names: str) -> np.random.Generator:
    """A NumPy generator for the stage ``names`` of the run ``seed``."""
    return np.random.default_rng(stage_seed(seed, *names))


def torch_rng(seed: int, *names: str) -> torch.Generator:
    """A CPU torch generator for the stage ``names`` of the run ``seed``."""
    return torch.Generator().manual_seed(stage_seed(seed, *names))


__getattr__ = moved.names_of("evidence.seeds")

"""Named random generators: one seed for a run, one independent stream a stage."""

import hashlib

import numpy as np
import torch


def stage_seed(seed: int, *names: str) -> int:
    """A 63-bit seed for the stage ``names`` of the run ``seed``.

    Streams of different names are independent, so adding a stage or resuming in
    the middle changes no other stage's draws.
    """
    text = "\x1f".join([str(int(seed)), *names])
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def numpy_rng(seed: int, *names: str) -> np.random.Generator:
    """A NumPy generator for the stage ``names`` of the run ``seed``."""
    return np.random.default_rng(stage_seed(seed, *names))


def torch_rng(seed: int, *names: str) -> torch.Generator:
    """A CPU torch generator for the stage ``names`` of the run ``seed``."""
    return torch.Generator().manual_seed(stage_seed(seed, *names))

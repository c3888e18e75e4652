"""How many threads small systems are solved with."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

SINGLE_THREAD_SIZE = 500
"""Up to so many classes x rows a second thread costs more than it computes."""


@contextmanager
def few_threads(size: int) -> Iterator[None]:
    """One thread while small systems are solved, then as many as before.

    Starting a second one takes longer than its half of a (200, 200) array: with two,
    leave-one-out over 200 rows took three and a half times as long as with one.
    """
    before = torch.get_num_threads()
    if size > SINGLE_THREAD_SIZE or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

"""Number of threads for small systems."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

SINGLE_THREAD_SIZE = 500
"""Largest classes x rows for which a second thread costs more than it saves."""


@contextmanager
def few_threads(size: int) -> Iterator[None]:
    """Use one torch thread if the systems are small; restore the number afterwards.

    Starting a second thread takes longer than its half of a (200, 200) array: leave-one-out over
    200 rows took 3.5 times as long with two threads as with one.
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

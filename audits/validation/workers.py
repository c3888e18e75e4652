"""Worker processes that end with their parent, however it ends."""

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, connection, get_context, parent_process

from evidence.errors import ExhumeError
from evidence.machine.memory import keep_freed_memory


@contextmanager
def workers(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """A process pool for a block; the processes are killed if the block raises.

    With several processes, each computes on one thread.

    Raises:
        ExhumeError: one of them was killed.
    """
    before = set(active_children())
    # A forked child would inherit threads and CUDA in an unknown state.
    with ProcessPoolExecutor(jobs, get_context("spawn"), _begin, (jobs,)) as pool:
        try:
            yield pool
        except BaseException as error:
            for child in set(active_children()) - before:
                child.kill()
            if isinstance(error, BrokenProcessPool):
                raise ExhumeError(
                    "a worker process was killed, perhaps for lack of memory. Finished "
                    "work is kept; run again with fewer jobs."
                ) from error
            raise


def _begin(jobs: int) -> None:
    # A terminal sends Ctrl-C to workers as well; the parent decides when they end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    keep_freed_memory()
    if jobs > 1:
        import torch

        torch.set_num_threads(1)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)

"""Memory allocator settings for long runs."""

import ctypes
import os
import sys

# Names of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory in the process, and use huge pages for tensors.

    A training step frees and allocates the same gigabytes. By default glibc returns them to
    the system, and page faults then take up to a third of a step in a virtual machine. To be
    called by a program before it creates tensors; libraries should not change the allocator
    of their host.

    Returns:
        Whether the settings took effect (Linux with glibc only).
    """
    # PyTorch reads this when it first allocates.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if not sys.platform.startswith("linux"):
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        return False
    return bool(set_option(_M_MMAP_MAX, 0)) and bool(set_option(_M_TRIM_THRESHOLD, -1))

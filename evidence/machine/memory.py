"""Memory of a long run: what a step frees, the next step takes again."""

import ctypes
import os
import sys

# Names of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Have this process keep the memory it frees, and take it in large pages.

    Training frees and takes the same gigabytes every step. By default glibc gives them
    back to the system each time, and a virtual machine then spends a third of the step
    on handing out pages. For a program's own start, before tensors exist; a library
    must not change the allocator of its host.

    Returns:
        Whether the allocator took the settings: on Linux with glibc.
    """
    # PyTorch reads this when it first allocates.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if not sys.platform.startswith("linux"):
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        return False
    return bool(set_option(_M_MMAP_MAX, 0)) and bool(set_option(_M_TRIM_THRESHOLD, -1))

"""The C library's allocator: keep freed memory while a command runs, which saves most of the element-wise time on CPUs."""

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def keep_large_blocks() -> bool:
    """Tell glibc to keep freed blocks for the next tensors instead of returning them to the system.

    Freshly mapped memory costs a page fault for every 4 KiB. Measured on features of efficientnet-lite0: 24 images a second
    without, 76 with, at a third more peak memory. False where the C library is another one, or MSNGAN_ALLOCATOR=system.
    """
    if os.environ.get("MSNGAN_ALLOCATOR") == "system":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, 1 << 30) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))

"""Memory that the process keeps, on Linux with glibc, instead of returning it to the system and asking for it again."""

import ctypes
import os
import sys

__all__ = ["keep_memory"]

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
"""parameters of glibc's mallopt"""
NEVER = -1
LARGEST = 2**31 - 1


def keep_memory() -> bool:
    """Make this process keep freed memory for its next tensors: steps on a CPU take up to a third less time.

    By default glibc returns each freed block above 32 MiB to the system, and the free end of its heap above 64 MiB. The
    next training step gets new pages, which the system maps and clears one by one. Call this function once, before
    training. It concerns the whole process, whose memory then stays as large as it once was, until the process ends;
    so no other function of this package calls it. GPUs are not affected: PyTorch keeps their memory anyway.

    Environment variables have the same effect, if set before the process starts: MALLOC_MMAP_THRESHOLD_ and
    MALLOC_TRIM_THRESHOLD_, each 34359738368 (`run.sh` sets them).

    Returns:
        whether the C library is glibc and took the setting. Elsewhere (macOS, Windows, musl) nothing is changed.

    >>> keep_memory()  # doctest: +SKIP
    True
    """
    if not _is_glibc():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # some versions of glibc refuse a threshold above 32 MiB; without any mapped block there is no threshold
    kept = mallopt(MMAP_THRESHOLD, LARGEST) or mallopt(MMAP_MAX, 0)
    return bool(kept and mallopt(TRIM_THRESHOLD, NEVER))


def _is_glibc() -> bool:
    if sys.platform != "linux":
        return False
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (ValueError, OSError):
        return False

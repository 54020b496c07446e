"""What the C library does with freed memory."""

from __future__ import annotations

import ctypes
from typing import Final

_TRIM, _MMAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h
_KEPT: Final = 16 << 20  # bytes at the top of a thread's heap
_OWN: Final = 16 << 20  # bytes from which an array has pages of its own, which go back at once


def keep_freed() -> None:
    """Let glibc keep up to 16 MiB that a thread freed; for the start of a program that reads module after module.

    By default it gives them back to the system, which clears every page anew for the next module's factors: a tenth of
    the processor time of a `resize`. Other C libraries do as they do.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_MMAP, _OWN)
    mallopt(_TRIM, _KEPT)

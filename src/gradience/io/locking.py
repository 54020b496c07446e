"""A lock on an open file, which the operating system releases with the descriptor, however the process ends."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from typing import Final

_TAKEN: Final = frozenset({errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK})
_BEYOND: Final = (1 << 31) - 1  # Windows locks bytes, and keeps others from reading them: one that no log reaches

if sys.platform == "win32":
    import msvcrt

    def _lock(fd: int) -> None:
        _at_the_byte(fd, msvcrt.LK_NBLCK)

    def _unlock(fd: int) -> None:
        _at_the_byte(fd, msvcrt.LK_UNLCK)

    def _at_the_byte(fd: int, what: int) -> None:
        at = os.lseek(fd, 0, os.SEEK_CUR)
        os.lseek(fd, _BEYOND, os.SEEK_SET)
        try:
            msvcrt.locking(fd, what, 1)
        finally:
            os.lseek(fd, at, os.SEEK_SET)

else:
    import fcntl

    def _lock(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _unlock(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_UN)


def lock_file(fd: int) -> bool:
    """Whether the file is locked for this descriptor now; False where another descriptor holds it. Never waits.

    Raises:
        OSError: the file system gives no locks.
    """
    try:
        _lock(fd)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        raise
    return True


def unlock_file(fd: int) -> None:
    """Release the lock now: closing alone leaves it to the data workers forked since, which hold the file open too."""
    with suppress(OSError):
        _unlock(fd)

"""One log file with one writer: append-only bytes, a lock, and the choice of when lines are synced to disk.

The operating system releases the lock with the descriptor, however the process ends. A warning of the recorder never
ends a training, not even if warnings are errors.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal, TypeAlias

from gradience.errors import RecorderError
from gradience.io import make_folder
from gradience.schema.document import escape_controls

Fsync: TypeAlias = Literal["always", "auto", "never"]

FSYNC_INTERVAL_S: Final = 5.0  # power loss costs at most this much of a run; a killed process costs nothing
_PRIVATE_MODE: Final = 0o600
# Some file systems cannot sync; the lines are written all the same.
_NO_SYNC: Final = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EROFS})
_ADVICE: Final = "choose a path in a folder you can write to"

_TAKEN: Final = frozenset({errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK})
_BEYOND: Final = (1 << 31) - 1  # the byte locked on Windows, where nobody can read a locked byte: no log reaches it


class LogFile:
    """An append-only log that only this process writes. It is never truncated; a torn tail is closed first.

    The lock is on the file itself, so that it ends with the process and leaves no lock file.

    If others remove, replace or cut the log while it is written, the next sync to disk notices. A warning then says so,
    and a new file is begun under the log's name.

    Attributes:
        opening: the first line of such a new file.
        lost: the number of lines that vanished with a file.

    Args:
        path: the log; created with mode 0600 if it does not exist.
        sibling: the name of a file beside it to write if another process holds the log; None to refuse.
        fsync: `always`, `never`, or `auto`: for durable lines, else every few seconds.

    Raises:
        RecorderError: the file cannot be opened, or another process holds it.
    """

    def __init__(self, path: Path, *, sibling: str | None, fsync: Fsync) -> None:
        self._pid = os.getpid()
        self._fsync = fsync
        self._settled_at = 0.0
        self._unsynced = False
        self._torn = False
        self._lines = self._end = self.lost = 0
        self._sibling = sibling
        self.opening = b""
        self.path, fd, unlocked = _claimed(path, sibling)
        self._fd: int | None = fd
        try:
            self._close_torn_tail(fd)
            self._end = os.fstat(fd).st_size
            if unlocked:
                _warn(f"{self.path} is written without a lock: {unlocked}", stacklevel=5)
        except BaseException:  # an interrupt, too, must leave the lock
            self.close()
            raise

    @property
    def is_open(self) -> bool:
        """Whether this process may append."""
        return self._fd is not None and os.getpid() == self._pid

    def require_own(self) -> None:
        """Refuse a forked child's copy of its parent's log, before the child waits for a lock that nobody will release.

        Raises:
            RecorderError: another process opened this log.
        """
        if os.getpid() != self._pid:
            raise RecorderError(
                f"{self.path} belongs to process {self._pid}, of which this is a fork",
                advice="open a TelemetryWriter with a path of its own in the child process",
            )

    def append(self, line: bytes, *, durable: bool) -> None:
        """Append one line and its newline. Returns when the operating system has them; if durable, when the disk has.

        Raises:
            RecorderError: the log is closed or cannot be written.
        """
        fd = self._fd
        if fd is None:
            raise RecorderError(f"the writer of {self.path} is closed", advice="open a new TelemetryWriter")
        if os.getpid() != self._pid:
            self.require_own()
        try:
            self._write(fd, b"\n%b\n" % line if self._torn else b"%b\n" % line)
            self._lines += 1
            now = time.monotonic()
            if durable or self._fsync == "always" or now - self._settled_at > FSYNC_INTERVAL_S:
                self._settled_at = now
                self._settle(fd, line)
        except OSError as error:
            raise RecorderError(
                f"cannot write {self.path}: {error.strerror}", advice="free space, or choose another path"
            ) from error

    def close(self) -> None:
        """Release the file and its lock. Closing twice, or closing a fork's copy, is harmless."""
        fd, self._fd = self._fd, None
        if fd is None:
            return
        mine = os.getpid() == self._pid
        try:
            try:
                if mine and self._lines and (why := self._vanished(fd)):
                    self._say_lost(fd, why)
                if mine and self._unsynced and self._fsync != "never":
                    _fsync(fd)
            finally:
                # A fork shares the lock with its parent: what the child unlocks, the parent has lost.
                if mine:
                    unlock_file(fd)
                os.close(fd)
        except OSError as error:
            raise RecorderError(f"cannot close {self.path}: {error.strerror}", advice="check the disk") from error

    def _settle(self, fd: int, line: bytes) -> None:
        """Sync what was written to disk, and check that the file is still there."""
        if self._fsync != "never":
            _fsync(fd)
            self._unsynced = False
        if why := self._vanished(fd):
            self._begin_anew(why, line)

    def _vanished(self, fd: int) -> str:
        """What happened to the file under the log's name, in words; "" if it is still the one being written."""
        mine = os.fstat(fd)
        try:
            there = self.path.stat()
        except OSError:
            return "was removed" if mine.st_nlink == 0 else "was moved away"
        if (there.st_ino, there.st_dev) != (mine.st_ino, mine.st_dev):
            return "was replaced by another file"
        return "was cut" if mine.st_size < self._end else ""

    def _begin_anew(self, why: str, line: bytes) -> None:
        """Go on under the log's name, with its opening line and the line that was lost."""
        fd = old = self._fd
        assert fd is not None  # noqa: S101  # `append` has checked it
        assert old is not None  # noqa: S101  # it is fd
        self._lines -= 1
        self._say_lost(old, why)
        if why == "was cut":
            _take_back(fd, line)
        else:
            # The old file is given up last: if no new one can be had, there is still one to write to.
            self.path, fd, _ = _claimed(self.path, self._sibling)
            self._fd = fd
            unlock_file(old)
            os.close(old)
        self._close_torn_tail(fd)
        self._end = os.fstat(fd).st_size
        for again in (self.opening, line) if self.opening not in {b"", line} else (line,):
            self._write(fd, b"%b\n" % again)
            self._lines += 1

    def _say_lost(self, fd: int, why: str) -> None:
        # A file that was moved away still holds its lines.
        is_gone = why == "was cut" or os.fstat(fd).st_nlink == 0
        lost = self._lines if is_gone else 0
        self.lost += lost
        self._lines = 0
        tail = f", and {lost} of its events are lost" if lost else ""
        _warn(f"{self.path} {why} while it was written{tail}", stacklevel=7)

    def _write(self, fd: int, data: bytes) -> None:
        """Write all of the data. If a write fails halfway, the next line starts with a newline of its own."""
        size = len(data)
        written = os.write(fd, data)
        while written < size:  # a full disk or a signal cut the write short
            self._torn = True
            written += os.write(fd, data[written:])
        self._torn = False
        self._unsynced = True
        self._end += size

    def _close_torn_tail(self, fd: int) -> None:
        try:
            size = os.fstat(fd).st_size
            if size and os.pread(fd, 1, size - 1) != b"\n":
                self._write(fd, b"\n")
        except OSError as error:
            raise RecorderError(f"cannot open {self.path} for writing: {error.strerror}", advice=_ADVICE) from error


def _take_back(fd: int, line: bytes) -> None:
    """Remove a line that was written after a cut, perhaps onto half of another line; it is written again later."""
    data = b"%b\n" % line
    rest = os.fstat(fd).st_size - len(data)
    if rest >= 0 and os.pread(fd, len(data), rest) == data:
        os.ftruncate(fd, rest)


def _opened(path: Path) -> int:
    # It is read too: the last byte tells a torn tail. Without O_BINARY, Windows would write a newline as two bytes.
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:  # without O_NONBLOCK, the opening of a pipe would wait for its reader
        fd = os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0), _PRIVATE_MODE)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise RecorderError(f"cannot open {path} for writing: {why}", advice=_ADVICE) from error
    # The open file is looked at: the path may name another one by now.
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise RecorderError(f"{path} is not a regular file: a pipe or device could hold training up", advice=_ADVICE)
    return fd


def _fsync(fd: int) -> None:
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def _claimed(path: Path, sibling: str | None) -> tuple[Path, int, str]:
    """Return the path to write (the sibling if the log is held), its descriptor, and why it has no lock or "".

    Raises:
        RecorderError: it cannot be opened, or is held by another process and there is no sibling.
    """
    try:
        make_folder(path.parent)
    except OSError as error:
        raise RecorderError(f"cannot make the folder {path.parent}: {error.strerror}", advice=_ADVICE) from error
    if (own := _try(path)) is not None:
        return path, *own
    if sibling is None:
        raise RecorderError(f"{path} is being written by another process", advice="wait until that run has ended")
    beside = path.with_name(sibling)
    _warn(f"{path} is being written by another process; this run is recorded in {beside}", stacklevel=6)
    if (own := _try(beside)) is None:
        raise RecorderError(f"{beside} is being written by another process", advice="choose another path")
    return beside, *own


def _try(path: Path) -> tuple[int, str] | None:
    """Return the descriptor of a log, and why it could not be locked or ""; None if another process holds the lock."""
    fd = _opened(path)
    try:
        if lock_file(fd):
            return fd, ""
    except OSError as error:
        return fd, str(error)
    os.close(fd)
    return None


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
        # `lockf` would not do: it parts no two writers of one process, and its locks end as any descriptor closes.
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _unlock(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_UN)


def lock_file(fd: int) -> bool:
    """Lock the file for this descriptor, without waiting; return False if another descriptor holds the lock.

    Raises:
        OSError: the file system has no locks.
    """
    try:
        _lock(fd)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        raise
    return True


def unlock_file(fd: int) -> None:
    """Release the lock explicitly. Closing alone would not: data workers forked since then hold the file open too."""
    with suppress(OSError):
        _unlock(fd)


logger = logging.getLogger("gradience")


def notice(message: str, *, stacklevel: int = 3) -> None:
    """Give a RuntimeWarning; log the message instead if warnings are errors."""
    _warn(f"gradience: {message}", stacklevel=stacklevel + 1)


def _warn(text: str, *, stacklevel: int) -> None:
    shown = escape_controls(text)  # names are the file system's
    try:
        warnings.warn(shown, RuntimeWarning, stacklevel=stacklevel)
    except RuntimeWarning:
        logger.warning("%s", shown)

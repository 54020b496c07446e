"""One file, one writer: append-only bytes, a lock, and how hard each line is pressed onto the disk."""

from __future__ import annotations

import errno
import os
import time
import warnings
from pathlib import Path
from typing import Final, Literal, TypeAlias

from filelock import FileLock, Timeout

from gradience.errors import RecorderError

Fsync: TypeAlias = Literal["always", "auto", "never"]

FSYNC_INTERVAL_S: Final = 5.0  # power loss costs at most this much of a run; a killed process costs nothing
_PRIVATE_MODE: Final = 0o600
_NO_SYNC: Final = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EROFS})  # pipes and devices: nothing to sync
_ADVICE: Final = "choose a path in a folder you can write to"


class LogFile:
    """An append-only log that this process alone writes. Never truncated; a torn tail is closed first.

    Args:
        path: the log; created with mode 0600 if it is not there.
        sibling: the name of the file beside it to write if another process holds the log; None to refuse.
        fsync: `always`, `never`, or `auto`: when asked for, else every few seconds.

    Raises:
        RecorderError: the file cannot be opened, or is taken.
    """

    def __init__(self, path: Path, *, sibling: str | None, fsync: Fsync) -> None:
        self._pid = os.getpid()
        self._fsync = fsync
        self._synced_at = 0.0
        self._unsynced = False
        self._torn = False
        self.path, held = _locked(path, sibling)
        self._lock = held if isinstance(held, FileLock) else None
        try:
            self._fd: int | None = _opened(self.path)
            self._close_torn_tail(self._fd)
            if not isinstance(held, FileLock):
                warnings.warn(f"{self.path} is written without a lock: {held}", RuntimeWarning, stacklevel=3)
        except BaseException:
            self.close()
            raise

    @property
    def is_open(self) -> bool:
        """Whether this process may append."""
        return self._fd is not None and os.getpid() == self._pid

    def require_own(self) -> None:
        """Refuse a fork's copy of its parent's log, before it waits for a lock that nobody will release.

        Raises:
            RecorderError: another process opened this log.
        """
        if os.getpid() != self._pid:
            raise RecorderError(
                f"{self.path} belongs to process {self._pid}, of which this is a fork",
                advice="open a TelemetryWriter with a path of its own in the child process",
            )

    def append(self, line: bytes, *, durable: bool) -> None:
        """Append one line and its newline; returns when the operating system has them, or the disk if durable.

        Raises:
            RecorderError: the log is closed or cannot be written.
        """
        if self._fd is None:
            raise RecorderError(f"the writer of {self.path} is closed", advice="open a new TelemetryWriter")
        try:
            self._write(self._fd, b"\n%b\n" % line if self._torn else b"%b\n" % line)
            self._sync(self._fd, durable=durable)
        except OSError as error:
            raise RecorderError(
                f"cannot write {self.path}: {error.strerror}", advice="free space, or choose another path"
            ) from error

    def close(self) -> None:
        """Release the file and its lock; closing twice, or a fork's copy, is harmless."""
        fd, self._fd = getattr(self, "_fd", None), None
        mine = os.getpid() == self._pid
        try:
            if fd is not None:
                if mine and self._unsynced and self._fsync != "never":
                    _fsync(fd)
                os.close(fd)
        except OSError as error:
            raise RecorderError(f"cannot close {self.path}: {error.strerror}", advice="check the disk") from error
        finally:
            if mine and self._lock is not None:
                self._lock.release()

    def _write(self, fd: int, data: bytes) -> None:
        """Write all of the data; if only part of it went out, the next line must start on a fresh one."""
        written = os.write(fd, data)
        while written < len(data):  # a full disk or a signal cut the write short
            self._torn = True
            written += os.write(fd, data[written:])
        self._torn = False
        self._unsynced = True

    def _sync(self, fd: int, *, durable: bool) -> None:
        if self._fsync == "never":
            return
        now = time.monotonic()
        if durable or self._fsync == "always" or now - self._synced_at > FSYNC_INTERVAL_S:
            _fsync(fd)
            self._synced_at, self._unsynced = now, False

    def _close_torn_tail(self, fd: int) -> None:
        try:
            size = os.fstat(fd).st_size
            if size and os.pread(fd, 1, size - 1) != b"\n":
                self._write(fd, b"\n")
        except OSError as error:
            raise RecorderError(f"cannot open {self.path} for writing: {error.strerror}", advice=_ADVICE) from error


def _opened(path: Path) -> int:
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        return os.open(path, flags, _PRIVATE_MODE)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise RecorderError(f"cannot open {path} for writing: {why}", advice=_ADVICE) from error


def _fsync(fd: int) -> None:
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def _locked(path: Path, sibling: str | None) -> tuple[Path, FileLock | str]:
    """Return the path to write, the sibling if the log is taken, and its lock or the reason for having none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecorderError(f"cannot make the folder {path.parent}: {error.strerror}", advice=_ADVICE) from error
    if (held := _try_lock(path)) is not None:
        return path, held
    if sibling is None:
        raise RecorderError(f"{path} is being written by another process", advice="wait until that run has ended")
    beside = path.with_name(sibling)
    warnings.warn(
        f"{path} is being written by another process; this run is recorded in {beside}", RuntimeWarning, stacklevel=4
    )
    if (held := _try_lock(beside)) is None:
        raise RecorderError(f"{beside} is being written by another process", advice="choose another path")
    return beside, held


def _try_lock(path: Path) -> FileLock | str | None:
    """Return the lock now held, or why the file system gives none; None if another process holds it."""
    lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return None
    except (OSError, NotImplementedError) as error:
        return str(error)
    return lock

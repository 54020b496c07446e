"""Files opened without risk: regular ones only, never waited for, and read no further than a limit.

A path comes from anywhere, and may name a pipe that nobody writes to, a device without end or a file of any size. What
is refused is an OSError, whose `strerror` says what was expected: each room makes it an error of its own.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path
from typing import Final

_KINDS: Final = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISDIR, "a folder"),
)
# A pipe is opened at once, and a terminal is not taken over.
_FLAGS: Final = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_CLOEXEC", 0)
_MIB: Final = 1 << 20
_KIB: Final = 1 << 10


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
    """The file, opened for reading bytes.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
    """
    return io.BufferedReader(open_raw(path))


def open_raw(path: str | os.PathLike[str]) -> io.FileIO:
    """The file as `open_regular`, without a buffer: for one that is still written to.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
    """
    if Path(path).is_socket():  # opening one fails with "no such device or address", which explains nothing
        raise _not_regular("a socket", path)
    try:
        descriptor = os.open(path, _FLAGS | getattr(os, "O_BINARY", 0))
    except ValueError as error:
        raise OSError(errno.EINVAL, "a NUL in its name", os.fspath(path)) from error
    mode = os.fstat(descriptor).st_mode  # of what was opened: the path may mean something else by now
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise _not_regular(next((name for test, name in _KINDS if test(mode)), "no file"), path)
    return io.FileIO(descriptor)


def read_small(path: str | os.PathLike[str], *, most: int, what: str) -> bytes:
    """All bytes of a file that is small by its nature.

    Args:
        path: the file.
        most: the limit in bytes.
        what: names the kind of file in the error, such as `an adapter config`.

    Raises:
        OSError: it cannot be opened, is not a regular file, or holds more.
    """
    with open_regular(path) as file:
        data = file.read(most + 1) if os.fstat(file.fileno()).st_size <= most else None
    if data is None or len(data) > most:  # the second of one that grows meanwhile, or claims no size, as in /proc
        message = f"larger than {_size(most)}, the limit for {what}"
        raise OSError(errno.EFBIG, message, os.fspath(path))
    return data


def real_path(path: str | os.PathLike[str]) -> Path:
    """The path without links and dots; of links in a circle, which `Path.resolve` refuses, as far as they lead."""
    return Path(os.path.realpath(path))


def _not_regular(kind: str, path: str | os.PathLike[str]) -> OSError:
    return OSError(errno.EINVAL, f"{kind}, not a regular file", os.fspath(path))


def _size(count: int) -> str:
    if count >= _MIB:
        return f"{count // _MIB} MiB"
    return f"{count // _KIB} KiB" if count >= _KIB else f"{count} bytes"

"""Files opened without risk: regular ones only, never waited for, and read no further than a limit.

A path comes from anywhere, and may name a pipe that nobody writes to, a device without end or a file of any size. What
is refused is an OSError, whose `strerror` says what was expected: each room makes it an error of its own.

JSON of strangers, decoded within limits of depth.

A decoder that recurses, and everything that later walks through the value, is bounded by the interpreter's stack: the
depth is therefore counted before anything is decoded, in one pass over the brackets.
"""

from __future__ import annotations

import errno
import io
import os
import re
import stat
from itertools import accumulate
from pathlib import Path
from typing import Final, TypeVar

import msgspec

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

T = TypeVar("T")
MAX_DEPTH: Final = 64  # levels of nesting: a config has 3, a trainer_state.json 4
MAX_NAME: Final = 1024  # characters of a tensor's or module's name: the longest on the hub have under 200
MAX_PARTS: Final = 64  # dotted parts of one: they have under 20
_STEPS: Final = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_NOT_STRUCTURE: Final = bytes(set(range(256)) - set(b'[]{}"'))
_ESCAPE: Final = re.compile(rb"\\.", re.DOTALL)
_STRING: Final = re.compile(rb'"[^"]*"?')
_TOO_DEEP: Final = f"nested more than {MAX_DEPTH} levels deep, the limit for JSON"


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


def decode_json(data: bytes | str, kind: type[T]) -> T:
    """The document as a value of a type.

    Raises:
        msgspec.MsgspecError: it is not JSON, or of another type.
        UnicodeDecodeError: it is not UTF-8.
        RecursionError: it is nested deeper than `MAX_DEPTH`.
    """
    check_depth(data)
    return msgspec.json.decode(data, type=kind)


def check_depth(data: bytes | str) -> None:
    """Do nothing if the text, JSON or not, is nested at most `MAX_DEPTH` levels deep.

    Raises:
        RecursionError: it is nested deeper.
    """
    raw = data.encode("utf-8", "replace") if isinstance(data, str) else data
    if raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH:
        return
    without_escapes = _ESCAPE.sub(b"", raw) if b"\\" in raw else raw
    brackets = _STRING.sub(b"", without_escapes.translate(None, _NOT_STRUCTURE))
    if max(accumulate(map(_STEPS.__getitem__, brackets)), default=0) > MAX_DEPTH:
        raise RecursionError(_TOO_DEEP)


def name_fault(name: str) -> str | None:
    """What is wrong with a tensor's name, to be put after it in an error; None for one of usual length.

    Every tail and every prefix of a dotted name is looked up somewhere: the cost grows with the square of its parts.
    """
    if len(name) > MAX_NAME:
        return f"is {len(name)} characters long, over the limit of {MAX_NAME}"
    parts = name.count(".") + 1
    return f"has {parts} dotted parts, over the limit of {MAX_PARTS}" if parts > MAX_PARTS else None

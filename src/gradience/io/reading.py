"""Open untrusted files, and decode untrusted JSON, within limits.

A path may name a pipe that nobody writes to, an endless device, or a file of any size. Only regular files are opened,
the open never waits, and the read stops at a limit. A refusal is an OSError whose `strerror` says what was expected;
each package turns it into its own error.

A recursive JSON decoder, and any code that later walks the value, could exhaust the interpreter's stack. So the nesting
depth is counted first, in one pass over the brackets.
"""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import struct
import zipfile
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from gradience.errors import AdapterError

_KINDS: Final = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISDIR, "a folder"),
)
# Opening a pipe does not wait for a writer, and a terminal does not become the controlling one.
_FLAGS: Final = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_CLOEXEC", 0)
_MIB: Final = 1 << 20
_KIB: Final = 1 << 10

T = TypeVar("T")
MAX_DEPTH: Final = 64  # levels of nesting: a config has 3, a trainer_state.json 4
MAX_NAME: Final = 1024  # characters of a tensor's or module's name: the longest on the hub have under 200
MAX_PARTS: Final = 64  # dotted parts of a name: those on the hub have under 20
MAX_VALUES: Final = 4_000_000  # values of one document or row: a context of a million tokens with labels and mask has 3
_HALF_PAIR: Final = re.compile(r"[\ud800-\udfff]")  # a pickle can spell it, and UTF-8 cannot
_STEPS: Final = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_NOT_STRUCTURE: Final = bytes(set(range(256)) - set(b'[]{}"'))
_NOT_COUNTED: Final = bytes(set(range(256)) - set(b'[{,"'))
_PIECE: Final = 1 << 20  # bytes
MAX_SKIPPED: Final = 512 << 20  # bytes of a line over a limit, which is read to its end
_TOO_DEEP: Final = f"nested more than {MAX_DEPTH} levels deep, the limit for JSON"


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
    """The file, opened for reading bytes.

    Raises:
        OSError: the file cannot be opened, or is not a regular file.
    """
    return io.BufferedReader(open_raw(path))


def open_raw(path: str | os.PathLike[str]) -> io.FileIO:
    """The file, opened for reading bytes without a buffer, as is right for a file that is still being written.

    Raises:
        OSError: the file cannot be opened, or is not a regular file.
    """
    if Path(path).is_socket():  # opening one fails with "no such device or address", which explains nothing
        raise _not_regular("a socket", path)
    try:
        descriptor = os.open(path, _FLAGS | getattr(os, "O_BINARY", 0))
    except ValueError as error:
        raise OSError(errno.EINVAL, "a NUL in its name", os.fspath(path)) from error
    mode = os.fstat(descriptor).st_mode  # of the opened file: the path may name something else by now
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise _not_regular(next((name for test, name in _KINDS if test(mode)), "no file"), path)
    return io.FileIO(descriptor)


def numbered_lines(file: io.BufferedReader, most: int) -> Iterator[tuple[int, bytes | None]]:
    """Lines with their numbers; None in place of one of `most` bytes and more.

    Raises:
        ValueError: such a line does not end within `MAX_SKIPPED` bytes, as in a sparse file.
    """
    number = 0
    while line := file.readline(most):
        number += 1
        if len(line) < most or line.endswith(b"\n"):
            yield number, line
        else:
            _skip_line(file, most)
            yield number, None


def _skip_line(file: io.BufferedReader, read: int) -> None:
    while rest := file.readline(_PIECE):
        read += len(rest)
        if read > MAX_SKIPPED:
            raise ValueError(f"a line of more than {MAX_SKIPPED >> 20} MiB")
        if rest.endswith(b"\n"):
            return


def read_small(path: str | os.PathLike[str], *, most: int, what: str) -> bytes:
    """All bytes of a file that is expected to be small.

    Args:
        path: the file.
        most: the limit in bytes.
        what: names the kind of file in the error, such as `an adapter config`.

    Raises:
        OSError: the file cannot be opened, is not a regular file, or holds more than `most` bytes.
    """
    with open_regular(path) as file:
        data = file.read(most + 1) if os.fstat(file.fileno()).st_size <= most else None
    if data is None or len(data) > most:  # the latter if a file grows meanwhile or states no size, as in /proc
        message = f"larger than {_size(most)}, the limit for {what}"
        raise OSError(errno.EFBIG, message, os.fspath(path))
    return data


def is_zip(path: str | os.PathLike[str]) -> bool:
    """Whether a file ends as a zip archive of one file does. The end of a damaged one makes `zipfile` raise."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return False


def refuse_compressed(path: Path) -> None:
    """Refuse a compressed archive. Torch stores arrays uncompressed, and a compressed one could grow to any size.

    Raises:
        AdapterError: it is one, or a damaged archive.
    """
    if not is_zip(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
    except (OSError, ValueError, RuntimeError, struct.error, zipfile.BadZipFile) as error:
        raise AdapterError(f"{path} is a damaged archive: {error}", advice="copy it again") from error
    if packed:
        raise AdapterError(
            f"{path} is a compressed archive, which torch does not write",
            advice="save it again with safe_serialization=True",
        )


def real_path(path: str | os.PathLike[str]) -> Path:
    """The path without links and dots. Circular links, an error for `Path.resolve`, are followed as far as possible."""
    return Path(os.path.realpath(path))


def _not_regular(kind: str, path: str | os.PathLike[str]) -> OSError:
    return OSError(errno.EINVAL, f"{kind}, not a regular file", os.fspath(path))


def _size(count: int) -> str:
    if count >= _MIB:
        return f"{count // _MIB} MiB"
    return f"{count // _KIB} KiB" if count >= _KIB else f"{count} bytes"


def decode_json(data: bytes | str, kind: type[T]) -> T:
    """The JSON document decoded as a value of the type `kind`.

    Raises:
        msgspec.MsgspecError: the document is not JSON, or of another type.
        UnicodeDecodeError: the document is not UTF-8.
        RecursionError: the document is nested deeper than `MAX_DEPTH`.
    """
    check_depth(data)
    return msgspec.json.decode(data, type=kind)


def own_table(beside: str, name: str, kind: type[T]) -> T:
    """A TOML file of this package as a value of the type `kind`.

    Args:
        beside: the `__file__` of the module in whose folder it is.
        name: its name.
        kind: the type of the whole document.
    """
    return msgspec.toml.decode(Path(beside).with_name(name).read_bytes(), type=kind)


def check_depth(data: bytes | str) -> None:
    """Refuse a text, JSON or not, that is nested deeper than `MAX_DEPTH` levels.

    Raises:
        RecursionError: the text is nested deeper.
    """
    raw = data.encode("utf-8", "replace") if isinstance(data, str) else data
    if raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH:
        return
    depth = 0
    for brackets in _outside_strings(raw, _NOT_STRUCTURE):
        *depths, depth = accumulate(map(_STEPS.__getitem__, brackets), initial=depth)
        if max(*depths, depth, 0) > MAX_DEPTH:
            raise RecursionError(_TOO_DEEP)


def count_values(data: bytes) -> int:
    """The number of values in a JSON text, at most; exact if it is large. Each takes some 50 bytes once decoded."""
    most = data.count(b",") + data.count(b"[") + data.count(b"{")
    return most if most <= MAX_VALUES else sum(map(len, _outside_strings(data, _NOT_COUNTED)))


def _outside_strings(data: bytes, left_out: bytes) -> Iterator[bytes]:
    """Yield what is outside of strings, without the bytes left out: piece by piece, so that it takes little memory."""
    inside, begun = False, b""  # a piece may end in a string, and in an escape
    for start in range(0, len(data), _PIECE):
        piece = begun + data[start : start + _PIECE]
        begun = b"\\" if (len(piece) - len(piece.rstrip(b"\\"))) % 2 else b""
        # Doubled backslashes first, or the second of two would make an escape of the quote after them.
        whole = piece.removesuffix(begun).replace(b"\\\\", b"").replace(b'\\"', b"")
        parts = whole.translate(None, left_out).split(b'"')
        yield b"".join(parts[inside::2])
        inside ^= len(parts) % 2 == 0


def name_fault(name: str) -> str | None:
    """A clause that says what is wrong with a tensor's name, to follow the name in an error; None if it is fine.

    Every tail and every prefix of a dotted name is looked up somewhere, so the cost grows with the square of its parts.
    """
    if len(name) > MAX_NAME:
        return f"is {len(name)} characters long, over the limit of {MAX_NAME}"
    if _HALF_PAIR.search(name):
        return "holds half of a surrogate pair, which is no character"
    parts = name.count(".") + 1
    return f"has {parts} dotted parts, over the limit of {MAX_PARTS}" if parts > MAX_PARTS else None

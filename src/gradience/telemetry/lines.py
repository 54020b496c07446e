"""Lines of a log, from bytes: split on the newline byte only, in constant memory.

Never `splitlines`: U+2028 and U+0085 occur inside valid JSON strings.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from gradience.errors import RecorderError
from gradience.telemetry.codec import MAX_LINE_BYTES

__all__ = ["MAX_ISSUES", "Block", "Line", "read_blocks", "require_log"]

MAX_ISSUES: Final = 100  # bad lines kept; all are counted

_CHUNK: Final = MAX_LINE_BYTES  # so that only the first line of a block can be longer than a line may be
_BOM: Final = b"\xef\xbb\xbf"
_ADVICE: Final = "give the run.jsonl that a run wrote"


class Line(msgspec.Struct, frozen=True, gc=False):
    """One raw line without its newline; `data` is cut where the line is longer than one may be."""

    number: int
    offset: int
    data: bytes
    length: int
    ended: bool = True

    @property
    def too_long(self) -> bool:
        """Whether no event may be this long."""
        return self.length > MAX_LINE_BYTES


class Block(msgspec.Struct, frozen=True, gc=False):
    """Some whole lines as one piece of bytes, none of them too long; `number` lines precede its `count`."""

    number: int
    offset: int
    data: bytes
    count: int

    def lines(self) -> Iterator[Line]:
        """Yield the block's lines that are not blank, numbered as in the file."""
        offset = self.offset
        pieces = self.data.split(b"\n")
        for number, piece in enumerate(pieces, self.number + 1):
            data = piece.removeprefix(_BOM) if offset == 0 else piece
            if data.strip():
                yield Line(number, offset, data, len(piece), number - self.number < len(pieces))
            offset += len(piece) + 1


def require_log(path: Path) -> None:
    """Refuse a path that cannot be a log, by name.

    Raises:
        RecorderError: the path is missing, empty, or not a file.
    """
    try:
        if path.is_dir():
            raise RecorderError(f"{path} is a folder, not a log", advice=f"give the file, such as {path / 'run.jsonl'}")
        if path.stat().st_size == 0 and path.is_file():
            raise RecorderError(f"{path} is empty: no event was ever written", advice=_ADVICE)
    except (OSError, ValueError) as error:
        raise RecorderError(f"cannot read {path}: {_why(error)}", advice=_ADVICE) from error


def read_blocks(path: str | os.PathLike[str]) -> Iterator[Block | Line]:
    """Yield the log in blocks of whole lines; a line longer than one may be comes as itself.

    Raises:
        RecorderError: the file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            yield from _split(file)
    except OSError as error:
        raise RecorderError(f"cannot read {path}: {_why(error)}", advice=_ADVICE) from error


def _split(file: BinaryIO) -> Iterator[Block | Line]:
    number, offset, carry = 0, 0, b""
    while chunk := file.read(_CHUNK):
        data = carry + chunk
        first = data.find(b"\n")
        if (len(data) if first < 0 else first) > MAX_LINE_BYTES:
            line, data = _too_long(file, data, first, number + 1, offset)
            yield line
            number, offset = number + 1, offset + line.length + line.ended
        cut = data.rfind(b"\n") + 1
        if cut:
            count = data.count(b"\n")
            yield Block(number, offset, data[:cut], count)
            number, offset = number + count, offset + cut
        carry = data[cut:]
    if carry:
        yield Block(number, offset, carry, 1)


def _too_long(file: BinaryIO, data: bytes, first: int, number: int, offset: int) -> tuple[Line, bytes]:
    """Return the over-long line that starts the data, measured to its end but not kept, and what follows it."""
    head = data[:MAX_LINE_BYTES]
    if first >= 0:
        return Line(number, offset, head, first), data[first + 1 :]
    length, ended = len(data), False
    while not ended and (more := file.readline(_CHUNK)):
        ended = more.endswith(b"\n")
        length += len(more) - ended
    return Line(number, offset, head, length, ended), b""


def _why(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)

"""The new lines of a file that is being written, whatever happens to it meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

from gradience.telemetry.codec import MAX_LINE_BYTES

__all__ = ["Tail"]

_CHUNK: Final = 1 << 20
_HEAD: Final = 256  # bytes that tell a file from one written over it


class Tail:
    """Whole lines as they come; a line without its newline yet is held back.

    The file may not exist yet, may be cut and written anew, or replaced by another: then `restarts` counts up,
    and what follows comes from the new file's beginning.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.restarts = 0
        self._file: BinaryIO | None = None
        self._head = b""
        self._held = b""
        self._overlong = False  # inside a line longer than one may be: no event, skipped to its end

    def __enter__(self) -> Self:
        """Return the tail itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self.close()

    @property
    def found(self) -> bool:
        """Whether there is a file."""
        return self._file is not None

    def poll(self) -> Iterator[bytes]:
        """Yield the lines that were finished since the last call, without their newlines."""
        if self._file is None and not self._open():
            return
        if self._was_written_over():
            self._start_over()
        yield from self._drain()
        if self._was_replaced():
            self.close()
            if self._open():
                self._forget()
                yield from self._drain()

    def close(self) -> None:
        """Close the file; the next poll opens what is there then."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> bool:
        try:
            self._file = self.path.open("rb", buffering=0)
        except OSError:
            return False
        return True

    def _was_written_over(self) -> bool:
        """Whether the open file is shorter than what was read of it, or begins otherwise."""
        file = self._file
        if file is None:
            return False
        place = file.tell()
        if os.fstat(file.fileno()).st_size < place:
            return True
        file.seek(0)
        head = file.read(_HEAD)
        file.seek(place)
        if not head.startswith(self._head):
            return True
        self._head = head[:place]
        return False

    def _was_replaced(self) -> bool:
        """Whether the path now names another file; one that is gone may come back."""
        if self._file is None:
            return False
        try:
            now, mine = self.path.stat(), os.fstat(self._file.fileno())
        except OSError:
            return False
        return (now.st_ino, now.st_dev) != (mine.st_ino, mine.st_dev)

    def _start_over(self) -> None:
        if self._file is not None:
            self._file.seek(0)
        self._forget()

    def _forget(self) -> None:
        self.restarts += 1
        self._head, self._held, self._overlong = b"", b"", False

    def _drain(self) -> Iterator[bytes]:
        while self._file is not None and (chunk := self._file.read(_CHUNK)):
            *lines, self._held = (self._held + chunk).split(b"\n")
            if self._overlong and lines:
                del lines[0]
                self._overlong = False
            yield from (line for line in lines if line.strip())
            if len(self._held) > MAX_LINE_BYTES:
                self._held, self._overlong = b"", True

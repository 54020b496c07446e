"""What a file is, by its content: names are habits, and two formats share one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Final, Literal, TypeAlias

from gradience.errors import RecorderError, SchemaError
from gradience.importers.files import MAX_BYTES, json_lines
from gradience.importers.json_lines import dialect_of
from gradience.importers.table import csv_header, find_columns, flatten
from gradience.importers.tensorboard import is_event_file
from gradience.schema.scalars import Json
from gradience.telemetry.codec import parse

Format: TypeAlias = Literal["trainer-state", "llama-factory", "ms-swift", "table", "tensorboard", "trackio"]

_HEAD: Final = 4096
_ROWS: Final = 50  # lines looked at
_SQLITE: Final = b"SQLite format 3\0"
_OURS: Final = "gradience."
_EVENT: Final = {"event", "run_id"}  # keys that only an event of ours has, though its schema be broken


def format_of(path: Path) -> Format | Literal["gradience"] | None:
    """Return the format of a file, `gradience` for a log of ours, None for anything else."""
    head = _head(path)
    if head.startswith(_SQLITE):
        return "trackio"
    if is_event_file(head):
        return "tensorboard"
    if b"\0" in head:
        return None
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"{"):
        return _of_objects(path, text)
    return "table" if _is_list(path, text) or _is_csv(text) else None


def _head(path: Path) -> bytes:
    """Return the file's first bytes; none of what is no file, for a pipe can be read once only."""
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            return file.read(_HEAD)
    except (OSError, ValueError):
        return b""


def _of_objects(path: Path, head: bytes) -> Format | Literal["gradience"] | None:
    if _is_document(head):
        return "trainer-state" if _has_history(path) else None
    rows = list(islice(_rows(path), _ROWS))
    if any(_is_ours(row) for row in rows):
        return "gradience"
    if len(rows) == 1 and "log_history" in rows[0] and dialect_of(rows[0]) is None:
        return "trainer-state"
    dialects = [dialect for row in rows if (dialect := dialect_of(row)) is not None]
    if dialects:
        return max(dialects, key=dialects.count)
    return "table" if _has_columns(rows) else None


def _rows(path: Path) -> Iterator[dict[str, Json]]:
    try:
        for _, row in json_lines(path):
            if isinstance(row, dict):
                yield row
    except RecorderError:
        return


def _is_document(head: bytes) -> bool:
    """Whether the text is one object over several lines: its first line alone is none."""
    first, newline, _ = head.partition(b"\n")
    return bool(newline) and first.strip() in {b"{", b""}


def _has_history(path: Path) -> bool:
    data = _whole(path)
    try:
        document, _ = parse(data)
    except SchemaError:
        return b'"log_history"' in data  # cut off: said when it is read
    return "log_history" in document


def _whole(path: Path) -> bytes:
    """Return the file's bytes; nothing of one that is too large to be a log."""
    try:
        return path.read_bytes().removeprefix(b"\xef\xbb\xbf") if path.stat().st_size <= MAX_BYTES else b""
    except OSError:
        return b""


def _is_ours(row: Mapping[str, Json]) -> bool:
    schema = row.get("schema")
    return (isinstance(schema, str) and schema.startswith(_OURS)) or row.keys() >= _EVENT


def _has_columns(rows: list[dict[str, Json]]) -> bool:
    try:
        find_columns(name for row in rows for name in flatten(row))
    except RecorderError:
        return False
    return True


def _is_list(path: Path, head: bytes) -> bool:
    if not head.startswith(b"["):
        return False
    try:
        document, _ = parse(b'{"rows":%b}' % _whole(path))
    except SchemaError:
        return False
    rows = document.get("rows")
    return isinstance(rows, list) and _has_columns([row for row in rows[:_ROWS] if isinstance(row, dict)])


def _is_csv(head: bytes) -> bool:
    line, newline, _ = head.partition(b"\n")
    try:
        header, _ = csv_header(line.decode().rstrip("\r"))
    except UnicodeDecodeError:
        return False
    return bool(newline) and len(header) > 1 and _has_columns([dict.fromkeys(header)])

"""Rows of Parquet and Arrow files, read by pyarrow in a confined process.

A damaged file of these formats can crash its reader, and a small one can claim any size. The child checks each batch in
full before a value is read, and sends rows of bounded size.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgspec

from gradience.errors import ConfigError
from gradience.io.confined import Confined, Foreign, allow
from gradience.io.reading import MAX_VALUES, count_values, open_regular

MAX_ROW: Final = 64 << 20  # bytes of one row, as JSON
MAX_ROWS: Final = 1_000_000_000  # of one file: a column of nulls takes a byte for thousands of rows
BATCH: Final = 512  # most rows of one answer
_LARGEST_BATCH: Final = 1 << 16  # rows of a batch that is read
_BATCH_BYTES: Final = 64 << 20  # bytes of a batch, by the mean row of the file
_SMALL: Final = 1 << 20  # bytes of an answer whose rows need not be looked at one by one
_CLASS: Final = "gradience.io.columnar:Reader"
_IMPORTS: Final = ("pyarrow.parquet", "pyarrow.ipc")

Numbered: TypeAlias = tuple[int, dict[str, Any] | str]
"""A row's number, from 1, and the row; or why it cannot be used."""


def count_rows(path: Path) -> int:
    """The number of rows that a Parquet or Arrow file states.

    Raises:
        OSError: it is no regular file, or cannot be opened.
        ValueError: it is damaged, or reading it passes a limit.
        ConfigError: pyarrow is not installed.
    """
    with closing(_reader(path)) as reader:
        try:
            return int(reader.call("count"))
        except Foreign as error:
            raise ValueError(str(error)) from None


def rows_of(
    path: Path, wanted: Collection[int] | None = None, columns: Sequence[str] | None = None
) -> Iterator[Numbered]:
    """Yield the rows with the numbers wanted, or all.

    Args:
        path: a .parquet file, or one of Arrow.
        wanted: numbers of rows, from 1.
        columns: those to read, of which some may be missing.

    Raises:
        OSError: it is no regular file, or cannot be opened.
        ValueError: it is damaged, or reading it passes a limit.
        ConfigError: pyarrow is not installed.
    """
    question = None if wanted is None else sorted(wanted), None if columns is None else list(columns)
    try:
        for part in _reader(path).stream("rows", *question):
            yield from ((number, row) for number, row in part)
    except Foreign as error:
        raise ValueError(str(error)) from None


def _reader(path: Path) -> Confined:
    # In this process, for an OSError of the child would arrive as a text.
    open_regular(path).close()
    try:
        return Confined(_CLASS, str(path), imports=_IMPORTS)
    except Foreign as error:
        raise ValueError(str(error)) from None


class Reader:
    """A file in the child process."""

    def __init__(self, path: str) -> None:
        try:
            import pyarrow as pa  # for those who have such files
            import pyarrow.ipc  # the same
            from pyarrow import parquet  # the same
        except ModuleNotFoundError:
            raise ConfigError("Parquet and Arrow need pyarrow", advice="in the clone: pip install -e '.[hf]'") from None
        pa.set_memory_pool(pa.system_memory_pool())  # others reserve more than they use
        self._pa, self._parquet, self._path = pa, parquet, path
        with open_regular(path) as file:
            self._is_parquet = file.read(4) == b"PAR1"

    def count(self) -> int:
        """The number of rows that the file states."""
        if self._is_parquet:
            rows = int(self._parquet.ParquetFile(self._path).metadata.num_rows)
        else:
            rows = sum(batch.num_rows for batch in self._arrow())
        if rows > MAX_ROWS:
            raise ConfigError(f"{self._path}: more than {MAX_ROWS:,} rows, the limit", advice="give a part of it")
        return rows

    def rows(self, wanted: list[int] | None, columns: list[str] | None) -> Iterator[list[Numbered]]:
        """Yield some rows at a time."""
        start = 1
        for batch in self._of_parquet(columns) if self._is_parquet else self._arrow():
            batch.validate(full=True)
            end = start + batch.num_rows
            numbers: Sequence[int] = range(start, end)
            chosen = batch
            if wanted is not None:
                numbers = wanted[bisect_left(wanted, start) : bisect_left(wanted, end)]
                # With its type, because an array of no numbers would have the type null, by which nothing can be taken.
                chosen = batch.take(self._pa.array([number - start for number in numbers], self._pa.int64()))
            for offset in range(0, len(numbers), BATCH):
                yield from _bounded(numbers[offset : offset + BATCH], chosen.slice(offset, BATCH))
            start = end
            allow()

    def _of_parquet(self, columns: list[str] | None) -> Iterator[Any]:
        with self._parquet.ParquetFile(self._path) as file:
            metadata = file.metadata
            named = None if columns is None else [name for name in columns if name in file.schema_arrow.names]
            size = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
            rows = max(1, min(_LARGEST_BATCH, _BATCH_BYTES * metadata.num_rows // max(size, 1)))
            read = 0
            for batch in file.iter_batches(batch_size=rows, columns=named):
                read += batch.num_rows
                yield batch
            if read != metadata.num_rows:
                raise ValueError(f"its footer states {metadata.num_rows} rows, and it holds {read}")

    def _arrow(self) -> Iterator[Any]:
        """The record batches of an Arrow stream, which `datasets` writes, or of an Arrow file."""
        pa = self._pa
        # A file that `datasets` wrote may exceed the child's memory, of whose limit mapped files are no part.
        with pa.memory_map(self._path) as mapped:
            try:
                yield from pa.ipc.open_stream(mapped)
            except pa.ArrowInvalid:
                reader = pa.ipc.open_file(mapped)
                yield from (reader.get_batch(index) for index in range(reader.num_record_batches))


def _bounded(numbers: Sequence[int], part: Any) -> Iterator[list[Numbered]]:
    """The rows at once if they are small; else one by one, and those over a limit as a reason."""
    rows = part.to_pylist()
    if len(msgspec.msgpack.encode(rows, enc_hook=str)) <= _SMALL:
        yield list(zip(numbers, rows, strict=True))
        return
    for number, row in zip(numbers, rows, strict=True):
        raw = msgspec.json.encode(row, enc_hook=str)
        if len(raw) > MAX_ROW:
            yield [(number, f"a row of more than {MAX_ROW >> 20} MiB")]
        elif count_values(raw) > MAX_VALUES:
            yield [(number, f"a row of more than {MAX_VALUES:,} values")]
        else:
            yield [(number, row)]

"""A store of rows in open files: Parquet parts of several tables, and a small manifest that names the live parts.

A batch is written as one part of each table. It becomes visible when `fleet.json` names it, by one atomic replacement.
A job that is killed therefore leaves whole parts, or parts that no manifest names and the next job removes. A row never
changes in place: a part with outdated rows is written again without them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from gradience.errors import GradienceError, OutputError
from gradience.io import make_folder
from gradience.io.atomic import are_private, atomic_file
from gradience.io.reading import read_small
from gradience.tables import Row, WorkerResult, arrow_schema

if TYPE_CHECKING:
    import pyarrow as pa

MANIFEST: Final = "fleet.json"
DAMAGED: Final = "remove the folder and audit again"
_LOCK: Final = ".lock"
_PRIVATE: Final = 0o600
_SHARED: Final = 0o666
_MOST_BYTES: Final = 1 << 26  # most bytes of the manifest: some million parts
_GROUP: Final = 1 << 16  # rows of a row group
_FULL: Final = 1 << 15  # a part with so many rows in all tables is not merged; merging takes some megabytes at once
_MANY: Final = 8  # more smaller parts than this are merged, because a query opens each of them


class Tables(NamedTuple):
    """The layout of a store: name and version, and the tables by name. The first has one row per source."""

    schema: str
    rows: Mapping[str, Row]
    private: bool = False
    """Whether its files are always for their owner only, as the logs are that its rows come from."""

    @property
    def head(self) -> str:
        """The name of the table with one row per source."""
        return next(iter(self.rows))


class _Manifest(msgspec.Struct, kw_only=True):
    schema: str
    parts: list[int] = []
    next: int = 1
    left: list[int] = []
    """Parts that were being written, or are to be removed, when the manifest was written: the next job removes them."""


class Store:
    """The files of a store.

    Raises:
        GradienceError: the folder holds something else, a store of another version, or has a name that is not UTF-8.
    """

    def __init__(self, folder: Path, tables: Tables) -> None:
        # Arrow and DuckDB take a path as text, and know no other encoding
        if any("\udc80" <= letter <= "\udcff" for letter in str(folder)):
            raise GradienceError(f"{folder}: its name is not UTF-8", advice="give --out a folder with another name")
        self.folder = folder
        self.tables = tables
        self._manifest = self._read()
        self.manifest = folder / MANIFEST
        self.is_private = tables.private or are_private([self.manifest], self.manifest)

    @property
    def parts(self) -> list[int]:
        """The numbers of the live parts."""
        return list(self._manifest.parts)

    @property
    def exists(self) -> bool:
        """Whether a job has begun to write the store."""
        return self.manifest.is_file()

    def files(self, table: str) -> list[Path]:
        """The live Parquet files of a table."""
        return [self.part(table, number) for number in self._manifest.parts]

    def keep_private(self, sources: Iterable[Path]) -> None:
        """Make the store's files for their owner only, from now on, if one of the sources is.

        Raises:
            OutputError: a file's mode cannot be changed.
        """
        if self.is_private or not are_private(sources, self.manifest):
            return
        self.is_private = True
        written = [path for name in self.tables.rows for path in self.files(name)]
        for path in (self.manifest, *written):
            try:
                path.chmod(_PRIVATE)
            except OSError as error:
                raise OutputError(f"cannot write {path}: {error.strerror}", advice="check the path") from error

    def part(self, table: str, number: int) -> Path:
        """The file of one part of a table."""
        return self.folder / table / f"part-{number:06d}.parquet"

    def _read(self) -> _Manifest:
        path = self.folder / MANIFEST
        try:
            manifest = msgspec.json.decode(read_small(path, most=_MOST_BYTES, what="a manifest"), type=_Manifest)
        except FileNotFoundError:
            return _Manifest(schema=self.tables.schema)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise GradienceError(f"cannot read {path}: {error}", advice="give a folder that it wrote") from error
        if manifest.schema != self.tables.schema:
            raise GradienceError(
                f"{path} is of {manifest.schema[:60]!r}, expected {self.tables.schema!r}", advice="write a new one"
            )
        if len(set(manifest.parts)) < len(manifest.parts) or any(
            not 0 < part < manifest.next for part in manifest.parts
        ):
            raise GradienceError(
                f"{path} is damaged: it names a part twice, or one that it did not write", advice="write a new one"
            )
        return manifest

    def table(self, name: str) -> pa.Table:
        """A table over all live parts, in the order in which they were written.

        Raises:
            GradienceError: a part cannot be read.
        """
        import pyarrow as pa  # extra [fleet]

        schema = arrow_schema(self.tables.rows[name])
        read = [self.read_part(path, schema) for path in self.files(name)]
        return pa.concat_tables(read) if read else schema.empty_table()

    def read_part(self, path: Path, schema: pa.Schema) -> pa.Table:
        """One file of a table.

        Raises:
            GradienceError: it cannot be read.
        """
        import pyarrow as pa  # extra [fleet]
        from pyarrow import parquet  # the same

        with _readable(path):
            # By default a folder above it that is called `r=99` would be a column.
            read = parquet.read_table(path, partitioning=None)
            for field in schema:
                if field.nullable and field.name not in read.column_names:  # written before the column was added
                    read = read.append_column(field, pa.nulls(len(read), field.type))
            return read.select(schema.names).cast(schema)

    def rows_in(self, number: int) -> int:
        """The rows of one part in all tables.

        Raises:
            GradienceError: a file of it cannot be read.
        """
        from pyarrow import parquet  # as above

        count = 0
        for path in (self.part(name, number) for name in self.tables.rows):
            with _readable(path):
                count += parquet.read_metadata(path).num_rows
        return count

    @contextmanager
    def writing(self) -> Iterator[Writer]:
        """A context in which only this process writes; leftovers of a killed job are removed at its start.

        Raises:
            OutputError: another job is writing, or the folder cannot be written to or holds something else.
        """
        from filelock import FileLock, Timeout  # only writers pay for it

        self._make()
        lock = FileLock(self.folder / _LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise OutputError(
                f"another job is writing {self.folder}", advice="wait for it, or give another --out"
            ) from error
        except OSError as error:
            raise OutputError(f"cannot write {self.folder}: {error.strerror}", advice="check the path") from error
        try:
            # Another job may have written since this store was opened.
            self._manifest = self._read()
            writer = Writer(self, self._manifest)
            writer.clear()
            yield writer
        finally:
            lock.release()

    def _make(self) -> None:
        try:
            if self.folder.is_dir() and not self.exists and any(map(self._is_foreign, self.folder.iterdir())):
                raise OutputError(f"{self.folder} holds something else", advice="give a new folder")
            for name in self.tables.rows:
                make_folder(self.folder / name)
        except OSError as error:
            raise OutputError(f"cannot write {self.folder}: {error.strerror}", advice="check the path") from error

    def _is_foreign(self, path: Path) -> bool:
        """Whether a job that failed before its first manifest did not leave this: a lock, or a table without parts."""
        return path.name != _LOCK and not (path.name in self.tables.rows and path.is_dir() and not any(path.iterdir()))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """A context that turns pyarrow's errors of a damaged part into a GradienceError."""
    import pyarrow as pa  # extra [fleet]

    try:
        yield
    except (OSError, pa.ArrowException, ValueError) as error:
        message = f"cannot read {path}: {' '.join(str(error).split())[:200]}"
        raise GradienceError(message, advice=DAMAGED) from error


class Writer:
    """The operations of the one writing process."""

    def __init__(self, store: Store, manifest: _Manifest) -> None:
        self._store = store
        self._manifest = manifest

    @cached_property
    def _schemas(self) -> dict[str, pa.Schema]:
        return {name: arrow_schema(row) for name, row in self._store.tables.rows.items()}

    def clear(self) -> None:
        """Remove the parts that a killed job left, and no other file; write a first manifest if there is none."""
        gone = set(self._manifest.left) - set(self._manifest.parts)
        self._remove(gone)
        if gone or not self._store.exists:
            self._manifest.left = []
            self._publish()

    def _remove(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            for name in self._store.tables.rows:
                path = self._store.part(name, number)
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    raise OutputError(f"cannot write {path}: {error.strerror}", advice="check the path") from error

    def add(self, results: Iterable[bytes]) -> None:
        """Write a batch of workers' results as one part.

        Raises:
            OutputError: it cannot be written.
        """
        answers = [msgspec.msgpack.decode(result, type=WorkerResult).tables for result in results]
        if answers:
            lines = map(b"".join, zip(*answers, strict=True))
            tables = {name: _table(rows, self._schemas[name]) for name, rows in zip(self._schemas, lines, strict=True)}
            self._manifest.parts.append(self._write(tables))
            self._publish()

    def replace(self, stale: Mapping[str, str | None]) -> None:
        """Rewrite the parts that hold outdated rows.

        Args:
            stale: path of a source: None to remove its rows, or the new stamp of its row.

        Raises:
            OutputError: they cannot be written.
        """
        if not stale:
            return
        import pyarrow as pa  # extra [fleet]
        import pyarrow.compute as pc  # the same

        head = self._store.tables.head
        gone = pa.array([path for path, stamp in stale.items() if stamp is None], pa.string())
        changed, dropped = [], []
        for number in self._manifest.parts:
            tables = {
                name: self._store.read_part(self._store.part(name, number), schema)
                for name, schema in self._schemas.items()
            }
            paths = tables[head]["path"].to_pylist()
            if stale.keys().isdisjoint(paths):
                continue
            kept = {n: t.filter(pc.invert(pc.is_in(t["path"], value_set=gone))) for n, t in tables.items()}
            if len(kept[head]):
                changed.append(self._write({**kept, head: _restamped(kept[head], stale)}))
            dropped.append(number)
        if dropped:
            self._exchange(dropped, changed)

    def compact(self) -> None:
        """Merge small parts into full ones if there are many; rows and their order stay.

        Raises:
            OutputError: they cannot be written.
        """
        sizes = {number: self._store.rows_in(number) for number in self._manifest.parts}
        small = [number for number, size in sizes.items() if size < _FULL]
        if len(small) <= _MANY:
            return
        heaps: list[list[int]] = [[]]
        for number in small:
            if sum(sizes[one] for one in heaps[-1]) >= _FULL:
                heaps.append([])
            heaps[-1].append(number)
        merged = [self._write({name: self._joined(name, heap) for name in self._schemas}) for heap in heaps]
        self._exchange(small, merged)

    def _joined(self, name: str, numbers: Iterable[int]) -> pa.Table:
        import pyarrow as pa  # as above

        paths = (self._store.part(name, number) for number in numbers)
        return pa.concat_tables([self._store.read_part(path, self._schemas[name]) for path in paths])

    def _exchange(self, old: Sequence[int], new: Sequence[int]) -> None:
        """Name new parts in place of old ones, then remove the old files. If killed in between, either set is whole."""
        gone = set(old)
        self._manifest.parts = [number for number in self._manifest.parts if number not in gone] + [*new]
        self._manifest.left += old
        self._publish()
        self._remove(old)

    def _write(self, tables: Mapping[str, pa.Table]) -> int:
        from pyarrow import parquet  # extra [fleet]

        number = self._free()
        self._manifest.next = number + 1
        self._manifest.left.append(number)
        self._publish()  # before the files, so that a kill leaves none that the manifest does not name
        for name, table in tables.items():
            path = self._store.part(name, number)
            try:
                mode = _PRIVATE if self._store.is_private else _SHARED
                # Made here, with its mode: pyarrow would make it by the umask, perhaps readable for others.
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
                parquet.write_table(table, path, compression="zstd", row_group_size=_GROUP)
            except OSError as error:
                message = f"cannot write {path}: {error.strerror or error}"
                raise OutputError(message, advice="check path and free space") from error
        return number

    def _free(self) -> int:
        """The first number from `next` on of which no table has a file: one that somebody put there stays."""
        number = self._manifest.next
        while any(os.path.lexists(self._store.part(name, number)) for name in self._store.tables.rows):
            number += 1
        return number

    def _publish(self) -> None:
        live = set(self._manifest.parts)
        self._manifest.left = [number for number in self._manifest.left if number not in live]
        manifest = self._store.manifest
        with atomic_file(manifest, sources=[manifest], force=True, private=self._store.is_private) as partial:
            partial.write_bytes(msgspec.json.encode(self._manifest))


def _table(rows: bytes, schema: pa.Schema) -> pa.Table:
    """A table of rows, given as lines of JSON: of Python objects, Arrow would import pandas first, for two seconds."""
    if not rows:
        return schema.empty_table()
    from pyarrow import json  # extra [fleet]

    # One block: pyarrow fails on a row that is longer than a block.
    whole = json.ReadOptions(use_threads=False, block_size=len(rows))
    typed = json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")
    return json.read_json(BytesIO(rows), whole, typed).cast(schema)


def _restamped(table: pa.Table, stale: Mapping[str, str | None]) -> pa.Table:
    import pyarrow as pa  # extra [fleet]

    pairs = zip(table["path"].to_pylist(), table["stamp"].to_pylist(), strict=True)
    stamps = [stale.get(path) or stamp for path, stamp in pairs]
    place = table.schema.get_field_index("stamp")
    return table.set_column(place, table.schema.field(place), pa.array(stamps, pa.string()))

"""A stranger's SQLite file, opened read-only and bounded."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import Final
from urllib.parse import quote

from gradience.errors import RecorderError
from gradience.importers.files import require_file

MAX_CELL: Final = 16 * 1024**2  # bytes of one value: a logged row has about 1 KB
MAX_STEPS: Final = 300_000_000  # of SQLite's virtual machine, a few seconds: a row costs some twenty, ten million fit
_STEPS_A_CALL: Final = 100_000
_OWN: Final = "give the file as the logger wrote it"
_EXPORT: Final = "export the run, and import the table"


@contextmanager
def opened(path: Path, *, advice: str) -> Iterator[sqlite3.Connection]:
    """A connection that writes nothing beside the file, holds no large cell, and gives up on a query without end.

    What a journal holds and the file does not yet is read from copies of both: opened in place, SQLite would write
    a shared index (`-shm`) beside them.

    Raises:
        RecorderError: the file is no database, or a query was wrong for it; with the advice given.
    """
    try:
        yield from _copied(path)
    except (sqlite3.Error, OSError) as error:
        if "interrupted" in str(error):
            raise RecorderError(f"{path}: reading takes more than {MAX_STEPS:.0e} steps", advice=_EXPORT) from error
        raise RecorderError(f"{path}: {error}", advice=advice) from error


def _copied(path: Path) -> Iterator[sqlite3.Connection]:
    journal = path.with_name(f"{path.name}-wal")
    if journal.exists() and journal.stat().st_size:
        with TemporaryDirectory(prefix="gradience-") as folder:
            for source in (path, journal):
                require_file(source)
                copyfile(source, Path(folder, source.name))
            yield from _connected(Path(folder, path.name), "mode=rw")
    else:
        yield from _connected(path, "mode=ro&immutable=1")


def _connected(path: Path, mode: str) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(f"file:{quote(str(path.absolute()))}?{mode}", uri=True)) as base:
        base.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_CELL)
        steps = iter(range(MAX_STEPS // _STEPS_A_CALL))
        base.set_progress_handler(lambda: next(steps, None) is None, _STEPS_A_CALL)
        base.execute("PRAGMA trusted_schema = OFF")
        yield base


def tables_of(path: Path) -> set[str]:
    """The names of the file's tables; none of a file that is no database."""
    try:
        with opened(path, advice="") as base:
            return {str(name) for (name,) in base.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except RecorderError:
        return set()


def require_stored(base: sqlite3.Connection, path: Path, *tables: str) -> None:
    """Refuse views and computed columns in a table's place: a row of them may cost anything.

    Raises:
        RecorderError: one of the tables is no plain table.
    """
    for table in tables:
        kinds = base.execute("SELECT name, type FROM sqlite_master WHERE name = ?", (table,)).fetchall()
        hidden = base.execute("SELECT name FROM pragma_table_xinfo(?) WHERE hidden <> 0", (table,)).fetchall()
        for name, kind in [*kinds, *((f"{table}.{column}", "computed column") for (column,) in hidden)]:
            if kind not in {"table", "index"}:
                raise RecorderError(
                    f"{path}: `{name}` is a {kind}, not stored rows", advice="give the logger's own file"
                )

"""Open a store for reading: a fleet's tables as Arrow, which polars and pandas take without a copy; SQL over any store.

A query is a single SELECT by DuckDB. It reads these files and no others, without network or changed settings.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from msgspec import inspect

from gradience.errors import GradienceError, require
from gradience.io import PathLike
from gradience.io.atomic import atomic_file
from gradience.io.reading import real_path
from gradience.schema import Json
from gradience.schema.fleet import (
    FLEET_SCHEMA_ID,
    QUERY_SCHEMA_ID,
    AdapterRow,
    FindingRow,
    ModuleRow,
    QueryColumn,
    QueryReport,
)
from gradience.tables import Row
from gradience.tables.store import DAMAGED, Store, Tables
from gradience.telemetry.redact import hide_in

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection, Statement


FLEET: Final = Tables(FLEET_SCHEMA_ID, {"adapters": AdapterRow, "modules": ModuleRow, "findings": FindingRow})

_SCALARS: Final[dict[type[inspect.Type], str]] = {
    inspect.StrType: "varchar",
    inspect.IntType: "bigint",
    inspect.FloatType: "double",
    inspect.BoolType: "boolean",
    inspect.LiteralType: "varchar",
}
_PATTERN: Final = re.compile(r"[*?\[\\]")


def query_fleet(fleet: str | Path, sql: str) -> QueryReport:
    """The result of one SELECT over the tables adapters, modules and findings of a fleet.

    Raises:
        GradienceError: there is no fleet, duckdb is not installed, or the query is refused or wrong.
    """
    return select(existing(fleet), sql)


def select(store: Store, sql: str) -> QueryReport:
    """The result of one SELECT over the tables of a store.

    Raises:
        GradienceError: duckdb is not installed, or the query is refused or wrong.
    """
    with opened(store) as base, _worded():
        base.execute(_only_select(base, sql))
        columns = [QueryColumn(name=name, type=str(kind)) for name, kind, *_ in base.description]
        names = [column.name for column in columns]
        rows = [
            [hide_in(_plain(value), name) for value, name in zip(row, names, strict=True)] for row in base.fetchall()
        ]
    return QueryReport(schema=QUERY_SCHEMA_ID, sql=sql, columns=columns, rows=rows)


def select_to_parquet(store: Store, sql: str, out: Path) -> None:
    """Write the result of one SELECT as a Parquet file.

    Raises:
        GradienceError: as `select`.
        OutputError: it exists already, or cannot be written.
    """
    from pyarrow import parquet  # extra [fleet]

    with opened(store) as base, _worded(), atomic_file(out, sources=[store.manifest], force=None) as partial:
        parquet.write_table(_without_secrets(base.sql(_only_select(base, sql).query).to_arrow_table()), partial)


def _without_secrets(table: pa.Table) -> pa.Table:
    """The table with the secrets in its texts hidden; numbers are not looked at."""
    import pyarrow as pa  # extra [fleet]

    for place, field in enumerate(table.schema):
        if "string" in str(field.type):
            texts = [hide_in(value, field.name) for value in table.column(place).to_pylist()]
            table = table.set_column(place, field, pa.array(texts, field.type))
    return table


def _only_select(base: DuckDBPyConnection, sql: str) -> Statement:
    statements = base.extract_statements(sql)
    if [statement.type.name for statement in statements] != ["SELECT"]:
        kinds = ", ".join(statement.type.name for statement in statements) or "nothing"
        raise GradienceError(f"expected one SELECT, got {kinds}", advice="the tables are read only")
    return statements[0]


@contextmanager
def opened(store: Store) -> Iterator[DuckDBPyConnection]:
    """A context with an in-memory database whose tables are views of the store's files; it can read no other file.

    Raises:
        GradienceError: a file cannot be read.
    """
    import duckdb  # extra [fleet]

    with _worded(), duckdb.connect() as base:
        base.execute("set temp_directory = ''")  # DuckDB must not spill to the user's disk
        # An extension would be fetched over the network, or read from the user's folder.
        base.execute("set autoload_known_extensions = false; set autoinstall_known_extensions = false")
        base.execute("set python_enable_replacements = false; set allow_community_extensions = false")
        names = store.tables.rows
        live = {name: [str(real_path(path)) for path in store.files(name)] for name in names}
        for path in (path for paths in live.values() for path in paths):
            if Path(path).exists() and not Path(path).is_file():  # DuckDB would wait for a pipe for ever
                raise GradienceError(f"{path} is not a regular file", advice="remove it, and audit or list again")
        # Before external access is disabled: DuckDB then refuses to change the paths.
        base.execute(f"set allowed_paths = {_texts(path for paths in live.values() for path in paths)}")
        for name, paths in live.items():
            if any(_PATTERN.search(path) for path in paths):  # DuckDB takes such a path for a pattern, without escapes
                base.register(name, store.table(name))
            else:
                base.execute(f"create view {name} as {_view(store.tables.rows[name], paths)}")
        base.execute("set enable_external_access = false")
        base.execute("set lock_configuration = true")
        yield base


def _view(row: Row, paths: list[str]) -> str:
    """A SELECT over the parts and one without rows, by which a column that was added after them is null."""
    how = "hive_partitioning = false, union_by_name = true"  # a folder's name, such as `r=99`, is no column
    parts = [f"from read_parquet({_texts(paths)}, {how})"] if paths else []
    return " union all by name ".join([*parts, f"(select {_columns(row, 'null::{type} as {name}')} limit 0)"])


def _columns(row: Row, form: str) -> str:
    """The columns of a table as SQL. An Arrow table of no rows would say the same, and imports pyarrow and pandas."""
    kind = inspect.type_info(row)
    assert isinstance(kind, inspect.StructType)  # noqa: S101  # the argument's type
    return ", ".join(form.format(type=_type(field.type), name=f'"{field.encode_name}"') for field in kind.fields)


def _type(kind: inspect.Type) -> str:
    """DuckDB's name of the type that a column has in the files (`tables.arrow_schema`)."""
    if isinstance(kind, inspect.Metadata):
        return _type(kind.type)
    if isinstance(kind, inspect.UnionType):
        (inner,) = (one for one in kind.types if not isinstance(one, inspect.NoneType))
        return _type(inner)
    if isinstance(kind, inspect.ListType):
        return f"{_type(kind.item_type).replace('double', 'float')}[]"
    if isinstance(kind, inspect.StructType):
        return f"struct({_columns(kind.cls, '{name} {type}')})"
    return _SCALARS[type(kind)]


def _texts(values: Iterable[str]) -> str:
    return "[" + ", ".join("'" + value.replace("'", "''") + "'" for value in values) + "]"


@contextmanager
def _worded() -> Iterator[None]:
    """A context that turns an error of DuckDB into a GradienceError with its first line."""
    import duckdb  # extra [fleet]

    try:
        yield
    except duckdb.Error as error:
        message = str(error).split("\n\nLINE", maxsplit=1)[0]
        of_file = "/part-" in message or type(error) is duckdb.Error  # the latter of a damaged page, without its file
        advice = DAMAGED if of_file else "the columns: 'select * from TABLE limit 1'"
        raise GradienceError(" ".join(message.split()), advice=advice) from error


def _plain(value: Any) -> Json:
    """A value as a JSON value."""
    if value is None or isinstance(value, bool | int | float | str):
        # x - x is 0 for finite numbers alone, and JSON has no others.
        return value if not isinstance(value, float) or value - value == 0.0 else str(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


class Fleet:
    """The tables of a fleet, each read on first access."""

    def __init__(self, store: Store) -> None:
        self.path = store.folder
        self._store = store

    @cached_property
    def adapters(self) -> pa.Table:
        """A row for each adapter (`schema.fleet.AdapterRow`), by path."""
        return self._store.table("adapters").sort_by("path")

    @cached_property
    def modules(self) -> pa.Table:
        """A row for each module (`schema.fleet.ModuleRow`), by path and position."""
        return self._ordered("modules")

    @cached_property
    def findings(self) -> pa.Table:
        """A row for each finding (`schema.fleet.FindingRow`), by path and position."""
        return self._ordered("findings")

    def _ordered(self, name: str) -> pa.Table:
        return self._store.table(name).sort_by([("path", "ascending"), ("position", "ascending")])


def open_fleet(path: PathLike) -> Fleet:
    """Open the fleet that `fleet audit` wrote to a folder.

    Raises:
        GradienceError: there is none, or it is of another version.

    >>> open_fleet("fleet").modules.column("stable_rank")  # doctest: +SKIP
    """
    return Fleet(existing(path))


def existing(path: PathLike, tables: Tables = FLEET) -> Store:
    """The store in a folder.

    Raises:
        GradienceError: there is none, or it is of another version.
    """
    require("duckdb", "pyarrow", extra="fleet", what="a fleet")
    store = Store(Path(path), tables)
    if not store.exists:
        raise GradienceError(f"no fleet in {path}", advice="write one with 'gradience fleet audit ROOT --out FLEET'")
    return store

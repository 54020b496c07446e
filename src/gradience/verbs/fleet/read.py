"""A fleet opened for reading: its tables as Arrow, which polars and pandas take without a copy."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from gradience.errors import GradienceError
from gradience.io.paths import PathLike
from gradience.verbs.fleet.store import Store, Tables
from gradience.verbs.fleet.tables import FLEET

if TYPE_CHECKING:
    import pyarrow as pa


class Fleet:
    """The tables of a fleet, each read when it is first asked for."""

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
    """The fleet that `fleet audit` wrote to a folder.

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
    store = Store(Path(path), tables)
    if not store.exists:
        raise GradienceError(f"no fleet in {path}", advice="write one with 'gradience fleet audit ROOT --out FLEET'")
    return store

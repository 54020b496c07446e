"""A small index file by which a second call sees that nothing has changed, without opening a table.

It holds the stamps of the rows and the listings of folders. If it is missing or belongs to other parts, the tables are
read and the folders listed. The index decides only how fast a call is, never what it finds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import msgspec

from gradience.io.atomic import atomic_file
from gradience.io.reading import read_small

if TYPE_CHECKING:
    from gradience.verbs.fleet.store import Store

INDEX: Final = "index.msgpack"
_VERSION: Final = 1
_MOST_BYTES: Final = 1 << 30
_SETTLED: Final = 3_000_000_000  # nanoseconds; a folder that changed more recently may change again unseen


Target: TypeAlias = tuple[str, tuple[str, ...]]
"""An adapter's name in its folder, "" for the folder itself, and its files."""


class Known(NamedTuple):
    """The columns of a row that describe its source."""

    stamp: str = ""
    rules: str = ""
    content_hash: str = ""
    failed: bool = False


class Listing(NamedTuple):
    """A folder's subfolders and adapters, valid while the folder's modification time is `changed`."""

    changed: int
    """Nanoseconds."""
    folders: Sequence[str]
    targets: Sequence[Target]


class Folders:
    """The folder listings of the last call, and those for the next call."""

    def __init__(self, listings: dict[str, Listing] | None = None, *, now: Callable[[], int] = time.time_ns) -> None:
        self._before = listings or {}
        self._settled = now() - _SETTLED
        self.listings: dict[str, Listing] = {}

    @property
    def are_as_before(self) -> bool:
        """Whether this call met the same folders as the last one, all unchanged."""
        return self.listings == self._before

    def unchanged(self, folder: str, status: os.stat_result) -> Listing | None:
        """The listing of a folder with the same modification time as before, kept for the next call; else None."""
        found = self._before.get(folder)
        if found is None or found.changed != status.st_mtime_ns:
            return None
        self.listings[folder] = found
        return found

    def met(self, folder: str, status: os.stat_result, folders: Sequence[str], targets: Sequence[Target]) -> None:
        """Keep the listing of a folder, unless it changed so recently that its time may not show another change.

        Args:
            folder: its path.
            status: its status from before it was listed.
            folders: paths of its subfolders. No entry of it may be a link, because a link's target changes elsewhere.
            targets: its adapters, which must follow from file names alone.
        """
        if status.st_mtime_ns < self._settled:
            self.listings[folder] = Listing(status.st_mtime_ns, folders, targets)


class _Index(msgspec.Struct, array_like=True):
    version: int
    parts: Sequence[int]
    known: dict[str, Known]
    listings: dict[str, Listing]


def read_index(store: Store) -> tuple[dict[str, Known] | None, Folders]:
    """The index of a store's rows, None if missing or of other parts, and the listings of folders."""
    try:
        raw = read_small(store.folder / INDEX, most=_MOST_BYTES, what="an index")
        found = msgspec.msgpack.decode(raw, type=_Index)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None, Folders()
    if found.version != _VERSION:
        return None, Folders()
    return (found.known if list(found.parts) == store.parts else None), Folders(found.listings)


def write_index(store: Store, known: dict[str, Known], folders: Folders) -> None:
    """Write the index of a store as it is now.

    Raises:
        OutputError: the index cannot be written.
    """
    try:
        data = msgspec.msgpack.encode(_Index(_VERSION, store.parts, known, folders.listings))
    except UnicodeEncodeError:  # a folder's name is not UTF-8: the next call lists all folders
        data = msgspec.msgpack.encode(_Index(_VERSION, store.parts, known, {}))
    with atomic_file(store.folder / INDEX, force=True) as partial:
        partial.write_bytes(data)

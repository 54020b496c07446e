"""What a second call needs to see that nothing has changed, in one small file: no table is opened for it.

It holds what the rows say of their sources, and the listings of folders. Without it, or with one of other parts, the
tables are asked and the folders listed: it decides how quick a call is, and never what it finds.
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
_SETTLED: Final = 3_000_000_000  # nanoseconds: a folder changed later than that may change again under the same time


Target: TypeAlias = tuple[str, tuple[str, ...]]
"""An adapter's name in its folder, empty for the folder itself, and its files."""


class Known(NamedTuple):
    """What a row says of its source."""

    stamp: str = ""
    rules: str = ""
    content_hash: str = ""
    failed: bool = False


class Listing(NamedTuple):
    """A folder that its time of change vouches for: its folders, and its adapters by name with the files of each."""

    changed: int
    """Nanoseconds."""
    folders: Sequence[str]
    targets: Sequence[Target]


class Folders:
    """The listings of folders as the last call met them, and those for the next."""

    def __init__(self, listings: dict[str, Listing] | None = None, *, now: Callable[[], int] = time.time_ns) -> None:
        self._before = listings or {}
        self._settled = now() - _SETTLED
        self.listings: dict[str, Listing] = {}

    @property
    def are_as_before(self) -> bool:
        """Whether this call met the folders that the last one did, and found all of them unchanged."""
        return self.listings == self._before

    def unchanged(self, folder: str, status: os.stat_result) -> Listing | None:
        """The listing of a folder in which nothing was added, removed or renamed since."""
        found = self._before.get(folder)
        if found is None or found.changed != status.st_mtime_ns:
            return None
        self.listings[folder] = found
        return found

    def met(self, folder: str, status: os.stat_result, folders: Sequence[str], targets: Sequence[Target]) -> None:
        """Keep the listing of a folder, unless it changed so lately that it may again under the same time.

        Args:
            folder: its path.
            status: from before it was listed.
            folders: paths of those below it. None of its entries is a link: what one leads to changes elsewhere.
            targets: its adapters, which its names alone decide.
        """
        if status.st_mtime_ns < self._settled:
            self.listings[folder] = Listing(status.st_mtime_ns, folders, targets)


class _Index(msgspec.Struct, array_like=True):
    version: int
    parts: Sequence[int]
    known: dict[str, Known]
    listings: dict[str, Listing]


def read_index(store: Store) -> tuple[dict[str, Known] | None, Folders]:
    """What the index says of a store's rows, None where it is missing or of other parts, and of folders."""
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
        OutputError: it cannot be written.
    """
    try:
        data = msgspec.msgpack.encode(_Index(_VERSION, store.parts, known, folders.listings))
    except UnicodeEncodeError:  # a folder whose name is not UTF-8: the next call lists it
        data = msgspec.msgpack.encode(_Index(_VERSION, store.parts, known, {}))
    with atomic_file(store.folder / INDEX, force=True) as partial:
        partial.write_bytes(data)

"""Find many adapters, audit each once into open files, and show and query them.

This module turns audit reports into rows of tables. The Arrow schema of a table is generated from the Struct of its
rows. It also keeps a small index file by which a second call sees that nothing has changed, without opening a table:
the stamps of the rows and the listings of folders. If the index is missing or belongs to other parts, the tables are
read and the folders listed. The index decides only how fast a call is, never what it finds.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import msgspec

from gradience.io.atomic import atomic_file
from gradience.io.reading import read_small
from gradience.schema import as_float
from gradience.schema.audit import AuditReport, ModuleAudit
from gradience.schema.document import RuleGroup, by_severity
from gradience.schema.fleet import AdapterRow, FindingRow, ModuleRow
from gradience.tables import finding_columns, number_column

if TYPE_CHECKING:
    from gradience.tables.store import Store


INDEX: Final = "index.msgpack"
_VERSION: Final = 2
_MOST_BYTES: Final = 1 << 30
_SETTLED: Final = 3_000_000_000  # nanoseconds; a folder that changed more recently may change again unseen

Target: TypeAlias = tuple[str, tuple[str, ...]]
"""An adapter's name in its folder, "" for the folder itself, and its files."""

_NUMBERS: Final = "3"
"""Version to be raised when the computation of a row's number, or of a rule, changes."""

_COPIED: Final = tuple(name for name in ModuleRow.__struct_fields__ if name in ModuleAudit.__struct_fields__)
_MAY_BE_NON_FINITE: Final = {"alpha", "scaling", "spectral_norm", "frobenius_norm", "udr", "relative_frobenius"}


class Known(NamedTuple):
    """The columns of a row that describe its source."""

    stamp: str = ""
    rules: str = ""
    content_hash: str = ""
    failed: bool = False


class Listing(NamedTuple):
    """A folder's subfolders and adapters, valid while the folder's times are `changed`."""

    changed: tuple[int, int]
    """The times of modification, which anybody can set, and of status change, in nanoseconds."""
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
        if found is None or found.changed != _times(status):
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
        if max(_times(status)) < self._settled:
            self.listings[folder] = Listing(_times(status), folders, targets)


def _times(status: os.stat_result) -> tuple[int, int]:
    return status.st_mtime_ns, status.st_ctime_ns


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
        store.touch(partial)
        partial.write_bytes(data)


@cache
def version_of_rules(*groups: RuleGroup) -> str:
    """The version of the rules of these groups; rows with another version are made again."""
    from gradience.rules import cards_of  # all rules; a query of a store needs none

    stated = msgspec.json.encode(cards_of(*groups))
    return f"{_NUMBERS}-{hashlib.sha256(stated).hexdigest()[:12]}"


def rows_of(
    path: str, report: AuditReport, identity: tuple[str, str, str, str], sketch: Sequence[float]
) -> tuple[AdapterRow, list[ModuleRow], list[FindingRow]]:
    """The rows of one adapter.

    Args:
        path: the key of the rows.
        report: the audit.
        identity: version of the rules, stamp of the files, hash of the content and hash of the weights.
        sketch: the sketch of the update.
    """
    modules = [_module(path, place, module) for place, module in enumerate(report.modules)]
    found = [
        FindingRow(path=path, position=place, **finding_columns(item)) for place, item in enumerate(report.findings)
    ]
    return _adapter(path, report, identity, sketch), modules, found


def _adapter(
    path: str, report: AuditReport, identity: tuple[str, str, str, str], sketch: Sequence[float]
) -> AdapterRow:
    rules, stamp, content, weights = identity
    summary, ranks = report.summary, [m.r for m in report.modules]
    cut = report.suggested.get("p90")
    energies = [as_float(m.frobenius_norm or 0.0) ** 2 for m in report.modules if m.state == "ok"]
    worst = next((item.severity for item in by_severity(report.findings)), None)
    return AdapterRow(
        path=path,
        content_hash=content,
        weights_hash=weights,
        rules=rules,
        stamp=stamp,
        bytes=sum(entry.bytes for entry in report.ledger),
        format=report.format,
        peft_type=report.peft_type,
        base_model=report.base_model,
        verdict=report.health.verdict,
        reason=report.health.reason,
        modules=len(report.modules),
        not_analysed=len(report.not_analysed),
        r=max(ranks, default=None),
        r_min=min(ranks, default=None),
        module_types=",".join(sorted({m.module_type for m in report.modules})),
        shape_key=_shape_key(report.modules),
        params=summary.total_lora_params,
        stable_rank_mean=summary.stable_rank_mean,
        effective_rank_mean=summary.effective_rank_mean,
        utilization_mean=summary.utilization_mean,
        energy_rank_90_p50=summary.energy_rank_90_p50,
        energy_rank_90_p90=summary.energy_rank_90_p90,
        null_stable_rank_mean=summary.null_stable_rank_mean,
        frobenius_norm=math.sqrt(sum(energies)) if energies else None,
        relative_frobenius=report.base.relative_frobenius if report.base is not None else None,
        suggested_rank=cut.rank if cut is not None else None,
        bytes_saved=cut.bytes_saved if cut is not None else 0,
        findings=len(report.findings),
        worst=worst,
        sketch=list(sketch),
    )


def _shape_key(modules: Sequence[ModuleAudit]) -> str:
    shapes = sorted((m.name, *m.shape) for m in modules)
    return hashlib.sha256(repr(shapes).encode("utf-8", "surrogatepass")).hexdigest()[:16] if shapes else ""


def _module(path: str, place: int, module: ModuleAudit) -> ModuleRow:
    rows, columns = module.shape
    values = {name: getattr(module, name) for name in _COPIED}
    values |= {name: number_column(values[name]) for name in _MAY_BE_NON_FINITE}
    return ModuleRow(path=path, position=place, rows=rows, columns=columns, **values)

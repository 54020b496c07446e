"""Summarise a fleet: the verb `fleet show`, and adapters that are alike.

`show_fleet` gives what a person wants first of many adapters. Its part `serving` is the memory that a multi-LoRA server
wastes on padding, because each adapter takes the room of the server's maximal rank.

`similar` compares only adapters with the same base, modules and shapes. Two adapters are candidates if at least one
band of the signs of their sketches agrees. The cosine estimated from the sketches leaves a few pairs, whose factors are
read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import numpy as np

from gradience.adapters.layout import Adapter
from gradience.adapters.open import open_adapter
from gradience.errors import AdapterError, GradienceError
from gradience.io import PathLike
from gradience.io.reading import read_small
from gradience.rules.config.serving import known_engines, read_flags, room_for as room_of
from gradience.schema.document import Finding
from gradience.schema.fleet import (
    FLEET_SHOW_SCHEMA_ID,
    Alike,
    Counted,
    Faulty,
    FleetShowReport,
    OtherShape,
    RankBuckets,
    Serving,
    Similar,
    Wasteful,
)
from gradience.spectral.grams import Floats
from gradience.tables.query import existing, opened
from gradience.verbs.fleet.serve import plan_engines

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


_OK: Final = "status = 'ok'"
_FAULTS: Final = ("broken", "untrained", "near_untrained", "partial", "random_like", "not_analysed")
_GRAVEST: Final = "array_position(['critical', 'error', 'warning', 'info'], severity)"
_SHARE: Final = 0.5  # heuristic: share of a base's adapters that must agree on a shape for another one to be reported
room_for: Final = partial(room_of, "vllm")
"""The least max_lora_rank of vLLM that holds a rank; None if the rank exceeds all."""
_BYTES: Final = 2  # bytes per number: servers hold adapters in 16 bits
_MOST_BUCKETS: Final = 3

BANDS: Final = 12
BITS: Final = 10  # signs per band; 12 x 10 of the sketch's 128
MARGIN: Final = 0.1  # how far below the threshold a sketches' cosine may be; it errs by < 0.01: docs/evidence/fleet.md
_MOST_IN_BUCKET: Final = 500  # if a bucket has more adapters, each is compared with its neighbours only
_NEIGHBOURS: Final = 16


_SNAPSHOT: Final = re.compile(r"(?P<repository>.*/models--[^/]+)/snapshots/(?P<revision>[^/]+)(?P<rest>.*)")
_REVISION: Final = 1024  # bytes of the file that names a commit, at most


def show_fleet(
    fleet: PathLike,
    *,
    top: int = 10,
    cosine: float = 0.99,
    most_pairs: int = 100,
    serve: Iterable[str] = (),
    server_flags: str = "",
) -> FleetShowReport:
    """Summarise a fleet: bases, ranks, verdicts, and the adapters that are broken, wasteful, alike, or of a wrong base.

    Args:
        fleet: the folder that `fleet audit` wrote.
        top: how many adapters a list names.
        cosine: of two updates, from which they are nearly the same.
        most_pairs: how many pairs of adapters to read for their exact cosine, the likeliest first.
        serve: engines to plan the serving of the trained adapters for, as `check` names them, and hotswap.
        server_flags: the flags that the server is started with, as one text.

    Raises:
        ConfigError: an engine is not known.
        GradienceError: there is no fleet, or a package is missing.
    """
    engines, flags, store = known_engines(serve, fleet=True), read_flags(server_flags), existing(fleet)
    with opened(store) as base:
        count, size = _one(base, "select count(*), sum(bytes) from adapters")
        faulty = _faulty(base)
        keys = ("path", "base_model", "shapes", "content_hash", "sketch")
        records = _all(base, f"select {', '.join(keys)} from adapters where {_OK} order by path")  # noqa: S608  # our own
        rows, notes = one_version([dict(zip(keys, row, strict=True)) for row in records])
        return FleetShowReport(
            schema=FLEET_SHOW_SCHEMA_ID,
            fleet=str(fleet),
            adapters=count,
            modules=_one(base, "select count(*) from modules")[0],
            bytes=size or 0,
            bases=_counted(base, "coalesce(base_model, 'not declared')"),
            types=_counted(base, "coalesce(peft_type, format)"),
            ranks=_counted(base, "r::varchar"),
            verdicts=_counted(base, "coalesce(verdict, status)", where="true"),
            findings=[
                Counted(value=value, adapters=n)
                for value, n in _all(
                    base, "select id, count(distinct path) from findings group by 1 order by 2 desc, 1"
                )
            ],
            faulty=faulty[:top],
            faulty_total=len(faulty),
            wasteful=_wasteful(base, top),
            serving=_serving(base),
            plans=plan_engines(base, engines, flags),
            similar=similar(rows, threshold=cosine, most=most_pairs),
            other_shapes=_other_shapes(base)[:top],
            unread=_unread(base),
            notes=notes,
        )


def _all(base: DuckDBPyConnection, sql: str) -> list[Any]:
    return base.execute(sql).fetchall()


def _one(base: DuckDBPyConnection, sql: str) -> Any:
    return base.execute(sql).fetchone()


def _counted(base: DuckDBPyConnection, value: str, *, where: str = _OK) -> list[Counted]:
    sql = f"select {value}, count(*) from adapters where {where} group by 1 order by 2 desc, 1"  # noqa: S608  # our own
    return [Counted(value=str(name), adapters=n) for name, n in _all(base, sql)]


def _faulty(base: DuckDBPyConnection) -> list[Faulty]:
    order = " ".join(f"when '{name}' then {place}" for place, name in enumerate(("error", "crashed", *_FAULTS)))
    listed = ", ".join(f"'{name}'" for name in ("error", "crashed", *_FAULTS))
    sql = f"""select path, coalesce(verdict, status) as v, coalesce(error, reason) from adapters
        where v in ({listed}) order by case v {order} end, path"""  # noqa: S608  # our own
    # What is wrong with a trained adapter is a finding: far too large, numbers of another base, a merge that is lost
    grave = f"""select path, id, message from findings join adapters using (path)
        where severity in ('warning', 'error', 'critical') and coalesce(verdict, status) not in ({listed})
        qualify row_number() over (partition by path order by {_GRAVEST}, position) = 1
        order by {_GRAVEST}, path"""  # noqa: S608  # our own
    rows = [*_all(base, sql), *_all(base, grave)]
    return [Faulty(path=path, verdict=verdict, reason=reason or "") for path, verdict, reason in rows]


def findings_of(fleet: PathLike) -> list[tuple[str, Finding]]:
    """Return every finding of a fleet with the path of its adapter, by path.

    Raises:
        GradienceError: there is no fleet, a package is missing, or another version stored what this one does not know.
    """
    names = ("id", "severity", "message", "action", "confidence")
    with opened(existing(fleet)) as base:
        rows = _all(base, f"select path, {', '.join(names)} from findings order by path, position")  # noqa: S608  # our own
    try:
        return [(path, msgspec.convert(dict(zip(names, row, strict=True)), Finding)) for path, *row in rows]
    except msgspec.ValidationError as error:
        raise GradienceError(
            f"{fleet}: a finding of another version: {error}", advice="audit the fleet again"
        ) from error


def _unread(base: DuckDBPyConnection) -> list[Counted]:
    """Why adapters have no numbers: each reason without path and numbers, so that equal ones count as one."""
    reason = "regexp_replace(replace(coalesce(error, status), path || '/', ''), '[0-9]+', 'N', 'g')"
    return _counted(base, reason, where="status <> 'ok'")


def _wasteful(base: DuckDBPyConnection, top: int) -> list[Wasteful]:
    sql = f"""select path, r, suggested_rank, utilization_mean, bytes_saved from adapters
        where verdict = 'trained' and bytes_saved > 0 order by bytes_saved desc, path limit {int(top)}"""  # noqa: S608
    names = ("path", "r", "suggested_rank", "utilization_mean", "bytes_saved")
    return [Wasteful(**dict(zip(names, row, strict=True))) for row in _all(base, sql)]


def _serving(base: DuckDBPyConnection) -> list[Serving]:
    """Per base, the memory that its servable adapters take on a server, most padding first."""
    sql = """with loads as (
            select path, max(r) as r, sum(rows + columns) as width, sum(r * (rows + columns)) as used
            from modules group by path)
        select coalesce(base_model, 'not declared'), loads.r, count(*), sum(width)::bigint, sum(used)::bigint
        from loads join adapters using (path)
        where verdict in ('trained', 'near_untrained') group by 1, 2 order by 1, 2"""
    bases: dict[str, dict[int, Load]] = {}
    for name, rank, adapters, width, used in _all(base, sql):
        bases.setdefault(name, {})[rank] = Load(adapters, width, used)
    return sorted((serving(name, loads) for name, loads in bases.items()), key=lambda item: -item.padding_bytes)


def _other_shapes(base: DuckDBPyConnection) -> list[OtherShape]:
    """For each adapter, the first module with another shape than most adapters of its declared base have."""
    sql = f"""with shaped as (
            select path, base_model, name, position, rows, columns from modules join adapters using (path)
            where {_OK} and coalesce(base_model, '') <> '' and rows > 0 and columns > 0),
        counts as (select base_model, name, rows, columns, count(distinct path) as n from shaped group by all),
        usual as (
            select base_model, name, max_by([rows, columns], n) as shape, max(n) as n, sum(n) as total
            from counts group by all)
        select path, base_model, name, [shaped.rows, columns], shape, n from shaped join usual using (base_model, name)
        where [shaped.rows, columns] <> shape and n > {_SHARE} * total and n > 1
        qualify row_number() over (partition by path order by position) = 1 order by path"""  # noqa: S608  # our own
    names = ("path", "base_model", "module", "shape", "usual", "usual_adapters")
    return [OtherShape(**dict(zip(names, row, strict=True))) for row in _all(base, sql)]


class Load(NamedTuple):
    """The adapters of one rank: their number, and sums over their modules of rows + columns and r (rows + columns)."""

    adapters: int
    width: int
    used: int


def serving(base: str, loads: Mapping[int, Load]) -> Serving:
    """The memory that one base's adapters take on a server, by their largest rank, and the splits that waste least."""
    served = {rank: load for rank, load in loads.items() if room_for(rank) is not None}
    largest = room_for(max(loads, default=0))
    used = sum(load.used for load in served.values()) * _BYTES
    splits = [
        best_split(served, parts) for parts in range(1, min(_MOST_BUCKETS, len({room_for(r) for r in served})) + 1)
    ]
    return Serving(
        base_model=base,
        adapters=sum(load.adapters for load in loads.values()),
        ranks={str(rank): load.adapters for rank, load in sorted(loads.items())},
        max_lora_rank=largest,
        used_bytes=used,
        padding_bytes=splits[0].padding_bytes if splits else 0,
        buckets=splits,
    )


def padding(load: Load, size: int) -> int:
    """Bytes of zeros that a server of that maximal rank adds to the factors of these adapters."""
    return (load.width * size - load.used) * _BYTES


def best_split(loads: Mapping[int, Load], parts: int) -> RankBuckets:
    """The maximal ranks of `parts` servers that waste least, with each adapter on the smallest server that holds it."""
    *lower, largest = sorted({room_for(rank) or 0 for rank in loads})
    splits = (_split(loads, (*sizes, largest)) for sizes in combinations(lower, min(parts - 1, len(lower))))
    return min(splits, key=lambda split: split.padding_bytes)


def _split(loads: Mapping[int, Load], sizes: Sequence[int]) -> RankBuckets:
    groups: dict[int, list[Load]] = {size: [] for size in sizes}
    for rank, load in loads.items():
        groups[min(size for size in sizes if size >= rank)].append(load)
    return RankBuckets(
        max_lora_ranks=list(sizes),
        adapters=[sum(load.adapters for load in group) for group in groups.values()],
        padding_bytes=sum(padding(load, size) for size, group in groups.items() for load in group),
    )


def one_version(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[str]]:
    """Return the rows with one for all snapshots of a repository in the hub's cache, and a note on each such one.

    The snapshots are versions of one adapter. The one that stays is that of the branch `main`, else the last by path.
    """
    kept, notes = [], []
    versions: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        if (hit := _SNAPSHOT.match(row["path"])) is None:
            kept.append(row)
        else:
            versions.setdefault((hit["repository"], hit["rest"]), {})[hit["revision"]] = row
    for (repository, rest), snapshots in versions.items():
        main = _current(Path(repository))
        revision = main if main in snapshots else list(snapshots)[-1]
        kept.append(snapshots[revision])
        if len(snapshots) > 1:
            notes.append(
                f"{repository} has {len(snapshots)} snapshots{rest and f' of {rest[1:]}'}, versions of one adapter: of "
                f"them {revision} is compared"
            )
    return kept, notes


def _current(repository: Path) -> str | None:
    try:
        return read_small(repository / "refs" / "main", most=_REVISION, what="a revision").decode().strip()
    except (OSError, ValueError, GradienceError):
        return None


def similar(rows: Sequence[Mapping[str, Any]], *, threshold: float, most: int) -> Similar:
    """Find adapters that are the same or nearly the same.

    Args:
        rows: `path`, `base_model`, `shapes`, `content_hash` and `sketch` of each readable adapter.
        threshold: the cosine from which two are nearly the same.
        most: how many pairs to compute the exact cosine of; those with the closest sketches come first.
    """
    groups: dict[str, list[str]] = {}
    for row in rows:
        groups.setdefault(row["content_hash"], []).append(row["path"])
    blocks: dict[tuple[str | None, str], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        if row["shapes"]:
            blocks.setdefault((row["base_model"], row["shapes"]), {}).setdefault(row["content_hash"], row)
    pairs = [pair for block in blocks.values() for pair in _candidates(list(block.values()), threshold - MARGIN)]
    pairs.sort(reverse=True)
    near, failed = _exact([(one, two) for _, one, two in pairs[:most]], threshold)
    return Similar(
        threshold=threshold,
        same=[Alike(paths=sorted(paths)) for paths in groups.values() if len(paths) > 1],
        near=near,
        compared=min(len(pairs), most) - failed,
        not_compared=max(0, len(pairs) - most) + failed,
        all_pairs=sum(len(block) * (len(block) - 1) // 2 for block in blocks.values()),
    )


def _candidates(block: Sequence[Mapping[str, Any]], least: float) -> Iterator[tuple[float, str, str]]:
    if len(block) < 2:
        return
    sketches = np.array([row["sketch"] for row in block], dtype=np.float64)
    sizes = np.linalg.norm(sketches, axis=1)
    # A zero update has a sketch of zeros.
    unit = sketches / np.where(sizes > 0.0, sizes, 1.0)[:, None]
    for one, two in candidate_pairs(unit):
        cosine = float(unit[one] @ unit[two])
        if cosine >= least:
            yield cosine, block[one]["path"], block[two]["path"]


def candidate_pairs(unit: Floats) -> set[tuple[int, int]]:
    """Pairs of sketches, given as unit vectors (n, D), that agree in at least one band of signs."""
    signs = (unit > 0.0)[:, : BANDS * BITS].reshape(len(unit), BANDS, BITS)
    keys = signs @ (1 << np.arange(BITS))
    # The signs of zero sketches are all equal, and would make one large bucket.
    alive = np.flatnonzero(unit.any(axis=1))
    pairs: set[tuple[int, int]] = set()
    for band in range(BANDS):
        buckets: dict[int, list[int]] = {}
        for index in alive:
            buckets.setdefault(int(keys[index, band]), []).append(int(index))
        for members in buckets.values():
            pairs.update(_pairs_in(members))
    return pairs


def _pairs_in(members: list[int]) -> Iterable[tuple[int, int]]:
    if len(members) <= _MOST_IN_BUCKET:
        return combinations(members, 2)
    return ((one, two) for at, one in enumerate(members) for two in members[at + 1 : at + 1 + _NEIGHBOURS])


def _exact(pairs: Sequence[tuple[str, str]], threshold: float) -> tuple[list[Alike], int]:
    """The pairs whose cosine is at least the threshold, and the number of pairs that could not be compared."""
    near, failed = [], 0
    for one, two in pairs:
        try:
            cosine = update_cosine(open_adapter(Path(one))[1], open_adapter(Path(two))[1])
        except (AdapterError, OSError):  # removed since, or behind a URL
            failed += 1
            continue
        if cosine >= threshold:
            near.append(Alike(paths=[one, two], cosine=cosine))
    return sorted(near, key=lambda alike: -(alike.cosine or 0.0)), failed


def update_cosine(one: Adapter, two: Adapter) -> float:
    """<dW1, dW2> / (norm(dW1) norm(dW2)) over common modules, by Gram matrices in float64; 0 if an update is zero."""
    others = {module.name: module for module in two.modules}
    sums = np.zeros(3)
    for module in one.modules:
        other = others.get(module.name)
        if other is None:
            continue
        b1, a1 = (part.astype(np.float64) for part in module.load())
        b2, a2 = (part.astype(np.float64) for part in other.load())
        s1, s2 = module.scale, other.scale
        # <B1 A1, B2 A2> is the trace of (B1^T B2)(A2 A1^T), of r x r matrices: no dW is formed.
        sums += (
            s1 * s2 * np.sum((b1.T @ b2) * (a1 @ a2.T)),
            s1 * s1 * np.sum((b1.T @ b1) * (a1 @ a1.T)),
            s2 * s2 * np.sum((b2.T @ b2) * (a2 @ a2.T)),
        )
    size = float(np.sqrt(sums[1] * sums[2]))
    return float(sums[0]) / size if size > 0.0 else 0.0

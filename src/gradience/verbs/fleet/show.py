"""The verb `fleet show`: what a person wants first of many adapters, by SQL over the fleet's tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from gradience.io.paths import PathLike
from gradience.schema.fleet import FLEET_SHOW_SCHEMA_ID, Counted, Faulty, FleetShowReport, OtherShape, Serving, Wasteful
from gradience.verbs.fleet.query import opened
from gradience.verbs.fleet.read import existing
from gradience.verbs.fleet.serving import Load, serving

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_OK: Final = "status = 'ok'"
_FAULTS: Final = ("broken", "untrained", "near_untrained", "partial", "random_like", "not_analysed")
_SHARE: Final = 0.5  # of a base's adapters that must agree on a module's shape before another one is strange; heuristic


def show_fleet(fleet: PathLike, *, top: int = 10, cosine: float = 0.99, most_pairs: int = 100) -> FleetShowReport:
    """What is in a fleet: bases, ranks, verdicts, what is broken, wasteful, alike, or of another base than it declares.

    Args:
        fleet: the folder that `fleet audit` wrote.
        top: how many adapters a list names.
        cosine: of two updates, from which they are nearly the same.
        most_pairs: how many pairs of adapters to read for their exact cosine, the likeliest first.

    Raises:
        GradienceError: there is no fleet, or a package is missing.
    """
    from gradience.verbs.fleet.similar import similar  # noqa: PLC0415  # numpy only here

    store = existing(fleet)
    with opened(store) as base:
        count, size, crashed = _one(base, "select count(*), sum(bytes), count(*) filter (status <> 'ok') from adapters")
        faulty = _faulty(base)
        keys = ("path", "base_model", "shape_key", "content_hash", "sketch")
        rows = _all(base, f"select {', '.join(keys)} from adapters where {_OK} order by path")  # noqa: S608  # our own
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
            similar=similar([dict(zip(keys, row, strict=True)) for row in rows], threshold=cosine, most=most_pairs),
            other_shapes=_other_shapes(base)[:top],
            notes=[f"{crashed} adapters have no numbers: see faulty"] if crashed else [],
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
    return [Faulty(path=path, verdict=verdict, reason=reason or "") for path, verdict, reason in _all(base, sql)]


def _wasteful(base: DuckDBPyConnection, top: int) -> list[Wasteful]:
    sql = f"""select path, r, suggested_rank, utilization_mean, bytes_saved from adapters
        where verdict = 'trained' and bytes_saved > 0 order by bytes_saved desc, path limit {int(top)}"""  # noqa: S608
    names = ("path", "r", "suggested_rank", "utilization_mean", "bytes_saved")
    return [Wasteful(**dict(zip(names, row, strict=True))) for row in _all(base, sql)]


def _serving(base: DuckDBPyConnection) -> list[Serving]:
    """Per base the adapters that a server takes, by largest rank; most padding first."""
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
    """The first module of each adapter whose shape is not the one that most adapters of its declared base have."""
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

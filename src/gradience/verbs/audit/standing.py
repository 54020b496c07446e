"""An audit's standing: its percentiles among the healthy adapters of a fleet, by type and rank of module."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

import msgspec

from gradience.io import PathLike
from gradience.rules.weights.ranks import measured
from gradience.schema.audit import AuditReport, ModuleAudit, Percentile, Standing
from gradience.schema.document import writable
from gradience.tables import number_column
from gradience.tables.query import existing, opened

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


MEASURES: Final = ("stable_rank", "utilization", "energy_rank_90", "udr", "relative_frobenius")
FEW: Final = 20  # a judgement: with fewer adapters, each one moves a percentile by 5 or more


def with_standing(report: AuditReport, fleet: PathLike) -> AuditReport:
    """The report with `standing`, its percentiles in a fleet.

    For each number, the mean over the adapter's healthy modules of one type and rank is compared with the same mean of
    each trained adapter of the fleet. Adapters of equal content count once, and the adapter itself does not count.

    Raises:
        GradienceError: there is no fleet, or duckdb is missing.
    """
    own = writable(os.path.abspath(report.peft_dir))  # noqa: PTH100  # links are not resolved, as in a fleet's rows
    groups: dict[tuple[str, int], list[ModuleAudit]] = {}
    for module in measured(report.modules):
        groups.setdefault((module.module_type, module.r), []).append(module)
    with opened(existing(fleet)) as base:
        percentiles = [item for key, members in groups.items() for item in _percentiles(base, own, key, members)]
    notes = ["no trained adapter of the fleet has modules of these types and ranks"] if not percentiles else []
    few = min((item.n for item in percentiles), default=FEW)
    notes += [f"few to compare with: n = {few}"] if few < FEW else []
    return msgspec.structs.replace(report, standing=Standing(fleet=str(fleet), percentiles=percentiles, notes=notes))


def _percentiles(
    base: DuckDBPyConnection, own: str, key: tuple[str, int], members: Sequence[ModuleAudit]
) -> Iterator[Percentile]:
    means = ", ".join(f"avg(m.{name})" for name in MEASURES)
    sql = f"""with others as (
            select min(path) as path from adapters where verdict = 'trained'
            and content_hash not in (select content_hash from adapters where path = $own) group by content_hash)
        select {means} from modules m join others using (path)
        where m.state = 'ok' and m.module_type = $type and m.r = $r group by path"""  # noqa: S608  # our own names
    rows = base.execute(sql, {"own": own, "type": key[0], "r": key[1]}).fetchall()
    for place, measure in enumerate(MEASURES):
        mine = [value for m in members if (value := number_column(getattr(m, measure))) is not None]
        theirs: list[Any] = [row[place] for row in rows if row[place] is not None]
        if mine and theirs:
            value = fmean(mine)
            yield Percentile(
                measure=measure,
                module_type=key[0],
                r=key[1],
                value=value,
                percentile=share_below(value, theirs),
                n=len(theirs),
            )


def share_below(value: float, others: Sequence[float]) -> float:
    """The percentage of the others below a value; those equal to it count by half.

    >>> share_below(2.0, [1.0, 2.0, 3.0, 4.0])
    37.5
    """
    below, equal = sum(other < value for other in others), sum(other == value for other in others)
    return 100.0 * (below + equal / 2) / len(others)

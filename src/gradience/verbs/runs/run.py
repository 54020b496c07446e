"""Find the logs of many runs, read each once into a store of files in open formats, and list, compare and query them.

`collect` finds and reads the logs, `rows` has the table's columns, `best` ranks runs by a metric. This file has the
other queries: a list with columns, order and condition, and SQL.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from gradience.errors import GradienceError
from gradience.schema import Real, number_in
from gradience.schema.events import EvalMetrics
from gradience.schema.fleet import RUN_SETTINGS, QueryReport, RunRow
from gradience.tables.query import select
from gradience.tables.store import Store

COLUMNS: Final = (
    *("path", "run", "model", "data", "status", "verdict", "r", "lr", "steps", "first_loss", "last_loss"),
    *("best_eval_loss", "eval_accuracy", "findings"),
)
BOARD: Final = (
    *("path", "run", "status", "story", "steps", "first_loss", "last_loss", "best_eval_loss", "eval_accuracy"),
    *("error", "split", *RUN_SETTINGS),
)
KNOWN: Final = frozenset(RunRow.__struct_fields__)


def list_runs(
    store: Store, *, columns: Sequence[str] = COLUMNS, where: str | None = None, sort: str = "path"
) -> QueryReport:
    """List the runs, one row each.

    Args:
        store: the store that `collect_runs` returned.
        columns: names of columns of `runs`.
        where: a condition in SQL, such as `r = 8 and status = 'ok'`.
        sort: a column; with a minus before it, largest first. Runs without a value come last.

    Raises:
        GradienceError: a column is unknown, or the condition is wrong.
    """
    return select(store, list_sql(columns, where, sort))


def list_sql(columns: Sequence[str], where: str | None, sort: str) -> str:
    """The SQL query of `list_runs`.

    Raises:
        GradienceError: a column is unknown.
    """
    descending, column = sort.startswith("-"), sort.removeprefix("-")
    refuse_unknown_columns([*(columns or [""]), column])
    order = f"{column} {'desc' if descending else 'asc'} nulls last, path, run"
    # The line break ends a comment in the user's condition, which would swallow the bracket.
    return f"select {', '.join(columns)} from runs where ({where or 'true'}\n) order by {order}"  # noqa: S608  # checked


def refuse_unknown_columns(columns: Iterable[str]) -> None:
    """Refuse names that are no columns of `runs`.

    Raises:
        GradienceError: a name is none.
    """
    unknown = [name or "''" for name in columns if name not in KNOWN]
    if unknown:
        names = ", ".join(RunRow.__struct_fields__)
        raise GradienceError(f"no column is called {', '.join(unknown)[:60]}", advice=f"there are {names}")


def measured(metrics: EvalMetrics) -> dict[str, Real | None]:
    """The numbers of an evaluation by their names; None where there is none."""
    known = {"loss": metrics.loss, "ppl": metrics.ppl, "accuracy": metrics.accuracy}
    return known | {name: number_in(metrics.extras, name) for name in metrics.extras}

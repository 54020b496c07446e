"""The commands ``gradience runs``, ``runs query`` and ``runs best``."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from cyclopts import Parameter
from cyclopts.types import PositiveInt

from gradience.blocks import counted
from gradience.commands import options as opt
from gradience.commands.output import DONE, draws_blocks, print_text, tell
from gradience.commands.page import write_page
from gradience.errors import GradienceError, RecorderError
from gradience.io import cache_folder
from gradience.telemetry.redact import hide_in
from gradience.verbs.fleet.results import DEFAULT_RESULT, ResultOptions, answer, rate_on_stderr
from gradience.verbs.runs import view as of_runs

if TYPE_CHECKING:
    from gradience.folder.runs import RunList
    from gradience.tables.store import Store


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """Which runs are shown, and how.

    Parameters
    ----------
    limit:
        How many runs to list on a screen (default: 20), or to draw on a page (default, and at most: 26); --columns,
        --csv and --json give all.
    columns:
        Names of columns, separated by commas; all for all of them.
    where:
        A condition in SQL, such as "r = 8 and status = 'ok'".
    sort:
        A column; with a minus before it, largest first. Default: path, and on a page the best held-out loss.
    csv:
        Print CSV (RFC 4180).
    html:
        A page to write as well, with one metric of the runs as curves over each other.
    metric:
        Of the page: split and name, such as eval/accuracy. Columns of training rows are train/loss, train/lr,
        train/grad_norm, train/mean_token_accuracy and signals such as train/entropy.
    force:
        Replace the page if it is there.
    """

    limit: PositiveInt | None = None
    columns: str | None = None
    where: str | None = None
    sort: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None
    csv: opt.Flag = False
    json: opt.AsJson = False
    html: Path | None = None
    metric: str = "train/loss"
    force: opt.Flag = False


_LISTED = ListOptions()
_ON_SCREEN: Final = 20  # runs
_MEANS: Final = """
    select path, run, list(mean order by part) from (
        select path, run, part, avg(loss) as mean from (
            select path, run, loss, ntile(12) over (partition by path, run order by step) as part
            from rows where isfinite(loss)
        ) group by path, run, part
    ) group by path, run
"""  # in as many parts as `view.CURVE`
NO_CURVES: Final[Mapping[tuple[str, str], str]] = MappingProxyType({})


def runs(
    *roots: Path,
    listed: Annotated[ListOptions, Parameter(name="*")] = _LISTED,
    out: Path | None = None,
) -> int:
    """List every run below some folders, one row a run: run.jsonl, and whatever gradience import reads.

    Logs are read once: a second call reads what has changed. 'gradience runs best' ranks runs, 'gradience runs query'
    asks in SQL.

    Parameters
    ----------
    roots:
        Folders, or logs.
    out:
        Folder for the tables. Default: in the user's cache.
    """
    from gradience.schema.fleet import RunRow  # the same
    from gradience.verbs.runs.run import BOARD, COLUMNS, list_sql  # the help needs none of it

    store = _collected(roots, out)
    _refuse_none(store)
    wrote = "" if listed.html is None else _draw(store, listed, listed.html)
    sort = listed.sort or "path"
    if not (listed.columns or listed.csv or listed.json):
        return _screen(store, list_sql(BOARD, listed.where, sort), listed.limit or _ON_SCREEN, wrote)
    chosen = [name.strip() for name in (listed.columns or "").split(",")]
    names = RunRow.__struct_fields__ if listed.columns == "all" else chosen if listed.columns else COLUMNS
    sql = list_sql(names, listed.where, sort)
    return answer(store, sql, ResultOptions(csv=listed.csv, json=listed.json))


def _screen(store: Store, sql: str, limit: int, wrote: str) -> int:
    """Print a line for each run, and what was written; return exit code 0."""
    from gradience.tables.query import select  # the help needs none of it

    report = select(store, sql)
    columns = [column.name for column in report.columns]
    rows = [dict(zip(columns, row, strict=True)) for row in report.rows]
    print_text(table_of(rows, limit, _curves(store) if _draws() else {}))
    if wrote:
        print_text(wrote)
    return DONE


def _draws() -> bool:
    return sys.stdout is not None and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def _curves(store: Store) -> dict[tuple[str, str], str]:
    """Return each run's training loss as a line of characters: means over equal parts of its rows."""
    from gradience.blocks.plots import spark  # only a terminal shows them
    from gradience.tables.query import select  # the same

    rows = select(store, _MEANS).rows
    return {(str(path), str(run)): spark(means, dots=draws_blocks()) for path, run, means in rows}


def _refuse_none(store: Store) -> None:
    from gradience.tables.query import select  # the help needs none of it

    rows = select(store, "select path, error from runs order by error is not null, path limit 1").rows
    if not rows or rows[0][1] is not None:
        why = f"no run could be read: {rows[0][0]}: {rows[0][1]}" if rows else "no run below these folders"
        raise RecorderError(why, advice="give folders with logs below them")


def table_of(
    rows: Sequence[Mapping[str, Any]], limit: int | None = None, curves: Mapping[tuple[str, str], str] = NO_CURVES
) -> str:
    """The table of runs as text."""
    from gradience.folder.runs import names_of_runs  # the help needs none of it

    names = names_of_runs([(str(row["path"]), str(row["run"])) for row in rows])
    return of_runs.runs_text(hide_in(rows), names, most=limit, curves=curves)


def table_before(place: Path | RunList, **judging: Any) -> str:
    """The table of the runs of a place, to stand before the report on one of them; empty where it holds one."""
    from msgspec.structs import asdict

    from gradience.verbs.runs.rows import read_rows  # the help needs none of it

    try:
        rows = read_rows(place, **judging)
    except GradienceError:  # the report says so
        return ""
    return f"{table_of([asdict(row) for row in rows], _ON_SCREEN)}\n\n" if len(rows) > 1 else ""


def _draw(store: Store, listed: ListOptions, html: Path) -> str:
    """Write the page of the runs that are listed, and say so; those beyond what a page can tell apart are counted."""
    from msgspec.structs import replace

    from gradience.tables.query import select  # the help needs none of it
    from gradience.verbs.runs.curves import curves_figure  # matplotlib
    from gradience.verbs.runs.run import MOST_CURVES, list_sql, run_curves  # the same

    readable = f"({listed.where or 'true'}\n) and error is null"
    sql = list_sql(["path"], readable, listed.sort or "best_eval_loss")
    logs = list(dict.fromkeys(str(path) for (path,) in select(store, sql).rows))
    if not logs:
        raise RecorderError(f"no run where {listed.where}", advice="see the table without --where")
    shown = logs[: min(listed.limit or MOST_CURVES, MOST_CURVES)]
    report = replace(run_curves(*shown, metric=listed.metric), left_out=len(logs) - len(shown))
    write_page(
        report,
        lambda it: of_runs.curves_page(it, curves_figure(it.curves, it.metric)),
        html,
        sources=[Path(curve.path) for curve in report.curves],
        force=listed.force,
    )
    return f"wrote {html} ({len(shown)} of {counted(len(logs), 'run')})"


def query_runs(
    *roots: str,
    out: Path | None = None,
    result: Annotated[ResultOptions, Parameter(name="*")] = DEFAULT_RESULT,
) -> int:
    """Ask the runs below some folders in SQL (DuckDB): one SELECT over runs, rows, evals and findings.

    It is read only: no other file, no network, no settings.

    Parameters
    ----------
    roots:
        Folders or logs, and last the query.
    out:
        Folder for the tables. Default: in the user's cache.
    """
    if len(roots) < 2:
        raise GradienceError("expected folders and a query", advice='give ROOT "select ..."')
    *folders, sql = roots
    return answer(_collected(tuple(map(Path, folders)), out), sql, result)


def best_run(
    *roots: Path,
    metric: str | None = None,
    by: str | None = None,
    goal: Literal["least", "most"] | None = None,
    limit: PositiveInt = 5,
    out: Path | None = None,
    json: opt.AsJson = False,
) -> int:
    """Rank the runs by a metric, those apart that it cannot compare, and say which differences are noise.

    Parameters
    ----------
    roots:
        Folders, or logs.
    metric:
        Split and name, such as eval/accuracy; train/loss is that of training rows. Default: the held-out loss that most
        runs have.
    by:
        A column of runs to group by as well, such as model.
    goal:
        Whether less or more is better. Default: less for losses, perplexities and errors.
    limit:
        How many runs of a group to rank.
    out:
        Folder for the tables. Default: in the user's cache.
    """
    from gradience.verbs.runs.best import best_runs  # the help needs none of it

    report = best_runs(_collected(roots, out), metric, by=by, goal=goal, top=limit)
    return opt.print_report(report, of_runs.runs_best_text, json=json)


def _collected(roots: tuple[Path, ...], out: Path | None) -> Store:
    if not roots:
        raise RecorderError("no folder to look in", advice="give folders with runs below them")
    from gradience.verbs.runs.collect import collect_runs  # the help needs none of it

    if out is None and cache_folder("runs") is None:
        tell("the user's cache cannot be written: these tables are not kept; --out FOLDER keeps them")
    return collect_runs(*roots, out=out, progress=rate_on_stderr("runs"))

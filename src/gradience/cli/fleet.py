"""The commands ``gradience fleet`` (audit, show, query) and ``gradience runs`` (and below it best and query)."""

from __future__ import annotations

import csv
import io
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from cyclopts import Parameter
from cyclopts.types import PositiveInt

from gradience.cli import options as opt
from gradience.cli.output import DONE, emit, print_text, tell
from gradience.errors import AdapterError, GradienceError, RecorderError
from gradience.render import fleet as words, runs as of_runs
from gradience.schema.document import escape_controls, writable
from gradience.telemetry.redact import hide_in

if TYPE_CHECKING:
    from gradience.collect.fleet.audit import Tally
    from gradience.tables.query import Named
    from gradience.tables.store import Store

Engine = Literal["local", "ray"]
_EVERY: Final = 1 << 40
_DRAWN: Final = 0.2  # seconds between two drawings on a terminal
_WRITTEN: Final = 30.0  # seconds between two lines of a file
_SHORT: Final = 2.0  # seconds of a job too short for a progress file


def audit(
    *roots: str,
    out: Path | None = None,
    list: Path | None = None,  # noqa: A002  # the option's name
    base: opt.Base = None,
    engine: Engine = "local",
    workers: PositiveInt | None = None,
    address: str | None = None,
    json: opt.AsJson = False,
) -> int:
    """Audit every adapter below some folders or URLs, and keep the numbers as Parquet.

    A second call reads only what changed. One that was killed is taken up where it was.

    Parameters
    ----------
    roots:
        Folders, weights files, or fsspec URLs (s3://, gs://, hf://).
    out:
        The fleet's folder: written, or brought up to date.
    list:
        A file with one further path or URL on each line.
    engine:
        local: worker processes of this machine. ray: tasks of a Ray cluster (in the clone: pip install -e '.[ray]').
    workers:
        How many processes, or tasks at once. Default: one for each core.
    address:
        Of a Ray cluster, or auto. Default: a new one on this machine alone.
    """
    if not roots and list is None:
        raise AdapterError("no folder to look in", advice="give folders with adapters below, or --list FILE")
    if out is None:
        raise AdapterError("no output folder", advice="give --out FLEET")
    from gradience.collect.fleet.audit import audit_fleet  # the help needs none of it
    from gradience.collect.fleet.find import read_list  # the same

    report = audit_fleet(
        *roots,
        out=out,
        listed=() if list is None else read_list(list),
        base=base,
        engine=engine,
        workers=workers,
        address=address,
        progress=rate_on_stderr("fleet"),
    )
    return opt.print_report(report, words.fleet_audit_text, json=json)


def rate_on_stderr(what: str) -> Callable[[Tally], None]:
    """Return a function that writes rate, remaining time and failures to stderr.

    On a terminal the line is updated in place; otherwise a line is written now and then.
    """
    start = last = time.monotonic()
    watched = sys.stderr.isatty()

    def draw(tally: Tally) -> None:
        nonlocal last
        now = time.monotonic()
        due = now - last >= (_DRAWN if watched else _WRITTEN)
        if not due and (tally.done < tally.total or (not watched and now - start < _SHORT)):
            return
        last = now
        rate = tally.done / max(now - start, 1e-9)
        left = f", {(tally.total - tally.done) / rate:.0f} s left" if tally.done < tally.total else ""
        failures = f", {tally.failures} failed" if tally.failures else ""
        line = f"{what}: {tally.done}/{tally.total}, {rate:.1f} a second{left}{failures}"
        end = "\r" if watched and tally.done < tally.total else "\n"
        tell(f"{line:<79}" if watched else line, end=end)

    return draw


def show(
    fleet: Path,
    /,
    *,
    top: PositiveInt = 10,
    verbose: opt.Verbose = False,
    html: Path | None = None,
    force: opt.Flag = False,
    json: opt.AsJson = False,
) -> int:
    """Show what is in a fleet: bases, ranks, verdicts; what is broken, wasteful, alike, or of another base.

    Parameters
    ----------
    fleet:
        The folder that fleet audit wrote.
    top:
        How many adapters a list names.
    verbose:
        List every adapter.
    html:
        A page to write as well.
    force:
        Replace the page if it is there.
    """
    from gradience.collect.fleet.show import show_fleet  # the help needs none of it

    report = show_fleet(fleet, top=_EVERY if verbose else top)
    if html is not None:
        from gradience.report import write_page  # matplotlib
        from gradience.tables.store import MANIFEST  # only a page needs it

        write_page(report, html, sources=[fleet / MANIFEST], force=force)
    return opt.print_report(report, words.fleet_show_text, json=json)


@dataclass(frozen=True, kw_only=True)
class ResultOptions:
    """How a result is written.

    Parameters
    ----------
    named:
        A usual question by its name; see --list-queries.
    list_queries:
        List the named queries with their SQL.
    csv:
        Print CSV (RFC 4180).
    parquet:
        Write the result to a Parquet file instead.
    """

    named: str | None = None
    list_queries: opt.Flag = False
    csv: opt.Flag = False
    parquet: Path | None = None
    json: opt.AsJson = False


DEFAULT_RESULT = ResultOptions()


def query(
    fleet: Path | None = None,
    sql: str | None = None,
    /,
    *,
    result: Annotated[ResultOptions, Parameter(name="*")] = DEFAULT_RESULT,
) -> int:
    """Ask a fleet in SQL (DuckDB): one SELECT over adapters, modules and findings.

    It is read only: no other file, no network, no settings.

    Parameters
    ----------
    fleet:
        The folder that fleet audit wrote.
    sql:
        The query, such as "select r, avg(stable_rank) from modules group by r".
    """
    from gradience.tables.query import FLEET_QUERIES  # the help needs none of it

    if result.list_queries:
        return list_queries(FLEET_QUERIES)
    if fleet is None:
        raise GradienceError("no fleet", advice="give the folder that 'gradience fleet audit' wrote")
    from gradience.tables.query import existing  # the same

    return answer(existing(fleet), chosen(FLEET_QUERIES, sql, result.named), result)


def chosen(queries: Mapping[str, Named], sql: str | None, named: str | None) -> str:
    """Return the query that was given, or the one that was named.

    Raises:
        GradienceError: neither or both are given, or no query has that name.
    """
    if (sql is None) == (named is None):
        raise GradienceError("expected one query", advice='give "select ..." or --named NAME; see --list-queries')
    if named is not None and named not in queries:
        raise GradienceError(f"no query is called {named[:60]!r}", advice=f"there are {', '.join(queries)}")
    return sql if named is None and sql is not None else queries[str(named)].sql


def list_queries(queries: Mapping[str, Named]) -> int:
    """Print the named queries, and return exit code 0."""
    print_text("\n".join(f"{name}: {query.asks}\n    {query.sql}" for name, query in queries.items()))
    return DONE


def answer(store: Store, sql: str, form: ResultOptions) -> int:
    """Print the result of a query, or write it to a file, and return exit code 0.

    Raises:
        GradienceError: the query is refused or wrong, or two output formats are asked for.
    """
    if form.csv + form.json + (form.parquet is not None) > 1:
        raise GradienceError("--csv, --json and --parquet exclude each other", advice="give one of them")
    from gradience.tables.query import select, select_to_parquet  # the help needs none of it

    if form.parquet is not None:
        select_to_parquet(store, sql, form.parquet)
        return DONE
    report = select(store, sql)
    if not form.csv:
        return opt.print_report(report, words.query_text, json=form.json)
    rows = writable(report.rows)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([column.name for column in report.columns])
    writer.writerows([[escape_controls(cell) if isinstance(cell, str) else cell for cell in row] for row in rows])
    emit(text.getvalue())
    return DONE


def _collected(roots: tuple[Path, ...], out: Path | None, *, refresh: bool = False) -> Store:
    if not roots:
        raise RecorderError("no folder to look in", advice="give folders with runs below them")
    from gradience.collect.runs.collect import collect_runs  # the help needs none of it

    return collect_runs(*roots, out=out, refresh=refresh, progress=rate_on_stderr("runs"))


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """Which runs are shown, and how.

    Parameters
    ----------
    limit:
        How many runs to list on a screen; --columns, --csv and --json give all.
    columns:
        Names of columns, separated by commas; all for all of them.
    where:
        A condition in SQL, such as "r = 8 and status = 'ok'".
    sort:
        A column; with a minus before it, largest first.
    csv:
        Print CSV (RFC 4180).
    html:
        A page to write as well, with one metric of the runs as curves over each other.
    metric:
        Of the page: split and name, such as eval/accuracy; train/loss, train/lr and train/grad_norm are columns of
        training rows.
    force:
        Replace the page if it is there.
    """

    limit: PositiveInt = 20
    columns: str | None = None
    where: str | None = None
    sort: Annotated[str, Parameter(allow_leading_hyphen=True)] = "path"
    csv: opt.Flag = False
    json: opt.AsJson = False
    html: Path | None = None
    metric: str = "train/loss"
    force: opt.Flag = False


_LISTED = ListOptions()


def runs(
    *roots: Path,
    listed: Annotated[ListOptions, Parameter(name="*")] = _LISTED,
    refresh: opt.Flag = False,
    out: Path | None = None,
) -> int:
    """List every run below some folders, one row a run: run.jsonl, and whatever gradience import reads.

    Logs are read once: a second call reads what has changed. 'gradience runs best' ranks runs, 'gradience runs query'
    asks in SQL.

    Parameters
    ----------
    roots:
        Folders, or logs.
    refresh:
        Read every log again, changed or not.
    out:
        Folder for the tables. Default: in the user's cache.
    """
    from gradience.collect.runs import BOARD, COLUMNS, list_sql  # the help needs none of it
    from gradience.schema.fleet import RunRow  # the same

    store = _collected(roots, out, refresh=refresh)
    _refuse_none(store)
    if listed.html is not None:
        _draw(roots, listed.html, listed.metric, force=listed.force)
    if not (listed.columns or listed.csv or listed.json):
        return _screen(store, list_sql(BOARD, listed.where, listed.sort), listed.limit)
    chosen = [name.strip() for name in (listed.columns or "").split(",")]
    names = RunRow.__struct_fields__ if listed.columns == "all" else chosen if listed.columns else COLUMNS
    sql = list_sql(names, listed.where, listed.sort)
    return answer(store, sql, ResultOptions(csv=listed.csv, json=listed.json))


def _screen(store: Store, sql: str, limit: int) -> int:
    """Print a line for each run, and return exit code 0."""
    from gradience.tables.query import select  # the help needs none of it

    report = select(store, sql)
    columns = [column.name for column in report.columns]
    return show_rows([dict(zip(columns, row, strict=True)) for row in report.rows], limit)


def _refuse_none(store: Store) -> None:
    from gradience.tables.query import select  # the help needs none of it

    found = select(store, "select path, error from runs order by error is not null, path limit 1").rows
    if not found or found[0][1] is not None:
        why = f"no run could be read: {found[0][0]}: {found[0][1]}" if found else "no run below these folders"
        raise RecorderError(why, advice="give folders with logs below them")


def show_rows(rows: Sequence[Mapping[str, Any]], limit: int | None = None) -> int:
    """Print the table of runs, and return exit code 0."""
    from gradience.judge.monitor.source import names_of_runs  # the help needs none of it

    names = names_of_runs([(str(row["path"]), str(row["run"])) for row in rows])
    print_text(of_runs.runs_text(hide_in(rows), names, most=limit))
    return DONE


def _draw(roots: Sequence[Path], html: Path, metric: str, *, force: bool) -> None:
    from gradience.collect.runs import run_curves  # the help needs none of it
    from gradience.report import write_page  # matplotlib

    report = run_curves(*roots, metric=metric)
    write_page(report, html, sources=[Path(curve.path) for curve in report.curves], force=force)


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
        Folders or logs, and last the query (unless --named is given).
    out:
        Folder for the tables. Default: in the user's cache.
    """
    from gradience.collect.runs import RUNS_QUERIES  # the help needs none of it

    if result.list_queries:
        return list_queries(RUNS_QUERIES)
    if result.named is None and len(roots) < 2:
        raise GradienceError("expected folders and a query", advice='give ROOT "select ...", or --named NAME')
    folders, sql = (roots, None) if result.named is not None else (roots[:-1], roots[-1])
    wanted = chosen(RUNS_QUERIES, sql, result.named)
    return answer(_collected(tuple(map(Path, folders)), out), wanted, result)


def best_run(
    *roots: Path,
    metric: str = "eval/loss",
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
        Split and name, such as eval/accuracy; train/loss is that of training rows.
    by:
        A column of runs to group by as well, such as model.
    goal:
        Whether less or more is better. Default: less for losses, perplexities and errors.
    limit:
        How many runs of a group to rank.
    out:
        Folder for the tables. Default: in the user's cache.
    """
    from gradience.collect.runs.best import best_runs  # the help needs none of it

    report = best_runs(_collected(roots, out), metric, by=by, goal=goal, top=limit)
    return opt.print_report(report, of_runs.runs_best_text, json=json)

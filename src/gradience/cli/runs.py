"""``gradience runs``: list, show, query, best and curves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from cyclopts.types import PositiveInt

from gradience.cli import options as opt
from gradience.cli.fleet import DEFAULT_RESULT, ResultOptions, answer, chosen, list_queries, rate_on_stderr
from gradience.errors import GradienceError, RecorderError
from gradience.render.fleet import runs_best_text, runs_curves_text, runs_show_text

if TYPE_CHECKING:
    from gradience.verbs.fleet.store import Store


def _collected(roots: tuple[Path, ...], out: Path | None) -> Store:
    if not roots:
        raise RecorderError("no folder to look in", advice="give folders with runs below them")
    from gradience.verbs.runs.collect import collect_runs  # noqa: PLC0415  # the help needs none of it

    return collect_runs(*roots, out=out, progress=rate_on_stderr("runs"))


def list_(
    *roots: Path,
    columns: str | None = None,
    where: str | None = None,
    sort: Annotated[str, Parameter(allow_leading_hyphen=True)] = "path",
    out: Path | None = None,
    csv: opt.Flag = False,
    json: opt.AsJson = False,
) -> int:
    """List every run below some folders: run.jsonl and whatever gradience import reads, one row a run.

    Logs are read once: a second call reads what has changed.

    Parameters
    ----------
    roots:
        Folders, or logs.
    columns:
        Names of columns, separated by commas; all for all of them.
    where:
        A condition in SQL, such as "r = 8 and status = 'ok'".
    sort:
        A column; with a minus before it, largest first.
    out:
        Folder for the tables. Default: in the user's cache.
    csv:
        Print CSV (RFC 4180).
    """
    from gradience.schema.fleet import RunRow  # noqa: PLC0415  # the help needs none of it
    from gradience.verbs.runs.query import COLUMNS, list_sql  # noqa: PLC0415  # the same

    every = RunRow.__struct_fields__
    names = COLUMNS if columns is None else every if columns == "all" else [n.strip() for n in columns.split(",")]
    return answer(_collected(roots, out), list_sql(names, where, sort), ResultOptions(csv=csv, json=json))


def show(*roots: Path, top: PositiveInt = 10, out: Path | None = None, json: opt.AsJson = False) -> int:
    """Show what the runs below some folders are: models, data, statuses, findings, and logs that cannot be read.

    Parameters
    ----------
    roots:
        Folders, or logs.
    top:
        How many unreadable logs to name.
    out:
        Folder for the tables. Default: in the user's cache.
    """
    from gradience.verbs.runs.query import show_runs  # noqa: PLC0415  # the help needs none of it

    return opt.print_report(show_runs(_collected(roots, out), top=top), runs_show_text, json=json)


def query(
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
    from gradience.verbs.runs.query import RUNS_QUERIES  # noqa: PLC0415  # the help needs none of it

    if result.list_queries:
        return list_queries(RUNS_QUERIES)
    if result.named is None and len(roots) < 2:
        raise GradienceError("expected folders and a query", advice='give ROOT "select ...", or --named NAME')
    folders, sql = (roots, None) if result.named is not None else (roots[:-1], roots[-1])
    wanted = chosen(RUNS_QUERIES, sql, result.named)
    return answer(_collected(tuple(map(Path, folders)), out), wanted, result)


def best(
    *roots: Path,
    metric: str = "eval/loss",
    by: str | None = None,
    goal: Literal["least", "most"] | None = None,
    out: Path | None = None,
    json: opt.AsJson = False,
) -> int:
    """Find the best run by a metric, of all or of each group.

    Parameters
    ----------
    roots:
        Folders, or logs.
    metric:
        Split and name, such as eval/accuracy; train/loss is that of training rows.
    by:
        A column of runs list to group by, such as model.
    goal:
        Whether less or more is better. Default: less for losses, perplexities and errors.
    out:
        Folder for the tables. Default: in the user's cache.
    """
    from gradience.verbs.runs.query import best_runs  # noqa: PLC0415  # the help needs none of it

    report = best_runs(_collected(roots, out), metric, by=by, goal=goal)
    return opt.print_report(report, runs_best_text, json=json)


def curves(
    *runs: Path,
    metric: str = "train/loss",
    html: Path | None = None,
    width: PositiveInt = 72,
    force: opt.Flag = False,
    json: opt.AsJson = False,
) -> int:
    """Draw one metric of several runs over each other, in the terminal or as one HTML page.

    Parameters
    ----------
    runs:
        Logs, folders of a run, or folders of runs.
    metric:
        Split and name, such as eval/accuracy; train/loss, train/lr and train/grad_norm are columns of training rows.
    html:
        A page to write as well.
    width:
        Of the plot, in characters.
    force:
        Replace the page if it is there.
    """
    if not runs:
        raise RecorderError("no run to draw", advice="give logs, or folders of runs")
    from gradience.verbs.runs.query import run_curves  # noqa: PLC0415  # the help needs none of it

    report = run_curves(*runs, metric=metric)
    if html is not None:
        from gradience.verbs.report import write_page  # noqa: PLC0415  # matplotlib

        write_page(report, html, force=force)
    return opt.print_report(report, lambda it: runs_curves_text(it, width=max(width, 20)), json=json)

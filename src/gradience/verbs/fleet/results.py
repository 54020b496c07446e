"""What `fleet` and `runs` share on the command line: the query, the form of its result, progress of a long job."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gradience.commands import options as opt
from gradience.commands.bar import on_terminal
from gradience.commands.output import DONE, emit, tell
from gradience.errors import GradienceError
from gradience.schema.document import escape_controls, writable
from gradience.verbs.fleet.view import query_text

if TYPE_CHECKING:
    from gradience.tables.store import Store
    from gradience.verbs.fleet.audit import JobProgress

_WRITTEN: Final = 30.0  # seconds between two lines of a file
_SHORT: Final = 2.0  # seconds of a job too short for a progress file


@dataclass(frozen=True, kw_only=True)
class ResultOptions:
    """How a result is written.

    Parameters
    ----------
    csv:
        Print CSV (RFC 4180).
    parquet:
        Write the result to a Parquet file instead.
    """

    csv: opt.Flag = False
    parquet: Path | None = None
    json: opt.AsJson = False


DEFAULT_RESULT = ResultOptions()


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
        return opt.print_report(report, query_text, json=form.json)
    rows = writable(report.rows)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([column.name for column in report.columns])
    writer.writerows([[escape_controls(cell) if isinstance(cell, str) else cell for cell in row] for row in rows])
    emit(text.getvalue())
    return DONE


def rate_on_stderr(what: str) -> Callable[[JobProgress], None]:
    """Return a function that writes rate, remaining time and failures to stderr.

    On a terminal the line is updated in place; otherwise a line is written now and then.
    """
    bar = on_terminal(what)
    start = last = time.monotonic()

    def draw(tally: JobProgress) -> None:
        nonlocal last
        now = time.monotonic()
        rate = tally.done / max(now - start, 1e-9)
        words = f"{rate:.1f} a second{f', {tally.failures} failed' if tally.failures else ''}"
        if bar is not None:
            bar(tally.done, tally.total, words)
        is_over = tally.done == tally.total
        if now - last < _WRITTEN and not (is_over and (bar is not None or now - start >= _SHORT)):
            return
        last = now
        if is_over or bar is None:
            tell(f"{what}: {tally.done}/{tally.total}, {words}")

    return draw

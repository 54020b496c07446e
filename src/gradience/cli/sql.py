"""What `fleet query` and `runs query` share: the choice of a query, and its result in the form that was asked for."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from gradience.cli.options import print_report
from gradience.cli.output import DONE, emit, print_text
from gradience.errors import GradienceError
from gradience.render.fleet import query_text

if TYPE_CHECKING:
    from gradience.verbs.fleet.query import Named
    from gradience.verbs.fleet.store import Store


class Form(Protocol):
    """The form of a result."""

    @property
    def csv(self) -> bool:
        """As CSV."""
        ...

    @property
    def json(self) -> bool:
        """As one JSON document."""
        ...

    @property
    def parquet(self) -> Path | None:
        """A file to write."""
        ...


def chosen(queries: Mapping[str, Named], sql: str | None, named: str | None) -> str:
    """The query: the one given, or the one named.

    Raises:
        GradienceError: neither or both are given, or none is of that name.
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


def answer(store: Store, sql: str, form: Form) -> int:
    """Print the result of a query, or write it to a file, and return exit code 0.

    Raises:
        GradienceError: the query is refused or wrong, or two forms are asked for.
    """
    if form.csv + form.json + (form.parquet is not None) > 1:
        raise GradienceError("--csv, --json and --parquet exclude each other", advice="give one of them")
    from gradience.verbs.fleet.query import select, select_to_parquet  # noqa: PLC0415  # the help needs none of it

    if form.parquet is not None:
        select_to_parquet(store, sql, form.parquet)
        return DONE
    report = select(store, sql)
    if not form.csv:
        return print_report(report, query_text, json=form.json)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([column.name for column in report.columns])
    writer.writerows(report.rows)
    emit(text.getvalue())
    return DONE

"""Many runs from Python: collect their logs into tables, list, query and compare them.

>>> import gradience
>>> store = gradience.runs.collect("runs")  # doctest: +SKIP
>>> gradience.runs.best(store, "eval/accuracy", by="model").best  # doctest: +SKIP
"""

from __future__ import annotations

from gradience.verbs.fleet.query import select as query
from gradience.verbs.runs import (
    best_runs as best,
    list_runs as list,  # noqa: A004  # gradience.runs.list
    run_curves as curves,
    show_runs as show,
)
from gradience.verbs.runs.collect import collect_runs as collect

__all__ = ["best", "collect", "curves", "list", "query", "show"]

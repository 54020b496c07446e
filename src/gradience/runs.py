"""Many runs from Python: collect their logs into tables, list, query and compare them.

>>> import gradience
>>> store = gradience.runs.collect("runs")  # doctest: +SKIP
>>> gradience.runs.best(store, "eval/accuracy", by="model").best  # doctest: +SKIP
"""

from __future__ import annotations

from gradience.tables.query import select as query
from gradience.verbs.runs.best import best_runs as best
from gradience.verbs.runs.collect import collect_runs as collect
from gradience.verbs.runs.run import (
    list_runs as list,  # noqa: A004  # gradience.runs.list
    run_curves as curves,
)

__all__ = ["best", "collect", "curves", "list", "query"]

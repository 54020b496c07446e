"""Many adapters from Python: audit them into a fleet, open its tables, show and query it.

>>> import gradience
>>> fleet = gradience.fleet.open("fleet")  # doctest: +SKIP
>>> fleet.adapters.num_rows, fleet.modules.column_names  # doctest: +SKIP
"""

from __future__ import annotations

from gradience.tables.query import (
    Fleet,
    open_fleet as open,  # noqa: A004  # gradience.fleet.open
    query_fleet as query,
)
from gradience.verbs.fleet.audit import audit_fleet as audit
from gradience.verbs.fleet.show import show_fleet as show

__all__ = ["Fleet", "audit", "open", "query", "show"]

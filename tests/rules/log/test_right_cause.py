"""Cases in which a detector spoke of the wrong step, the wrong cause, or looked past what was logged."""

from __future__ import annotations

import math

from log_runs import facts_of, logged_rows, reason

NAN = math.nan


def wavy(level, n, *, fall=0.0):
    """Losses about a level, one per step, with the ups and downs of a batch."""
    return [(level - fall * i / n) * (1.0 + 0.002 * math.sin(37.0 * i)) for i in range(n)]


def facts(losses=None, *, grads=None, lost=(), **more):
    losses = wavy(2.0, 60, fall=0.8) if losses is None else losses
    n = len(losses)
    norms = [math.exp(0.2 * math.sin(5.0 * i)) for i in range(n)] if grads is None else grads
    series = logged_rows(list(range(1, n + 1)), losses, norms, [2e-4] * n, frozenset(lost))
    return facts_of(series, status=more.pop("status", "ok"), **more)


# --- gradients -----------------------------------------------------------------------------------------------------


def test_norms_that_are_all_nan_were_recorded():
    run = facts(wavy(2.0, 30), grads=[NAN] * 30, lost=range(1, 31))
    assert reason("GRD107", run) == "none of 30 recorded gradient norms is finite"
    assert reason("GRD107", facts(wavy(2.0, 30), grads=[NAN] * 30)) == "no gradient norm was recorded"

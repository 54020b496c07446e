"""GUA150: what a guard did is told by steps; what it only prepared is not."""

from __future__ import annotations

from gradience.rules.log import detect
from gradience.rules.log.facts import RunFacts, Series
from gradience.schema import SCHEMA_ID
from gradience.schema.events import Metrics


def found(*events):
    guarded = [
        Metrics(schema=SCHEMA_ID, ts=None, run_id="r", step=step, kind="guard", metrics={"action": action, **more})
        for step, action, more in events
    ]
    return next(
        (f for f in detect(RunFacts(series=Series([], [], []), guarded=guarded)).findings if f.id == "GUA150"), None
    )


def test_a_guard_that_only_copied_is_no_finding():
    assert found((0, "arm", {}), (50, "snapshot", {}), (0, "stand_down", {})) is None
    assert found() is None


def test_what_was_dropped_and_rolled_back_is_told_by_its_steps():
    finding = found((20, "snapshot", {}), (23, "rollback", {"to_step": 20}), (24, "drop", {}), (25, "drop", {}))
    assert finding.severity == "warning"
    assert "put back to those of step 20 at 23; 2 further steps were dropped, the first at 24" in finding.message
    assert finding.values == {"rollbacks": 1, "dropped": 3, "first_step": 23, "stopped_at": None}


def test_a_stop_is_an_error_with_its_reason():
    finding = found((3, "drop", {}), (8, "stop", {"reason": "non-finite gradients in 6 steps running"}))
    assert finding.severity == "error"
    assert finding.message.endswith("training was stopped at 8: non-finite gradients in 6 steps running.")
    assert finding.values["stopped_at"] == 8
    finding = found((8, "stop", {"reason": "first"}), (9, "stop", {"reason": "second"}))
    assert finding.message.endswith("training was stopped at 8: first.")
    assert (finding.values["stopped_at"], finding.values["first_step"]) == (8, 8)

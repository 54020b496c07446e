"""Guards of the rules on logs at their bounds: what is still judged, and what no longer is."""

from __future__ import annotations

from typing import Any

from log_runs import FALL, changed, run
from tables import every

from gradience.rules.log.facts import RunFacts
from gradience.schema import ConfigSnapshot
from gradience.schema.events import TrainingSnapshot


def trained(**training: Any) -> RunFacts:
    return changed(run(FALL), config=ConfigSnapshot(training=TrainingSnapshot(**training)))


@every(
    ("planned", "last", "more"),
    [(10, 9, True), (10, 10, False), (10, 11, False), (-1, 9, False), (None, 9, False), (10, None, False)],
)
def test_more_rows_may_follow_until_the_last_planned_step(planned, last, more):
    assert changed(trained(max_steps=planned), last_step=last).in_mid_run is more

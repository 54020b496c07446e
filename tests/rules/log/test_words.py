"""The parts of a sentence that a rule says in some cases only: each is there in its case, and not in the other.

The table in `log_runs` holds the answers; words of some cases are held here.
"""

from __future__ import annotations

import pytest
from log_runs import FALL, run
from tables import every

from gradience.rules.log import detect
from gradience.rules.log.facts import RunFacts
from gradience.telemetry.series import LogRecord


def says(rule: str, facts: RunFacts) -> str:
    """The one sentence of a rule, or why it was not judged."""
    found = detect(facts)
    (said,) = [x.message for x in found.findings if x.id == rule] + [x.reason for x in found.not_run if x.id == rule]
    return said


@pytest.mark.parametrize(("accumulated", "known"), [(None, ""), (8, "; gradient_accumulation_steps is 8")])
def test_a_loss_on_another_scale_names_the_accumulation_that_the_config_has(accumulated, known):
    facts = run([4.0] * 12, held_out=[0.5] * 3, training={"gradient_accumulation": accumulated})
    assert says("SCL129", facts) == (
        f"Training loss is 8.0 times the held-out loss (about 8): summed over accumulation steps{known}."
    )


SAW = [*[1.0] * 20, *[0.3] * 20, *[0.9] * 20]


@every(
    ("scheduler", "record", "speaks"),
    [
        (None, {}, True),
        ("linear", {}, True),
        ("cosine_with_restarts", {}, False),
        ("Cyclic", {}, False),
        (None, {"sessions": {"a"}}, True),
        (None, {"sessions": {"a", "b"}}, False),
        (None, {"resumed_from": [30]}, False),
    ],
)
def test_a_rate_may_rise_again_after_a_restart_that_was_planned_or_logged(scheduler, record, speaks):
    rates = [2e-4 * each for each in SAW]
    facts = run(FALL, rates=rates, training={"lr_scheduler": scheduler}, record=LogRecord(**record))
    found = [x.message for x in detect(facts).findings if x.id == "LRS109"]
    says_so = (
        "The learning rate rises again after it had decayed, once, first at step 41: the schedule was started or "
        "computed anew."
    )
    assert found == ([says_so] if speaks else [])

"""What is said of logs of a few rows. Where each answer changes is held in `log_runs.py`."""

from __future__ import annotations

from log_runs import run

from gradience.rules.log.learning import learning


def test_a_fall_that_noise_could_have_made_is_named_with_the_least_that_would_have_been_seen():
    result = learning(run([2.0, 2.1, 1.9, 2.05, 1.95, 1.98]))
    assert not result.shown
    assert result.says == "6 rows are too few to tell a fall of 1% from noise"

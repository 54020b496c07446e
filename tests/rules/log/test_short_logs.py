"""What is said of logs of a few rows. Where each answer changes is held in `log_runs.py`."""

from __future__ import annotations

from log_runs import run, said

from gradience.rules.log.learning import learning

HELD_OUT = [2.0, 1.6, 1.4, 1.3]


def test_no_gap_is_read_from_losses_on_different_scales():
    facts = run([8 * x for x in HELD_OUT for _ in range(4)], held_out=HELD_OUT, epoch=3.0)
    assert "see SCL129" in said("GAP111", facts)
    assert "see DIV104" in said("GAP111", run([1.6, *[11.0] * 9], held_out=[12.0], epoch=3.0))
    assert said("GAP111", run([2.0, 1.5, 1.2], held_out=[2.0], epoch=3.0)).severity == "warning"


def test_a_fall_that_noise_could_have_made_is_named_with_the_least_that_would_have_been_seen():
    result = learning(run([2.0, 2.1, 1.9, 2.05, 1.95, 1.98]))
    assert not result.shown
    assert result.says == "6 rows are too few to tell a fall of 1% from noise"

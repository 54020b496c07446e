"""What is said of logs of a few rows. Where each answer changes is held in `log_runs.py`."""

from __future__ import annotations

from log_runs import run, said

from gradience.rules.log.learning import learning

HELD_OUT = [2.0, 1.6, 1.4, 1.3]


def test_the_factor_and_the_accumulation_steps_nearest_to_it_are_named():
    held_out = [15.4 / 16.5, 0.5, 0.304]
    losses = [16.5 * x for x in held_out for _ in range(4)]
    finding = said("SCL129", run(losses, held_out=held_out, training={"gradient_accumulation": 16}))
    assert (finding.severity, finding.confidence) == ("warning", 0.85)
    assert finding.message == (
        "Training loss is 16.5 times the held-out loss (about 16): summed over accumulation steps; "
        "gradient_accumulation_steps is 16."
    )


def test_no_gap_is_read_from_losses_on_different_scales():
    facts = run([8 * x for x in HELD_OUT for _ in range(4)], held_out=HELD_OUT, epoch=3.0)
    assert "see SCL129" in said("GAP111", facts)
    assert "see DIV104" in said("GAP111", run([1.6, *[11.0] * 9], held_out=[12.0], epoch=3.0))
    assert said("GAP111", run([2.0, 1.5, 1.2], held_out=[2.0], epoch=3.0)).severity == "warning"


def test_a_fall_that_noise_could_have_made_is_named_with_the_least_that_would_have_been_seen():
    result = learning(run([2.0, 2.1, 1.9, 2.05, 1.95, 1.98]))
    assert not result.shown
    assert result.says == "6 rows are too few to tell a fall of 1% from noise"


def test_repeated_data_without_an_evaluation_is_a_warning_with_its_numbers():
    losses = [2.0, 1.5, 1.2, 1.0, 0.9, 0.8, 0.77, 0.75, 0.74, 0.74]
    finding = said("REP128", run(losses, epoch=50.0))
    assert (finding.severity, finding.confidence) == ("warning", 0.8)
    assert finding.message == (
        "The data was seen 50 times, training loss is down to 0.74, and nothing is held out: this log cannot tell "
        "memorizing from learning."
    )
    assert said("REP128", run([2.0, 1.0, 0.5, 0.1, 0.008, 0.008, 0.008], epoch=100.0)).confidence == 0.9
    assert said("REP128", run([2.0, 1.0, 0.1, 0.01], epoch=100.0, held_out=[1.0])) is None

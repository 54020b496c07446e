"""Rules that judge logs of a few rows: each threshold at its value and just beside it, and what the finding states."""

from __future__ import annotations

import math

import pytest
from tables import every

from gradience.rules.log import detect
from gradience.rules.log.facts import RunFacts, Series, Signal
from gradience.rules.log.learning import learning
from gradience.schema import ConfigSnapshot, EvalMetrics, TrainingSnapshot
from gradience.schema.events import Eval
from gradience.schema.reports import EvalPoint

NAN = math.nan


def evaluations(losses, every, accuracy=None, n=None):
    return [
        Eval(
            schema="gradience.vnext.telemetry/v1",
            ts=None,
            run_id="r",
            step=every * (i + 1),
            split="eval",
            metrics=EvalMetrics(loss=loss, accuracy=accuracy, n=n),
        )
        for i, loss in enumerate(losses)
    ]


def run(losses, *, rates=None, norms=None, held_out=(), epochs=None, every=1, accuracy=None, n=None, lost=(), **more):
    rows = len(losses)
    history = evaluations(held_out, max(1, rows // max(1, len(held_out))) * every, accuracy, n)
    point = EvalPoint(split="eval", step=history[-1].step, metrics=history[-1].metrics) if history else None
    return RunFacts(
        series=Series(
            [every * (i + 1) for i in range(rows)],
            losses,
            [1.0] * rows if norms is None else norms,
            [2e-4] * rows if rates is None else rates,
            frozenset(lost),
        ),
        history=history,
        held_out=point,
        epoch=epochs,
        last_step=rows * every,
        status="ok",
        **more,
    )


def said(about, facts):
    return next((f for f in detect(facts)[0] if f.id == about), None)


def reason(about, facts):
    return next((item.reason for item in detect(facts)[1] if item.id == about), None)


# --- divergence --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "found"), [(2, False), (3, True)])
def test_a_level_that_stays_takes_three_rows(rows, found):
    facts = run([1.6, 11.0, 11.0][:rows])
    assert (said("DIV104", facts) is not None) is found
    assert ("takes 3" in (reason("DIV104", facts) or "")) is not found


@pytest.mark.parametrize(("end", "found"), [(1.49, False), (1.51, True)])
def test_a_last_fifth_over_half_above_the_first_three_rows_has_diverged(end, found):
    facts = run([1.0] * 6 + [1.0 + 0.2 * (end - 1), end, end, end])
    assert (said("DIV104", facts) is not None) is found


@pytest.mark.parametrize(("level", "found"), [(1.98, False), (2.02, True)])
def test_all_rows_but_the_first_at_twice_its_loss_have_diverged_at_once(level, found):
    facts = run([1.0, *[level] * 9])
    finding = said("DIV104", facts)
    assert (finding is not None) is found
    assert finding is None or (finding.severity, finding.confidence) == ("error", 0.9)


@pytest.mark.parametrize(("rate", "found"), [(9.9e-3, False), (1e-2, True)])
def test_at_a_rate_over_any_published_one_a_third_more_is_enough(rate, found):
    finding = said("DIV104", run([1.0, *[1.35] * 9], rates=[rate] * 10))
    assert (finding is not None) is found
    if finding:
        assert finding.confidence == 0.95
        assert "; the learning rate of 0.01 is over any published one." in finding.message


@pytest.mark.parametrize(("rise", "found"), [(1.29, False), (1.31, True)])
def test_at_such_a_rate_the_end_is_over_the_first_row_by_three_tenths(rise, found):
    assert (said("DIV104", run([1.0, *[rise] * 9], rates=[5.0] * 10)) is not None) is found


@pytest.mark.parametrize(("end", "found"), [(0.96, False), (0.98, True)])
def test_a_loss_that_explodes_and_ends_no_lower_is_a_warning(end, found):
    finding = said("DIV104", run([1.0, 1.0, 5.0, 6.0, 6.0, 5.5, 4.0, 3.0, 2.0, 1.5, end, end, end, end, end]))
    assert (finding is not None) is found
    if finding:
        assert (finding.severity, finding.confidence) == ("warning", 0.7)
        assert finding.message == "The loss exploded to 6 from 1 and ended no lower (0.98)."


# --- scale -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "found"), [(2.98, False), (3.02, True)])
def test_a_training_loss_three_times_the_held_out_loss_is_on_another_scale(factor, found):
    held_out = [2.0, 1.6, 1.4, 1.3]
    facts = run([factor * x for x in held_out for _ in range(4)], held_out=held_out)
    assert (said("SCL129", facts) is not None) is found


def test_the_factor_and_the_accumulation_steps_nearest_to_it_are_named():
    held_out = [15.4 / 16.5, 0.5, 0.304]
    losses = [16.5 * x for x in held_out for _ in range(4)]
    config = ConfigSnapshot(training=TrainingSnapshot(gradient_accumulation=16))
    finding = said("SCL129", run(losses, held_out=held_out, config=config))
    assert (finding.severity, finding.confidence) == ("warning", 0.85)
    assert finding.message == (
        "Training loss is 16.5 times the held-out loss (about 16): summed over accumulation steps; "
        "gradient_accumulation_steps is 16."
    )


@pytest.mark.parametrize(("train", "found"), [(1.45, False), (1.55, True)])
def test_ratios_of_losses_less_than_a_nat_apart_are_not_a_scale(train, found):
    facts = run([train] * 12, held_out=[0.5, 0.5, 0.5])  # three times 0.5 is 1.5: one nat more
    assert (said("SCL129", facts) is not None) is found


@pytest.mark.parametrize(("first", "second", "found"), [(12.4, 10.0, False), (12.6, 10.0, True), (12.6, 5.0, False)])
def test_a_start_above_ln_of_any_vocabulary_that_stays_high_is_said(first, second, found):
    finding = said("SCL129", run([first, second, 4.0, 3.0]))
    assert (finding is not None) is found
    if finding:
        assert finding.confidence == 0.6
        assert "starts at 12.6, above that of a uniform guess over any vocabulary (12.5)" in finding.message


def test_no_gap_is_read_from_losses_on_different_scales():
    held_out = [2.0, 1.6, 1.4, 1.3]
    facts = run([8 * x for x in held_out for _ in range(4)], held_out=held_out, epochs=3.0)
    assert "see SCL129" in reason("GAP111", facts)
    diverged = run([1.6, *[11.0] * 9], held_out=[12.0], epochs=3.0)
    assert "see DIV104" in reason("GAP111", diverged)
    assert said("GAP111", run([2.0, 1.5, 1.2], held_out=[2.0], epochs=3.0)).severity == "warning"


# --- learning ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("losses", "shown"), [([8.34, 4.0, 1.0, 0.43], True), ([2.0, 1.97, 1.99, 1.96], False)])
def test_four_rows_are_enough_for_a_fall_by_twenty_and_not_for_one_of_two_percent(losses, shown):
    assert learning(run(losses)).shown is shown


@pytest.mark.parametrize(("end", "shown"), [(0.81, False), (0.79, True)])
def test_four_rows_that_all_fall_are_learning_from_a_fall_of_a_fifth_on(end, shown):
    assert learning(run([1.0, 0.95, 0.9, end])).shown is shown


def test_a_fall_that_noise_could_have_made_is_named_with_the_least_that_would_have_been_seen():
    result = learning(run([2.0, 2.1, 1.9, 2.05, 1.95, 1.98]))
    assert not result.shown
    assert result.says == "6 rows are too few to tell a fall of 1% from noise"


@pytest.mark.parametrize(("best", "found"), [(1.9939, False), (1.9941, True)])
def test_held_out_loss_that_falls_by_less_than_three_in_a_thousand_is_no_learning(best, found):
    facts = run([2.0, 2.01, 1.99, 2.0, 2.02, 1.98] * 2, held_out=[2.0, best], norms=[1.0] * 12)
    finding = said("NOL106", facts)
    assert (finding is not None and "eval loss" in finding.message) is found


@pytest.mark.parametrize(("rate", "found"), [(9e-8, True), (1.1e-7, False)])
def test_nothing_is_learnt_at_a_tiny_rate(rate, found):
    finding = said("NOL106", run([2.0, 1.99, 2.01, 2.0], rates=[rate] * 4))
    assert (finding is not None) is found


# --- repetition --------------------------------------------------------------------------------------------------


@every(
    ("epochs", "end", "found"),
    [
        (20.0, 1.29, True),
        (19.9, 1.29, False),
        (20.0, 1.31, False),
        (10.0, 0.99, True),
        (9.9, 0.99, False),
        (10.0, 1.01, False),
        (3.6, 0.19, True),
        (3.5, 0.19, False),
        (3.6, 0.21, False),
    ],
)
def test_the_more_often_the_data_was_seen_the_less_the_loss_has_to_fall(epochs, end, found):
    facts = run([2.0, 1.98, 1.96, *[end] * 7], epochs=epochs)
    assert (said("REP128", facts) is not None) is found


def test_repeated_data_without_an_evaluation_is_a_warning_with_its_numbers():
    finding = said("REP128", run([2.0, 1.5, 1.2, 1.0, 0.9, 0.8, 0.77, 0.75, 0.74, 0.74], epochs=50.0))
    assert (finding.severity, finding.confidence) == ("warning", 0.8)
    assert finding.message == (
        "The data was seen 50 times, training loss is down to 0.74, and nothing is held out: this log cannot tell "
        "memorizing from learning."
    )
    assert said("REP128", run([2.0, 1.0, 0.5, 0.1, 0.008, 0.008, 0.008], epochs=100.0)).confidence == 0.9


def test_an_evaluation_is_a_held_out_signal():
    assert said("REP128", run([2.0, 1.0, 0.1, 0.01], epochs=100.0, held_out=[1.0])) is None


@pytest.mark.parametrize(("held_out", "epochs", "found"), [(0.25, 5.0, True), (0.26, 5.0, False), (0.25, 4.9, False)])
def test_held_out_loss_as_low_as_training_loss_after_five_epochs_is_said(held_out, epochs, found):
    facts = run([2.0, 1.0, 0.5, 0.3, 0.2, 0.2], held_out=[2.0, 0.6, held_out], epochs=epochs)
    finding = said("LEK132", facts)
    assert (finding is not None) is found
    if finding:
        assert finding.message.startswith("After 5 epochs eval loss (0.25) is as low as training loss (0.2)")


# --- skipped steps -----------------------------------------------------------------------------------------------


def skipped_run(bad, n=20, *, frozen=True):
    rates, rate = [], 2e-4
    for row in range(n):
        rates.append(rate)
        rate -= 0.0 if frozen and row in bad else 1e-5
    norms = [NAN if row in bad else 1.0 for row in range(n)]
    return run([4.3 * 0.9**i for i in range(n)], rates=rates, norms=norms, lost=[row + 1 for row in bad])


def test_steps_at_a_rate_that_stood_still_were_skipped_and_are_not_a_nan():
    facts = skipped_run({0, 1, 5})
    finding = said("NUM131", facts)
    assert (finding.severity, finding.confidence) == ("info", 0.9)
    assert finding.message == (
        "3 optimizer steps (1, 2, 6) were skipped by the gradient scaler: the learning rate stood still there."
    )
    assert said("NUM101", facts) is None
    assert said("NUM102", facts) is None


def test_two_gradients_in_a_row_at_a_rate_that_goes_on_are_an_error():
    facts = skipped_run({0, 1, 5}, frozen=False)
    assert said("NUM131", facts) is None
    assert said("NUM101", facts).severity == "error"


@pytest.mark.parametrize(("more", "severity"), [(set(), "info"), ({2}, "warning")])
def test_over_half_of_the_steps_skipped_is_a_warning(more, severity):
    half = {row for row in range(20) if row % 4 < 2}
    assert said("NUM131", skipped_run(half | more)).severity == severity


# --- chance ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("accuracy", "loss", "found"), [(0.25, 1.386, True), (0.40, 1.386, False), (0.25, 1.2, False)])
def test_classes_that_the_log_does_not_count_are_inferred_from_loss_and_accuracy(accuracy, loss, found):
    facts = run([1.4, 1.39, 1.38, 1.39], held_out=[1.39, loss], accuracy=accuracy, n=400)
    finding = said("CHN112", facts)
    assert (finding is not None) is found
    if finding:
        assert finding.confidence == 0.6
        assert "chance among 4 classes (25.0%, ln 4 = 1.386)" in finding.message


def test_an_accuracy_over_one_is_per_cent():
    facts = run([1.4, 1.39, 1.38, 1.39], held_out=[1.39, 1.386], accuracy=24.0, n=400, num_labels=4)
    assert said("CHN112", facts).message.startswith(
        "Eval accuracy 24.0% is not above chance (25.0% for 4 classes, n=400)"
    )


def test_a_preference_margin_that_grows_is_learning_whatever_the_loss():
    margins = Signal(list(range(1, 41)), [0.01 * i for i in range(40)])
    flat = [0.69 + 0.001 * (i % 3) for i in range(40)]
    logged = frozenset({"rewards/margins"})
    assert said("NOL106", run(flat, logged=logged)) is not None
    assert said("NOL106", run(flat, logged=logged, signals={"rewards/margins": margins})) is None

"""Each detector on series where the answer is known: where it speaks, stays silent, and abstains."""

from __future__ import annotations

import math
import random
import re
from array import array
from dataclasses import replace

import pytest
from hypothesis import given, settings, strategies as st
from tables import every

from gradience.rules.log import DETECTORS, detect
from gradience.rules.log.facts import RunFacts, Series
from gradience.rules.log.statistics import MOST_POINTS, curve_of, median, theil_sen
from gradience.schema import ConfigSnapshot, EvalMetrics, LoraSnapshot, OptimizerSnapshot, TrainingSnapshot
from gradience.schema.events import Eval
from gradience.schema.reports import BadLine, EvalPoint
from gradience.telemetry.series import LogRecord

NAN, INF = math.nan, math.inf


def curve(n=60, *, start=2.0, fall=0.4, sigma=0.01, seed=0):
    """A healthy loss: it falls by `fall` of its start, ever slower, under a little noise."""
    rng = random.Random(seed)  # noqa: S311  # seeded on purpose
    return [start * (1 - fall * (1 - math.exp(-4 * i / n))) * (1 + rng.gauss(0, sigma)) for i in range(n)]


def flat(n=60, *, level=2.0, sigma=0.005, seed=0):
    rng = random.Random(seed)  # noqa: S311  # seeded on purpose
    return [level * (1 + rng.gauss(0, sigma)) for _ in range(n)]


def norms(n=60, *, sigma=0.2, seed=1):
    rng = random.Random(seed)  # noqa: S311  # seeded on purpose
    return [math.exp(rng.gauss(0, sigma)) for _ in range(n)]


def facts(losses=None, *, grads=None, rates=None, **more):
    losses = curve() if losses is None else losses
    n = len(losses)
    series = Series(
        more.pop("steps", list(range(1, n + 1))),
        losses,
        norms(n) if grads is None else grads,
        [2e-4] * n if rates is None else rates,
        frozenset(more.pop("lost", ())),
    )
    return RunFacts(series=series, status="ok", **more)


def config_of(*, lr=None, task=None, labels=None, **training):
    return ConfigSnapshot(
        optimizer=OptimizerSnapshot(lr=lr),
        lora=LoraSnapshot(task_type=task),
        num_labels=labels,
        training=TrainingSnapshot(**training),
    )


def said(about, run):
    return next((f for f in detect(run)[0] if f.id == about), None)


def reason(about, run):
    return next((item.reason for item in detect(run)[1] if item.id == about), None)


def evals(losses, *, every=10, accuracy=None, split="eval"):
    accuracy = accuracy or [None] * len(losses)
    return [
        Eval(
            schema="gradience.vnext.telemetry/v1",
            ts=None,
            run_id="r",
            step=every * (i + 1),
            split=split,
            metrics=EvalMetrics(loss=loss, accuracy=a),
        )
        for i, (loss, a) in enumerate(zip(losses, accuracy, strict=True))
    ]


# --- the table ---------------------------------------------------------------------------------------------------


def test_every_threshold_names_its_unit_and_source():
    assert all(t.unit and t.source for d in DETECTORS for t in d.thresholds)


def test_a_healthy_run_gets_no_finding():
    run = facts(history=evals([1.9, 1.6, 1.4, 1.3, 1.29]), config=config_of(lr=2e-4))
    assert [f.id for f in detect(run)[0] if f.severity != "info"] == []


def test_an_empty_run_is_judged_without_a_crash():
    findings, not_run = detect(facts([], grads=[], rates=[]))
    assert findings == []
    assert {"NUM101", "NUM102", "DIV103", "GRD107", "LRS109", "OVF110"} <= {item.id for item in not_run}


# --- numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_one_loss_that_is_no_number_is_an_error(bad):
    finding = said("NUM101", facts([*curve(30), bad]))
    assert finding.severity == "error"
    assert "step 31" in finding.message


def test_one_infinite_gradient_norm_alone_is_info():
    grads = norms()
    grads[10] = INF
    assert said("NUM101", facts(grads=grads)).severity == "info"


def test_two_infinite_gradient_norms_in_a_row_are_an_error():
    grads = norms()
    grads[10] = grads[11] = INF
    assert said("NUM101", facts(grads=grads)).severity == "error"


@pytest.mark.parametrize(("dtype", "severity"), [("float16", "info"), ("bfloat16", "warning"), (None, "info")])
def test_several_skipped_steps_are_normal_under_fp16_loss_scaling_only(dtype, severity):
    grads = norms()
    grads[10] = grads[20] = grads[30] = INF
    assert said("NUM101", facts(grads=grads, config=config_of(dtype=dtype))).severity == severity


def test_a_missing_gradient_norm_is_not_a_nan():
    assert said("NUM101", facts(grads=[NAN] * 60)) is None


def test_a_gradient_norm_recorded_as_nan_is_one():
    grads = norms()
    grads[10] = grads[11] = NAN
    assert said("NUM101", facts(grads=grads, lost=[11, 12])).severity == "error"


@every(
    ("losses", "says"),
    [
        ([1.0, "NaN"], "eval loss at step {1}"),
        ([1.0, "NaN", 1.0, "Infinity"], "eval loss in 2 of 4 evaluations (first: step {1})"),
        (["NaN", "NaN"], "eval loss in all 2 evaluations (first: step {0})"),
    ],
)
def test_evaluations_that_are_no_numbers_are_a_warning_that_says_how_many(losses, says):
    history = evals(losses)
    finding = said("NUM101", facts(history=history))
    assert finding.severity == "warning"
    assert finding.message == f"Not finite: {says.format(*(event.step for event in history))}."


def test_two_zero_losses_without_a_logged_gradient_are_a_masked_nan_and_one_is_not():
    unlogged = [NAN] * 32
    finding = said("NUM102", facts([*curve(30), 0.0, 0.0], grads=unlogged))
    assert (finding.severity, finding.confidence) == ("error", 0.9)
    assert finding.message == "The training loss is exactly 0.0 from step 31 in 2 rows: NaN is probably masked."
    assert said("NUM102", facts([*curve(30), 0.0, 1.2], grads=unlogged)) is None


@pytest.mark.parametrize(("before", "severity"), [(0.051, "error"), (0.049, "info")])
def test_zeros_after_a_loss_that_rounds_to_zero_are_rounding(before, severity):
    assert said("NUM102", facts([*[before] * 30, 0.0, 0.0], grads=[NAN] * 32)).severity == severity


def test_a_zero_loss_whose_gradient_is_finite_and_not_zero_is_never_a_masked_nan():
    assert said("NUM102", facts([*curve(30), 0.0, 0.0], grads=[*norms(30), 1.7e-8, 1.7e-8])) is None


@pytest.mark.parametrize("norm", [INF, 0.0])
def test_one_zero_loss_is_enough_where_the_gradient_is_not_finite_or_zero(norm):
    grads = norms(31)
    grads[30] = norm
    assert said("NUM102", facts([*curve(30), 0.0], grads=grads)).severity == "error"


@pytest.mark.parametrize(("share", "found"), [(0.8, True), (0.9, False)])
def test_a_loss_that_falls_by_more_than_15_percent_with_a_nan_gradient_is_a_masked_nan(share, found):
    losses = flat(40, sigma=0.001)
    losses[30] *= share
    grads = norms(40)
    grads[30] = NAN
    assert (said("NUM102", facts(losses, grads=grads, lost=[31])) is not None) is found


def test_losses_that_round_to_zero_after_tiny_ones_are_info():
    losses = [math.exp(-i / 4) for i in range(40)] + [0.0] * 5
    assert said("NUM102", facts(losses)).severity == "info"


def test_a_zero_loss_is_normal_in_rl_unless_the_gradient_is_not_finite():
    losses, logged = [0.0] * 40, frozenset({"reward", "kl"})
    assert said("NUM102", facts(losses, logged=logged)) is None
    grads = norms(40)
    grads[20] = INF
    assert said("NUM102", facts(losses, grads=grads, logged=logged)) is not None


# --- level -------------------------------------------------------------------------------------------------------


@every(("rows", "end", "severity"), [(2, 0.2, "info"), (3, 0.2, "warning"), (4, 0.2, "warning"), (3, -0.2, "info")])
def test_a_spike_of_three_rows_after_which_the_loss_ends_higher_is_a_warning(rows, end, severity):
    losses = [2.0] * 60
    losses[40:] = [2.0 + end] * 20
    for i in range(30, 30 + rows):
        losses[i] += 2.0
    finding = said("DIV103", facts(losses))
    assert finding.severity == severity
    assert finding.values["longest"] == rows
    assert finding.values["step"] in range(31, 31 + rows)


@pytest.mark.parametrize(("height", "found"), [(1.25, False), (1.5, True)])
def test_a_spike_must_rise_by_six_times_five_percent_at_least(height, found):
    losses = flat(sigma=1e-6)
    losses[40] *= height
    assert (said("DIV103", facts(losses)) is not None) is found


def test_a_spike_of_one_row_is_seen_in_a_hundred_thousand():
    losses = array("d", flat(100_000, sigma=0.02))
    losses[77_777] *= 3
    run = facts(losses, grads=[], rates=[], steps=range(100_000))
    assert said("DIV103", run).values["step"] == 77_777


def test_noise_alone_makes_no_spike_in_a_long_log():
    assert said("DIV103", facts(flat(100_000, sigma=0.1), grads=[], rates=[], steps=range(100_000))) is None


def test_a_loss_that_ends_above_its_start_has_diverged():
    losses = curve(40) + [5.0 + 0.01 * (i % 3) for i in range(20)]
    finding = said("DIV104", facts(losses))
    assert finding.severity == "error"
    assert finding.values["lowest_step"] in range(20, 41)


def test_a_spike_that_recovers_is_no_divergence():
    assert said("DIV104", facts(curve(40) + [5.0] * 6 + curve(40)[20:])) is None


def test_a_loss_that_rises_back_most_of_the_way_is_a_warning():
    losses = [*[2.0 - 0.04 * i for i in range(30)], *[0.84 + 0.05 * i for i in range(20)], *[1.8] * 10]
    assert said("DIV104", facts(losses)).severity == "warning"


@pytest.mark.parametrize("n", [20, 60, 300])
def test_heavy_noise_on_a_flat_loss_is_called_a_divergence_at_most_once_in_a_hundred(n):
    runs = (facts(list(map(abs, flat(n, sigma=0.3, seed=seed)))) for seed in range(100))
    assert sum(said("DIV104", run) is not None for run in runs) <= 1


def test_a_flat_end_is_a_plateau_at_a_learning_rate_that_counts():
    losses = curve(30, sigma=0.002) + flat(60, level=1.2, sigma=0.002)
    assert said("PLT105", facts(losses)).severity == "info"
    decayed = [2e-4] * 50 + [1e-6] * 40
    assert said("PLT105", facts(losses, rates=decayed)) is None


def test_a_loss_that_still_falls_is_no_plateau():
    assert said("PLT105", facts([2.0 - 0.01 * i for i in range(60)])) is None


def test_where_noise_would_hide_a_fall_the_plateau_abstains():
    assert "too noisy" in reason("PLT105", facts(flat(30, sigma=0.2)))


@pytest.mark.parametrize(("fall", "found"), [(0.0, True), (0.2, False)])
def test_a_loss_that_does_not_fall_is_no_learning(fall, found):
    assert (said("NOL106", facts(curve(fall=fall, sigma=0.005))) is not None) is found


def test_no_learning_at_ln_two_is_said_so_for_preference_training():
    run = facts(flat(level=math.log(2), sigma=0.001), logged=frozenset({"rewards/margins"}))
    assert "ln 2 = 0.6931" in said("NOL106", run).message


def test_no_learning_at_ln_k_is_said_so_where_the_classes_are_known():
    run = facts(flat(level=math.log(4), sigma=0.001), num_labels=4)
    assert "ln 4" in said("NOL106", run).message


def test_no_learning_abstains_during_warmup_and_at_a_rate_of_zero():
    assert "peak" in reason("NOL106", facts(flat(), rates=[1e-6 * i for i in range(60)]))
    assert "LRS109" in reason("NOL106", facts(flat(), rates=[0.0] * 60))


@pytest.mark.parametrize(("rows", "found"), [(7, False), (8, True)])
def test_eight_rows_are_enough_to_bound_a_fall(rows, found):
    level = [2.0, 2.001, 1.999, 2.0, 2.001, 2.0, 1.999, 2.001][:rows]
    assert (said("NOL106", facts(level, grads=[1.0] * rows)) is not None) is found


def test_where_a_fall_cannot_be_told_the_size_that_would_have_been_is_named():
    why = reason("NOL106", facts(flat(40, sigma=0.2), grads=[1.0] * 40))
    assert re.fullmatch(r"cannot tell: 40 rows; their noise would hide a fall of under \d+%", why)


@pytest.mark.parametrize(("rows", "found"), [(7, False), (8, True)])
def test_a_spike_is_looked_for_from_eight_rows_on(rows, found):
    losses = [2.0, 1.98, 1.97, 1.96, 1.95, 1.94, 1.93, 1.92][:rows]
    losses[6] = 6.0  # in the middle of so few rows it would be taken for their noise
    assert (said("DIV103", facts(losses)) is not None) is found
    assert ("it takes 8" in (reason("DIV103", facts(losses)) or "")) is not found


@pytest.mark.parametrize(("height", "found"), [(1.49, False), (1.52, True)])
def test_a_spike_in_few_rows_is_half_over_the_six_before_and_info(height, found):
    losses = [2.0] * 12
    losses[8] *= height
    finding = said("DIV103", facts(losses))
    assert (finding is not None) is found
    assert finding is None or (finding.severity, finding.confidence) == ("info", 0.5)


@every("about", ["DIV103", "DIV104", "PLT105", "NOL106", "GRD108", "OVF110", "GAP111", "CHN112"])
def test_what_a_loss_near_zero_would_confuse_abstains_in_rl(about):
    assert "objective rl" in reason(about, facts(flat(level=0.001), logged=frozenset({"reward"})))


@every("about", ["DIV103", "DIV104", "PLT105", "NOL106"])
def test_ratios_of_a_negative_loss_are_not_taken(about):
    assert "not positive" in reason(about, facts(flat(level=-1.0)))


def test_the_trainers_own_config_outweighs_names_in_the_log():
    config = ConfigSnapshot(training=TrainingSnapshot(extras={"trainer": "sft"}))
    assert facts(config=config, logged=frozenset({"reward"})).objective.kind == "sft"


# --- gradients ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("end", "severity"), [(1.0, "info"), (3.0, "warning")])
def test_gradients_that_stay_ten_times_over_their_level_explode_and_matter_if_the_loss_ends_higher(end, severity):
    grads = norms(40) + [30.0] * 20
    finding = said("GRD107", facts([*[2.0] * 40, *[end] * 20], grads=grads))
    assert finding.severity == severity
    assert finding.values["step"] == 41


def test_gradients_of_constant_size_do_not_explode_however_large():
    assert said("GRD107", facts(grads=[1000.0 * x for x in norms()])) is None


def test_large_gradients_at_the_start_are_no_explosion():
    assert said("GRD107", facts(grads=[50.0, 40.0, 30.0, 20.0, 10.0, 5.0, *norms(54)])) is None


@pytest.mark.parametrize(("rows", "end", "severity"), [(3, 3.0, "warning"), (3, 1.0, "info"), (2, 3.0, None)])
def test_a_gradient_burst_takes_three_rows_and_matters_if_the_loss_ends_higher(rows, end, severity):
    grads = norms()
    grads[40 : 40 + rows] = [300.0] * rows
    finding = said("GRD107", facts([*[2.0] * 40, *[end] * 20], grads=grads))
    assert (finding and finding.severity) == severity


@every(("rows", "found"), [(4, False), (5, True)])
@every("factor", [0.0, 1e-4])
def test_five_rows_without_gradient_are_vanishing_gradients(rows, factor, found):
    grads = norms()
    grads[30 : 30 + rows] = [x * factor for x in grads[30 : 30 + rows]]
    assert (said("GRD108", facts(grads=grads)) is not None) is found


def test_gradients_that_are_zero_from_the_start_vanish():
    assert said("GRD108", facts(flat(), grads=[0.0] * 60)).severity == "warning"


def test_no_gradient_where_the_learning_rate_is_zero_is_not_its_business():
    assert said("GRD108", facts(flat(), grads=[0.0] * 60, rates=[0.0] * 60)) is None


def test_no_gradient_where_the_loss_is_almost_zero_is_info():
    losses = [2.0] * 20 + [1e-4] * 40
    assert said("GRD108", facts(losses, grads=norms(20) + [1e-6] * 40)).severity == "info"


@pytest.mark.parametrize("about", ["GRD107", "GRD108"])
def test_gradient_detectors_abstain_where_no_norm_was_recorded_or_few(about):
    assert "no gradient norm" in reason(about, facts(grads=[NAN] * 60))
    least = {"GRD107": 8, "GRD108": 5}[about]
    assert f"it needs {least}" in reason(about, facts(grads=[1.0] * (least - 1) + [NAN] * 54))
    assert reason(about, facts(grads=[1.0] * least + [NAN] * 54)) is None


# --- learning rate -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("zeros", "found"), [(1, False), (2, False), (3, True)])
def test_a_learning_rate_stuck_at_zero_is_a_finding_from_three_rows_on(zeros, found):
    rates = [0.0] * zeros + [2e-4] * (60 - zeros)
    assert (said("LRS109", facts(rates=rates)) is not None) is found


@pytest.mark.parametrize(("zeros", "found"), [(6, False), (7, True)])
def test_the_end_of_a_decay_at_zero_is_ignored_up_to_a_tenth_of_the_rows(zeros, found):
    rates = [2e-4 * (1 - i / 60) for i in range(60 - zeros)] + [0.0] * zeros
    assert (said("LRS109", facts(rates=rates)) is not None) is found


@pytest.mark.parametrize(("peak", "found"), [(0.9e-4, True), (1e-4, False), (2e-4, False)])
def test_a_learning_rate_that_never_nears_its_configured_peak_is_a_finding(peak, found):
    assert (said("LRS109", facts(rates=[peak] * 60, config=config_of(lr=2e-4))) is not None) is found


def test_a_run_that_ends_while_its_rate_rises_is_said_to_be_in_its_warmup_and_not_to_miss_its_peak():
    rates = [1e-6 * i for i in range(1, 61)]
    run = facts(rates=rates, config=config_of(lr=2e-4, warmup_steps=90), last_step=60)
    assert said("LRS109", run) is None
    assert said("LRS133", run).message == (
        "The run ended at step 60 while the learning rate still rose (warm-up 90 steps): it reached 6e-05 of the "
        "configured 0.0002."
    )
    object.__setattr__(run, "status", "no_run_end")
    assert said("LRS133", replace(run)) is None


def test_a_learning_rate_that_rises_after_decay_without_a_resume_is_a_finding():
    rates = [2e-4 * (1 - i / 40) for i in range(36)] + [2e-4 * (1 - i / 40) for i in range(24)]
    assert said("LRS109", facts(rates=rates)).severity == "warning"
    assert said("LRS109", facts(rates=rates, record=LogRecord(resumed_from=[36]))) is None
    assert said("LRS109", facts(rates=rates, config=config_of(lr_scheduler="cosine_with_restarts"))) is None


def test_warmup_and_one_decay_are_as_planned():
    rates = [2e-5 * i for i in range(10)] + [2e-4 * (1 - i / 50) for i in range(50)]
    assert said("LRS109", facts(rates=rates, config=config_of(lr=2e-4))) is None


def test_the_learning_rate_is_judged_from_three_rows_on():
    assert "2 rows" in reason("LRS109", facts(rates=[1e-4] * 2 + [NAN] * 58))
    assert reason("LRS109", facts(rates=[1e-4] * 3 + [NAN] * 57)) is None


# --- evaluation --------------------------------------------------------------------------------------------------


def test_held_out_loss_that_rises_while_train_falls_is_overfitting_with_its_best_step():
    run = facts(history=evals([1.5, 1.2, 1.25, 1.3, 1.4, 1.5]), config=config_of(save_steps=25))
    finding = said("OVF110", run)
    assert finding.severity == "warning"
    assert (finding.values["best_step"], finding.values["lowest_step"], finding.values["best_loss"]) == (20, 20, 1.2)


@every(
    ("end", "severity"), [((1.21, 1.215), None), ((1.26, 1.27), "info"), ((1.3, 1.4), "warning"), ((1.4, 1.2), None)]
)
def test_overfitting_is_info_from_two_percent_in_two_evaluations_and_a_warning_from_ten(end, severity):
    finding = said("OVF110", facts(history=evals([1.5, 1.2, *end])))
    assert (finding.severity if finding else None) == severity


@pytest.mark.parametrize(("last", "severity"), [(0.74, "info"), (0.6, "warning")])
def test_a_task_metric_that_holds_makes_a_rising_loss_info(last, severity):
    history = evals([1.5, 1.2, 1.3, 1.4], accuracy=[0.6, 0.7, 0.72, last])
    shown = EvalPoint(split="eval", step=history[-1].step, metrics=history[-1].metrics)
    found = said("OVF110", facts(history=history, held_out=shown))
    assert found.severity == severity
    assert f"ccuracy was best at step 30 (72.0%) and is {last:.1%} at the end." in found.message or last == 0.74


def test_where_train_rises_too_it_is_not_overfitting():
    losses = [1.0 + 0.02 * i for i in range(60)]
    assert said("OVF110", facts(losses, history=evals([1.5, 1.2, 1.3, 1.4, 1.5, 1.6]))) is None


def test_noise_between_evaluations_is_no_overfitting():
    noisy = [1.3, 1.0, 1.12, 0.98, 1.1, 1.01, 1.12, 1.02, 1.05]
    assert said("OVF110", facts(history=evals(noisy, every=6))) is None


def test_two_evaluations_are_too_few_for_overfitting():
    assert "it needs 3" in reason("OVF110", facts(history=evals([1.0, 2.0])))


def test_the_split_that_the_report_shows_is_the_one_named():
    history = evals([1.0, 0.5, 0.9, 1.0], split="zz") + evals([1.0, 0.5, 0.9, 1.0], split="eval")
    shown = EvalPoint(split="eval", step=40, metrics=EvalMetrics(loss=1.0))
    finding = said("OVF110", facts(history=history, held_out=shown))
    assert finding.values["split"] == "eval"
    assert "zz" in finding.message


@pytest.mark.parametrize(("loss", "found"), [(0.69, True), (0.6, False)])
def test_a_classifiers_loss_at_ln_k_is_chance_where_no_accuracy_is_known(loss, found):
    point = EvalPoint(split="eval", step=1, metrics=EvalMetrics(loss=loss))
    run = facts(held_out=point, num_labels=2, config=config_of(task="SEQ_CLS"))
    assert (said("CHN112", run) is not None) is found


# --- the log -----------------------------------------------------------------------------------------------------


def test_only_a_torn_last_line_is_info():
    torn = BadLine(line=9, offset=100, reason="torn tail", torn=True)
    assert said("TRN115", facts(issues=[torn], issues_total=1)).severity == "info"
    bad = BadLine(line=3, offset=100, reason="not JSON")
    assert said("TRN115", facts(issues=[bad], issues_total=1)).severity == "warning"


def test_lines_missing_by_their_numbers_are_said():
    assert "4 lines are missing" in said("TRN115", facts(record=LogRecord(missing=4))).message


@pytest.mark.parametrize(("factor", "severity"), [(1.0, "info"), (1.19, "info"), (1.3, "warning")])
def test_a_resume_whose_replayed_losses_differ_by_a_fifth_is_a_warning(factor, severity):
    losses = curve()
    replaced = [(step, losses[step - 1] / factor) for step in range(20, 25)]
    finding = said("RES116", facts(losses, record=LogRecord({"a", "b"}, [19], replaced)))
    assert finding.severity == severity
    assert finding.values["replayed"] == 5


def test_two_replayed_steps_are_too_few_to_accuse_a_resume():
    run = facts(record=LogRecord(resumed_from=[19], replaced=[(20, 9.0), (21, 9.0)]))
    assert said("RES116", run).severity == "info"


@pytest.mark.parametrize("count", ["duplicates", "out_of_order", "interleaved"])
def test_rows_that_should_be_single_are_a_warning(count):
    assert said("DUP117", facts(record=LogRecord(**{count: 2}))).severity == "warning"


def test_an_evaluation_done_twice_at_one_step_is_nothing_to_say():
    assert said("DUP117", facts(history=evals([1.0]) + evals([1.0]))) is None


def test_a_log_almost_without_rows_says_so_if_the_run_was_long():
    finding = said("GAP118", facts([2.0, 1.0], grads=[1.0] * 2, rates=[1e-4] * 2, steps=[50, 100], last_step=100))
    assert finding.message == "2 training losses were logged in 100 steps: the training loss has no curve."
    assert (finding.severity, finding.confidence) == ("warning", 0.95)
    assert said("GAP118", facts(curve(3), last_step=100)) is None


# --- laws --------------------------------------------------------------------------------------------------------

extreme = st.sampled_from([1e308, -1e308, 5e-324, 1e-310, -0.0, INF])
anything = st.one_of(st.floats(), extreme, st.just(0.0), st.just(NAN), st.floats(1e-3, 10.0))


@st.composite
def any_run(draw):
    n = draw(st.integers(0, 80))
    columns = [draw(st.lists(anything, min_size=n, max_size=n)) for _ in range(3)]
    steps = draw(st.lists(st.integers(0, 200), min_size=n, max_size=n))
    history = evals(draw(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=6)))
    lost = frozenset(draw(st.lists(st.sampled_from(steps), max_size=3))) if steps else frozenset()
    logged = draw(st.sampled_from([frozenset(), frozenset({"reward"}), frozenset({"rewards/margins"})]))
    epochs = draw(st.sampled_from([None, 3.0, 50.0]))
    return RunFacts(series=Series(steps, *columns, lost), history=history, logged=logged, epoch=epochs, last_step=200)


@settings(max_examples=150, deadline=None)
@given(any_run())
def test_no_series_of_floats_makes_a_detector_crash_and_every_one_answers_once(run):
    findings, not_run = detect(run)
    answered = [f.id for f in findings] + [item.id for item in not_run]
    assert len(answered) == len(set(answered))
    assert set(answered) <= {d.id for d in DETECTORS}


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(60)), st.sampled_from(["spike", "diverged", "clean"]))
def test_the_order_in_which_rows_are_given_changes_no_finding(order, kind):
    losses, grads, rates = curve(), norms(), [2e-4 * (1 - i / 60) for i in range(60)]
    if kind == "spike":
        losses[30:33] = [9.0] * 3
    elif kind == "diverged":
        losses[45:] = [8.0] * 15
    run = facts(losses, grads=grads, rates=rates)
    mixed = facts(
        [losses[i] for i in order],
        grads=[grads[i] for i in order],
        rates=[rates[i] for i in order],
        steps=[i + 1 for i in order],
    )
    assert detect(mixed) == detect(run)


@given(st.floats(0.01, 100.0), st.sampled_from([0, 1, 2]))
@settings(max_examples=30, deadline=None)
def test_the_unit_of_the_loss_does_not_matter(unit, seed):
    losses = curve(seed=seed)
    losses[40:44] = [6.0] * 4
    in_nats = {"SCL129"}  # a loss above that of a uniform guess over any vocabulary is on another scale
    ids = {f.id for f in detect(facts(losses))[0]}
    assert {f.id for f in detect(facts([x * unit for x in losses]))[0]} - in_nats == ids


@given(st.integers(1, 4 * MOST_POINTS))
@settings(max_examples=20, deadline=None)
def test_a_curve_has_at_most_so_many_points_and_a_line_stays_one(n):
    made = curve_of(array("d", range(n)))
    assert len(made.points) <= MOST_POINTS
    assert list(made.points) == sorted(made.points)
    assert 0 <= made.row(len(made.points) - 1) < n


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40))
def test_the_median_is_that_of_the_standard_library(values):
    import statistics

    assert median(values) == pytest.approx(statistics.median(values))


def test_the_theil_sen_slope_ignores_an_outlier():
    values = [2.0 * i for i in range(20)]
    values[7] = 1e6
    assert theil_sen(values).slope == pytest.approx(2.0, rel=0.1)

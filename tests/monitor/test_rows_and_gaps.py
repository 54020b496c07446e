"""The monitor on logs made by the real writer, and on other people's."""

from __future__ import annotations

import math

import msgspec
import pytest

from gradience.errors import RecorderError
from gradience.schema import ConfigSnapshot, MonitorReport, OptimizerSnapshot, RecommendationItem, TrainingSnapshot
from gradience.telemetry.writer import TelemetryWriter
from gradience.verbs.monitor.run import monitor_run
from gradience.verbs.monitor.view import monitor_text

CONFIG = ConfigSnapshot(
    model_name="toy",
    dataset_name="glue/sst2",
    task_profile="easy_classification",
    optimizer=OptimizerSnapshot(name="adamw", lr=1e-3),
    training=TrainingSnapshot(max_steps=30),
    num_labels=2,
)


def record(path, *, losses=None, train=(0.5, 0.8), test=(0.6, 0.75), n=1000, epoch=2.0, config=CONFIG, end=True):
    losses = [1.0 - 0.01 * i for i in range(30)] if losses is None else losses
    log = TelemetryWriter(path)
    log.run_start(config)
    for step, loss in enumerate(losses, 1):
        log.train_step(step, loss=loss, lr=1e-3, grad_norm=1.0, epoch=epoch)
    for split, pair in (("train", train), ("test", test)):
        if pair is not None:
            log.eval(
                len(losses),
                split=split,
                metrics={"loss": pair[0], "ppl": math.exp(pair[0]), "accuracy": pair[1], "n": n},
            )
    if end:
        log.run_end()
    log.close()
    return path


def ids(report: MonitorReport) -> set[str]:
    return {f.id for f in report.findings}


@pytest.mark.parametrize(("threshold", "found"), [(1.81, True), (1.83, False)])
def test_the_gap_threshold_decides(tmp_path, threshold, found):
    path = record(tmp_path / "run.jsonl", train=(0.5, 0.8), test=(1.1, 0.7))
    assert ("GAP111" in ids(monitor_run(path, gap_threshold=threshold))) is found


def test_non_finite_losses_are_counted_and_never_enter_the_lowest(tmp_path):
    losses = [1.0] * 20 + [math.nan] * 5
    report = monitor_run(record(tmp_path / "run.jsonl", losses=losses))
    assert "NUM101" in ids(report)
    assert report.train.non_finite_rows == 5
    assert report.train.min_loss == 1.0
    assert report.train.last_loss == "NaN"


def test_rows_superseded_by_a_resume_are_kept_but_not_counted(tmp_path):
    path = record(tmp_path / "run.jsonl", losses=[1.0] * 10, end=False)
    run_id = monitor_run(path).run_id
    with TelemetryWriter(path, run_id=run_id) as log:
        log.run_start(CONFIG, resumed_from_step=5)
        for step in range(6, 13):
            log.train_step(step, loss=0.5)
    report = monitor_run(path)
    assert report.train.rows == 12
    assert report.train.superseded_rows == 7  # five training rows and two evaluations beyond step 5
    assert report.sessions == 2


def test_recorded_alerts_and_recommendations_are_shown(tmp_path):
    path = tmp_path / "run.jsonl"
    with TelemetryWriter(path) as log:
        log.run_start(CONFIG)
        log.alert(severity="critical", code="X1", message="boom", step=3)
        log.recommendation([RecommendationItem(severity="info", action="do_it", message="consider it")])
    text = monitor_text(monitor_run(path))
    assert "[CRITICAL] X1 at step 3: boom" in text
    assert "do_it: consider it (recorded in the log)" in text


def test_escape_sequences_in_a_log_do_not_reach_the_terminal(tmp_path):
    config = ConfigSnapshot(model_name="evil\x1b[31m\u202e", dataset_name="a\x9bb")
    text = monitor_text(monitor_run(record(tmp_path / "run.jsonl", config=config)), verbose=True)
    assert not {ch for ch in text if ord(ch) < 32 and ch != "\n"}
    assert "\u202e" not in text
    assert "\x9b" not in text


def test_a_log_that_holds_no_event_is_refused(tmp_path):
    path = tmp_path / "run.jsonl"
    path.write_text("hello\n")
    with pytest.raises(RecorderError, match="no event"):
        monitor_run(path)


def test_a_duration_is_the_seconds_between_the_first_and_the_last_line(tmp_path):
    readings = iter([1000.0, 1030.5, 4630.5, 4631.0])
    with TelemetryWriter(tmp_path / "run.jsonl", clock=lambda: next(readings)) as log:
        log.run_start()
        log.train_step(1, loss=1.0)
        log.train_step(2, loss=0.5)
    report = monitor_run(tmp_path / "run.jsonl")
    assert report.train.duration_s == 3631.0


def test_a_resumed_run_that_logged_nothing_since_stands_where_it_went_back_to(tmp_path):
    with TelemetryWriter(tmp_path / "run.jsonl") as log:
        log.run_start()
        for step in range(1, 11):
            log.train_step(step, loss=1.0)
        log.run_start(resumed_from_step=6)
        log.close()
    report = monitor_run(tmp_path / "run.jsonl")
    assert (report.train.last_step, report.train.rows, report.train.superseded_rows) == (6, 6, 4)
    assert "at step 6" in report.story


@pytest.mark.parametrize(("planned", "shown"), [(30, "step 30 of 30"), (-1, "step 30\n"), (0, "step 30\n")])
def test_a_limit_of_none_or_minus_one_steps_is_no_plan(planned, shown, tmp_path):
    config = msgspec.structs.replace(CONFIG, training=TrainingSnapshot(max_steps=planned))
    assert shown in monitor_text(monitor_run(record(tmp_path / "run.jsonl", config=config)))

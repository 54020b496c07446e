"""Rewards and the like: kept in the one pass over a log, the same by the block as row by row."""

from __future__ import annotations

import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, strategies as st
from logs import record

from gradience import diagnose
from gradience.schema import ConfigSnapshot, TrainingSnapshot
from gradience.telemetry import TelemetryReader
from gradience.telemetry.series import RunSeries
from gradience.telemetry.signals import KEPT, SIGNALS
from gradience.telemetry.writer import TelemetryWriter
from gradience.verbs.diagnose.view import diagnose_text
from gradience.verbs.monitor.run import monitor_run
from gradience.verbs.monitor.view import monitor_text


def rewarded(path, n=40, **more):
    rows = {step: {"reward": 0.5 + step / 100, "kl": 0.01} for step in range(1, n + 1)}
    return record(path, [0.001] * n, rows=rows, **more)


def test_a_column_is_summed_up_by_its_first_and_last_fifth(tmp_path):
    report = monitor_run(rewarded(tmp_path / "run.jsonl"))
    signal = report.signals["reward"]
    assert (signal.rows, signal.lowest, signal.highest) == (40, 0.51, 0.9)
    assert math.isclose(signal.first, 0.545)
    assert math.isclose(signal.last, 0.865)
    assert "  reward: 0.545 -> 0.865  (0.51 to 0.9)" in monitor_text(report)


def probed(path):
    log = TelemetryWriter(path, run_id="r", fsync="never")
    log.run_start()
    for step in range(1, 41):
        log.train_step(step, loss=2.0 - step / 40)
        if step % 10 == 0:
            log.metrics(step, kind="spectral", metrics={"update_norm": step / 10, "stable_rank_mean": 5.0 - step / 10})
    log.eval(40, split="eval", metrics={"loss": 1.0})
    log.run_end(status="ok")
    log.close()
    return path


def test_probes_of_the_adapter_in_training_are_read_and_shown(tmp_path):
    report = monitor_run(probed(tmp_path / "run.jsonl"))
    norm, rank = report.probes["update_norm"], report.probes["stable_rank_mean"]
    assert (norm.rows, norm.first, norm.last) == (4, 1.0, 4.0)
    assert (rank.first, rank.last) == (4.0, 1.0)
    assert report.signals == {}
    assert "  norm of the update: 1 -> 4  (1 to 4)" in monitor_text(report)
    told = diagnose_text(diagnose(tmp_path / "run.jsonl"))
    assert "Adapter: stable rank, mean: 4 -> 1  (1 to 4)" in told


def test_a_loss_of_preferences_rewards_or_rl_has_no_perplexity(tmp_path):
    for kind in ("preference", "reward", "rl"):
        setup = ConfigSnapshot(training=TrainingSnapshot(extras={"trainer": kind}))
        report = monitor_run(record(tmp_path / f"{kind}.jsonl", setup=setup, evals=[(20, 0.7), (40, 0.6)]))
        assert report.objective == kind
        assert report.gap is None
        assert "PPL" not in monitor_text(report)
        assert "eval loss 0.6" in report.story


def test_zeros_that_hide_a_nan_do_not_enter_the_gap(tmp_path):
    losses = [2.0] * 39 + [0.0]
    report = monitor_run(record(tmp_path / "run.jsonl", losses, evals=[(40, 2.0)]))
    assert math.isclose(report.account.last_pair.train, 2.0)
    everywhere = monitor_run(record(tmp_path / "zero.jsonl", [0.0] * 40, evals=[(40, 4.3)]))
    assert everywhere.account.last_pair is None


def test_a_log_without_rewards_has_no_such_block(tmp_path):
    report = monitor_run(record(tmp_path / "run.jsonl"))
    assert report.signals == {}
    assert "Rewards" not in monitor_text(report)


def columns_of(path, run_id="r"):
    """The columns that one pass over the log keeps, as lists."""
    run = TelemetryReader(path).summarize(KEPT).runs[run_id]
    return {name: (list(column.steps), list(column.values)) for name, column in run.columns.items()}


def test_a_step_that_was_run_again_counts_once_as_it_went_the_last_time(tmp_path):
    path = tmp_path / "run.jsonl"
    log = TelemetryWriter(path, run_id="r", fsync="never")
    log.run_start()
    for step in range(1, 11):
        log.train_step(step, loss=0.0, reward=1.0)
    log.run_start(resumed_from_step=5)
    for step in range(6, 9):
        log.train_step(step, loss=0.0, reward=2.0)
    log.train_step(8, loss=0.0, reward=3.0)
    log.close()
    assert columns_of(path)["reward"] == ([*range(1, 9), 8], [1.0] * 5 + [2.0] * 3 + [3.0])
    signal = monitor_run(path).signals["reward"]
    assert (signal.rows, signal.highest, signal.last) == (8, 3.0, 2.5)


def test_lines_that_are_no_events_and_values_that_are_no_numbers_are_passed_over(tmp_path):
    path = rewarded(tmp_path / "run.jsonl", run_id="r")
    head = {"schema": "gradience.vnext.telemetry/v1", "ts": None, "run_id": "r", "event": "train_step"}
    with path.open("a", encoding="utf-8") as file:
        file.write("{torn\n[]\n")
        file.writelines(json.dumps({**head, "step": 50 + i, "reward": odd}) + "\n" for i, odd in enumerate(["x", True]))
        file.write(json.dumps({**head, "step": 60, "reward": "NaN"}) + "\n")
        file.write(json.dumps({**head, "step": -1, "reward": 9.0}) + "\n")
    assert columns_of(path)["reward"][0] == list(range(1, 41))


def test_a_value_first_logged_late_or_in_a_later_run_of_the_log_is_seen(tmp_path):
    path = tmp_path / "run.jsonl"
    record(path, run_id="first", losses=[1.0] * 200)
    record(path, [0.001] * 40, run_id="second", rows={step: {"reward": 1.0} for step in range(35, 41)})
    report = monitor_run(path)
    assert report.signals["reward"].rows == 6
    assert report.story.startswith("reward 1 -> 1")  # under RL the loss says little


def test_a_value_that_an_imported_log_has_as_text_is_a_number(tmp_path):
    rows = [{"step": s, "loss": "0.1", "reward": f"{s / 10}", "epoch": 0.1} for s in range(1, 31)]
    path = tmp_path / "trainer_state.json"
    path.write_text(json.dumps({"global_step": 30, "max_steps": 30, "log_history": rows}))
    assert monitor_run(path).signals["reward"].highest == 3.0


names = st.sampled_from(sorted(SIGNALS)) | st.sampled_from(["other", "entropy", 'a "quoted" name', "extras"])
values = st.floats(-1e6, 1e6) | st.integers(-5, 5) | st.sampled_from([math.nan, math.inf, None, "text", True, [1.0]])
rows = st.lists(st.tuples(st.integers(0, 20), st.dictionaries(names, values, max_size=3)), max_size=20)


@given(rows, st.sampled_from([1, 5, 30]), st.sampled_from([500, 2000, 65536]))
def test_columns_by_the_block_are_those_of_the_events_one_by_one(logged, times, size):
    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr("gradience.telemetry.lines._CHUNK", size)
        path = Path(name) / "run.jsonl"
        log = TelemetryWriter(path, run_id="r", fsync="never")
        log.run_start()
        for step, extras in logged * times:
            log.train_step(step, loss=1.0, **extras)
        log.close()
        one_by_one = RunSeries("r", KEPT)
        for event in TelemetryReader(path):
            one_by_one.add(event)
        assert columns_of(path) == {
            name: (list(column.steps), list(column.values)) for name, column in one_by_one.columns.items()
        }

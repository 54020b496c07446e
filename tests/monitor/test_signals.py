"""Rewards and the like: the same columns from a file as from events, and only for logs that hold them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given
from hypothesis import strategies as st
from logs import record

from gradience.render.compare import compare_text
from gradience.render.monitor import monitor_text
from gradience.rules.log.facts import SIGNALS, Signal
from gradience.telemetry import TelemetryReader
from gradience.telemetry.writer import TelemetryWriter
from gradience.verbs.monitor import monitor_run
from gradience.verbs.monitor.compare import compare_runs
from gradience.verbs.monitor.signals import read_signals, signals_of


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


def test_a_log_without_rewards_has_no_such_block(tmp_path):
    report = monitor_run(record(tmp_path / "run.jsonl"))
    assert report.signals == {}
    assert "Rewards" not in monitor_text(report)


def test_runs_are_compared_by_their_rewards_too(tmp_path):
    paths = [rewarded(tmp_path / "a.jsonl"), record(tmp_path / "b.jsonl")]
    report = compare_runs(paths)
    assert [run.signals.get("reward") for run in report.runs] == [report.runs[0].signals["reward"], None]
    assert "reward " in compare_text(report)


def test_a_step_that_was_run_again_counts_once_as_it_went_the_last_time(tmp_path):
    path = tmp_path / "run.jsonl"
    log = TelemetryWriter(path, run_id="r", fsync="never")
    log.run_start()
    for step in range(1, 11):
        log.train_step(step, loss=0.0, reward=1.0)
    log.run_start(resumed_from_step=5)
    for step in range(6, 9):
        log.train_step(step, loss=0.0, reward=2.0)
    log.close()
    assert read_signals(path, "r")["reward"] == Signal(list(range(1, 9)), [1.0] * 5 + [2.0] * 3)


def test_lines_that_are_no_events_and_values_that_are_no_numbers_are_passed_over(tmp_path):
    path = rewarded(tmp_path / "run.jsonl", run_id="r")
    head = {"schema": "gradience.vnext.telemetry/v1", "ts": None, "run_id": "r", "event": "train_step"}
    with path.open("a", encoding="utf-8") as file:
        file.write("{torn\n[]\n")
        file.writelines(json.dumps({**head, "step": 50 + i, "reward": odd}) + "\n" for i, odd in enumerate(["x", True]))
        file.write(json.dumps({**head, "step": 60, "reward": "NaN"}) + "\n")
    assert read_signals(path, "r")["reward"].steps == list(range(1, 41))


names = st.sampled_from(sorted(SIGNALS)) | st.sampled_from(["other", "entropy"])
values = st.floats(-1e6, 1e6) | st.integers(-5, 5) | st.sampled_from([math.nan, math.inf])
rows = st.lists(st.tuples(st.integers(0, 20), st.dictionaries(names, values, max_size=3)), max_size=20)


@given(rows)
def test_columns_from_a_file_are_those_of_its_events(logged):
    with TemporaryDirectory() as name:
        path = Path(name) / "run.jsonl"
        log = TelemetryWriter(path, run_id="r", fsync="never")
        log.run_start()
        for step, extras in logged:
            log.train_step(step, loss=1.0, **extras)
        log.close()
        assert read_signals(path, "r") == signals_of(TelemetryReader(path))

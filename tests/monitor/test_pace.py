"""The speed and memory of a run in one line, in the table of runs, beside another run, and on the page."""

from __future__ import annotations

import pytest
from tables import every

from gradience import TelemetryWriter, explain_difference, monitor_run
from gradience.folder.runs import read_run
from gradience.render.pace import memory_words, pace_words
from gradience.schema.reports import Pace
from gradience.verbs.runs.curves import training_figures
from gradience.verbs.runs.rows import read_rows
from gradience.verbs.why.view import why_text

GIB = 1 << 30


@every(
    ("pace", "words"),
    [
        ({}, ""),
        ({"seconds_per_step": 0.25, "waiting_share": 0.4}, "0.25 s a step, 40.0% of it waiting for data"),
        ({"tokens_per_second": 1234.0, "padding_share": 0.25}, "1,234 tokens/s (25.0% padding beside them)"),
        ({"tokens_per_second": 1200.0, "padded_tokens_per_second": 1600.0, "samples_per_second": 3.0},
         "1,200 tokens/s"),
        ({"padded_tokens_per_second": 1600.0, "samples_per_second": 3.0}, "1,600 tokens/s"),
        ({"samples_per_second": 3.25}, "3.25 samples/s"),
        ({"peak_bytes": 9 * GIB, "reserved_bytes": 10 * GIB, "total_bytes": 16 * GIB},
         "peak 9.0 (10.0 reserved) of 16.0 GiB"),
        ({"peak_bytes": 9 * GIB, "of_process": True}, "peak 9.0 GiB (the process)"),
        ({"reserved_bytes": 10 * GIB, "total_bytes": 16 * GIB}, "10.0 of 16.0 GiB reserved"),
    ],
)  # fmt: skip
def test_the_line_tells_what_was_recorded(pace, words):
    assert pace_words(Pace(windows=1, **pace)) == words


@every(
    ("pace", "words"),
    [
        ({}, ""),
        ({"peak_bytes": 9 * GIB, "reserved_bytes": 10 * GIB}, "8.0 GiB foretold, 9.0 used, 10.0 reserved"),
        ({"reserved_bytes": 10 * GIB}, "8.0 GiB foretold, 10.0 reserved"),
        (
            {"peak_bytes": GIB, "of_process": True},
            "8.0 GiB foretold for a step on a card; the run was on a CPU, where the whole process took 1.0",
        ),
    ],
)
def test_what_was_foretold_stands_beside_what_was_used(pace, words):
    assert memory_words(8 * GIB, Pace(windows=1, **pace)) == words


@pytest.fixture
def logs(tmp_path):
    """Two logs, at 6 and at 12 s a step, the second with 8 GiB reserved."""
    for name, each in (("quick", 6.0), ("slow", 12.0)):
        reserved = {"reserved_bytes": 8 * GIB} if name == "slow" else {}
        with TelemetryWriter(tmp_path / f"{name}.jsonl") as log:
            for step in range(10, 70, 10):
                log.train_step(step, loss=2.0)
                if step > 10:
                    log.throughput(step, steps=10, seconds_per_step=each, **reserved)
    return [tmp_path / "quick.jsonl", tmp_path / "slow.jsonl"]


def test_the_table_of_runs_has_its_columns(logs):
    rows = read_rows(*logs)
    assert [(row.seconds_per_step, row.peak_bytes, row.tokens_per_second) for row in rows] == [
        (6.0, None, None),
        (12.0, 8 * GIB, None),
    ]


def test_two_runs_stand_beside_each_other(logs):
    report = explain_difference(*logs)
    assert [pace.seconds_per_step for pace in report.paces] == [6.0, 12.0]
    said = why_text(report)
    assert "first: 6 s a step\n" in said
    assert "second: 12 s a step; 8.0 GiB reserved" in said


def test_the_page_draws_the_seconds_of_a_step_from_three_windows_on(logs):
    run = read_run(logs[0]).run
    (figure,) = (figure for figure in training_figures(run, ()) if figure.title == "Seconds a step")
    assert "6 at step 20" in figure.summary
    del run.paces[2:]
    assert not [figure for figure in training_figures(run, ()) if figure.title == "Seconds a step"]


def test_the_command_for_the_next_run_has_the_log_and_the_size_of_the_device(tmp_path):
    with TelemetryWriter(tmp_path / "run.jsonl") as log:
        log.run_start()
        for step in range(1, 31):
            log.train_step(step, loss=2.0 - step / 40)
            if step % 10 == 0:
                log.throughput(step, steps=10, seconds_per_step=0.3, peak_bytes=15 * GIB, total_bytes=24 * GIB)
        log.run_end("error", reason="OutOfMemoryError")
    (found,) = monitor_run(tmp_path / "run.jsonl", select=["CST195"]).findings
    command = f"gradience check {tmp_path / 'run.jsonl'} --base MODEL --memory 24GiB before the next run"
    assert found.verify == f"{command} (replace MODEL by the base model)"

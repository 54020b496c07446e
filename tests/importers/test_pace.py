"""The speed that a Trainer's summary tells, by hand, and an error of memory."""

from __future__ import annotations

import pytest
from tables import every
from wandb_records import field, items, offline

from gradience.verbs.monitor.run import monitor_run

START = 1_700_000_000
ROW = field(2, items(loss=2.0, _step=10, _timestamp=START + 20))


def test_the_trainers_summary_stands_for_the_run_without_its_evaluations(tmp_path, write_state, rows):
    summary = {
        "step": 20, "total_flos": 1.0, "train_loss": 1.0, "train_runtime": 50.0, "train_samples_per_second": 3.2,
    }  # fmt: skip
    held = {"step": 10, "eval_loss": 1.0, "eval_runtime": 10.0}
    history = [*rows([5, 10]), held, *rows([15], num_tokens=300), *rows([20], num_tokens=400), summary]
    pace = monitor_run(write_state(tmp_path, history)).pace
    assert (pace.seconds_per_step, pace.samples_per_second, pace.windows) == (2.0, 4.0, 1)
    summary["step"] = 25  # the last five were not logged
    pace = monitor_run(write_state(tmp_path, history)).pace
    assert (pace.seconds_per_step, pace.samples_per_second) == (1.6, 4.0)
    del held["eval_runtime"]
    assert monitor_run(write_state(tmp_path, history)).pace is None  # the seconds of an evaluation are not known


@every(("runtime", "told"), [(0.02, (0.001, 3.2)), (0.0199, None), (1e9, (5e7, 3.2)), (1.1e9, None), (-1.0, None)])
def test_a_runtime_that_no_machine_has_tells_no_speed(tmp_path, write_state, rows, runtime, told):
    summary = {"step": 20, "total_flos": 1.0, "train_runtime": runtime, "train_samples_per_second": 3.2}
    pace = monitor_run(write_state(tmp_path, [*rows([10, 20]), summary])).pace
    assert (pace and (pace.seconds_per_step, pytest.approx(pace.samples_per_second))) == told


@pytest.mark.parametrize("code", [(), (field(18, field(1, 1)),)])
def test_an_error_of_memory_is_told_without_a_reading_of_memory(tmp_path, code):
    path = tmp_path / "run-abc.wandb"
    raised = "Traceback (most recent call last):\n  File x\ntorch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB\n"
    batch = field(5, items(per_device_train_batch_size=4, max_length=2048))
    path.write_bytes(offline(batch, ROW, field(13, field(3, raised.encode())), *code))
    (found,) = (found for found in monitor_run(path).findings if found.id == "CST195")
    assert (found.severity, found.confidence) == ("error", 0.95)
    assert found.message == "Out of memory at step 11, batch of 4 x at most 2,048."

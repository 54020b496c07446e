"""A recorder that fails never ends a training, and a training that fails still has its log."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import resource
import warnings
from pathlib import Path

import pytest

LOST = "could not be recorded"


def _descriptor(path):
    """The descriptor under which this process holds the file open."""
    for name in Path("/proc/self/fd").iterdir():
        if name.exists() and os.path.realpath(name) == str(path):
            return int(name.name)
    raise AssertionError(f"{path} is not open")


def _fill_disk(path):
    """From here on the kernel answers every write to the open log with ENOSPC."""

    def act(_model):
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, _descriptor(path))
        os.close(full)

    return act


needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full and /proc")


@needs_full
def test_a_disk_that_fills_up_costs_events_and_not_the_training(training, callback, log, tmp_path):
    fill = training.At(3, _fill_disk(tmp_path / "run.jsonl"))
    run = training.trainer(tmp_path, fill, callback())
    with (
        pytest.warns(RuntimeWarning, match=LOST) as said,
        pytest.warns(RuntimeWarning, match="replaced by another file"),
    ):
        assert run.train().global_step == 6
    ours = [str(w.message) for w in said if "gradience" in str(w.message)]
    assert len(ours) == 2
    assert "No space left" in ours[0]
    assert "8 events" in ours[1]
    events = log(tmp_path)
    assert events.steps == [1, 2]
    (end,) = events.of("run_end")
    assert (end.status, end.reason) == ("ok", "8 events could not be recorded")


def _no_room(_model):
    """From here on no file of this process grows beyond what the log has."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@contextlib.contextmanager
def _room_again():
    """Within the test: pytest says how it went before a fixture ends, in a file perhaps."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@needs_full
@pytest.mark.parametrize("fault", ["device", "file in place of the folder", "full when it fails", "no room"])
def test_stop_on_stops_whatever_becomes_of_the_log(training, callback, tmp_path, fault):
    def poison(model):
        if fault == "full when it fails":
            _fill_disk(tmp_path / "run.jsonl")(model)
        next(p for p in model.parameters() if p.requires_grad).data.fill_(math.nan)

    acts = {"device": [], "no room": [training.At(1, _no_room)]}.get(fault, [])
    if fault == "device":
        (tmp_path / "run.jsonl").symlink_to("/dev/full")
    if fault == "file in place of the folder":
        (tmp_path / "file").write_text("not a folder")
    place = tmp_path / "file" / "run.jsonl" if fault.startswith("file") else None
    recorder = callback(place, stop_on=("NUM101",))
    given = {"logging_nan_inf_filter": False, "max_steps": 40, "learning_rate": 1e-3}
    run = training.trainer(tmp_path, *acts, training.At(3, poison), recorder, **given)
    with pytest.warns(RuntimeWarning) as said, _room_again():
        assert run.train().global_step == 4
    assert any(LOST in str(w.message) for w in said)


def test_a_disk_that_fails_when_the_log_is_closed_is_said_and_does_not_reach_the_training(
    training, callback, log, tmp_path, monkeypatch
):
    def fail(_fd):
        raise OSError(5, "Input/output error")

    def break_disk(_model):
        monkeypatch.setattr("gradience.telemetry.logfile.os.fsync", fail)

    run = training.trainer(tmp_path, training.At(6, break_disk), callback())
    with pytest.warns(RuntimeWarning, match="gradience") as said:
        assert run.train().global_step == 6
    monkeypatch.undo()
    ours = [str(w.message) for w in said if "gradience" in str(w.message)]
    assert any("the log could not be closed" in message for message in ours)
    assert log(tmp_path).steps == [1, 2, 3, 4, 5, 6]


def test_warnings_that_are_errors_do_not_end_the_training(training, callback, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    run = training.trainer(tmp_path, callback(tmp_path / "file" / "run.jsonl"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        assert run.train().global_step == 6


def test_a_row_too_long_for_a_line_costs_that_row_only(training, callback, log, tmp_path):
    class Verbose(training.Trainer):
        def log(self, logs, start_time=None):
            if self.state.global_step == 2:
                logs |= {f"key_{i}": float(i) for i in range(9000)}
            super().log(logs, start_time)

    with pytest.warns(RuntimeWarning, match=LOST):
        training.trainer(tmp_path, callback(), cls=Verbose, max_steps=4).train()
    events = log(tmp_path)
    assert events.steps == [1, 3, 4]
    assert events.of("run_end")[0].reason == "1 events could not be recorded"


def test_a_model_that_shows_nothing_is_recorded_without_its_config(training, callback, log, tmp_path):
    class Odd(training.torch.nn.Module):
        peft_config = "broken"

        def __init__(self):
            super().__init__()
            self.layer = training.torch.nn.Embedding(training.WORDS, 1)

        def forward(self, input_ids, labels):
            return {"loss": self.layer(input_ids).sum()}

    with pytest.warns(RuntimeWarning, match="the configuration could not be read.*: TypeError") as said:
        training.trainer(tmp_path, callback(notes="odd"), model=Odd(), max_steps=2).train()
    assert len([w for w in said if "gradience" in str(w.message)]) == 1
    events = log(tmp_path)
    assert events[0].config.extras == {"snapshot_failed": "TypeError"}
    assert events[0].config.notes == "odd"
    assert events.steps == [1, 2]


def test_with_the_callback_as_a_context_the_end_is_recorded_at_once(training, callback, log, tmp_path):
    recorder = callback()
    run = training.trainer(tmp_path, training.At(3, training.ACTS["interrupt"]), recorder)
    with pytest.raises(KeyboardInterrupt), recorder:
        run.train()
    (end,) = log(tmp_path).of("run_end")
    assert (end.status, end.reason) == ("interrupted", "KeyboardInterrupt")


def test_a_loop_left_by_a_caught_exception_is_closed_when_the_next_one_begins(training, callback, log, tmp_path):
    left = training.trainer(tmp_path, training.At(3, training.ACTS["break"]), callback())
    with pytest.raises(ValueError, match="prompt"):
        left.train()
    training.trainer(tmp_path, callback(), max_steps=2).train()  # another Trainer, the same folder, as in a notebook
    events = log(tmp_path)
    assert [(e.status, e.run_id == events[0].run_id) for e in events.of("run_end")] == [
        ("aborted", True),
        ("ok", False),
    ]
    assert [p.name for p in tmp_path.glob("*.jsonl")] == ["run.jsonl"]


def test_a_retry_from_within_the_handler_knows_the_exception(training, callback, log, tmp_path):
    run = training.trainer(tmp_path, training.At(3, training.ACTS["break"]), callback())
    try:
        run.train()
    except ValueError:
        run.train()
    ends = log(tmp_path).of("run_end")
    assert [(e.status, e.reason) for e in ends] == [("error", "ValueError"), ("ok", None)]


def test_a_freed_trainer_closes_its_run(training, callback, log, tmp_path):
    run = training.trainer(tmp_path, training.At(3, training.ACTS["break"]), callback())
    with contextlib.suppress(ValueError):
        run.train()
    del run
    gc.collect()
    (end,) = log(tmp_path).of("run_end")
    assert (end.status, end.reason) == ("aborted", "training was left before its end")


def test_without_transformers_the_error_says_what_to_install(monkeypatch):
    import sys

    import gradience.hf

    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "gradience.hf.callback", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"in the clone: pip install -e '\.\[hf\]'"):
        _ = gradience.hf.GradienceCallback
    assert dir(gradience.hf) == gradience.hf.__all__

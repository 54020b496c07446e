"""Parts of the recorder without a training: when it looks, what a run's end is called, and what a snapshot reads."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
from tables import every

pytest.importorskip("torch", reason="needs the hf extra: pip install 'gradience[hf]'")

from gradience.configs.settings import Draft
from gradience.hf import GradienceCallback, recorder as looking  # needs torch
from gradience.hf.recorder import Lookout, RunRecorder, last_run_id, live_ids, live_rules
from gradience.hf.snapshot import batch_size, dataset_size, note_optimizer, unwrapped
from gradience.schema import ConfigSnapshot
from gradience.schema.document import Finding
from gradience.schema.events import RunStart, UnknownEvent
from gradience.telemetry import TelemetryWriter, decode


def looks(losses, norms=None, monkeypatch=None):
    """The rows, counted from 1, after which the rules are asked."""
    lookout, rows = Lookout(ConfigSnapshot()), []
    monkeypatch.setattr(lookout, "_judge", lambda: rows.append(len(lookout._run.steps)) or [])
    for step, (loss, norm) in enumerate(zip(losses, norms or [1.0] * len(losses), strict=True), 1):
        lookout.row(step, {"loss": loss, "grad_norm": norm})
    return rows


@every(
    ("losses", "rows"),
    [
        ([2.0, 2.5, 2.5, 2.5], []),  # a quarter over the lowest, as set here
        ([2.0, 2.6, 2.6], []),
        ([2.0, 2.6, 2.6, 2.6], [4]),  # three rows running
        ([2.0, 2.6, 2.6, 2.5, 2.6, 2.6], []),
        ([2.0, 2.6, 2.6, 1.0, 1.25, 1.3, 1.3, 1.3], [8]),  # of the lowest so far
        ([2.0, 0.0], [2]),
        ([2.0, math.nan], [2]),
        ([2.0, -1.0, -1.0, -1.0], []),
    ],
)
def test_it_looks_after_three_rows_over_the_bar_or_one_odd_one(losses, rows, monkeypatch):
    monkeypatch.setattr(looking, "HIGH", looking.HIGH._replace(value=1.25))
    assert looks(losses, monkeypatch=monkeypatch) == rows


@every(
    ("norms", "rows"),
    [
        ([4.0, 1.0, 0.51, 9.0], []),
        ([4.0, 1.0, 0.5, 9.0], [3]),  # an eighth of the first, as set here
        ([4.0, math.inf], [2]),
        ([4.0, math.nan], [2]),
        ([4.0, None, 1.0], []),  # not logged
        ([None, None, 4.0, 0.5], [4]),
    ],
)
def test_it_looks_after_a_gradient_that_is_small_beside_the_first_or_not_finite(norms, rows, monkeypatch):
    monkeypatch.setattr(looking, "SMALL", looking.SMALL._replace(value=0.125))
    assert looks([1.0] * len(norms), norms, monkeypatch) == rows


def test_between_two_looks_for_one_reason_a_twentieth_of_the_rows_passes(monkeypatch):
    assert looks([1.0] * 39 + [math.nan] * 12, monkeypatch=monkeypatch) == [40, 43, 46, 49]


def test_only_rules_that_speak_in_training_may_stop_it():
    assert live_ids("num101") == {"NUM101"}
    assert live_ids(["div104", "GRD108"]) == {"DIV104", "GRD108"}
    assert live_ids(()) == frozenset()
    wiring = [f"WIR{number}" for number in range(170, 189)]
    assert [rule.id for rule in live_rules()] == ["NUM102", "NUM101", "DIV104", "GRD108", "OVF110", *wiring]
    says = f"stop_on: expected ids among NUM102, NUM101, DIV104, GRD108, OVF110, {', '.join(wiring)}, got LR001, NOL106"
    with pytest.raises(ValueError, match=f"^{says}$"):
        live_ids(["NOL106", "NUM101", "lr001"])


# --- how a run ended ---------------------------------------------------------------------------------------------


@every(
    ("step", "planned", "stopped", "end"),
    [
        (10, 10, None, ("ok", None)),
        (9, 10, None, ("ok", "stopped at step 9 of 10")),
        (0, 10, None, ("ok", None)),
        (9, -1, None, ("ok", None)),
        (9, 10, "stop_on: NUM101", ("aborted", "stopped at step 9 of 10 by stop_on: NUM101")),
        (10, 10, "stop_on: NUM101", ("aborted", "stopped at step 10 of 10 by stop_on: NUM101")),
        (9, -1, "x", ("aborted", "stopped at step 9 by x")),
    ],
)
def test_a_run_that_came_to_its_end_before_it_was_planned_says_where(step, planned, stopped, end, monkeypatch):
    ended = []
    monkeypatch.setattr(RunRecorder, "end", lambda _, status, reason=None: ended.append((status, reason)))
    RunRecorder().finish(step, planned, stopped)
    assert ended == [end]


def test_a_training_that_begins_is_neither_watched_nor_stopped_by_the_one_before():
    callback = GradienceCallback()
    callback._lookout = callback._stopped = "before"
    callback.on_train_begin(None, SimpleNamespace(is_world_process_zero=False), None)
    assert (callback._lookout, callback._stopped) == (None, None)


@pytest.mark.parametrize(
    ("row", "splits", "known"),
    [
        ({"eval_loss": 1.0}, ["eval"], True),
        ({"eval_loss": 1.0, "loss": 2.0}, ["eval"], False),
        ({"eval_a_loss": 1.0, "eval_a_runtime": 1.0, "eval_b_loss": 1.0, "eval_b_runtime": 1.0}, ["a", "b"], False),
    ],
)
def test_the_loader_is_that_of_an_evaluation_that_is_alone_in_its_row(row, splits, known, monkeypatch):
    callback, taken = GradienceCallback(), []
    monkeypatch.setattr(callback, "_take_step", lambda *_: None)
    monkeypatch.setattr(callback, "_take_evals", lambda _step, evals, loader, _: taken.append((list(evals), loader)))
    callback._take_row(1, row, {"eval_dataloader": "loader"}, None)
    assert taken == [(splits, "loader" if known else None)]


@every(
    ("finds", "in_run", "size", "restart"),
    [(True, True, 4, True), (True, True, 8, False), (True, False, 4, False), (False, True, 4, False)],
)
def test_a_run_begins_again_where_a_smaller_batch_was_looked_for_and_found(finds, in_run, size, restart, monkeypatch):
    callback, begun = GradienceCallback(path="run.jsonl"), []
    monkeypatch.setattr(callback, "_config", lambda *_: ConfigSnapshot())
    callback._recorder = SimpleNamespace(
        in_run=in_run,
        joined=True,
        close_interrupted=lambda: None,
        start=lambda *at, **more: begun.append((at[2].get("restarted_by"), more["restart"])),
    )
    callback._batch_size, callback._last_eval, callback._probed = 8, (1, {}), 1
    args = SimpleNamespace(auto_find_batch_size=finds, n_gpu=1, device=SimpleNamespace(type="cpu"))
    callback._begin(args, SimpleNamespace(train_batch_size=size, global_step=0), {})
    assert begun == [("auto_find_batch_size" if restart else None, restart)]
    assert (callback._batch_size, callback._probed) == (size, 1 if restart else None)


@every(
    ("error", "text", "left"),
    [
        (None, False, ("aborted", "training was left before its end")),
        (ValueError("a prompt"), False, ("error", "ValueError")),
        (ValueError("a prompt"), True, ("error", "ValueError: a prompt")),
        (KeyboardInterrupt(), False, ("interrupted", "KeyboardInterrupt")),
        (SystemExit(1), False, ("error", "SystemExit")),
    ],
)
def test_a_run_that_was_left_says_by_what(error, text, left, monkeypatch):
    monkeypatch.setattr("gradience.hf.recorder._uncaught", lambda: None)
    assert RunRecorder(allow_text=text)._how_it_was_left(error) == left
    before, recorder = OSError("of an earlier cell"), RunRecorder()
    monkeypatch.setattr("gradience.hf.recorder._uncaught", lambda: before)
    assert recorder._how_it_was_left(None) == ("error", "OSError")
    recorder._earlier = id(before)  # it was uncaught before the run began
    assert recorder._how_it_was_left(None) == ("aborted", "training was left before its end")


def test_a_log_at_fault_ends_the_recording_until_the_run_ends_and_an_event_at_fault_does_not(tmp_path, monkeypatch):
    said, recorder = [], RunRecorder()
    monkeypatch.setattr(recorder, "warn", said.append)
    recorder.start(tmp_path / "run.jsonl", ConfigSnapshot(), {}, training=object(), step=0)
    recorder.fail(ValueError("a row"))
    assert (recorder._enabled, said) == (
        True,
        ["an event of this run could not be recorded, training goes on: ValueError"],
    )
    recorder.fail(OSError("full"))
    recorder.train_step(1, {"loss": 1.0}, {})  # is lost
    assert (recorder._enabled, recorder.dropped, len(said)) == (False, 3, 1)
    recorder.end("ok")
    assert said[1:] == ["3 events could not be recorded"]
    recorder.record(lambda log: log.eval(2, split="eval", metrics={"loss": 1.0}))
    events = [decode(line) for line in (tmp_path / "run.jsonl").read_bytes().splitlines()]
    assert [(event.event if isinstance(event, UnknownEvent) else type(event).__name__) for event in events] == [
        "RunStart",
        "RunEnd",
        "Eval",
    ]
    assert recorder.dropped == 3


def test_where_the_last_line_is_lost_too_it_is_counted(monkeypatch):
    said, recorder = [], RunRecorder()
    recorder.in_run, recorder.dropped = True, 2
    monkeypatch.setattr(recorder, "warn", said.append)

    def full(*_):
        raise OSError("full")

    monkeypatch.setattr(recorder, "_last_line", full)
    recorder.end("ok")
    assert said == ["3 events could not be recorded, the last one too: OSError: full"]


def test_of_several_findings_that_which_stops_is_marked_and_the_first_of_an_id_is_said(monkeypatch):
    def found(rule, severity, message="m"):
        return Finding(id=rule, severity=severity, message=message)

    judged = [found("NUM101", "info"), found("GRD108", "warning", "1"), found("GRD108", "error", "2")]
    monkeypatch.setattr("gradience.rules.judge", lambda *_: SimpleNamespace(findings=judged))
    lookout = Lookout(ConfigSnapshot())
    assert lookout._judge() == judged[1:2]
    assert lookout._said == {"GRD108"}
    callback, alerts, control = GradienceCallback(verbose=False), [], SimpleNamespace(should_training_stop=False)
    callback._lookout = Lookout(ConfigSnapshot(), {"NUM101"})
    callback._recorder = SimpleNamespace(alert=lambda finding, step, *, stops: alerts.append((finding.id, stops)))
    callback._heed(3, [found("GRD108", "warning")], control)
    assert (control.should_training_stop, callback._stopped) == (False, None)
    callback._heed(3, [found("GRD108", "warning"), found("NUM101", "error")], control)
    assert (control.should_training_stop, callback._stopped) == (True, "stop_on: NUM101")
    assert alerts == [("GRD108", False), ("GRD108", False), ("NUM101", True)]


def test_an_adapter_is_audited_once_at_each_multiple_of_the_steps_asked_for(monkeypatch):
    callback, probed = GradienceCallback(spectral_every=2), []
    monkeypatch.setattr(callback, "_probe", lambda step, _: probed.append(step))
    for step in (1, 2, 2, 3, 4):
        callback.on_step_end(None, SimpleNamespace(global_step=step, is_world_process_zero=True), None, model=None)
    callback.on_step_end(None, SimpleNamespace(global_step=6, is_world_process_zero=False), None, model=None)
    assert probed == [2, 4]
    assert GradienceCallback(spectral_every=1)._spectral_every == 1
    with pytest.raises(ValueError, match="at least 1 step, not 0"):
        GradienceCallback(spectral_every=0)


def test_at_the_end_the_batches_are_counted_and_let_go(monkeypatch):
    callback, done = GradienceCallback(), []
    callback._batches = SimpleNamespace(close=lambda: done.append("closed"))
    monkeypatch.setattr(callback, "_record_data", done.append)
    callback._lookout = "on"
    callback.on_train_end(None, SimpleNamespace(global_step=7, max_steps=7), None)
    assert (done, callback._batches, callback._lookout) == ([7, "closed"], None, None)


def test_a_run_is_resumed_at_a_step_after_0(tmp_path):
    log, starts = tmp_path / "run.jsonl", []
    for step in (0, 5, 0):
        recorder = RunRecorder()
        recorder.start(log, ConfigSnapshot(), {}, training=object(), step=step)
        recorder.finish(step, 10, None)
        starts.append(recorder.run_id)
    assert starts[0] == starts[1] != starts[2]
    events = [decode(line) for line in log.read_bytes().splitlines()]
    assert [event.resumed_from_step for event in events if isinstance(event, RunStart)] == [None, 5, None]
    again = RunRecorder()
    again.run_id = starts[0]  # the run that it recorded before another one was added to the log
    again.start(log, ConfigSnapshot(), {}, training=object(), step=5)
    again.finish(5, 10, None)
    assert again.run_id == starts[2]


def test_the_last_run_of_a_log_is_that_of_its_last_whole_event(tmp_path):
    log = tmp_path / "run.jsonl"
    assert last_run_id(log) is None
    for name in ("a", "b"):
        with TelemetryWriter(log, name) as writer:
            writer.train_step(1, loss=1.0)
    assert last_run_id(log) == "b"
    with log.open("ab") as file:
        file.write(b'{"schema": "gradience.vnext.tele')
    assert last_run_id(log) == "b"


# --- what a snapshot reads ---------------------------------------------------------------------------------------


@every(("used", "devices", "size"), [(16, 2, 8), (16, 1, 16), (16, 0, 16), (None, 2, 4), (0, 2, 4), (17, 2, 8)])
def test_the_batch_of_one_device_is_that_in_use(used, devices, size):
    args = SimpleNamespace(n_gpu=devices, per_device_train_batch_size=4)
    assert batch_size(args, SimpleNamespace(train_batch_size=used)) == size


def test_of_groups_of_an_optimizer_the_highest_rate_and_decay_count():
    draft = Draft()
    groups = [
        {"initial_lr": 2e-4, "lr": 9e-4, "weight_decay": 0.0},
        {"initial_lr": 1e-4, "lr": 9e-4, "weight_decay": 0.25},
        {"lr": 3e-4},  # added after the schedule was made
        {},
    ]
    note_optimizer(draft, SimpleNamespace(param_groups=groups))
    found = draft.snapshot().optimizer
    assert (found.lr, found.weight_decay) == (3e-4, 0.25)
    assert (found.extras["lr_groups"], found.extras["class"]) == ([1e-4, 2e-4, 3e-4], "SimpleNamespace")


def test_a_wrapper_has_its_model_as_its_only_child():
    model = SimpleNamespace(_modules={"a": 1})
    for wrapped in (SimpleNamespace(_modules={name: model}) for name in ("module", "_orig_mod")):
        assert unwrapped(wrapped) is model
    for other in ({"module": model, "b": model}, {"inner": model}, {}):
        own = SimpleNamespace(_modules=other)
        assert unwrapped(own) is own


def test_a_stream_has_no_size():
    assert dataset_size(SimpleNamespace(dataset=[1, 2, 3])) == 3
    assert dataset_size(SimpleNamespace(dataset=iter([]))) is None
    assert dataset_size(None) is None

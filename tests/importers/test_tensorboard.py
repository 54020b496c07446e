"""TensorBoard's event files, with the real package where it is installed."""

from __future__ import annotations

import json
from importlib import import_module

import pytest
from tables import every

from gradience.errors import RecorderError
from gradience.importers.tensorboard import Scalar, scalar_rows
from gradience.verbs.runs.collect import find_runs


def write(folder, groups, *, arguments=None, model=None):
    """Write scalars as the Trainer does: (step, clock, tags) each."""
    event_pb2 = import_module("tensorboard.compat.proto.event_pb2")
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.text.summary_v2 import text_pb
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(folder))
    if arguments is not None:
        text = text_pb("args/text_summary", json.dumps(arguments))
        writer.add_event(event_pb2.Event(wall_time=1.7e9, step=0, summary=text))
    if model is not None:
        text = text_pb("model_config/text_summary", json.dumps(model))
        writer.add_event(event_pb2.Event(wall_time=1.7e9, step=0, summary=text))
    for step, clock, tags in groups:
        for tag, value in tags.items():
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
            writer.add_event(event_pb2.Event(wall_time=clock, step=step, summary=summary))
    writer.close()
    return folder


def losses(steps, at=1.7e9, scale=1.0):
    return [(s, at + s, {"train/loss": scale / s, "train/learning_rate": 2.0**-10}) for s in steps]


@pytest.mark.oracle("tensorboard")
def test_scalars_become_rows_with_their_clock(tmp_path, import_events):
    groups = [
        *losses([1, 2, 4]),
        (4, 1.7e9 + 5, {"eval/loss": 0.5, "eval/runtime": 2.0}),
        (4, 1.7e9 + 6, {"train/total_flos": 8.0, "train/train_loss": 0.5}),
    ]
    arguments = {"optim": "adamw_torch", "max_steps": 4, "hub_token": "<HUB_TOKEN>"}
    events, imported = import_events(write(tmp_path / "runs" / "Jan01_10-00-00_myhost", groups, arguments=arguments))
    assert imported.format == "tensorboard"
    assert (events.steps, events.losses) == ([1, 2, 4], [1.0, 0.5, 0.25])
    assert [e.ts for e in events.of("train_step")] == [1.7e9 + 1, 1.7e9 + 2, 1.7e9 + 4]
    assert events.of("eval")[0].metrics.loss == 0.5
    assert (events.start.config.optimizer.name, events.start.config.training.max_steps) == ("adamw_torch", 4)
    assert events.end.status == "ok"
    assert "host" not in str(events.start.meta)


@pytest.mark.oracle("tensorboard")
def test_a_value_logged_again_does_not_divide_its_row(tmp_path, import_events):
    """The Trainer logs the epoch with the loss and with the evaluation of the same step; one evaluation stays one."""
    both = [
        (2, 1.7e9, {"train/loss": 0.5, "train/epoch": 1.0}),
        (2, 1.7e9 + 9, {"eval/accuracy": 0.5, "train/epoch": 1.0, "eval/loss": 0.75, "eval/runtime": 2.0}),
    ]
    events, _ = import_events(write(tmp_path, both))
    assert (events.steps, events.losses) == ([2], [0.5])
    assert [(e.step, e.metrics.loss, e.metrics.accuracy) for e in events.of("eval")] == [(2, 0.75, 0.5)]


@pytest.mark.oracle("tensorboard")
def test_a_step_logged_twice_is_divided_where_the_clock_pauses(tmp_path, import_events):
    """The metric that both have in common stays with each evaluation, whatever the order of the tags."""
    values = [(5, "f1", 0.5), (5.125, "loss", 1.0), (50, "f1", 0.5), (50.125, "loss", 2.0)]
    twice = [(2, 1.7e9, {"train/loss": 0.5}), *((2, 1.7e9 + at, {f"eval/{tag}": v}) for at, tag, v in values)]
    events, _ = import_events(write(tmp_path, twice))
    assert [(e.metrics.loss, e.metrics.extras["f1"]) for e in events.of("eval")] == [(1.0, 0.5), (2.0, 0.5)]


def test_without_a_pause_a_step_logged_twice_is_divided_at_the_tag():
    scalars = [Scalar(1.7e9, 2, tag, value) for tag, value in (("a", 1.0), ("b", 2.0), ("a", 3.0), ("b", 4.0))]
    nan = [Scalar(1.7e9, 3, "a", float("nan")), Scalar(1.7e9, 3, "a", float("nan"))]
    rows = [{k: v for k, v in row.items() if k != "ts"} for _, row in scalar_rows([*scalars, *nan])]
    assert rows == [{"step": 2, "a": 1.0, "b": 2.0}, {"step": 2, "a": 3.0, "b": 4.0}, {"step": 3, "a": "NaN"}]


@pytest.mark.oracle("tensorboard")
def test_a_model_s_name_and_the_hyperparameters_are_read_and_a_run_without_a_row_says_why(tmp_path, import_events):
    write(tmp_path, [], arguments={"logging_steps": 25, "max_steps": 3}, model={"_name_or_path": "org/base"})
    events, imported = import_events(tmp_path)
    assert (imported.format, events.start.config.model_name) == ("tensorboard", "org/base")
    assert (events.end.status, events.end.reason) == (
        "unknown", "the source ends before its 3 planned steps; no training row was logged (logging_steps is 25)",
    )  # fmt: skip


@pytest.mark.oracle("tensorboard")
def test_hyperparameters_in_a_folder_of_their_own_are_the_run_s(tmp_path, import_events):
    writers = import_module("torch.utils.tensorboard")
    write(tmp_path, losses([1, 2, 4]))
    values = {"optim": "lion", "max_steps": 4, "bf16": True, "learning_rate": 0.5}
    with writers.SummaryWriter(str(tmp_path / "1700000000.25")) as writer:
        writer.add_hparams(values, {}, run_name=".")
    events, imported = import_events(tmp_path)
    config = events.start.config
    assert (config.optimizer.name, config.optimizer.lr, config.training.max_steps) == ("lion", 0.5, 4)
    assert (config.training.dtype, events.end.status, len(imported.files)) == ("bfloat16", "ok", 3)
    assert len(list(find_runs([tmp_path]))) == 1


@every(
    ("epochs", "rows", "planned", "status"),
    [
        (3, [(50, 0.5125), (100, 1.025)], 293, "unknown"),
        (2, [(50, 1.0)], 100, "unknown"),
        (2, [(50, 1.0), (100, 2.0)], 100, "ok"),
        (1, [(137, 0.99636)], 137, "ok"),  # a partial step at the end of the epoch was left out
        (3, [(10, 0.07)], None, "unknown"),  # an old Trainer's epoch has two decimals: no count follows from it
        (3, [(409, 2.99)], None, "ok"),
    ],
)
def test_the_planned_steps_follow_from_the_epochs(tmp_path, import_events, epochs, rows, planned, status):
    history = [{"step": step, "loss": 1.0, "epoch": epoch} for step, epoch in rows]
    path = tmp_path / "trainer_state.json"
    path.write_text(json.dumps({"log_history": history, "num_train_epochs": epochs}))
    events, _ = import_events(path)
    assert (events.start.config.training.max_steps, events.end.status) == (planned, status)


@pytest.mark.oracle("tensorboard")
def test_a_file_that_is_damaged_is_read_to_there_and_that_is_said(tmp_path, import_events):
    folder = write(tmp_path / "a", losses(range(1, 20)))
    path = next(folder.iterdir())
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :] = b"\x55" * (len(data) - len(data) // 2)
    path.write_bytes(data)
    events, imported = import_events(path)
    assert 1 < len(events.losses) < 19
    assert any("is damaged after" in note for note in imported.notes)


@pytest.mark.oracle("tensorboard")
def test_a_file_cut_in_a_record_is_read_to_there_and_one_damaged_at_its_head_is_refused(tmp_path, import_events):
    path = next(write(tmp_path / "a", losses(range(1, 20))).iterdir())
    data = path.read_bytes()
    path.write_bytes(data[:-7])
    assert import_events(path)[0].steps[:18] == [*range(1, 19)]
    path.write_bytes(b"\0" + data[1:])
    with pytest.raises(RecorderError, match="first record is damaged"):
        import_events(path, kind="tensorboard")

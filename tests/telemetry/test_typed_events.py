"""Events built by hand: checked when built, flat whoever encodes them, taken by the writer."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from enum import Enum
from inspect import signature
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tables import every

import gradience
from gradience.errors import RecorderError, SchemaError
from gradience.events import (
    EVENT_TYPES,
    Alert,
    Eval,
    EvalMetrics,
    EventBase,
    LoraSnapshot,
    Metrics,
    RunEnd,
    RunStart,
    TrainStep,
    UnknownEvent,
    encode,
)
from gradience.telemetry import TelemetryReader, TelemetryWriter
from gradience.telemetry.reader import validate_log

HEAD: dict[str, Any] = {"ts": 1.5, "run_id": "r", "step": 3}
LINE = {"schema": "gradience.vnext.telemetry/v1", **HEAD}


def test_an_event_needs_no_schema_and_stands_on_a_line_that_has_it():
    event = TrainStep(ts=1.5, run_id="r", step=3, loss=0.7)
    assert json.loads(encode(event)) == {**LINE, "event": "train_step", "loss": 0.7}
    assert signature(TrainStep).parameters["schema"].default == "gradience.vnext.telemetry/v1"


def test_a_line_without_its_schema_is_not_an_event():
    with pytest.raises(msgspec.ValidationError, match="missing required field `schema`"):
        msgspec.json.decode(b'{"event":"train_step","ts":1,"run_id":"r","step":1}', type=TrainStep)


def test_every_event_class_is_in_the_public_module():
    assert {*EVENT_TYPES.values(), UnknownEvent, EventBase} <= {
        getattr(gradience.events, name) for name in gradience.events.__all__ if name[0].isupper() and "_" not in name
    }
    assert "events" in gradience.__all__


def test_a_class_of_your_own_has_its_fields_beside_the_others(tmp_path):
    class Row(TrainStep, frozen=True):
        kl: float | None = None

    event = Row(**HEAD, kl=0.25, extras={"x": 1})
    assert json.loads(encode(event)) == {**LINE, "event": "train_step", "kl": 0.25, "x": 1}
    with pytest.raises(SchemaError, match=r"Row: expected float \| null at `\$\.kl`, got str"):
        Row(**HEAD, kl="high")
    with TelemetryWriter(tmp_path / "run.jsonl", "r", on_error="raise") as log:
        log.write(event)
    (read, _) = TelemetryReader(tmp_path / "run.jsonl")
    assert (read.extras, read.seq) == ({"kl": 0.25, "x": 1}, 0)


def test_an_event_of_your_own_is_one_of_an_unknown_name(tmp_path):
    class Checkpoint(EventBase, frozen=True, tag="checkpoint"):
        path: str

    with TelemetryWriter(tmp_path / "run.jsonl", "r", on_error="raise") as log:
        log.write(Checkpoint(**HEAD, path="/home/me/checkpoint-3"))
    (read, end) = TelemetryReader(tmp_path / "run.jsonl")
    assert (read.event, read.payload["path"], read.seq, end.seq) == ("checkpoint", "checkpoint-3", 0, 1)


class Mode(Enum):
    FAST = "fast"


@every(
    ("build", "kind", "said"),
    [
        (lambda: TrainStep(**HEAD, loss="low"), SchemaError, "TrainStep: expected a number, .* at `$.loss`, got 'low'"),
        (lambda: TrainStep(**HEAD, loss=[0.5]), SchemaError, "TrainStep: expected .* at `$.loss`, got array"),
        (lambda: TrainStep(**HEAD, loss=True), SchemaError, "TrainStep: expected .* at `$.loss`, got bool"),
        (lambda: TrainStep(**HEAD, loss=object()), SchemaError, "TrainStep: `loss`: expected a JSON value, got object"),
        (lambda: TrainStep(**HEAD, lr=[0.1, "x"]), SchemaError, r"at `$.lr\[1\]`, got 'x'"),
        (lambda: TrainStep(ts=1.0, run_id="r", step=-1), SchemaError, r"expected int >= 0 at `$.step`"),
        (lambda: TrainStep(ts=1.0, run_id="r", step=1.5), SchemaError, r"expected int \| null at `$.step`, got float"),
        (lambda: TrainStep(ts=1.0, run_id="r", step=2**53), SchemaError, r"at `$.step`"),
        (lambda: TrainStep(ts=1.0, run_id="", step=1), SchemaError, r"expected str of length >= 1 at `$.run_id`"),
        (lambda: TrainStep(ts=1.0, run_id=7, step=1), SchemaError, r"expected str at `$.run_id`, got int"),
        (lambda: TrainStep(ts="now", run_id="r", step=1), SchemaError, r"expected a number, .* at `$.ts`, got 'now'"),
        (lambda: TrainStep(ts=1.0, step=1), TypeError, "run_id"),
        (lambda: TrainStep(**HEAD, los=0.5), TypeError, "los"),
        (lambda: TrainStep(**HEAD, extras={"loss": 1}), SchemaError, "may not use the name of a known key: loss"),
        (lambda: TrainStep(**HEAD, extras={"event": 1}), SchemaError, "may not use the name of a known key: event"),
        (lambda: TrainStep(**HEAD, extras=[1]), SchemaError, "expected a mapping as `extras`, got list"),
        (lambda: TrainStep(**HEAD, extras={"x": object()}), SchemaError, "`extras.x`: expected a JSON value"),
        (lambda: TrainStep(**HEAD, schema="v1"), SchemaError, "at `$.schema`"),
        (lambda: Eval(**HEAD, split="x", metrics=0.5), SchemaError, r"expected object at `$.metrics`, got float"),
        (lambda: EvalMetrics(n=-1), SchemaError, r"EvalMetrics: expected int >= 0 at `$.n`"),
        (lambda: Metrics(**HEAD, kind=Mode, metrics={}), SchemaError,
         "`kind`: expected a JSON value, got enum.EnumType"),
        (lambda: Alert(**HEAD, severity="bad", code="c", message="m"), SchemaError, "one of info, .*, got 'bad'"),
        (lambda: RunEnd(**HEAD, status="done"), SchemaError, "RunEnd: expected one of ok, .* `$.status`, got 'done'"),
        (lambda: LoraSnapshot(r="8"), SchemaError, r"LoraSnapshot: expected int \| null at `$.r`, got str"),
        (lambda: LoraSnapshot(rank=8), TypeError, "rank"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_when_the_event_is_built(build, kind, said):
    with pytest.raises(kind, match=said.replace("$.", r"\$\.")):
        build()


def test_the_writer_takes_typed_events_and_numbers_them(tmp_path):
    log = tmp_path / "run.jsonl"
    with TelemetryWriter(log, "r", on_error="raise") as writer:
        writer.write(RunStart(**HEAD, config={"model_name": "m"}))
        writer.write(TrainStep(**HEAD, loss=0.5, extras={"api_key": "sk-1234567890abcdef1234"}))
        writer.train_step(4, loss=0.4, kl=0.2)
        writer.run_end("aborted", reason="by hand")
    start, row, next_row, end = TelemetryReader(log)
    assert [event.seq for event in (start, row, next_row, end)] == [0, 1, 2, 3]
    assert row.extras == {"api_key": "<redacted: secret key>"}
    assert next_row.extras == {"kl": 0.2}
    assert (end.status, end.reason) == ("aborted", "by hand")
    with (
        TelemetryWriter(tmp_path / "other.jsonl", on_error="raise") as writer,
        pytest.raises(RecorderError, match="dict"),
    ):
        writer.write({"event": "train_step"})


# The example and the page


def test_the_page_runs_as_it_is_written(root: Path, tmp_path: Path):
    page = (root / "docs" / "events.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["0.25", "3 0.7 512"]
    for name in ("typed.jsonl", "by-hand.jsonl"):
        assert validate_log(tmp_path / name).valid

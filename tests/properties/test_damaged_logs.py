"""Laws: whatever happens to the bytes, whole lines are read, the rest is named, and nothing crashes or hangs."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, strategies as st
from strategies import logs, mutated_logs

from gradience.errors import GradienceError, SchemaError
from gradience.schema import SCHEMA_ID, BadLine, Event, RunStart, TrainStep, UnknownEvent
from gradience.telemetry import TelemetryReader, decode
from gradience.telemetry.reader import validate_log
from gradience.telemetry.series import RunSeries


@pytest.fixture(scope="module")
def log():
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "run.jsonl"


def read(path: Path) -> list[object]:
    return list(TelemetryReader(path).read())


@given(data=logs, share=st.floats(0, 1, exclude_min=True))
def test_a_log_cut_at_any_byte_keeps_all_whole_lines_and_has_at_most_one_bad_line(
    log: Path, data: bytes, share: float
) -> None:
    cut = data[: max(int(len(data) * share), 1)]
    log.write_bytes(cut)
    items = read(log)
    whole = [decode(line) for line in cut.split(b"\n")[:-1]]
    assert items[: len(whole)] == whole
    rest = items[len(whole) :]
    assert len(rest) <= 1
    assert all(item.torn for item in rest if isinstance(item, BadLine))


@given(data=logs, share=st.floats(0, 1))
def test_a_torn_tail_repaired_by_a_later_session_costs_one_line_and_is_named(
    log: Path, data: bytes, share: float
) -> None:
    whole, _, last = data.rstrip(b"\n").rpartition(b"\n")
    cut = int((len(last) - 1) * share)
    later = (
        b'{"schema":"gradience.vnext.telemetry/v1","ts":null,"run_id":"r","event":"run_start","step":null,"config":{}}'
    )
    log.write_bytes((whole + b"\n" if whole else b"") + last[:cut] + b"\n" + later + b"\n")
    bad = [item for item in read(log) if isinstance(item, BadLine)]
    assert len(bad) == (cut > 0)
    assert all(item.torn and "torn tail of an earlier session" in item.reason for item in bad)


@given(data=mutated_logs())
def test_no_mutation_of_a_log_crashes_a_reader_and_the_fast_way_agrees_with_the_careful_one(
    log: Path, data: bytes
) -> None:
    log.write_bytes(data)
    try:
        items = read(log)
    except SchemaError:
        assert b"gradience.vnext.telemetry/" in data  # refused as another version
        return
    except GradienceError:
        assert data == b""
        return
    bad = [item for item in items if isinstance(item, BadLine)]
    unknown = [item for item in items if isinstance(item, UnknownEvent)]
    summary = TelemetryReader(log).summarize()
    assert summary.issues == bad
    assert summary.unknown.total() == len(unknown)
    assert summary.counts.total() == len(items) - len(bad) - len(unknown)
    assert (
        summary.lines
        == len(items)
        == sum(bool(line.strip()) for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n"))
    )
    report = validate_log(log)
    assert report.valid == (not bad and not summary.bare_tokens and bool(items))
    assert {issue.line for issue in report.issues} >= {item.line for item in bad}


@given(data=mutated_logs(), size=st.sampled_from([16, 200, 1000]))
def test_how_a_file_is_cut_into_blocks_does_not_matter(log: Path, data: bytes, size: int) -> None:
    log.write_bytes(data or b"\n")
    with pytest.MonkeyPatch.context() as patch:
        whole = outcome(log)
        patch.setattr("gradience.telemetry.lines._CHUNK", size)
        assert outcome(log) == whole


def outcome(log: Path) -> object:
    try:
        return repr((read(log), TelemetryReader(log).summarize()))  # as text: NaN is not itself
    except SchemaError as error:
        return str(error)


@st.composite
def long_logs(draw: st.DrawFn) -> bytes:
    """Rows of one run, as a long log holds them, with something odd in some."""
    own = draw(st.sampled_from([{}, {"session": "s"}]))
    odd = st.sampled_from(
        [
            {"loss": "NaN"},
            {"loss": None},
            {"lr": [0.1]},
            {"lr": None, "grad_norm": None},
            {"step": 3},
            {"step": None},
            {"step": 4.0},
            {"seq": 3},
            {"session": "t"},
            {"run_id": "other"},
            {"ts": None},
            {"epoch": "NaN"},
            {"extras": {"a": 1}},
            {"extras": 5},
            {"event": "run_end", "status": "ok"},
            {"event": "eval", "split": "t", "metrics": {"f1": 1}},
            {"event": "run_start", "config": {}, "resumed_from_step": 5},
            {"event": "later"},
            {"step": -1},
            {"loss": True},
            {"note": "\u2028"},
        ]
    )
    places = draw(st.dictionaries(st.integers(0, 39), odd, max_size=4))
    head = {"schema": SCHEMA_ID, "run_id": "r", "event": "train_step", "loss": 0.5, "lr": 0.1, "grad_norm": 1.0}
    rows = [
        {**head, "ts": float(i), "step": i, **own, **({"seq": i} if own else {}), **places.get(i, {})}
        for i in range(40)
    ]
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def plain(event: Event) -> Event:
    """The event as a summary sees it, which keeps no extras of rows."""
    return msgspec.structs.replace(event, extras={}) if isinstance(event, TrainStep) else event


@given(data=long_logs(), size=st.sampled_from([400, 1000, 3000, 65536]))
def test_decoding_rows_by_the_block_gives_what_reading_event_by_event_gives(log: Path, data: bytes, size: int) -> None:
    log.write_bytes(data)
    runs: dict[str, RunSeries] = {}
    bad = []
    for item in TelemetryReader(log).read():
        if isinstance(item, BadLine):
            bad.append(item)
        elif isinstance(item, UnknownEvent):
            if item.run_id in runs:
                runs[item.run_id].take_unknown(item)
        else:
            runs.setdefault(item.run_id, RunSeries(item.run_id)).add(plain(item))
            if isinstance(item, RunStart):
                runs[item.run_id] = runs.pop(item.run_id)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gradience.telemetry.lines._CHUNK", size)
        summary = TelemetryReader(log).summarize()
        report = validate_log(log)
    assert repr(summary.runs) == repr(runs)
    assert summary.issues == bad
    assert report.valid == (not bad)
    assert report.events == dict(summary.counts)

"""Telemetry at its limits: the longest, the deepest and the most of everything, and what is said beyond it."""

from __future__ import annotations

import json
import math
import random
import re
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradience.errors import RecorderError, SchemaError
from gradience.schema.events import TrainStep, UnknownEvent
from gradience.schema.reports import BadLine
from gradience.telemetry import TelemetryReader, lines
from gradience.telemetry.codec import KNOWN_ARRAY, convert, decode, decode_array, decode_lines, find, parse, path_of
from gradience.telemetry.lines import Block, find_faults, find_unnamed
from gradience.telemetry.reader import RunSummary, summarize, validate_log
from gradience.telemetry.redact import Redaction, below, hide_in, names_beside, names_in, redact_document, redact_text
from gradience.telemetry.rows import split_row
from gradience.telemetry.secrets import hide_secrets, holds_secret, kind_of
from gradience.telemetry.values import described, number, number_of, plain, rates, step_of

HIDDEN = "<redacted: secret key>"
SCHEMA = "gradience.vnext.telemetry/v1"
HEAD: dict[str, Any] = {"schema": SCHEMA, "ts": 1.0, "run_id": "r"}
ROW: dict[str, Any] = {**HEAD, "event": "train_step", "step": 1, "loss": 0.5}
ADVICE = "record numbers, strings, booleans, and lists or mappings of them"


def refusal(make: Any) -> str:
    with pytest.raises(RecorderError) as error:
        make()
    assert error.value.advice == ADVICE
    return str(error.value)


# --- values ------------------------------------------------------------------------------------------------------


def test_an_event_has_ten_thousand_values_in_all():
    assert len(plain(list(range(10_000)), "x")) == 10_000
    assert plain({"a": list(range(9_998)), "b": 1}, "x")["b"] == 1
    says = "holds more values than the 10000 of one event"
    assert refusal(lambda: plain(list(range(10_001)), "x")) == f"`x` {says}"
    assert refusal(lambda: plain({"a": list(range(9_999)), "b": 1}, "x")) == f"`x.a` {says}"
    assert refusal(lambda: plain({"a": [0], "b": set(range(9_998))}, "")) == f"`b` {says}"


def test_values_are_nested_64_levels_deep():
    def nested(levels: int) -> Any:
        value: Any = 1
        for _ in range(levels):
            value = [value]
        return value

    assert plain(nested(65), "x") == nested(65)
    assert refusal(lambda: plain(nested(66), "x")).endswith(" is nested more than 64 levels deep")


def test_an_integer_has_4096_bits():
    for value in (2**4096 - 1, -(2**4096 - 1)):
        assert plain(value, "x") == value
        assert number(value, "x") == value
    assert refusal(lambda: plain(2**4096, "x")) == "`x`: expected an integer of at most 4096 bits, got int"
    assert refusal(lambda: number(2**4096, "x")) == "`x`: expected a number, got int"
    assert described(2**199 - 1) == str(2**199 - 1)
    assert described(2**199) == "<a huge number>"
    assert described(2**53) == str(2**53)
    assert described(-(2**53 - 1)) == -(2**53 - 1)


def test_an_array_has_4096_values():
    assert plain(np.zeros(4096), "x") == [0.0] * 4096
    assert plain(array("d", [0.0] * 4096), "x") == [0.0] * 4096
    assert refusal(lambda: plain(np.zeros((17, 241)), "x")) == "`x`: expected at most 4096 values, got numpy.ndarray"
    says = "`x`: expected at most 4096 values, got array.array"
    assert refusal(lambda: plain(array("d", [0.0] * 4097), "x")) == says


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (1.5, 1.5),
        (math.nan, "NaN"),
        ("-Infinity", "-Infinity"),
        (np.float32(0.5), 0.5),
        (np.ones((1, 1)), 1.0),
        ([[2]], 2),
        (np.int64(3), 3),
        (np.float64("inf"), "Infinity"),
    ],
)
def test_a_number_is_one_element_of_any_kind(value, found):
    assert number(value, "x") == found
    assert type(number(value, "x")) is type(found)


@pytest.mark.parametrize(
    ("value", "got"), [(True, "bool"), ("1", "str"), ([1, 2], "list"), ([], "list"), (None, "NoneType")]
)
def test_what_is_no_number_is_refused_with_its_type(value, got):
    assert refusal(lambda: number(value, "x")) == f"`x`: expected a number, got {got}"


def test_rates_are_one_or_a_list():
    assert (rates(0.5), rates(math.inf), rates([0.5, 1]), rates(np.asarray([0.5]))) == (
        0.5,
        "Infinity",
        [0.5, 1],
        [0.5],
    )
    assert (rates("NaN"), rates(2), rates(np.float32(0.5))) == ("NaN", 2, 0.5)
    assert refusal(lambda: rates([0.5, None])) == "`lr[1]`: expected a number, got NoneType"
    assert refusal(lambda: rates(None)) == "`lr`: expected a number, got NoneType"


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("1" * 64, float("1" * 64)),
        ("1" * 65, None),
        (" 1e3 ", 1000.0),
        ("1.", 1.0),
        (".5", 0.5),
        ("-inf", "-Infinity"),
        ("NaN", "NaN"),
        ("1e", None),
        ("", None),
        (10**400, None),
        (3, 3.0),
        (False, None),
        (None, None),
        ([1], None),
    ],
)
def test_a_number_may_be_text_of_64_characters(value, found):
    assert number_of(value) == found


@pytest.mark.parametrize(
    ("value", "step"),
    [
        (2**53 - 1, 2**53 - 1),
        (2**53, None),
        (0, 0),
        (-0.0, 0),
        (-1, None),
        ("9" * 15, int("9" * 15)),
        ("9" * 16, None),
        ("1" * 17, None),
        (" 12.00 ", 12),
        ("12.5", None),
        (12.5, None),
        (math.inf, None),
        (True, None),
        (None, None),
    ],
)
def test_a_step_is_a_whole_number_that_every_reader_keeps(value, step):
    assert step_of(value) == step


# --- rows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "train", "evals", "summary"),
    [
        ({"loss": 1, "eval_runtime": 2}, {"loss": 1}, {"eval": {"runtime": 2}}, {}),
        ({"loss": 1, "x_runtime": 2}, {"loss": 1, "x_runtime": 2}, {}, {}),
        ({"x_runtime": 2, "x_f1": 1, "epoch": 3}, {}, {"x": {"runtime": 2, "f1": 1, "epoch": 3}}, {}),
        ({"_runtime": 2, "reward": 1}, {"_runtime": 2, "reward": 1}, {}, {}),
        ({"eval_f1": 1, "epoch": 2}, {}, {"eval": {"f1": 1, "epoch": 2}}, {}),
        ({"eval_a_loss": 1, "eval_a_f1": 2}, {}, {"a": {"loss": 1, "f1": 2}}, {}),
        ({"eval_a_loss": 1, "eval_b_f1": 2}, {}, {"eval": {"a_loss": 1, "b_f1": 2}}, {}),
        ({"eval_a_loss": 1, "eval_b_loss": 2}, {}, {"eval": {"a_loss": 1, "b_loss": 2}}, {}),
        ({"test_f1": 1}, {"test_f1": 1}, {}, {}),
        ({"test_acc": 1, "test_f1": 2}, {}, {"test": {"acc": 1, "f1": 2}}, {}),
        ({"val_loss": 1, "eval_loss": 2}, {}, {"val": {"loss": 1}, "eval": {"loss": 2}}, {}),
        (
            {"eval_a_runtime": 1, "eval_b_runtime": 2, "epoch": 3, "kl": 4},
            {"kl": 4},
            {"a": {"runtime": 1, "epoch": 3}, "b": {"runtime": 2, "epoch": 3}},
            {},
        ),
        ({"eval_a_runtime": 1, "eval_a_b_runtime": 2}, {}, {"a": {"runtime": 1, "b_runtime": 2}}, {}),
        (
            {"eval_a_runtime": 1, "eval_a_f1": 2, "eval_loss": 3},
            {},
            {"a": {"runtime": 1, "f1": 2}, "eval": {"loss": 3}},
            {},
        ),
        ({"total_flos": 1, "kl": 2}, {}, {}, {"total_flos": 1, "kl": 2}),
        ({"total_flos": 1, "train_loss": 3, "loss": 2}, {"loss": 2}, {}, {"total_flos": 1, "train_loss": 3}),
        ({"total_flos": 1, "loss": 2, "epoch": 3}, {"loss": 2, "epoch": 3}, {}, {"total_flos": 1, "epoch": 3}),
        ({"total_flos": 1, "eval_loss": 2}, {}, {"eval": {"loss": 2}}, {"total_flos": 1}),
        ({"predict_ppl": 1, "lr": 2, "epoch": 3}, {"lr": 2, "epoch": 3}, {"predict": {"ppl": 1}}, {}),
        ({"eval_loss": 1, "loss": 3, "f1": 2}, {"loss": 3, "f1": 2}, {"eval": {"loss": 1}}, {}),
        ({"eval_loss": 1, "f1": 2}, {}, {"eval": {"loss": 1, "f1": 2}}, {}),
    ],
)
def test_a_row_is_taken_apart_value_by_value(row, train, evals, summary):
    assert split_row(row) == (train, evals, summary)


# --- lines -------------------------------------------------------------------------------------------------------


REAL = 'a number, "NaN", "Infinity" or "-Infinity"'


@pytest.mark.parametrize(
    ("change", "faults"),
    [
        ({}, []),
        ({"step": -1}, [("Expected `int` >= 0", "$.step", "int >= 0", "-1")]),
        ({"step": "x"}, [("Expected `int | null`, got `str`", "$.step", "int | null", "str")]),
        ({"loss": "x"}, [("Invalid enum value 'x'", "$.loss", REAL, "'x'")]),
        ({"run_id": ""}, [("Expected `str` of length >= 1", "$.run_id", "str of length >= 1", "''")]),
        (
            {"step": 1.5, "loss": [], "run_id": 3},
            [
                ("Expected `str`, got `int`", "$.run_id", "str", "int"),
                ("Expected `int | null`, got `float`", "$.step", "int | null", "float"),
                ("Expected `float | str | null`, got `array`", "$.loss", "float | str | null", "array"),
            ],
        ),
        ({"lr": [0.1, "y", {}]}, None),
    ],
)
def test_every_fault_of_a_line_is_named_with_its_place(change, faults):
    found = find_faults({**ROW, **change})
    if faults is None:
        assert [one.path for one in found] == ["$.lr[1]", "$.lr[2]"] or [one.path for one in found] == ["$.lr[...]"]
        return
    assert sorted((one.reason, one.path, one.expected, one.got) for one in found) == sorted(faults)


def test_as_many_faults_are_named_as_asked_for():
    bad = {**ROW, "step": -1, "loss": "x", "lr": "y", "grad_norm": "z"}
    assert [len(find_faults(dict(bad), most)) for most in (1, 2, 3, 4, 9)] == [1, 2, 3, 4, 4]
    missing = {key: value for key, value in ROW.items() if key not in {"run_id", "ts"}}
    assert sorted((one.path, one.expected, one.got) for one in find_faults(missing)) == [
        ("$.run_id", "a value (required)", "nothing"),
        ("$.ts", "a value (required)", "nothing"),
    ]
    long = {**ROW, "loss": "x" * 500}
    (one,) = find_faults(long)
    assert one.got == repr("x" * 500)[: len(one.got)]
    assert 20 <= len(one.got) <= 200


def test_bare_numbers_are_named_one_by_one_up_to_the_most():
    line = b'{"a": NaN, "b": [1, -Infinity], "c": {"d": Infinity}}'
    assert [(one.path, one.expected, one.got) for one in find_unnamed(line)] == [
        ("$.a", '"NaN"', "NaN without quotes"),
        ("$.b[1]", '"-Infinity"', "-Infinity without quotes"),
        ("$.c.d", '"Infinity"', "Infinity without quotes"),
    ]
    assert [one.path for one in find_unnamed(line, 2)] == ["$.a", "$.b[1]"]
    assert {one.reason for one in find_unnamed(line)} == {"Bare NaN and Infinity are not JSON"}


def test_a_path_names_a_place():
    document = {"a": [{"b": 1}, {"b": 2}], "c": 3}
    assert path_of("Expected `int` - at `$.a[0].b`") == "$.a[0].b"
    assert path_of("Expected `int`") == "$"
    place = find(document, "$.a[1].b")
    assert (place.container, place.key, place.every, place.value) == ({"b": 2}, "b", False, 2)
    assert find(document, "$.a[1]").key == 1
    assert find(document, "$.a[...]").every
    assert (find(document, "$"), find(document, "$.x.y"), find(document, "$.a[9].b"), find(document, "$.c.d.e")) == (
        None,
    ) * 4


@pytest.mark.parametrize(
    ("value", "step"), [(4.0, 4), (float(2**53 - 2), 2**53 - 2), (float(2**53), None), (4.5, None)]
)
def test_a_whole_float_is_an_integer_where_one_is_asked_for(value, step):
    line = json.dumps({**ROW, "step": value}).encode()
    if step is None:
        with pytest.raises(SchemaError):
            decode(line)
    else:
        assert decode(line).step == step


def test_another_version_is_named_by_its_first_80_characters():
    with pytest.raises(SchemaError) as error:
        convert({**ROW, "schema": "gradience.vnext.telemetry/" + "9" * 90})
    shown = "gradience.vnext.telemetry/" + "9" * 54
    assert str(error.value) == f"this log is {shown!r}, this reader knows {SCHEMA!r}"
    event = decode(json.dumps({**HEAD, "event": "later", "step": 3, "x": 1}).encode())
    assert event == UnknownEvent(event="later", ts=1.0, run_id="r", step=3, payload={"x": 1})


def test_lines_decoded_at_once_are_as_many_as_there_are():
    row = json.dumps(ROW).encode()
    assert len(decode_array(row + b"\n" + row + b"\n", 2, KNOWN_ARRAY)) == 2
    assert decode_array(row + b"," + row + b"\n", 1, KNOWN_ARRAY) is None
    assert decode_lines(row + b"," + row + b"\n") is None
    assert len(decode_lines(row + b"\n" + row)) == 2
    for bad in (b'{"a":"\xff"}\n', b"{}\n"):
        assert decode_array(bad, 1, KNOWN_ARRAY) is None
        assert decode_lines(bad) is None
    assert parse(b'{"a": 1e999, "b": -Infinity}') == ({"a": "Infinity", "b": "-Infinity"}, True)
    assert parse(b'{"a": 1}') == ({"a": 1}, False)


# --- whole logs --------------------------------------------------------------------------------------------------


def drawn_row(rng: random.Random, step: int) -> dict[str, Any]:
    """A row with some of its columns, now and then odd ones."""
    chances = {"lr": 0.9, "grad_norm": 0.8, "epoch": 0.7, "kl": 0.6, "other": 0.3}
    row: dict[str, Any] = {"event": "train_step", "step": step, "loss": rng.random()}
    row |= {name: rng.random() for name, chance in chances.items() if rng.random() < chance}
    odd = [{"grad_norm": "NaN"}, {"lr": [0.5, 0.25]}, {"kl": rng.choice(["x", None, "0.25"])}, {"loss": None}]
    return row | (rng.choice(odd) if rng.random() < 0.07 else {})


class Drawn:
    """A log as a seed draws it: rows, evaluations, resumes, sessions, gaps, copies and foreign events."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)  # noqa: S311  # a test repeats itself
        self.lines: list[dict[str, Any]] = []
        self.step = self.seq = 0
        self.session: str | None = "s0"
        self.run = "a"
        self.add(event="run_start", step=None, config={})
        rare = [self.evaluate, self.measure, self.warn, self.foreign, self.begin_again, self.lose, self.change]
        for _ in range(self.rng.choice([120, 200])):
            moves = [1, 1, 1, 1, 1, 0, 3, -2] if self.rng.random() < 0.3 else [1]
            self.step = max(self.step + self.rng.choice(moves), 0)
            self.add(**drawn_row(self.rng, self.step))
            if self.rng.random() < 0.1:
                self.rng.choice(rare)()
        self.add(event="run_end", step=None, status="ok")

    def add(self, **fields: Any) -> None:
        own = {} if self.session is None else {"session": self.session, "seq": self.seq}
        self.lines.append({"schema": SCHEMA, "ts": 100.0 + len(self.lines), "run_id": self.run, **own, **fields})
        self.seq += 1

    def evaluate(self) -> None:
        metrics = {"loss": self.rng.random(), "f1": 0.5}
        self.add(event="eval", step=self.step, split=self.rng.choice("xy"), metrics=metrics)

    def measure(self) -> None:
        kind = self.rng.choice(["spectral", "guard"])
        self.add(event="metrics", step=self.step, kind=kind, metrics={"update_norm": 1.0})

    def warn(self) -> None:
        self.add(event="alert", step=self.step, severity="info", code="c", message="m")

    def foreign(self) -> None:
        self.add(event="later", step=self.step)

    def begin_again(self) -> None:
        self.session, self.seq = self.rng.choice(["s0", "s1", "s2", None]), self.rng.choice([0, self.seq])
        back = self.rng.choice([None, max(self.step - 7, 0)])
        self.add(event="run_start", step=None, config={}, resumed_from_step=back)
        self.step = self.step if back is None else back

    def lose(self) -> None:
        self.seq = max(self.seq + self.rng.choice([-1, 1, 5]), 0)

    def change(self) -> None:
        self.run = self.rng.choice("ab")


def state(summary: RunSummary) -> dict[str, Any]:
    """All of a summary, in a form that compares: NaN equals itself, extras of rows left out."""

    def of(run: Any) -> dict[str, Any]:
        fields = (
            "run_id",
            "superseded",
            "first_ts",
            "last_ts",
            "last_step",
            "last_epoch",
            "lost_norms",
            "record",
            "end",
        )
        held = {name: repr(getattr(run, name)) for name in fields}
        for name in ("steps", "losses", "rates", "grad_norms"):
            held[name] = repr(list(getattr(run, name)))
        held["columns"] = {k: (list(c.steps), list(c.values)) for k, c in sorted(run.columns.items())}
        held["evals"] = repr(run.evals)
        held["others"] = repr((run.latest_metrics, run.guarded, run.alerts))
        return held

    return {
        "runs": [of(run) for run in summary.runs.values()],
        "counts": dict(summary.counts),
        "unknown": summary.unknown,
    }


@pytest.mark.parametrize("chunk", [300, 900, 4000, 1 << 16])
@pytest.mark.parametrize("seed", range(12))
def test_a_log_read_by_the_block_is_the_log_read_event_by_event(seed, chunk, tmp_path, monkeypatch):
    log = tmp_path / "run.jsonl"
    log.write_text("".join(f"{json.dumps(line)}\n" for line in Drawn(seed).lines), encoding="utf-8")
    slow = RunSummary(log, frozenset({"kl"}))
    for event in TelemetryReader(log).read():
        assert not isinstance(event, BadLine)
        if isinstance(event, UnknownEvent):
            slow.unknown[event.event] += 1
        else:
            slow.take(event)
    monkeypatch.setattr(lines, "_CHUNK", chunk)
    fast = summarize(log, {"kl"})
    assert state(fast) == state(slow)
    assert fast.lines == len(log.read_text().splitlines())


def test_sessions_gaps_copies_and_returns_are_counted_by_hand(tmp_path):
    def row(step: int, session: str | None, seq: int | None, **more: Any) -> dict[str, Any]:
        own = {key: value for key, value in (("session", session), ("seq", seq)) if value is not None}
        return {**ROW, **own, "step": step, **more}

    rows = [
        row(1, "a", 0, lr=0.5),
        row(2, "a", 3),  # two are missing
        row(2, "a", 4),  # the step again
        row(1, "a", 4),  # a copy of a line, and a step that is past
        row(5, "b", 7),
        row(6, "a", 5),  # back to a session
        row(7, None, None),
        row(8, "b", 9, grad_norm="NaN", lr=[0.25, 1.0]),  # back again, one missing
        row(9, "c", None, lr=[]),
    ]
    log = tmp_path / "run.jsonl"
    log.write_text("".join(f"{json.dumps(line)}\n" for line in rows))
    run = summarize(log).last
    record = run.record
    assert (record.missing, record.duplicates, record.out_of_order, record.interleaved) == (3, 2, 1, 2)
    assert record.sessions == {"a", "b", "c"}
    assert run.lost_norms == {8}
    assert list(run.steps) == [1, 2, 2, 1, 5, 6, 7, 8, 9]
    assert [None if math.isnan(rate) else rate for rate in run.rates] == [0.5, *[None] * 6, 0.25, None]
    assert run.last_step == 9


def test_a_block_with_few_changes_is_parted_and_one_with_many_is_not():
    def parts(*lines: bytes) -> list[tuple[int, int, int, bytes]]:
        data = b"".join(line + b"\n" for line in lines)
        return [(p.number, p.offset, p.count, p.data) for p in Block(10, 100, data, len(lines)).parts()]

    row, other = b'"train_step"', b"x"
    assert parts(*[row] * 7, other) == [(10, 100, 7, (row + b"\n") * 7), (17, 191, 1, b"x\n")]
    assert len(parts(*[row] * 6, other)) == 1
    assert len(parts(*[row] * 8)) == 1
    assert [p[:3] for p in parts(*[row] * 6, other, *[row] * 5)] == [(10, 100, 6), (16, 178, 1), (17, 180, 5)]
    torn = Block(0, 0, (row + b"\n") * 7 + other, 8).parts()
    assert [(p.number, p.count, p.data[-3:]) for p in torn] == [(0, 7, b'p"\n'), (7, 1, b"x")]


def test_lines_of_a_block_are_numbered_as_in_the_file():
    block = Block(4, 50, b"a\n\n bb\nc", 4)
    found = [(line.number, line.offset, line.data, line.length, line.ended) for line in block.lines()]
    assert found == [(5, 50, b"a", 1, True), (7, 53, b" bb", 3, True), (8, 57, b"c", 1, False)]
    first = next(Block(0, 0, b"\xef\xbb\xbfa\n", 1).lines())
    assert (first.data, first.length, first.offset) == (b"a", 4, 0)
    assert next(Block(1, 9, b"\xef\xbb\xbfa\n", 1).lines()).data == b"\xef\xbb\xbfa"


def test_a_report_counts_what_it_does_not_list(tmp_path):
    log = tmp_path / "run.jsonl"
    unknown = [json.dumps({**HEAD, "event": f"e{n}", "step": None}) for n in range(1001)]
    log.write_text("\n".join([json.dumps(ROW), "bad", '{"a":1}', *unknown, unknown[0], '{"torn']))
    report = validate_log(log, max_issues=1)
    assert (report.lines, len(report.issues), report.valid) == (1006, 1, False)
    assert report.issues_total == len(validate_log(log).issues) > 3
    assert report.unknown_events["..."] == 1
    assert report.unknown_events["e0"] == 2
    assert len(report.unknown_events) == 1001
    assert report.events == {"train_step": 1}
    assert validate_log(log).notes == [
        f"1002 events of a name unknown to {SCHEMA} here: legal, not checked further",
        "a torn tail is what a killed process leaves: the events around it are whole",
    ]
    log.write_text("\n \n")
    empty = validate_log(log)
    assert (empty.valid, empty.lines, empty.notes) == (False, 0, ["the file holds no line that is not blank"])


# --- what is hidden ----------------------------------------------------------------------------------------------

PLACES = [  # the secret between [[ and ]]
    "password: |\n  [[tiger\n  lion]]\nlr: 1",
    "password:\n- [[tiger\n- lion]]\nlr: 1",
    "password: >-\n [[tiger]]\n",
    "tokens:\n- a\n",
    'api_key = "[[ti ger]]" # x',
    "api_key='[[tiger]]' x",
    'api_key="[[tiger]]',
    '{"password": "[[tiger]]", "lr": 1}',
    '{"password": null}',
    '{"password": [[["a", "b"]]], "x": 1}',
    '{"api_key": [[{"a": [1, 2]}]], "x": 1}',
    "password=[[(a b)]] c",
    "password=[[[a]]",
    "https://x.org/?password=[[tiger]]&x=1#f",
    'https://x.org/?a=1&password=[[tiger]]"',
    "redirect=https%3A%2F%2Fx.org%3Fpassword%3D[[tiger]]%26x%3D1",
    "Authorization: [[Bearer]]",
    "Authorization: [[secret words here]]\nNext: x",
    '"Authorization: [[secret words]]" tail',
    "curl -H 'X-Api-Key: [[abc def]]' url",
    "x-auth: [[abc def]]\nb",
    "x-frame: abc def\nb",
    "password: [[tiger1]], lr: 2",
    "password=[[tiger]]).",
    "password=--lr",
    "password=<redacted: x> a",
    "password is tiger",
    "the password -> [[tiger9]] then",
    "-password [[tiger]] --x",
    "--token 1234567",
    "--token [[12345678]]",
    "ENV API_KEY [[a1b2c3d4e5f6g7h8]] x",
    "ENV API_KEY a1b2c3d4e5f6g7h x",
    '("api-key", "[[abc12345]]")',
    '("api-key", "abc1234")',
    '("api-key", "abcdefgh")',
    '("key", "abc12345")',
    "(api-key, abc12345)",
    '["--password", "[[tiger]]"]',
    "password:\nuser: joe",
    "password:\n  [[tiger1]]",
    "name: db\npassword: [[tiger]]\nlr: 1",
    "a password: tiger\nlr: 1",
    "password: [[tiger]]\r\nlr: 1",
    "- password: [[tiger]]\n",
    "<password>[[tiger]]</password>",
    "<password>tig</password>",
    "<user>tiger</user>",
    "name: API_KEY, value: [[tiger]]",
    "name=lr value=tiger",
    "password\n  Input should be valid [type=x, input_value='[[tiger]]', input_type=str]",
    "lr\n  Input should be [input_value=tiger]",
    "curl -u joe:[[tiger]] https://x",
    "sshpass -p [[tiger]] ssh x",
    "docker login -u joe -p [[tiger]] x",
    "mysql -u joe -p[[tiger]] db",
    "wandb login [[abcdefghij0123456789]]",
    "wandb login abcdefghij012345678",
    "a" * 300 + " password=[[tiger]]",
    "conn_string=[[tiger]]",
    "key=[[a1b2c3d4e5f6g7h8]]",
    "key=a1b2c3d4e5f6g7h",
    "hf_token: null",
    "token: <pad>",
    "a password=[[x]], a secret=[[y]] and a token=[[12345678]]",
]


@pytest.mark.parametrize("marked", PLACES)
def test_a_secret_is_hidden_to_its_last_character_and_nothing_beside_it(marked):
    text = re.sub(r"\[\[(.*?)\]\](?!\])", r"\1", marked, flags=re.DOTALL)
    shown = re.sub(r"\[\[(.*?)\]\](?!\])", HIDDEN, marked, flags=re.DOTALL)
    assert hide_secrets(text) == shown


@pytest.mark.parametrize(
    ("before", "secret", "after"),
    [
        ("https://", "joe:p:w", "@x.org/a@b"),
        ("https://a/b:c@x.org", None, ""),
        ("https://host:80/x@y", None, ""),
        ("https://x.org/aB3/aB3/aB3/aB3/aB3/@hub.com/x", None, ""),
        ("https://", "x/" + "aB3dE5gH7jK9mN1pQ2" * 2, "@hub.com"),
        ("https://x/" + "aB3dE5gH7jK9mN1pQ2" * 2 + "@hub", None, ""),
        ("https://x/aB3dE5gH7jK9m@hub.com", None, ""),
        ("git+ssh://", "abcdefghijklmnop", "@x.org"),
        ("ssh://u1@x", None, ""),
        ("https://<redacted: hub token>@x.org", None, ""),
    ],
)
def test_the_user_of_an_address_is_hidden_where_it_is_a_password_or_a_token(before, secret, after):
    text = f"{before}{secret or ''}{after}"
    assert hide_secrets(text) == (f"{before}<redacted: url password>{after}" if secret else text)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("hubToken", "token"),
        ("pad_token", ""),
        ("api_tokens", "token"),
        ("num_tokens", ""),
        ("pat", "key"),
        ("api_keys", "secret"),
        ("keys", ""),
        ("key", "key"),
        ("sort_key", "key"),
        ("forward_pass", ""),
        ("db_pass", "secret"),
        ("password2", "secret"),
        ("password_v2", "secret"),
        ("password_old_2", "secret"),
        ("db_connstr", "secret"),
        ("conn_str", "secret"),
        ("conn_id", ""),
        ("v2", ""),
        ("", ""),
        ("__", ""),
        ("2", ""),
        ("url", ""),
    ],
)
def test_the_kind_of_a_name(name, kind):
    assert kind_of(name) == kind


def test_a_long_name_is_judged_by_its_last_128_characters_and_a_long_text_by_its_first_65_kib():
    assert holds_secret("x" * 500 + "_password", "tiger")
    assert not holds_secret("password_" + "x" * 120, "tiger")
    assert holds_secret("_password" + "", "x" * 500)
    most = 65 * 1024
    assert hide_secrets("x" * most) == "x" * most
    assert hide_secrets("x" * (most + 1)) == "x" * most + " <1 more characters>"
    assert hide_secrets("x" * most + "y" * 9) == "x" * most + " <9 more characters>"
    assert hide_secrets("hf_" + "aB3" * 12, "k" * 300) == "<redacted: hub token>"


def test_values_are_hidden_by_the_names_around_them():
    secret = {"api_key": ["a", {"b": 1, "c": "d", 5: "e"}]}
    assert hide_in(secret) == {"api_key": [HIDDEN, {"b": 1, "c": HIDDEN, 5: HIDDEN}]}
    harmless = {"lr": [1, 2.5, None, "x"], "a": ("b", True)}
    assert hide_in(harmless) is harmless
    assert hide_in({"password=tiger": 1}) == {f"password={HIDDEN}": 1}
    assert hide_in(["--lr", "a", "-token", "b1b1b1b1"]) == ["--lr", "a", "-token", HIDDEN]
    assert hide_in(["api_key", "b"]) == ["api_key", HIDDEN]
    assert hide_in(["hf_token", "abcdef"]) == ["hf_token", "abcdef"]
    assert hide_in(["hf_token", "abcde12345"]) == ["hf_token", HIDDEN]
    assert hide_in(["k" * 129, "x"]) == ["k" * 129, "x"]
    assert names_beside(["--api-key", "v", "x"], "k") == ["k", "api-key", "k"]
    assert names_beside(["api_key", "v", "x"], "k") == ["k", "k", "k"]
    assert names_beside(["v", "--api-key"], "k") == ["k", "k"]
    assert names_in({"option": "password", "default": 1, "help": 2}) == ["option", "password", "help"]
    assert names_in({"name": 3, "value": 1}) == ["name", "value"]
    assert [below(*pair) for pair in (("hub_token", "value"), ("hub_token", "api_key"), ("a_key", "x"))] == [
        "hub_token",
        "api_key",
        "x",
    ]
    assert below("x" * 200 + "wandb", "key") == "key"
    assert below("my_WandB", "key") == "my_WandB.key"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/mnt/models/llama", "llama"),
        ("/mnt/models/llama/", "llama"),
        ("~/x/y", "y"),
        ("./x", "x"),
        ("C:\\a\\b", "b"),
        ("\\\\host\\share\\f", "f"),
        ("/", "<path>"),
        ("/a/b is a sentence", "/a/b is a sentence"),
        ("see /home/joe/run.log now", "see run.log now"),
        ("see /opt/joe/run.log now", "see /opt/joe/run.log now"),
        ("see C:\\Users\\joe\\run.log now", "see run.log now"),
        ("x" * 256, "x" * 256),
        ("x" * 257, "<redacted: text of 257 characters>"),
    ],
)
def test_a_path_is_shown_as_its_last_part_and_a_long_text_as_its_length(text, shown):
    assert redact_text(text) == shown
    if len(text) > 256:
        assert redact_text(text, Redaction(allow_text=True)) == text
        assert redact_text(text, Redaction(max_str_len=257)) == text


def test_a_key_is_cut_at_128_characters_and_keeps_a_sum_of_the_rest():
    def key(name: str) -> str:
        return next(iter(redact_document({name: 1}, Redaction())))

    assert key("a" * 128) == "a" * 128
    for length in (129, 1024, 1025, 2000):
        cut = key("a" * length)
        assert re.fullmatch(r"a{119}~[0-9a-f]{8}", cut)
        assert len(cut) == 128
    assert key("a" * 129) != key("a" * 130)
    assert key("hf_" + "aB3" * 12) == "<redacted: hub token>"
    kept = {"schema": "/a/b", "run_id": "/home/joe/x", "step": 1, "note": "/home/joe/x"}
    assert redact_document(kept, Redaction()) == {**kept, "note": "x"}


def test_a_row_keeps_its_types_through_the_codec():
    row = decode(json.dumps({**ROW, "lr": [0.5, "NaN"], "x": {"y": 1}}).encode())
    assert isinstance(row, TrainStep)
    assert (row.lr, row.extras) == ([0.5, "NaN"], {"x": {"y": 1}})


def test_logs_have_paths(tmp_path):
    assert isinstance(TelemetryReader(_one(tmp_path)).path, Path)


def _one(folder: Path) -> Path:
    (folder / "run.jsonl").write_text(json.dumps(ROW))
    return folder / "run.jsonl"

"""Values, rows and lines at their limits, and what is said beyond them."""

from __future__ import annotations

import json
import math
from array import array
from collections import deque
from typing import Any

import numpy as np
import pytest
from tables import every
from wire import HEAD, ROW, SCHEMA, refusal

from gradience.errors import RecorderError, SchemaError
from gradience.schema.events import Recommendation, RecommendationItem, TrainStep, UnknownEvent
from gradience.schema.flat import expectation
from gradience.schema.values import described, number, number_of, plain, rates, step_of
from gradience.telemetry import TelemetryWriter
from gradience.telemetry.codec import convert, decode, decode_block, decode_lines, encode, encode_row, find, parse
from gradience.telemetry.lines import find_faults, find_unnamed, read_blocks
from gradience.telemetry.rows import split_row

# --- values ------------------------------------------------------------------------------------------------------


def test_an_event_has_ten_thousand_values_in_all():
    assert len(plain(list(range(10_000)), "x")) == 10_000
    assert plain({"a": list(range(9_998)), "b": 1}, "x")["b"] == 1
    assert plain({"b", 1, "10", 9}, "x") == described({"b", 1, "10", 9}) == [1, "10", 9, "b"]  # by their texts
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
    assert (plain(np.ones(1), "x"), plain(np.ones((1, 1)), "x"), plain([2.0], "x")) == ([1.0], [[1.0]], [2.0])
    assert (described(np.ones(1)), described(np.ones((1, 1))), described([2.0])) == (1.0, 1.0, [2.0])
    assert refusal(lambda: plain(np.zeros((17, 241)), "x")) == "`x`: expected at most 4096 values, got numpy.ndarray"
    says = "`x`: expected at most 4096 values, got array.array"
    assert refusal(lambda: plain(array("d", [0.0] * 4097), "x")) == says


@every(
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


@every(("value", "got"), [(True, "bool"), ("1", "str"), ([1, 2], "list"), ([], "list"), (None, "NoneType")])
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
    assert (rates(deque([0.5, 1])), rates(range(2)), rates((0,)), rates(0)) == ([0.5, 1], [0, 1], [0], 0)
    assert refusal(lambda: rates([0.5, None])) == "`lr[1]`: expected a number, got NoneType"
    assert refusal(lambda: rates(None)) == "`lr`: expected a number, got NoneType"


@every(
    ("value", "found"),
    [
        ("1" * 64, float("1" * 64)),
        ("1" * 65, None),
        (" 1e3 ", 1000.0),
        ("\x1e.5\x1f", 0.5),
        ("1.", 1.0),
        (".5", 0.5),
        ("-inf", "-Infinity"),
        ("NaN", "NaN"),
        ("1e", None),
        ("", None),
        ("4 apples", None),
        ("1_0", None),
        ("+1.", 1.0),
        (10**400, None),
        (3, 3.0),
        (False, None),
        (None, None),
        ([1], None),
    ],
)
def test_a_number_may_be_text_of_64_characters(value, found):
    assert number_of(value) == found


@every(
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
        ("x", None),
        ("-3", None),
        ("1e3", None),
        (12.5, None),
        (math.inf, None),
        (True, None),
        (None, None),
    ],
)
def test_a_step_is_a_whole_number_that_every_reader_keeps(value, step):
    assert step_of(value) == step


# --- rows --------------------------------------------------------------------------------------------------------


@every(
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
        ({"eval_a_loss": 1, "eval_a_b_loss": 2}, {}, {"eval": {"a_loss": 1, "a_b_loss": 2}}, {}),
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
        (
            {"eval_a_loss": 1, "eval_a_runtime": 2, "test_loss": 3, "epoch": 4, "step": 5},
            {"step": 5},
            {"a": {"loss": 1, "runtime": 2, "epoch": 4}, "test": {"loss": 3, "epoch": 4}},
            {},
        ),
        ({"total_flos": 1, "kl": 2}, {}, {}, {"total_flos": 1, "kl": 2}),
        ({"total_flos": 1, "train_loss": 3, "loss": 2}, {"loss": 2}, {}, {"total_flos": 1, "train_loss": 3}),
        ({"total_flos": 1, "loss": 2, "epoch": 3}, {"loss": 2, "epoch": 3}, {}, {"total_flos": 1, "epoch": 3}),
        ({"total_flos": 1, "eval_loss": 2}, {}, {"eval": {"loss": 2}}, {"total_flos": 1}),
        ({"total_flos": 0, "loss": 0, "epoch": 0}, {"loss": 0, "epoch": 0}, {}, {"total_flos": 0, "epoch": 0}),
        ({"total_flos": 1, "epoch": None, "lr": 0}, {"lr": 0, "epoch": None}, {}, {"total_flos": 1, "epoch": None}),
        ({"eval_loss": 0, "epoch": 0}, {}, {"eval": {"loss": 0, "epoch": 0}}, {}),
        ({"eval_runtime": 0, "loss": 0}, {"loss": 0}, {"eval": {"runtime": 0}}, {}),
        (
            {"eval_a_runtime": 0, "eval_b_runtime": 0, "epoch": 0},
            {},
            {"a": {"runtime": 0, "epoch": 0}, "b": {"runtime": 0, "epoch": 0}},
            {},
        ),
        ({"predict_ppl": 1, "lr": 2, "epoch": 3}, {"lr": 2, "epoch": 3}, {"predict": {"ppl": 1}}, {}),
        ({"eval_loss": 1, "loss": 3, "f1": 2}, {"loss": 3, "f1": 2}, {"eval": {"loss": 1}}, {}),
        ({"eval_loss": 1, "f1": 2}, {}, {"eval": {"loss": 1, "f1": 2}}, {}),
        ({"eval_loss": 1, "grad_norm": 3, "f1": 2}, {"grad_norm": 3, "f1": 2}, {"eval": {"loss": 1}}, {}),
        ({"eval_loss": 1, "learning_rate": 3, "f1": 2}, {"learning_rate": 3, "f1": 2}, {"eval": {"loss": 1}}, {}),
    ],
)
def test_a_row_is_taken_apart_value_by_value(row, train, evals, summary):
    assert split_row(row) == (train, evals, summary)


# --- lines -------------------------------------------------------------------------------------------------------


REAL = 'a number, "NaN", "Infinity" or "-Infinity"'


@every(
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
    ],
)
def test_every_fault_of_a_line_is_named_with_its_place(change, faults):
    found = find_faults({**ROW, **change})
    assert sorted((one.reason, one.path, one.expected, one.got) for one in found) == sorted(faults)


def test_bare_numbers_are_named_one_by_one_up_to_the_most():
    line = b'{"a": NaN, "b": [1, -Infinity], "c": {"d": Infinity}}'
    assert [(one.path, one.expected, one.got) for one in find_unnamed(line)] == [
        ("$.a", '"NaN"', "NaN without quotes"),
        ("$.b[1]", '"-Infinity"', "-Infinity without quotes"),
        ("$.c.d", '"Infinity"', "Infinity without quotes"),
    ]
    assert [one.path for one in find_unnamed(line, 2)] == ["$.a", "$.b[1]"]
    assert len(find_unnamed(b'{"a": [%b]}' % b",".join([b"NaN"] * 100))) == 64
    assert {one.reason for one in find_unnamed(line)} == {"Bare NaN and Infinity are not JSON"}


def test_a_path_names_a_place():
    document = {"a": [{"b": 1}, {"b": 2}], "c": 3}
    assert expectation("Expected `int` - at `$.a[0].b`").path == "$.a[0].b"
    assert expectation("Expected `int`").path == "$"
    place = find(document, "$.a[1].b")
    assert (place.container, place.key, place.every, place.value) == ({"b": 2}, "b", False, 2)
    assert find(document, "$.a[1]") == (document["a"], 1, False)
    assert find(document, "$.a[...]").every
    assert (find(document, "$"), find(document, "$.x.y"), find(document, "$.a[9].b"), find(document, "$.c.d.e")) == (
        None,
    ) * 4


def test_what_is_unknown_on_any_level_is_kept_on_its_level():
    def item(**extras: Any) -> RecommendationItem:
        return RecommendationItem(severity="info", action="a", message="m", extras=extras)

    for extras in (({"x": 1}, {}), ({}, {"x": 0}), ({}, {})):
        event = Recommendation(**HEAD, step=1, recommendations=[item(**extra) for extra in extras])
        line = encode(event)
        assert json.loads(line)["recommendations"] == [
            {"severity": "info", "action": "a", "message": "m", **extra} for extra in extras
        ]
        assert decode(line) == event
    config = {
        "x": 1,
        "y": 2,
        "extras": {"x": 3, "z": 4},
        "lora": {"r": 8, "q": None},
        "optimizer": {"extras": {"a": 0}},
    }
    start = decode(json.dumps({**HEAD, "event": "run_start", "step": None, "config": config}).encode())
    assert start.config.extras == {"x": 1, "y": 2, "z": 4}  # of two of a name the one beside counts
    assert (start.config.lora.extras, start.config.optimizer.extras) == ({"q": None}, {"a": 0})
    lora = {"rank_pattern": {"q": 4.0, "k": 8, "v": 0.0}, "alpha_pattern": {"q": 4.5, "k": "NaN"}}
    start = decode(json.dumps({**HEAD, "event": "run_start", "step": None, "config": {"lora": lora}}).encode())
    assert repr(start.config.lora.rank_pattern) == "{'q': 4, 'k': 8, 'v': 0}"
    assert start.config.lora.alpha_pattern == lora["alpha_pattern"]
    for bad in ({"extras": 5, "x": 1}, 5, None, {"lora": {"rank_pattern": {"q": 4.0, "k": 8.5}}}):
        with pytest.raises(SchemaError, match=r"\$\.config"):
            decode(json.dumps({**HEAD, "event": "run_start", "step": None, "config": bad}).encode())
    start = decode(json.dumps({**HEAD, "event": "run_start", "step": None, "config": {}, "own": 0}).encode())
    assert (start.extras, start.config.extras) == ({"own": 0}, {})


@every(("value", "step"), [(4.0, 4), (float(2**53 - 2), 2**53 - 2), (float(2**53), None), (4.5, None)])
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
    means = "another major version means other fields"
    assert error.value.advice == f"{means}: read it with a release of gradience that writes it"
    event = decode(json.dumps({**HEAD, "event": "later", "step": 3, "x": 1}).encode())
    assert event == UnknownEvent(event="later", ts=1.0, run_id="r", step=3, payload={"x": 1})
    for step in (0, None, 5):
        event = UnknownEvent(event="later", ts=0.0, run_id="r", step=step, payload={"x": 0, "y": None})
        assert decode(encode(event)) == event
    for name in (["later"], {}, None, 5):
        with pytest.raises(SchemaError, match=r"\$\.event"):
            decode(json.dumps({**HEAD, "event": name, "step": 3}).encode())


def test_lines_decoded_at_once_are_as_many_as_there_are():
    row = json.dumps(ROW).encode()
    assert len(decode_block(row + b"\n" + row + b"\n", 2)) == 2
    assert decode_block(row + b"," + row + b"\n", 1) is None
    assert decode_lines(row + b"," + row + b"\n") is None
    assert len(decode_lines(row + b"\n" + row)) == 2
    skipped = row[:-1] + b', "note": "\xff"}\n'  # not UTF-8, and in a value that is not decoded
    for bad in (b'{"a":"\xff"}\n', b"{}\n", skipped):
        assert decode_block(bad, 1) is None
        assert decode_lines(bad) is None
    assert parse(b'{"a": 1e999, "b": -Infinity}') == ({"a": "Infinity", "b": "-Infinity"}, True)
    assert parse(b'{"a": 1}') == ({"a": 1}, False)


@every(
    ("line", "message"),
    [
        (b'{"a": NaN, "b": "\xff"}', "not UTF-8: invalid start byte at byte 17"),
        (b'{"a": "\xff"}', "not UTF-8: invalid start byte at byte 7"),
        (b'{"a": NaN', "not JSON: JSON is malformed: invalid character (byte 6)"),
        (b"[NaN]", "Expected `object`, got `array`"),
        (b'{"a": NaN, "b": "\\ud800"}', "not Unicode: half of a surrogate pair in a string"),
    ],
)
def test_a_line_that_is_no_object_of_json_says_why_and_where(line, message):
    with pytest.raises(SchemaError) as error:
        parse(line)
    assert str(error.value).startswith(message)


def test_extras_stand_beside_the_known_keys_on_the_wire():
    row = TrainStep(schema=SCHEMA, ts=1.0, run_id="r", step=1, loss=0.5, extras={"kl": 0.25})
    assert json.loads(encode(row)) == {**ROW, "kl": 0.25}
    assert list(json.loads(encode(row)))[-1] == "kl"  # behind the known keys
    plain_row = TrainStep(schema=SCHEMA, ts=1.0, run_id="r", step=1, loss=0.5)
    assert json.loads(encode(plain_row)) == ROW
    for step in (1, None):  # a number that is none is not null, whether or not the line has a null elsewhere
        odd = TrainStep(schema=SCHEMA, ts=1.0, run_id="r", step=step, loss=math.nan, lr=[0.5, -math.inf])
        assert json.loads(encode(odd)) == {**ROW, "step": step, "loss": "NaN", "lr": [0.5, "-Infinity"]}
    evaluation = decode(json.dumps({**HEAD, "event": "eval", "step": 1, "split": "x", "metrics": {"f1": 0.5}}).encode())
    assert json.loads(encode(evaluation))["metrics"] == {"f1": 0.5}
    later = UnknownEvent(event="later", ts=1.0, run_id="r", step=None, payload={"x": 1, "y": [math.nan, -math.inf]})
    assert decode(encode(later)).payload == {"x": 1, "y": ["NaN", "-Infinity"]}


def test_whole_floats_of_a_mapping_are_integers_beside_those_that_are_ones_already():
    config = {"lora": {"rank_pattern": {"a": 4.0, "b": 2, "c": 8.0}}}
    start = {**HEAD, "event": "run_start", "step": None, "config": config}
    assert decode(json.dumps(start).encode()).config.lora.rank_pattern == {"a": 4, "b": 2, "c": 8}
    for odd in (8.5, 1e17, -1e17):
        config["lora"]["rank_pattern"]["c"] = odd
        with pytest.raises(SchemaError, match="Expected `int`, got `float`"):
            decode(json.dumps(start).encode())


def test_a_zero_is_written_as_any_other_number(tmp_path):
    with TelemetryWriter(tmp_path / "run.jsonl") as writer:
        writer.run_start(resumed_from_step=0)
        writer.train_step(1, lr=0.0)
        writer.train_step(2, loss=0.0, lr=[], grad_norm=0, epoch=0.0, reward=0)
        writer.train_step(3, loss=0.0, lr=0.0, grad_norm=0.0, epoch=0.0)
        writer.eval(0, split="test", metrics={"loss": 0.0, "ppl": 0.0, "accuracy": 0, "n": 0})
    start, *lines = [json.loads(text) for text in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert (start["step"], start["resumed_from_step"]) == (0, 0)
    names = ("loss", "lr", "grad_norm", "epoch", "reward")
    assert [{name: line[name] for name in names if name in line} for line in lines[:3]] == [
        {"lr": 0.0},
        {"loss": 0.0, "lr": [], "grad_norm": 0, "epoch": 0.0, "reward": 0},
        {"loss": 0.0, "lr": 0.0, "grad_norm": 0.0, "epoch": 0.0},
    ]
    assert (lines[3]["step"], lines[3]["metrics"]) == (0, {"loss": 0.0, "ppl": 0.0, "accuracy": 0, "n": 0})


@pytest.mark.parametrize(("length", "is_read"), [(131_072 + 10, True), (196_607, True), (196_608, False)])
def test_a_line_is_measured_up_to_the_limit(tmp_path, monkeypatch, length, is_read):
    """Here of 128 KiB, looked at before each further 64 KiB."""
    monkeypatch.setattr("gradience.telemetry.lines._LONGEST_LINE", 131_072)
    log = tmp_path / "run.jsonl"
    log.write_bytes(b"x" * length + b"\n")
    if is_read:
        (line,) = read_blocks(log)
        assert (line.length, line.ended, len(line.data)) == (length, True, 65_536)
    else:
        with pytest.raises(RecorderError, match=r"line 1 is longer than 0 MiB, the limit for a line of any log"):
            list(read_blocks(log))


class Count(int):
    """A whole number of a type of its own."""


def test_a_whole_number_of_another_type_has_4096_bits_too():
    assert number(Count(2**4096 - 1), "x") == 2**4096 - 1
    assert type(number(Count(3), "x")) is int
    assert refusal(lambda: number(Count(2**4096), "x")).startswith("`x`: expected a number, got ")


def test_a_set_is_in_the_order_of_its_texts():
    assert plain(set("hgfedcba"), "x") == plain(frozenset("ahbgcfde"), "x") == list("abcdefgh")
    assert plain({10, 9, 100}, "x") == [10, 100, 9]
    assert refusal(lambda: plain({0, 1j}, "x")) == "`x[1]`: expected a JSON value, got complex"


@pytest.mark.parametrize("written", [encode, encode_row])
def test_a_number_that_json_lacks_is_named_whichever_way_a_row_is_written(written):
    def row(**fields):
        return TrainStep(schema=SCHEMA, ts=1.0, run_id="r", step=1, **fields)

    assert json.loads(written(row(loss=math.nan, lr=-math.inf)))["loss"] == "NaN"
    assert json.loads(written(row(loss=0.5, grad_norm=math.inf)))["grad_norm"] == "Infinity"
    assert json.loads(written(row(loss=0.5))) == ROW
    odd = TrainStep(schema=SCHEMA, ts=1.0, run_id="r\x7f", step=1)
    assert rb'"run_id":"r\u007f"' in written(odd)
    with pytest.raises(SchemaError, match="extras of TrainStep may not use the name of a known key: loss, step"):
        encode(row(extras={"step": 1, "loss": 2.0, "x": 3}))

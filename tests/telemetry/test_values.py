"""Values, rows and lines at their limits, and what is said beyond them."""

from __future__ import annotations

import math
from array import array
from collections import deque
from decimal import Decimal
from enum import Enum

import numpy as np
import pytest
from tables import every
from wire import refusal

from gradience.errors import RecorderError
from gradience.schema.values import described, number, number_of, plain, rates, step_of

# --- values ------------------------------------------------------------------------------------------------------


def test_an_event_has_ten_thousand_values_in_all():
    assert len(plain(list(range(10_000)), "x")) == 10_000
    assert plain({"a": list(range(9_998)), "b": 1}, "x")["b"] == 1
    assert plain({"b", 1, "10", 9}, "x") == described({"b", 1, "10", 9}) == [1, "10", 9, "b"]  # by their texts
    says = "holds more values than the 10000 of one event"
    assert refusal(lambda: plain(list(range(10_001)), "x")) == f"`x` {says}"
    assert refusal(lambda: plain({"a": list(range(9_999)), "b": 1}, "x")) == f"`x.a` {says}"
    assert refusal(lambda: plain({"a": [0], "b": set(range(9_998))}, "")) == f"`b` {says}"


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


# --- lines -------------------------------------------------------------------------------------------------------


def test_a_set_is_in_the_order_of_its_texts():
    assert plain(set("hgfedcba"), "x") == plain(frozenset("ahbgcfde"), "x") == list("abcdefgh")
    assert plain({10, 9, 100}, "x") == [10, 100, 9]
    assert refusal(lambda: plain({0, 1j}, "x")) == "`x[1]`: expected a JSON value, got complex"


class Kind(str, Enum):  # noqa: UP042  # as those of transformers are
    A = "a"


class Place(Enum):
    B = 2


class Gone:
    """Looks like a number, and gives none: as a tensor whose data were given away does."""

    def __float__(self) -> float:
        raise RuntimeError("no data")


@every(
    ("value", "shown"),
    [
        (list(range(64)), list(range(64))),
        (list(range(65)), "<65 values>"),
        ({str(i): 0 for i in range(65)}, "<65 values>"),
        (np.zeros((8, 8)), [[0.0] * 8] * 8),
        (np.zeros((5, 13)), "<array of shape [5, 13]>"),
        (np.ones((1, 1, 1)), 1.0),
        (np.zeros(0), []),
        (2**53 - 1, 2**53 - 1),
        (-(2**53), "-9007199254740992"),
        (2**200, "<a huge number>"),
        (math.inf, "Infinity"),
        ({1: {2.5}}, {"1": [2.5]}),
        (b"x", "<bytes>"),
        (Gone(), "<Gone>"),
        ("a\ud800", "a?"),
        (Decimal("1e400"), "Infinity"),
        (Kind.A, "a"),
        ([Place.B], [2]),
    ],
    ids=str,
)
def test_a_logged_value_is_json_and_bounded(value, shown):
    assert described(value) == shown


def test_a_logged_value_has_eight_levels_and_below_them_a_count():
    nested: object = [1, 2]
    for _ in range(7):
        nested = [nested]
    assert described(nested) == nested
    assert described([nested]) == [[[[[[[["<2 values>"]]]]]]]]


def test_arrays_count_among_the_levels():
    np = pytest.importorskip("numpy")
    value = np.zeros((1,) * 32)
    for _ in range(32):
        value = [value]
    assert plain(value, "x")
    with pytest.raises(RecorderError, match="nested more than 64 levels"):
        plain([[value]], "x")


LONE = chr(0xD800)  # half of a surrogate pair, which UTF-8 cannot hold


def test_a_key_that_utf_8_cannot_hold_is_made_one_that_it_can():
    assert plain({f"{LONE}a": f"{LONE}b"}, "x") == described({f"{LONE}a": f"{LONE}b"}) == {"?a": "?b"}

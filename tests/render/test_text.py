"""What is printed from other people's files is harmless and fits."""

from __future__ import annotations

import unicodedata

from hypothesis import given, strategies as st
from tables import every

from gradience.blocks import clean, count, number, percent


@given(st.text())
def test_clean_text_holds_no_control_and_no_line_break(text):
    assert all(unicodedata.category(ch) not in {"Cc", "Cf", "Cs", "Zl", "Zp"} for ch in clean(text))


@every("text", ["model-v2", "größe", "模型", "a b", "org/name", "[bold]x[/bold]"])
def test_clean_leaves_ordinary_text_as_it_is(text):
    assert clean(text) == text


@every(
    ("dirty", "shown"),
    [("\x1b[2Jx", "x"), ("a\x1b]0;title\x07b", "ab"), ("a\u202eb", "ab"), ("a\r\nb", "a b"), ("\x9b1mx", "1mx")],
)
def test_clean_takes_escape_sequences_out_whole(dirty, shown):
    assert clean(dirty) == shown


@every(("value", "shown"), [(0, "0"), (999, "999"), (1000, "1.0K"), (294_912, "294.9K"), (2_000_000_000, "2.0B")])
def test_counts_are_short(value, shown):
    assert count(value) == shown


def test_missing_and_non_finite_numbers_have_a_name():
    assert (number(None), number("NaN"), percent(None), percent(0.184)) == ("-", "NaN", "-", "18.4%")

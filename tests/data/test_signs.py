"""What the text of an answer shows, and what ids beside labels show, at each edge."""

from __future__ import annotations

from typing import Any

from tables import every

from gradience.data.signs import ControlTokens, signs_of


@every(
    ("answer", "sign", "shown"),
    [
        ("nan", "missing_value", True),
        (" <NA> ", "missing_value", True),
        ("None", "missing_value", False),
        ("nan is no number", "missing_value", False),
    ],
)
def test_a_sign_is_seen_at_its_edge(answer: str, sign: str, shown: Any) -> None:
    turns = [{"role": "user", "content": "why is bread warm"}, {"role": "assistant", "content": answer}]
    assert (sign in signs_of({"messages": turns}, ControlTokens())) is shown


@every(
    ("answer", "shown"),
    [
        ("Why is bread warm? It is new.", True),
        ("**why is bread warm**\n\nIt is new.", True),
        ("> Why is bread so warm?", False),
        ("It is new. Why is bread warm", False),
    ],
)
def test_an_answer_that_begins_with_the_words_of_the_question_echoes_it(answer: str, shown: Any) -> None:
    turns = [{"role": "user", "content": "Why is bread warm?"}, {"role": "assistant", "content": answer}]
    assert ("echo" in signs_of({"messages": turns}, ControlTokens())) is shown

"""What the text of an answer shows, and what ids beside labels show, at each edge."""

from __future__ import annotations

from typing import Any

from tables import every

from gradience.data.measure import _alike, _of_labels
from gradience.data.signs import Own, signs_of


@every(
    ("answer", "sign", "shown"),
    [
        ("nan", "missing_value", True),
        (" <NA> ", "missing_value", True),
        ("None", "missing_value", False),
        ("nan is no number", "missing_value", False),
        ("Dear [INSERT NAME],", "placeholder", True),
        ("Dear {{customer_name}},", "placeholder", True),
        ("{{ name }} of a template", "placeholder", False),
        ("a list [1, 2] and [Note]", "placeholder", False),
        ("Assistant: yes", "speaker_label", True),
        ("### Assistant: yes", "speaker_label", True),
        ("Assistant manager is a role", "speaker_label", False),
        ("caf\\u00e9", "escaped_letters", True),
        ("caf\u00e9", "escaped_letters", False),
        ("\\u4e2d", "escaped_letters", False),
    ],
)
def test_a_sign_is_seen_at_its_edge(answer: str, sign: str, shown: Any) -> None:
    turns = [{"role": "user", "content": "why is bread warm"}, {"role": "assistant", "content": answer}]
    assert (sign in signs_of({"messages": turns}, Own())) is shown


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
    assert ("echo" in signs_of({"messages": turns}, Own())) is shown


@every(
    ("ids", "labels", "expected"),
    [
        ([1, 2, 3, 900], [-100, 2, 3, 900], []),
        ([1, 2, 3, 900], [2, 3, 900, -100], ["labels_differ", "labels_shifted"]),
        ([1, 2, 3, 900], [9, 9, 3, 900], ["labels_differ"]),  # just half
        ([1, 2, 3, 900], [9, 2, 3, 900], []),
        ([1, 2, 3, 900], [-100] * 4, []),
        ([500, 500, 500, 500], [500, 500, 500, -100], []),
        ([500, 600, 700, 800], [0, 1, 2, 255], []),  # classes of tokens
        ([500, 600, 700, 800], [0, 1, 2, 256], ["labels_differ"]),
    ],
)
def test_labels_are_held_against_their_tokens(ids: list[int], labels: list[int], expected: list[str]) -> None:
    assert _of_labels(ids, labels) == expected


def test_labels_that_differ_in_capitals_or_blanks_are_a_group() -> None:
    some: Any = ["no", "No ", "yes", "new  york", "New York"]
    assert _alike(some) == [["No ", "no"], ["New York", "new  york"]]

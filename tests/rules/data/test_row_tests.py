"""What the text of an answer shows, and what ids beside labels show, at each edge."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tables import every

from gradience.data.asked import AskedRow, Vocabulary
from gradience.data.measure import COUNTED
from gradience.rules.data import ROW_TESTS


def signs_of(columns: dict[str, Any]) -> set[str]:
    row = AskedRow(columns, Vocabulary())
    return {name for test in ROW_TESTS for name in test.of(row)}


def test_each_name_is_of_one_test_and_is_read_by_a_report_or_a_rule(root: Path) -> None:
    names = [*COUNTED, *(name for test in ROW_TESTS for name in test.names)]
    assert len(names) == len(set(names))
    files = [*(root / "src/gradience/rules").rglob("*.py"), root / "src/gradience/verbs/check/data.py"]
    text = "".join(file.read_text() for file in files)
    assert set(re.findall(r'(?:rows_with\(|seen\[)"(\w+)"', text)) == set(names)


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
    assert (sign in signs_of({"messages": turns})) is shown


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
    assert ("echo" in signs_of({"messages": turns})) is shown

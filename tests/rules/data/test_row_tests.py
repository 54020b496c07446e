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


END, TURN, PAD = 2, 3, 4
KNOWN = Vocabulary(1000, frozenset({END}), frozenset({END, TURN}), PAD, 1)
IDS = [300, 301, 302, 303]


@every(
    ("columns", "seen"),
    [
        ({"input_ids": IDS, "labels": [300, 301, 303, 302]}, {"labels_differ"}),  # half of them
        ({"input_ids": IDS, "labels": [300, 301, 302, 302]}, set()),
        ({"input_ids": IDS, "labels": [301, 302, 303, -100]}, {"labels_differ", "labels_shifted"}),
        ({"input_ids": [5, 6, 7, 8], "labels": [0, 1, 2, 255]}, set()),  # classes of tokens
        ({"input_ids": [5, 999], "labels": [5, 999]}, set()),
        ({"input_ids": [5, 1000], "labels": [5, 1000]}, {"unknown_ids"}),
        ({"input_ids": [5, -1], "labels": [5, -1]}, {"unknown_ids"}),
        ({"input_ids": [5, PAD, PAD]}, {"padding_supervised"}),
        ({"input_ids": [5, PAD, PAD], "labels": [5, PAD, -100]}, set()),
        ({"input_ids": [5, END, 6, 7]}, {"documents_joined"}),
        ({"input_ids": [5, END, 6, 7], "parted": True}, set()),
        ({"input_ids": [5, END, TURN, 7]}, {"turns_or_documents"}),
        ({"input_ids": [5, END, 9, TURN, 7]}, {"turns_or_documents"}),  # a line break between
        ({"input_ids": [5, END, 1, 7]}, {"turns_or_documents"}),  # BOS begins either
        ({"input_ids": [5, END, TURN, 7, 7]}, set()),
        ({"prompt": "Why?", "chosen": "yes ", "rejected": " yes"}, {"equal_pair"}),
        ({"prompt": "Why?", "chosen": "yes", "rejected": "no"}, set()),
        ({"prompt": "Why?", "chosen": "yes"}, set()),
    ],
)
def test_what_ids_labels_and_pairs_show(columns: dict[str, Any], seen: set[str]) -> None:
    row = AskedRow(columns, KNOWN)
    assert {name for test in ROW_TESTS for name in test.of(row)} == seen

"""What the text of an answer shows, and what ids beside labels show, at each edge."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tables import every

from gradience.data.asked import AskedRow, ControlTokens, Vocabulary
from gradience.data.measure import COUNTED
from gradience.data.tokens import Sequence
from gradience.rules.data import ROW_TESTS


def signs_of(columns: dict[str, Any]) -> set[str]:
    row = AskedRow(columns, Vocabulary())
    return {name for test in ROW_TESTS for name in test.of(row)}


def test_each_name_is_of_one_test_and_is_read_by_a_report_or_a_rule(root: Path) -> None:
    names = [*COUNTED, *(name for test in ROW_TESTS for name in test.names)]
    assert len(names) == len(set(names))
    files = [*(root / "src/gradience/rules").rglob("*.py"), root / "src/gradience/verbs/check/data.py"]
    text = "".join(file.read_text() for file in files)
    of_a_side = {name for name in names if name.startswith(("wanted", "unwanted"))}  # read by a loop over both sides
    assert set(re.findall(r'(?:rows_with\(|seen\[)"(\w+)"', text)) == set(names) - of_a_side


@every(
    ("answer", "sign", "shown"),
    [
        ("nan", "missing_value", True),
        (" <NA> ", "missing_value", True),
        ("None", "missing_value", False),
        ("nan is no number", "missing_value", False),
        ("TODO ", "missing_value", True),
        ("N/A", "missing_value", False),
        ("[deleted]", "missing_value", True),
        ("Error code: 429 - {'error': {}}", "failure_said", True),
        ("502 Bad Gateway", "failure_said", True),
        ("502 is even", "failure_said", False),
        ("Error: 429 Too Many Requests.", "failure_said", True),
        ("upstream connect error or reset before headers", "failure_said", True),
        ("I'm sorry, an internal server error occurred (id 3)", "failure_said", True),
        ("I'm sorry, an internal memo was lost", "failure_said", False),
        ("#REF!", "missing_value", True),
        ("array(['Rome'], dtype=object)", "python_said", True),
        ("('a', 1)", "python_said", True),
        ("('tis the season)", "python_said", False),
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


@every(
    ("said", "shown"),
    [
        (("Bread is warm.", "Why is bread warm?"), True),
        (("Bread is warm.", "It is. Why?"), False),
        (("Bread is warm.", "tell me why"), True),
        (("Bread is warm. Tell me why.", "Why is bread warm?"), False),
        (("How can I help you?", "Why is bread warm?", "It is new. Is it so.", "And then?"), True),
        (("How can I help you?", "Why is bread warm?", "Is it new.", "And then?"), False),
        (("How can I help you?", "Why is bread warm?", "It is new.", "I see."), False),
        (("How did I help you?", "Why is bread warm?"), False),
    ],
)
def test_sides_are_exchanged_where_only_answers_ask(said: tuple[str, ...], shown: Any) -> None:
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
    assert ("sides_swapped" in signs_of({"messages": turns})) is shown
    if len(said) == 2:  # one question and its answer
        assert ("sides_swapped" in signs_of({"prompt": said[0], "completion": said[1]})) is shown


OF_STYLE = {*("wanted", "unwanted", "wanted_open", "unwanted_open", "wanted_blank", "unwanted_blank")}
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
        ({"input_ids": [5, 6, END, 9]}, set()),  # a line break after the last turn
        ({"input_ids": [END, 5, 6, END, PAD]}, set()),  # GPT-2 begins a text with its end token
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
    assert {name for test in ROW_TESTS for name in test.of(row)} - OF_STYLE == seen


# BOS 1, turn 3, answer's word 60, end 2
TURNS = [3, 50, 2, 3, 60, 70, 2, 3, 51, 2, 3, 60, 71, 2]


@every(
    ("mask", "seen"),
    [
        ([0] * 12 + [1, 1], {"several_answers", "last_answer_only"}),
        ([0] * 5 + [1, 1] + [0] * 5 + [1, 1], {"several_answers"}),
        ([0] * 5 + [1, 1] + [0] * 7, set()),  # the answer before the last one has none before it
        ([1] * 14, set()),
        ([0] * 14, {"unsupervised"}),
    ],
)
def test_only_the_last_answer_is_supervised_where_its_header_came_before(mask: list[int], seen: set[str]) -> None:
    labels = [one if bit else -100 for one, bit in zip(TURNS, mask, strict=True)]
    row = AskedRow({"input_ids": TURNS, "labels": labels}, KNOWN, (Sequence(TURNS, mask),))
    names = {name for test in ROW_TESTS for name in test.of(row)}
    assert names & {"several_answers", "last_answer_only", "unsupervised"} == seen
    asked = AskedRow({"prompt": "a", "completion": "b"}, KNOWN, (Sequence(TURNS, mask),))
    assert not {"several_answers"} & {name for test in ROW_TESTS for name in test.of(asked)}


THOUGHT = KNOWN._replace(think=(80, 81))


@every(
    ("answer", "ids", "mask", "shown"),
    [
        ("It is new.", [5, 80, 81, 6], None, True),
        ("It is new.", [5, 80, 81, 6], [0, 0, 0, 1], False),
        ("It is new.", [5, 80, 6, 81], None, False),
        ("<think>hm</think>It is new.", [5, 80, 81, 6], None, False),
        ("It is new. /no_think", [5, 80, 81, 6], None, False),  # with which Qwen3 is served in the same way
    ],
)
def test_a_thought_is_added_where_the_row_has_none(answer: str, ids: list[int], mask: Any, shown: Any) -> None:
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": answer}]
    for vocabulary, is_shown in ((THOUGHT, shown), (KNOWN, False)):
        row = AskedRow({"messages": turns}, vocabulary, (Sequence(ids, mask),))
        assert ("thought_added" in {name for test in ROW_TESTS for name in test.of(row)}) is is_shown
    spoken = [turns[0], {**turns[1], "reasoning_content": "hm"}]
    row = AskedRow({"messages": spoken}, THOUGHT, (Sequence(ids, mask),))
    assert "thought_added" not in {name for test in ROW_TESTS for name in test.of(row)}


@every(
    ("text", "shown"),
    [
        ("### Instruction:\nWhy?\n\n### Response:\nSo.", True),
        ("### Human: Why?\n### Assistant: So.", True),
        ("USER: Why? ASSISTANT: So.", True),
        ("### Instruction:\nWhy?", False),
        ("In the manual: ### Instruction: and ### Response: are headers.", False),
        ("<|im_start|>user\nWhy?<|im_end|>", False),
    ],
)
def test_a_prompt_in_words_beside_a_template_of_own_tokens(text: str, shown: Any) -> None:
    templated = KNOWN._replace(own=ControlTokens(templated=True))
    for vocabulary, is_shown in ((templated, shown), (KNOWN, False)):
        row = AskedRow({"text": text}, vocabulary)
        assert ("written_prompt" in {name for test in ROW_TESTS for name in test.of(row)}) is is_shown

"""Rows of every program in the columns that their trainer tokenises; what no program reads is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from tables import every

from gradience.data import Unusable
from gradience.data.formats import Shape, canonical, recognise
from gradience.errors import ConfigError

ASK, SAY, NO = (
    {"role": role, "content": text} for role, text in (("user", "q"), ("assistant", "a"), ("assistant", "b"))
)
CALL = {"name": "look", "arguments": {"n": 1}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": CALL}]}


@every(
    ("row", "format_and_trainer", "columns"),
    [
        ({"query": "q", "response": "a"}, "instruction sft", {"prompt": [ASK], "completion": [SAY]}),
        ({"question": "q", "answer": "a"}, "instruction sft", {"prompt": [ASK], "completion": [SAY]}),
        (
            {"query": "r", "response": "a", "system": "s", "history": [["q", "b"]]},
            "instruction sft",
            {
                "prompt": [{"role": "system", "content": "s"}, ASK, NO, {"role": "user", "content": "r"}],
                "completion": [SAY],
            },
        ),
        ({"query": "q", "response": "a", "rejected_response": "b"}, "preference dpo",
         {"prompt": [ASK], "chosen": [SAY], "rejected": [NO]}),
        ({"query": "q", "response": "a", "rejected_response": None}, "instruction sft",
         {"prompt": [ASK], "completion": [SAY]}),
        ({"messages": [ASK, SAY], "rejected_response": "b"}, "preference dpo",
         {"prompt": [ASK], "chosen": [SAY], "rejected": [NO]}),
        ({"instruction": "q", "input": "", "chosen": "a", "rejected": "b"}, "preference dpo",
         {"prompt": [ASK], "chosen": [SAY], "rejected": [NO]}),
        (
            {
                "conversations": [{"from": "human", "value": "q"}],
                "chosen": {"from": "gpt", "value": "a"},
                "rejected": {"from": "gpt", "value": "b"},
            },
            "preference dpo",
            {"prompt": [ASK], "chosen": [SAY], "rejected": [NO], "translated": True},
        ),
        ({"messages": [ASK, SAY], "kto_tag": False}, "kto kto", {"prompt": [ASK], "completion": [SAY], "label": False}),
        ({"instruction": "q", "output": "a", "kto_tag": True}, "kto kto",
         {"prompt": [ASK], "completion": [SAY], "label": True}),
        ({"prompt": [ASK], "solution": "7", "level": 3}, "prompt-only grpo", {"prompt": [ASK]}),
        ({"prompt": "q", "completions": ["a", "b"], "labels": [True, False]}, "steps prm",
         {"prompt": "q", "steps": ["a", "b"], "step_labels": [True, False]}),
        ({"segments": [{"label": False, "text": "q"}]}, "segments sft", {"segments": [{"label": False, "text": "q"}]}),
        ({"messages": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, "messages sft",
         {"messages": [ASK, SAY], "translated": True}),
        (
            {
                "conversations": [
                    {"from": "human", "value": "q"},
                    {"from": "function_call", "value": '{"name": "look", "arguments": {"n": 1}}'},
                    {"from": "observation", "value": "7"},
                    {"from": "gpt", "value": "a"},
                ]
            },
            "sharegpt sft",
            {"messages": [ASK, CALLING, {"role": "tool", "content": "7"}, SAY], "translated": True},
        ),
        (
            {
                "messages": [
                    ASK,
                    {"role": "assistant", "content": None, "function_call": {**CALL, "arguments": '{"n": 1}'}},
                ]
            },
            "messages sft",
            {"messages": [ASK, CALLING], "translated": True},
        ),
        ({"messages": [ASK, SAY], "images": ["a.png"]}, "messages sft", {"messages": [ASK, SAY], "images": ["a.png"]}),
    ],
)  # fmt: skip
def test_a_row_is_read_as_its_program_reads_it(row: Any, format_and_trainer: str, columns: Any) -> None:
    shape = recognise(row)
    assert f"{shape.format} {shape.trainer}" == format_and_trainer
    assert canonical(row, shape, chat=True, trl=False) == columns


@every(
    ("row", "format_and_trainer"),
    [
        ({"prompt": "", "completion": "", "label": True}, "kto kto"),
        ({"prompt": "", "chosen": "", "rejected": ""}, "preference dpo"),
        ({"sentence": "", "label": 1, "idx": 0}, "classification classification"),
        ({"text": "", "meta": 1}, "text sft"),
        ({"input_ids": [], "labels": []}, "tokenised sft"),
        ({"instruction": "", "input": "", "response": ""}, "instruction sft"),
    ],
)
def test_a_format_is_known_by_its_columns(row: Any, format_and_trainer: str) -> None:
    assert " ".join(recognise(row)[:2]) == format_and_trainer
    assert recognise({"chosen": "", "rejected": ""}, "reward").trainer == "reward"


def test_trl_leaves_roles_and_calls_as_they_are() -> None:
    row = {"conversations": [{"from": "human", "value": "q"}]}
    assert canonical(row, recognise(row), chat=True, trl=True) == {"messages": [{"role": "human", "content": "q"}]}


@every(
    "row",
    [
        {"src": "a", "tgt": "b"},
        {"prompt": "a", "response": "b"},
        {"prompt": "a", "output": "b"},
        {"prompt": "a", "completions": ["b"]},
        {"instruction": "a", "completion": "b"},
        {"query": "a"},
    ],
)
def test_an_unknown_format_is_refused_by_its_columns(row: Any) -> None:
    with pytest.raises(ConfigError, match="columns " + ", ".join(row)):
        recognise(row)


@every(
    ("row", "task", "says"),
    [
        ({"question": "2+2?", "solution": "4"}, "grpo",
         "columns question, solution: grpo reads what is asked from a column"),
        ({"instruction": "a", "output": "b"}, "rloo", "rloo reads what is asked from a column prompt"),
        ({}, "grpo", "columns none: grpo reads"),
    ],
)  # fmt: skip
def test_rl_reads_a_column_prompt_alone(row: Any, task: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as refused:
        recognise(row, task)
    asked = next((name for name in row if name in {"question", "instruction"}), "its column")
    assert refused.value.advice == f"rename {asked} to prompt"
    assert recognise({"prompt": "q", **row}, task) == Shape("prompt-only", "grpo")


@every(
    ("row", "says"),
    [
        ({"prompt": "q", "completions": ["a", "b"], "labels": [True]}, "labels: 1 for 2 steps"),
        ({"prompt": "q", "completions": "a", "labels": [True]}, "completions: expected a list"),
        ({"prompt": "q", "completions": ["a"], "labels": "x"}, "labels: expected true or false"),
        ({"segments": [{"text": "q"}]}, "segments: expected a text with a label"),
        ({"segments": []}, "segments: expected a list"),
        ({"query": "q", "response": "a", "history": [["x"]]}, "history: expected pairs"),
        ({"messages": [{"role": "assistant", "content": None}]}, "a message without content"),
        ({"messages": [ASK, SAY], "kto_tag": 3}, "kto_tag: expected true or false"),
    ],
)
def test_a_row_that_is_not_of_its_format_says_why(row: Any, says: str) -> None:
    with pytest.raises(Unusable, match=says):
        canonical(row, recognise(row), chat=True, trl=False)

"""What was once reported of sound data: each set is silent now, and its twin with the defect is still found."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from made import ask, rows, saved, say, tokenizer, words, write

from gradience.schema.reports import CheckReport
from gradience.verbs.check.data import check_data
from gradience.verbs.check.run import check_config


def loud(report: CheckReport) -> list[str]:
    """The ids of findings that are more than a hint."""
    return [finding.id for finding in report.findings if finding.severity != "info"]


def texts(count: int, seed: int = 3) -> list[str]:
    rng = random.Random(seed)  # noqa: S311  # rows, no secret
    return [words(rng) for _ in range(count)]


def glaive(repeat: int) -> list[dict[str, Any]]:
    """Calls of a tool under the roles of Glaive; only the calls differ."""
    some = [
        {
            "conversations": [
                {"from": "human", "value": "is it late?"},
                {"from": "function_call", "value": json.dumps({"name": "clock", "arguments": {"n": i}})},
                {"from": "observation", "value": str(i)},
                {"from": "gpt", "value": "yes it is"},
            ]
        }
        for i in range(40)
    ]
    return some + some[:repeat]


def test_rows_whose_calls_differ_are_no_duplicates(tmp_path: Path, tok: Path) -> None:
    for repeat in (0, 5):
        report = check_data(write(tmp_path / "train.jsonl", glaive(repeat)), tokenizer=tok, ignore=["DAT312"])
        assert report.data is not None
        assert report.data.seen["duplicate"].count == repeat
        assert loud(report) == (["DAT313"] if repeat else [])


def test_a_choice_of_yes_and_no_is_not_one_answer(tmp_path: Path, tok: Path) -> None:
    asked = texts(60)
    for yes, expected in ((40, []), (60, ["DAT312"])):
        some = [{"messages": [ask(text), say("yes" if i < yes else "no")]} for i, text in enumerate(asked)]
        assert loud(check_data(write(tmp_path / "train.jsonl", some), tokenizer=tok)) == expected


def test_parts_with_their_text_under_value_have_answers_and_differ(tmp_path: Path, tok: Path) -> None:
    def parts(turn: dict[str, str], key: str) -> dict[str, Any]:
        return {**turn, "content": [{"type": "text", key: turn["content"]}]}

    some = [[ask(one), say(other)] for one, other in zip(texts(30), texts(30, 4), strict=True)]
    for key in ("text", "value"):
        given = [{"messages": [parts(turn, key) for turn in turns]} for turns in some]
        report = check_data(write(tmp_path / f"{key}.jsonl", given), tokenizer=tok)
        assert loud(report) == []
        plain = check_data(write(tmp_path / "p.jsonl", [{"messages": turns} for turns in some]), tokenizer=tok)
        assert report.data is not None
        assert plain.data is not None
        assert report.data.tokens == plain.data.tokens


def test_packing_that_keeps_overflow_cuts_nothing(tmp_path: Path, tok: Path) -> None:
    data = write(tmp_path / "train.jsonl", rows("text"))
    for strategy, expected in (("wrapped", []), ("bfd_split", []), ("bfd", ["DAT305", "DAT306"])):
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(f"packing: true\npacking_strategy: {strategy}\nmax_length: 12\nlearning_rate: 1.0e-4\n")
        found = loud(check_data(data, training=recipe, tokenizer=tok, select=["DAT"]))
        assert found == expected, strategy


AXOLOTL = """
base_model: org/model
datasets:
  - path: train.jsonl
    type: chat_template
sequence_len: 512
micro_batch_size: 2
adapter: lora
lora_r: 8
lora_alpha: 16
lora_target_modules: [q_proj]
"""


def test_keys_of_a_recipe_are_known_however_it_is_given(tmp_path: Path) -> None:
    recipe = tmp_path / "axolotl.yaml"
    recipe.write_text(AXOLOTL)
    for extra, expected in (("", False), ("sequence_lenn: 3\n", True)):
        recipe.write_text(AXOLOTL + extra)
        for how in ("training", "document"):
            report = check_config(**{how: recipe})
            assert ("KEY001" in {finding.id for finding in report.findings}) is expected, how
            assert report.config.lora.r == 8


def test_sharegpt_takes_the_assistant_s_loss(tmp_path: Path, tok: Path) -> None:
    report = check_data(write(tmp_path / "train.jsonl", rows("sharegpt")), tokenizer=tok, loss="assistant")
    assert report.data is not None
    assert (report.data.seen["unsupervised"].count, loud(report)) == (0, [])
    assert any("rename conversations" in note for note in report.data.notes)


CHATML = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
ZEPHYR = "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}"


@pytest.mark.parametrize("template", [CHATML, ZEPHYR])
def test_turns_that_end_with_the_end_token_and_a_line_break_are_no_documents(tmp_path: Path, template: str) -> None:
    made, some = tokenizer(template=template), texts(240)
    made.save_pretrained(tmp_path / "tok")
    chats = [[ask(one), say(two), *([ask(two), say(one)] if len(one) % 3 else [])] for one, two in pairwise(some)]
    ids = [made.apply_chat_template(chat, tokenize=True, return_dict=False) for chat in chats]
    packed = [one + two for one, two in pairwise(ids) if len(one + two) >= 90]
    for each, named in ((ids, []), ([one[:90] for one in packed], ["DAT355"])):
        data = write(tmp_path / "train.jsonl", [{"input_ids": one} for one in each])
        found = check_data(data, tokenizer=tmp_path / "tok", select=["DAT355"]).findings
        assert [finding.id for finding in found] == named


def test_a_template_that_reads_the_name_and_the_id_of_a_call_writes_its_result(tmp_path: Path) -> None:
    of_result = "{% if m.role == 'tool' %}{{ m.name[0] + m.tool_call_id[-9:] }}{% endif %}"
    tok = saved(tmp_path / "tok", template="{% for m in messages %}{{ m.content }}" + of_result + "{% endfor %}")
    call = {"id": "call00001", "type": "function", "function": {"name": "ask", "arguments": {}}}
    result = {"role": "tool", "name": "ask", "tool_call_id": "call00001", "content": "7"}
    turns = [ask("how many?"), {**say(""), "tool_calls": [call]}, result, say("seven")]
    report = check_data(write(tmp_path / "train.jsonl", [{"messages": turns}]), tokenizer=tok)
    assert report.data is not None
    assert report.data.unwritten_roles == {}

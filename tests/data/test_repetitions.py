"""What is a repetition or a leak, and what only looks like one; which place of a file is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from made import ask, rows, say, write
from tables import every, few

from gradience.cli.main import main
from gradience.schema.reports import SourceLocation
from gradience.verbs.check.data import check_data
from gradience.verbs.check.run import source_locations

Q, A = [ask("why is bread warm?")], [say("it is new")]
TALK: dict[str, Any] = {"messages": [*Q, *A]}
PAIR: dict[str, Any] = {"prompt": Q, "chosen": A, "rejected": [say("it is old")]}
PROMPT = {"prompt": Q}
TEXT = {"sentence1": "bread is warm", "text": "bread is warm", "label": 1}
IDS: dict[str, Any] = {"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}
TOLD_APART: list[tuple[dict[str, Any], str, Any, Any]] = [  # a row, and a column in which alone two rows differ
    (TALK, "tools", [{"name": "a"}], [{"name": "b"}]),
    (TALK, "images", ["a.png"], ["b.png"]),
    (TALK, "chat_template_kwargs", {"enable_thinking": True}, {"enable_thinking": False}),
    (TALK, "context", "loaves", "rolls"),
    (TALK, "messages", [*Q, {**A[0], "weight": 0}], [*Q, {**A[0], "weight": 1}]),
    (PROMPT, "solution", "4", "5"),
    (PROMPT, "id", 1, 2),  # a reward function may look it up
    (TEXT, "sentence2", "rolls are", "cakes are"),
    (PAIR, "margin", 0.5, 2.0),
    ({"prompt": "2 + 2", "completions": ["4"]}, "labels", [True], [False]),
    (IDS, "labels", [-100, 2, 3], [-100, -100, 3]),
]


@every(("row", "name", "one", "other"), few(TOLD_APART, each=2))
def test_rows_that_differ_in_one_column_are_no_repetition_and_no_leak(
    tmp_path: Path, tok: Path, row: dict[str, Any], name: str, one: Any, other: Any
) -> None:
    some = [{**row, name: one}, {**row, name: other}, {**row, name: one, "note": None}]
    report = check_data(write(tmp_path / "train.jsonl", some), tokenizer=tok).data
    assert report is not None
    assert report.seen["duplicate"].first == [3]
    held = write(tmp_path / "eval.jsonl", [{**row, name: other}])
    other_set = write(tmp_path / "other.jsonl", [{**row, name: one}])
    compared = check_data(other_set, eval_data=held, tokenizer=tok).data
    assert compared is not None
    assert compared.overlap is not None
    assert compared.overlap.exact.count == 0


BESIDE = [case for case in TOLD_APART if case[1] in {"tools", "images", "context", "sentence2", "solution"}]


@every(("row", "name", "one", "other"), BESIDE)
def test_what_gives_a_text_another_sense_makes_no_leak_and_no_contradiction(
    tmp_path: Path, tok: Path, row: dict[str, Any], name: str, one: Any, other: Any
) -> None:
    changed = {"label": 0} if "label" in row else {}
    data = write(tmp_path / "train.jsonl", [{**row, name: one}, {**row, name: other, **changed}])
    held = write(tmp_path / "eval.jsonl", [{**row, name: [other, "c"] if isinstance(other, list) else f"{other} c"}])
    report = check_data(data, eval_data=held, tokenizer=tok).data
    assert report is not None
    assert report.overlap is not None
    found = report.overlap
    assert [rows.count for rows in (found.exact, found.by_words, found.near, found.other_answer)] == [0, 0, 0, 0]
    assert report.seen["conflict"].count == report.near.rows.count == 0


def test_an_id_or_an_origin_hides_no_leak(tmp_path: Path, tok: Path) -> None:
    data = write(tmp_path / "train.jsonl", [{**TALK, "id": 1, "source": "train"}])
    for row, kind in (({**TALK, "id": 2, "source": "train"}, "exact"), ({**TALK, "source": "eval"}, "by_words")):
        found = check_data(data, eval_data=write(tmp_path / "eval.jsonl", [row]), tokenizer=tok).data
        assert found is not None
        assert getattr(found.overlap, kind).count == 1


def test_rows_of_the_evaluation_set_are_lines_of_its_file(tmp_path: Path, tok: Path) -> None:
    some = rows("messages", 30)
    data = write(tmp_path / "train.jsonl", some)
    held = write(tmp_path / "eval.jsonl", [TALK, TALK, some[7]])
    report = check_data(data, eval_data=held, tokenizer=tok)
    places = {f.id: place for f, place in zip(report.findings, source_locations(report), strict=True)}
    assert places["DAT314"] == SourceLocation(str(held), 3)


def test_the_terminal_says_which_prompt_was_assumed(tmp_path: Path, tok: Path, capsys: Any) -> None:
    data = write(tmp_path / "train.jsonl", rows("messages", 9))
    assert main(["check", "--data", str(data), "--tokenizer", str(tok)]) == 0
    said = " ".join(capsys.readouterr().out.split())  # lines break where the terminal ends
    assert "Data as the trainer feeds it: Prompt:" in said
    assert "chat template, as SFTTrainer applies it; no recipe says which program trains" in said


def test_progress_is_told_of_rows(tmp_path: Path, tok: Path) -> None:
    data = write(tmp_path / "train.jsonl", rows("messages", 300))
    told: list[tuple[int, int]] = []
    check_data(data, tokenizer=tok, progress=lambda done, total: told.append((done, total)))
    assert told == [(256, 300), (300, 300)]

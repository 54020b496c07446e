"""`--write-clean`: what is left out is certain and in the ledger, and every row that stays is as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made import ask, rows, say, write
from tables import every

from gradience.cli.main import main
from gradience.errors import ConfigError, OptionError, OutputError
from gradience.schema.reports import SourceLocation
from gradience.verbs.check.data import check_data
from gradience.verbs.check.run import source_locations

HEAD = b'{"messages": [ {"role":"user","content":"why is bread warm?"}, {"role": "assistant", "content": "%s"} ] }'
LINES = [
    HEAD % b"it is new",
    HEAD % b"\\u0069t is old",
    HEAD % b"",
    HEAD % b"it is new",
    b"{",
    HEAD % b"caf\xef\xbf\xbd now",
]


def ledger(out: Path) -> dict[int, str]:
    lines = out.with_name(out.name + ".left-out.jsonl").read_text().splitlines()
    return {one["row"]: one["reason"] for one in map(json.loads, lines)}


def test_lines_that_stay_are_copied_byte_for_byte(tmp_path: Path, tok: Path) -> None:
    data, out = tmp_path / "train.jsonl", tmp_path / "clean.jsonl"
    data.write_bytes(b"\n".join(LINES))
    held_out = write(tmp_path / "eval.jsonl", [{"messages": [ask("why is bread warm?"), say("it is old")]}])
    report = check_data(data, eval_data=held_out, tokenizer=tok, write_clean=out)
    assert out.read_bytes() == LINES[0] + b"\n"
    found = ledger(out)
    assert found.pop(5).startswith("cannot be used: not JSON")
    assert found == {
        2: "is in the evaluation set",
        3: "empty answer",
        4: "repeats a row: 1",
        6: "broken encoding: U+FFFD",
    }
    assert data.read_bytes() == b"\n".join(LINES)
    assert report.data is not None
    assert report.data.cleaned is not None
    assert (report.data.cleaned.kept, sum(report.data.cleaned.left_out.values())) == (1, 5)


def test_sound_rows_all_stay_whatever_their_file(tmp_path: Path, tok: Path) -> None:
    from datasets import Dataset

    some = rows("preference", 30)
    Dataset.from_list(some).to_parquet(tmp_path / "train.parquet")
    check_data(tmp_path / "train.parquet", tokenizer=tok, write_clean=tmp_path / "clean.jsonl", samples=3)
    assert [json.loads(line) for line in (tmp_path / "clean.jsonl").read_text().splitlines()] == some
    assert ledger(tmp_path / "clean.jsonl") == {}


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
    (TALK, "messages", [*Q, {**A[0], "thinking": "ovens"}], [*Q, {**A[0], "thinking": "flour"}]),
    (PROMPT, "solution", "4", "5"),
    (PROMPT, "answer", 4, 5),
    (PROMPT, "id", 1, 2),  # a reward function may look it up
    (TEXT, "sentence2", "rolls are", "cakes are"),
    (TEXT, "passage", "ovens", "flour"),
    (PAIR, "margin", 0.5, 2.0),
    (PAIR, "images", ["a.png"], ["b.png"]),
    ({"prompt": "2 + 2", "completions": ["4"]}, "labels", [True], [False]),
    ({**IDS, "text": "x"}, "attention_mask", [1, 1, 1], [1, 1, 0]),
    (IDS, "labels", [-100, 2, 3], [-100, -100, 3]),
    (IDS, "position_ids", [0, 1, 2], [0, 0, 1]),
]


@every(("row", "name", "one", "other"), TOLD_APART)
def test_rows_that_differ_in_one_column_are_no_repetition_and_all_stay(
    tmp_path: Path, tok: Path, row: dict[str, Any], name: str, one: Any, other: Any
) -> None:
    some = [{**row, name: one}, {**row, name: other}, {**row, name: one, "note": None}]
    data, out = write(tmp_path / "train.jsonl", some), tmp_path / "clean.jsonl"
    report = check_data(data, tokenizer=tok, write_clean=out).data
    assert ledger(out) == {3: "repeats a row: 1"}
    assert report is not None
    assert report.seen.duplicate.first == [3]
    held = write(tmp_path / "eval.jsonl", [{**row, name: other}])
    other_set = write(tmp_path / "other.jsonl", [{**row, name: one}])
    compared = check_data(other_set, eval_data=held, tokenizer=tok).data
    assert compared is not None
    assert compared.overlap is not None
    assert compared.overlap.exact.count == 0


BESIDE = [case for case in TOLD_APART if case[1] in {"tools", "images", "context", "sentence2", "passage", "solution"}]


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
    assert report.seen.conflict.count == report.near.rows.count == 0


def test_an_id_or_an_origin_hides_no_leak(tmp_path: Path, tok: Path) -> None:
    data = write(tmp_path / "train.jsonl", [{**TALK, "id": 1, "source": "train"}])
    for row, kind in (({**TALK, "id": 2, "source": "train"}, "exact"), ({**TALK, "source": "eval"}, "by_words")):
        found = check_data(data, eval_data=write(tmp_path / "eval.jsonl", [row]), tokenizer=tok).data
        assert found is not None
        assert getattr(found.overlap, kind).count == 1


MEANT: list[tuple[dict[str, Any], bool]] = [  # a row with an empty answer or a broken text, and whether it stays
    ({**PAIR, "rejected": [say("")]}, True),
    ({**PAIR, "chosen": [say("")]}, False),
    ({"prompt": Q, "completion": [say("")], "label": False}, True),
    ({"prompt": Q, "completion": [say("")], "label": True}, False),
    ({"messages": [*Q, {**say(""), "reasoning_content": "hm"}]}, True),
    ({"messages": [*Q, {"role": "assistant", "content": [{"type": "image"}]}]}, True),
    ({"messages": [*Q, {**say(""), "tool_calls": [{"function": {"name": "a", "arguments": {}}}]}]}, True),
    ({"messages": [*Q, say(""), *Q, *A]}, True),
    ({"messages": [*Q, say(" ")]}, False),
    ({"messages": [ask("mend caf\u00c3\u00a9"), say("write caf\u00e9, not caf\u00c3\u00a9")]}, True),
    ({"messages": [*Q, say("caf\u00c3\u00a9")]}, False),
    ({**PAIR, "rejected": [say("caf\u00c3\u00a9")]}, True),
    ({"text": "U+FFFD is written \ufffd"}, True),
    ({"prompt": "a", "completion": None}, False),
]


@every(("row", "stays"), MEANT)
def test_what_a_trainer_could_want_stays(row: dict[str, Any], *, stays: bool, tmp_path: Path, tok: Path) -> None:
    sound = {name: A if value == [say("")] else value or "it is new" for name, value in row.items()}
    sound = {"messages": [*Q, *A]} if "messages" in row else {"text": "bread"} if "text" in row else sound
    sound = {**sound, "note": "sound"}
    data, out = write(tmp_path / "train.jsonl", [sound, row]), tmp_path / "clean.jsonl"
    check_data(data, tokenizer=tok, write_clean=out)
    assert (2 not in ledger(out)) is stays, row


def test_rows_of_another_format_stay(tmp_path: Path, tok: Path) -> None:
    data, out = write(tmp_path / "train.jsonl", [TALK, {"text": "bread"}, {"prompt": "a"}]), tmp_path / "clean.jsonl"
    check_data(data, tokenizer=tok, write_clean=out)
    assert set(ledger(out)) == {3}


def test_what_is_read_does_not_grow(tmp_path: Path, tok: Path) -> None:
    (tmp_path / "data" / "in").mkdir(parents=True)
    (tmp_path / "linked").symlink_to(tmp_path / "data")
    write(tmp_path / "data" / "train.jsonl", [TALK])
    for place in ("data/clean.jsonl", "data/in/clean.jsonl", "linked/clean.jsonl"):
        with pytest.raises(ConfigError, match="it would become part of"):
            check_data(tmp_path / "data", tokenizer=tok, write_clean=tmp_path / place)


def test_rows_of_the_evaluation_set_are_lines_of_its_file(tmp_path: Path, tok: Path) -> None:
    some = rows("messages", 30)
    data = write(tmp_path / "train.jsonl", some)
    held = write(tmp_path / "eval.jsonl", [TALK, TALK, some[7]])
    report = check_data(data, eval_data=held, tokenizer=tok)
    places = {f.id: place for f, place in zip(report.findings, source_locations(report), strict=True)}
    assert places["DAT314"] == SourceLocation(str(held), 3)


def test_nothing_is_written_over(tmp_path: Path, tok: Path) -> None:
    data = write(tmp_path / "train.jsonl", rows("messages", 3))
    for out, error in ((data, ConfigError), (tmp_path / "a.csv", ConfigError), (tmp_path / "held.jsonl", OutputError)):
        (tmp_path / "held.jsonl").write_text("mine")
        with pytest.raises(error):
            check_data(data, tokenizer=tok, write_clean=out)
    assert (tmp_path / "held.jsonl").read_text() == "mine"


def test_the_terminal_says_what_was_written_and_which_prompt_was_assumed(
    tmp_path: Path, tok: Path, capsys: Any
) -> None:
    data, out = write(tmp_path / "train.jsonl", rows("messages", 9)), tmp_path / "clean.jsonl"
    assert main(["check", "--data", str(data), "--tokenizer", str(tok), "--write-clean", str(out)]) == 0
    said = " ".join(capsys.readouterr().out.split())  # the path is as long as the machine makes it, and lines break
    assert f"Written: 9 rows to {out}; left out: none" in said
    assert "Data as the trainer feeds it: Prompt:" in said
    assert "chat template, as SFTTrainer applies it; no recipe says which program trains" in said


def test_the_page_shows_the_rows_and_takes_no_file_s_place(
    tmp_path: Path, tok: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some = [{"messages": [ask("why is bread warm?"), say("it is new" if i % 4 else "")]} for i in range(12)]
    data, page = write(tmp_path / "train.jsonl", some), tmp_path / "data.html"
    asked = ["check", "--data", str(data), "--tokenizer", str(tok), "--select", "DAT", "--html", str(page)]
    page.write_text("mine")
    assert main(asked) == 2
    assert page.read_text() == "mine"
    assert "exists already" in capsys.readouterr().err
    page.unlink()
    assert main(asked) == 0
    html = page.read_text()
    assert ('id="rows"' in html, "Row 1: " in html, "empty answer" in html, "why is bread warm?" in html) == (True,) * 4
    assert main(["check", "--html", str(page), str(data)]) == 2
    assert "--html without --data" in capsys.readouterr().err


def test_the_rows_that_are_worth_a_look_are_bounded_and_progress_is_told(tmp_path: Path, tok: Path) -> None:
    data = write(tmp_path / "train.jsonl", rows("messages", 300))
    with pytest.raises(OptionError, match="--worst is 101, expected a whole number from 0 to 100"):
        check_data(data, tokenizer=tok, worst=101)
    told: list[tuple[int, int]] = []
    report = check_data(data, tokenizer=tok, worst=2, progress=lambda done, total: told.append((done, total))).data
    assert told == [(256, 300), (300, 300)]
    assert report is not None
    assert [one.sequences[0].pieces[-1].kind for one in report.examples] == ["loss", "loss"]

"""`--write-clean`: what is left out is certain and in the ledger, and every row that stays is as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made import ask, rows, saved, say, write

from gradience.cli.main import main
from gradience.errors import ConfigError, OutputError
from gradience.judge.check.data import check_data

HEAD = b'{"messages": [ {"role":"user","content":"why is bread warm?"}, {"role": "assistant", "content": "%s"} ] }'
LINES = [
    HEAD % b"it is new",
    HEAD % b"\\u0069t is old",
    HEAD % b"",
    HEAD % b"it is new",
    b"{",
    HEAD % b"caf\xef\xbf\xbd now",
]


@pytest.fixture(scope="module")
def tok(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("tok"))


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


def test_a_template_of_another_program_is_named(tmp_path: Path, tok: Path) -> None:
    data = write(tmp_path / "train.jsonl", rows("messages", 9))
    recipe = tmp_path / "lf.yaml"
    for name, expected in (("qwen", "llama-factory writes its own template 'qwen'"), (None, "")):
        line = f"template: {name}\n" if name else ""
        recipe.write_text(f"model_name_or_path: {tok}\nstage: sft\nfinetuning_type: lora\ncutoff_len: 64\n{line}")
        report = check_data(data, training=recipe, tokenizer=tok)
        assert report.data is not None
        assert expected in report.data.prompt
        assert bool(report.data.prompt) is bool(name)


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
    assert main([*asked, "--force"]) == 0
    html = page.read_text()
    assert ('id="rows"' in html, "Row 1 " in html, "empty answer" in html, "why is bread warm?" in html) == (True,) * 4
    assert main(["check", "--html", str(page), str(data)]) == 2
    assert "--html without --data" in capsys.readouterr().err


def test_the_rows_that_are_worth_a_look_are_bounded_and_progress_is_told(tmp_path: Path, tok: Path) -> None:
    data = write(tmp_path / "train.jsonl", rows("messages", 300))
    with pytest.raises(ConfigError, match="--worst: expected a number of rows from 0 to 100, got 101"):
        check_data(data, tokenizer=tok, worst=101)
    told: list[tuple[int, int]] = []
    report = check_data(data, tokenizer=tok, worst=2, progress=lambda done, total: told.append((done, total))).data
    assert told == [(256, 300), (300, 300)]
    assert report is not None
    assert [one.sequences[0].pieces[-1].kind for one in report.examples] == ["loss", "loss"]

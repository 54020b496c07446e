"""One wording of a number out of its range, for the command line as for Python."""

from __future__ import annotations

import pytest
from tables import every

import gradience as g
from gradience.cli.main import main

CASES = [
    (["bench", "x", "--data", "d", "--out", "o", "--timeout", "0"], lambda: g.BenchOptions(timeout=0.0)),
    (["bench", "x", "--base", "b", "--data", "d", "--rows", "0"], lambda: g.DriftOptions(rows=0)),
    (["receipt", "x", "--base", "b", "--out", "o", "--rows", "-1"], lambda: g.ReceiptOptions(rows=-1)),
    (["audit", "x", "--intruders"], lambda: g.AuditOptions(intruders=True)),
    (["diagnose", "x", "--gap-threshold", "0"], lambda: g.DiagnoseOptions(gap_threshold=0.0)),
    (["check", "--data", "d", "--set", "samples=0"], lambda: g.DataOptions(samples=0)),
    (["check", "--data", "d", "--max-length", "-1"], lambda: g.DataOptions(max_length=-1)),
]


@every(("command", "record"), CASES, ids=[case[0][0] for case in CASES])
def test_the_command_line_refuses_in_the_words_of_the_record(command, record, capsys):
    with pytest.raises(g.OptionError) as caught:
        record().refuse_bad()
    assert main(command) == 2
    assert capsys.readouterr().err.startswith(f"gradience: {caught.value}")


def test_a_file_of_any_name_is_given_as_its_folder_is(tmp_path, capsys):
    (tmp_path / "mine.json").write_text('{"peft_type": "LORA", "r": 8, "lora_alpha": 16}', encoding="utf-8")
    (tmp_path / "args.yaml").write_text("learning_rate: 1.0e-4\n", encoding="utf-8")
    said = []
    for peft, training in (("--peft-dir", "--training-dir"), ("--adapter", "--training"), ("--peft", "--training")):
        assert main(["check", peft, str(tmp_path / "mine.json"), training, str(tmp_path / "args.yaml")]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] == said[2]
    assert "lr=1e-4" in said[0]

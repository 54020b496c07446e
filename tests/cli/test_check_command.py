"""The command: exit codes, one JSON document, one line of error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tables import every

from gradience.cli.main import main


@every(
    ("arguments", "code"),
    [
        (["--set", "lr=1e-5", "--task", "sft"], 0),
        (["--set", "lr=1e-5", "--set", "r=8", "--task", "sft", "--fail-on", "warning"], 1),
        (["--set", "lr=1e-5", "--task", "sft", "--fail-on", "error"], 0),
        (["--set", "lr=-1", "--fail-on", "error"], 1),
        (["--set", "lr=nan", "--fail-on", "error"], 1),
        (["--set", "r=-1", "--fail-on", "error"], 1),
        (["--set", "lr=1e-5", "--set", "r=8", "--task", "sft", "--fail-on", "warning", "--ignore", "LR001"], 0),
        (["--set", "lr=1e-5", "--task", "sft", "--fail-on", "info", "--ignore", "LR001"], 0),
        (["--set", "lr=abc"], 2),
        (["--ignore", "NOPE1", "--set", "lr=1"], 2),
        (["--fail-on", "sometimes", "--set", "lr=1"], 2),
        (["--set", "targets=,"], 2),
        (["--set", "lr"], 2),
        (["--set", "lr=1", "--set", "learning_rat=1"], 2),
        (["--set", "samples=3", "--set", "lr=1"], 2),
        (["--peft-dir", "/nowhere"], 2),
        (["--peft", "/nowhere/adapter_config.json"], 2),
        (["/nowhere.yaml"], 2),
        ([], 2),
    ],
)
def test_exit_code_is_0_1_or_2(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", *arguments]) == code
    captured = capsys.readouterr()
    assert (captured.out == "") is (code == 2)
    assert captured.err.count("\n") == (1 if code == 2 else 0)


def test_rows_without_a_prompt_are_refused_for_grpo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "2+2?", "solution": "4"}\n', encoding="utf-8")
    assert main(["check", "--data", str(rows), "--task", "grpo"]) == 2
    says = capsys.readouterr().err
    assert "columns question, solution: grpo reads what is asked from a column prompt" in says
    assert "rename question to prompt" in says


@every(
    ("given", "understood"),
    [
        ("q_proj,v_proj", ["q_proj", "v_proj"]),
        ("layers.0.q_proj,v_proj", ["layers.0.q_proj", "v_proj"]),
        ("all-linear", "all-linear"),
        (r".*\.(q|v)_proj", r".*\.(q|v)_proj"),
        ("q_proj", ["q_proj"]),
    ],
)
def test_targets_are_names_or_one_expression(
    given: str, understood: object, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["check", "--set", f"targets={given}", "--json"])
    assert json.loads(capsys.readouterr().out)["config"]["lora"]["target_modules"] == understood

"""The formats of check as a workflow or an editor gets them, and a project's settings file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tables import every

from gradience import check_config
from gradience.cli.main import main
from gradience.configs.settings import keys_of, line_of
from gradience.rules.config import RULES
from gradience.verbs.check.run import source_locations

JSON = """{
  "learning_rate": 1e-5,
  "lora_dropout": 2.0,
  "eval_strategy": "no",
  "r": 8
}
"""
YAML = "learning_rate: 1e-5\n# eval_strategy: steps\neval_strategy: 'no'\nr: 8\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.json").write_text(JSON)
    (tmp_path / "c.yaml").write_text(YAML)
    return tmp_path


def test_every_rule_says_which_settings_it_is_about() -> None:
    assert all(rule.settings for rule in RULES)
    assert all(keys_of(field) for rule in RULES if isinstance(rule.settings, tuple) for field in rule.settings)


@pytest.mark.parametrize(
    ("name", "lines"),
    [("c.json", {"VAL001": 3, "LR001": 2, "REC002": 4}), ("c.yaml", {"LR001": 1, "REC002": 3})],
)
def test_findings_point_at_the_line_of_their_key(project: Path, name: str, lines: dict[str, int]) -> None:
    report = check_config(document=name, task="sft")
    found = {finding.id: place for finding, place in zip(report.findings, source_locations(report), strict=True)}
    assert {key: place and (place.path, place.line) for key, place in found.items()} == {
        key: (name, line) for key, line in lines.items()
    }


def test_the_file_that_wins_is_the_one_pointed_at(project: Path) -> None:
    (project / "t.json").write_text('{"seed": 1,\n"learning_rate": 2e-5}')
    report = check_config(document="c.json", training="t.json", task="sft", select=["LR001"])
    assert [(place.path, place.line) for place in source_locations(report) if place] == [("t.json", 2)]


@every("text", ["", "\0\xff", "learning_rate"])
def test_a_key_that_is_not_there_has_no_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(text, encoding="latin-1")
    assert line_of(path, ["learning_rate"]) is None
    assert line_of(tmp_path / "none.json", ["learning_rate"]) is None


def test_two_formats_at_once_are_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "c.yaml", "--json", "--format", "text"]) == 2
    assert "--format text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pyproject.toml", "[tool.gradience]\nignore = ['LR']\nfail-on = 'info'\n"),
        ("pyproject.toml", "[tool]\ngradience = {ignore = ['LR'], fail-on = 'info'}\n"),
        ("gradience.toml", "ignore = ['LR']\nfail-on = 'info'\n"),
    ],
)
def test_the_nearest_settings_file_applies_and_is_named(
    name: str, text: str, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / name).write_text(text)
    (project / "deep" / "er").mkdir(parents=True)
    (project / "deep" / "pyproject.toml").write_text("[project]\ndependencies = ['gradience']\n[tool.other]\nx = 1\n")
    monkeypatch.chdir(project / "deep" / "er")
    assert main(["check", "../../c.yaml", "--task", "sft", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert {item["id"] for item in report["findings"]} == {"REC002"}
    assert {"role": "settings", "path": str(project / name)} in report["sources"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ignroe = []", "settings: select, ignore, fail-on, gap-threshold"),
        ("ignore = 'LR'", "Expected `array`"),
        ("ignore = ['NOPE']", "NOPE"),
        ("fail-on = 'sometimes'", "sometimes"),
        ("gap-threshold = -1.0", "gap-threshold"),
        ("ignore = [", "not TOML"),
        ("\xff", "not TOML"),
        ("tool = 3", "tool"),
    ],
)
def test_a_wrong_settings_file_is_one_line_that_says_what_to_do(
    text: str, said: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "gradience.toml").write_text(text, encoding="latin-1")
    assert main(["check", "c.yaml"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert captured.err.count("\n") == 1


def test_piped_text_keeps_to_a_hundred_columns(capsys: pytest.CaptureFixture[str]) -> None:
    run = ["check", "--set", "r=8", "--set", "lr=1e-6", "--task", "grpo"]
    assert main([*run, "--set", "targets=q_proj,v_porj"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert "      DPO uses about 5e-6, GRPO 1e-5 to 4e-5" in lines


def test_an_option_is_judged_beside_a_log(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8, "task_type": "CAUSAL_LM"}')
    (tmp_path / "run.jsonl").write_text("{}\n")
    assert main(["check", "--set", "lr=1", "--peft-dir", str(tmp_path), "--fail-on", "warning"]) == 1

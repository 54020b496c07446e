"""`gradience PATH` says what is there and which commands fit; each of them runs. A mistyped command is helped."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
from tables import every

from gradience.cli.main import main

TOY = Path(__file__).parents[1] / "golden" / "readme"


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The toy run whole and in parts, two of it, two adapters, an empty folder, and files."""
    root = tmp_path_factory.mktemp("places")
    shutil.copytree(TOY, root / "toy")
    for name in ("one", "two"):
        shutil.copytree(TOY / "peft", root / "adapters" / name)
        shutil.copytree(TOY, root / "runs" / name)
    shutil.copytree(TOY / "training", root / "training" / "training")
    (root / "settings").mkdir()
    shutil.copy(TOY / "peft" / "adapter_config.json", root / "settings")
    (root / "empty").mkdir()
    (root / "rows.jsonl").write_text('{"text": "a"}\n')
    (root / "settings.yaml").write_text("learning_rate: 1e-4\n")
    return root


def _verb(words: list[str]) -> str:
    return " ".join(words[:2] if words[0] == "fleet" or words[1:2] == ["best"] else words[:1])


def said(place: Path, capsys: pytest.CaptureFixture[str]) -> tuple[list[str], list[str]]:
    """What is said of a place, and the verbs of the commands; each that needs no answer of the user's is run."""
    assert main([str(place)]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("Next:")
    commands = [shlex.split(line) for line in lines[start + 1 :]]
    for _, *words in commands:
        if words[0] in {"audit", "check", "diagnose", "monitor"} and "FOLDER" not in words:
            assert main(words) in {0, 1}, words
    capsys.readouterr()
    return lines[:start], [_verb(words[1:]) for words in commands]


@every(
    ("place", "begins", "verbs"),
    [
        ("toy", "", ["diagnose", "monitor", "audit", "check"]),
        ("toy/peft", "", ["diagnose", "report", "audit"]),
        ("toy/run.jsonl", ": a log", ["monitor", "diagnose", "report"]),
        ("toy/peft/adapter_model.safetensors", ": weights", ["audit"]),
        ("adapters", ": 2 adapters, such as one, two", ["fleet audit", "fleet show", "audit"]),
        ("runs", ": 2 runs, such as one/run.jsonl, two/run.jsonl", ["runs", "runs best", "monitor"]),
        ("settings", "", ["check"]),
        ("training", "", ["check"]),
        ("rows.jsonl", ": neither weights nor a log; rows of data, perhaps", ["check"]),
        ("settings.yaml", ": settings", ["check"]),
    ],
)
def test_a_place_alone_gets_the_commands_that_fit_it(places, capsys, place, begins, verbs):
    told, found = said(places / place, capsys)
    assert told[0].removeprefix(str(places / place)).startswith(begins or ":")
    assert found == verbs


def test_a_command_wins_over_a_file_of_its_name(tmp_path, monkeypatch, capsys):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["runs"]) == 2
    assert "no folder to look in" in capsys.readouterr().err


@every(
    ("words", "error"),
    [
        (
            ["check", "--rank", "8"],
            "--rank. A single setting is given as --set rank=VALUE (see 'gradience check --help')",
        ),
        (["check", "--learning-rate=8"], "A single setting is given as --set learning_rate=VALUE"),
        (["check", "--taks", "sft"], "Did you mean --task?"),
        (["check", "--samples", "all"], "--samples is gone: give --set samples=all"),
        (["runs", "best", "--output", "x"], "Did you mean --out? (see 'gradience runs best --help')"),
        (["audit", "--lora-alpha", "8"], "Unknown option: --lora-alpha."),  # audit has no --alpha to mean
        (["chek"], 'Did you mean "check"?'),
    ],
)
def test_a_mistyped_word_names_the_option_that_is_meant_and_the_verbs_help(words, error, capsys):
    assert main(words) == 2
    assert error in capsys.readouterr().err


@every("word", ["version", "-V", "--version"])
def test_the_version_has_its_usual_names(word, capsys):
    assert main([word]) == 0
    assert capsys.readouterr().out.strip()[0].isdigit()


def test_a_folder_that_holds_nothing_of_a_run_is_refused_with_what_was_looked_for(places, capsys):
    assert main([str(places / "empty")]) == 2
    assert capsys.readouterr().err == (
        f"gradience: {places / 'empty'} holds nothing to look at (looked for run.jsonl, trainer_state.json or another"
        " log, adapter weights, adapter_config.json, training arguments; see 'gradience --help')\n"
    )

"""What holds of every command and group: bad input is one line and a 2, and the help has a text for every option."""

from __future__ import annotations

import pytest
from tables import every

from gradience.cli.main import COMMANDS, GROUPS, build_app, main

MORE = {  # what a command asks for beside a path
    "resize": ["--rank", "2", "--dry-run"],
    "convert": ["--dry-run"],
    "merge": ["missing/other", "--dry-run"],
    "bench": ["--metric", "true {adapter}", "--out", "bench"],
    "fleet audit": ["--out", "missing/fleet"],
    "fleet query": ["select 1"],
    "runs query": ["select 1"],
}
OF_GROUPS = [f"{group} {name}" for group, (_, names) in GROUPS.items() for name in names]
EMPTY, NOISE = "emp\x1bty", "a file"
REPORTED = {("validate", NOISE), ("diagnose", EMPTY), ("diagnose", NOISE)}  # to say what is wrong is their report
JUDGING = {"--select", "--ignore", "--fail-on", "--settings", "--format", "--json"}


@pytest.mark.parametrize("bad", ["missing/path", EMPTY, NOISE])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_bad_path_is_one_line_on_stderr_and_a_two(command, bad, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / EMPTY).mkdir()
    (tmp_path / NOISE).write_bytes(b"\x00\xffno format of anybody's\n")
    assert main([command, bad, *MORE.get(command, ())]) == 2
    out, err = capsys.readouterr()
    assert "\x1b" not in err + out
    if (command, bad) in REPORTED:
        assert out
        return
    assert out == ""
    assert err.startswith("gradience: ")
    assert err.count("\n") == 1


@every("command", OF_GROUPS)
def test_a_missing_path_of_a_group_s_command_is_one_line_and_makes_nothing(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert main([*command.split(), "missing/path", *MORE.get(command, ())]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("gradience: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "missing" / "path").exists()


@every("group", GROUPS)
def test_a_group_alone_lists_its_commands_and_the_list_of_all_names_it(group, capsys):
    assert main([group]) == 0
    out = capsys.readouterr().out
    assert all(f" {name} " in out for name in GROUPS[group][1])
    assert main(["--help"]) == 0
    assert f" {group} " in capsys.readouterr().out
    assert main([group, "no-such-command"]) == 2


def options(command):
    app = build_app()
    for word in command.split():
        app = app[word]
    return [item for item in app.assemble_argument_collection(parse_docstring=True) if item.show]


@pytest.mark.parametrize("command", [*COMMANDS, *OF_GROUPS])
def test_help_names_every_option_and_each_has_a_text(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main([*command.split(), "--help"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith(f"Usage: gradience {command}")
    found = options(command)
    assert found
    for item in found:
        assert item.parameter.help, f"{item.names} has no text"
        assert all(name in out for name in item.names)
        assert item.parameter.help.split("\n")[0][:40] in out


def test_commands_that_judge_have_the_same_options_in_the_same_words():
    told = {
        command: {item.names[0]: item.parameter.help for item in options(command) if JUDGING.intersection(item.names)}
        for command in ("check", "monitor", "audit", "diagnose")
    }
    assert told["check"].keys() == JUDGING
    assert all(words == told["check"] for words in told.values())


@every("command", COMMANDS)
def test_a_misspelt_option_is_one_line_and_a_two(command, capsys):
    assert main([command, "--no-such-option-at-all"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("gradience: ")
    assert err.count("\n") == 1


@every(
    ("command", "instead"),
    [
        ("drift", "bench ADAPTER --base MODEL --data TEXTS"),
        ("merge-check", "merge A B --check"),
        ("verify-merge", "verify MERGED --adapter ADAPTER --base MODEL"),
        ("verify-served", "verify ADDRESS --receipt FILE"),
    ],
)
def test_a_command_that_went_says_which_does_the_same(command, instead, capsys):
    assert main([command, "x", "--json"]) == 2
    assert capsys.readouterr().err == f"gradience: {command} is gone (give 'gradience {instead}')\n"
    verb, *words = instead.split()
    known = {name for item in options(verb) for name in item.names}
    assert {word for word in words if word.startswith("-")} <= known


@every(
    ("given", "says"),
    [
        ("diagnose x --announce github", "--announce is gone: give --format github or --json, and pipe it"),
        ("check x --write-clean y", "--write-clean is gone: leave the rows out that the findings name"),
        ("verify x --merged y", "--merged is gone: give the merged model first: gradience verify MERGED --adapter"),
    ],
)
def test_an_option_that_went_says_what_does_the_same(given, says, capsys):
    assert main(given.split()) == 2
    assert says in capsys.readouterr().err

"""What holds of every command of a group (`fleet`, `runs`): a text for every option, errors in one line."""

from __future__ import annotations

import pytest

from gradience.cli.main import GROUPS, build_app, main

COMMANDS = [(group, name) for group, (_, commands) in GROUPS.items() for name in commands]
MORE = {"query": ["select 1"], "audit": ["--out", "missing/fleet"]}


@pytest.mark.parametrize(("group", "name"), COMMANDS)
def test_help_names_every_option_and_each_has_a_text(group, name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main([group, name, "--help"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith(f"Usage: gradience {group} {name}")
    for item in build_app()[group][name].assemble_argument_collection(parse_docstring=True):
        if item.show:
            assert item.parameter.help, f"{item.names} has no text"
            assert all(option in out for option in item.names)


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_alone_lists_its_commands_and_the_list_of_all_names_it(group, capsys):
    assert main([group]) == 0
    out = capsys.readouterr().out
    assert all(f" {name} " in out for name in GROUPS[group][1])
    assert main(["--help"]) == 0
    assert f" {group} " in capsys.readouterr().out
    assert main([group, "no-such-command"]) == 2


@pytest.mark.parametrize(("group", "name"), COMMANDS)
def test_a_missing_path_is_one_line_and_a_two_and_makes_nothing(group, name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert main([group, name, "missing/path", *MORE.get(name, ())]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("gradience: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "missing" / "path").exists()

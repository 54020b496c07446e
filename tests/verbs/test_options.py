"""The verbs that write an adapter take the same options in the same words, and refuse the same things."""

from __future__ import annotations

import pytest
from tables import every

from gradience.cli.main import build_app, main

ONE = {"resize": ["--rank", "2"], "convert": []}
WRITING = [*ONE, "merge"]


def words(verb: str) -> dict[str, str]:
    found = build_app()[verb].assemble_argument_collection(parse_docstring=True)
    return {item.names[0]: item.parameter.help for item in found if item.show}


@pytest.mark.parametrize("option", ["--dry-run", "--force", "--verbose"])
def test_an_option_of_all_writing_verbs_has_one_text(option):
    assert len({words(verb)[option] for verb in WRITING}) == 1


@pytest.mark.parametrize("verb", ONE)
def test_the_adapter_is_an_argument_and_no_option(verb, capsys):
    for given, said in (([], "needs PATH"), (["nowhere"], "nowhere"), (["--peft-dir", "a"], "folder without it")):
        assert main([verb, *given, *ONE[verb], "--dry-run"]) == 2
        assert said in capsys.readouterr().err


@every("verb", WRITING)
def test_nowhere_to_write_is_said_before_anything_is_read(verb, capsys):
    assert main([verb, "nowhere", *ONE.get(verb, ["nowhere2"])]) == 2
    assert "give --out FOLDER, or try --dry-run first" in capsys.readouterr().err

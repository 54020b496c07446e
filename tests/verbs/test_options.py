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


@pytest.mark.parametrize("option", ["--peft-dir", "--adapter-config"])
def test_an_option_of_the_verbs_of_one_adapter_has_one_text(option):
    assert len({words(verb)[option] for verb in ONE}) == 1


@pytest.mark.parametrize("verb", ONE)
def test_the_adapter_is_given_once_as_argument_or_option(verb, capsys):
    for given in ([], ["nowhere", "--peft-dir", "nowhere"]):
        assert main([verb, *given, *ONE[verb], "--dry-run"]) == 2
        assert f"'gradience {verb} DIR' or '--peft-dir DIR'" in capsys.readouterr().err
    said = []
    for given in (["nowhere"], ["--peft-dir", "nowhere"]):
        assert main([verb, *given, *ONE[verb], "--dry-run"]) == 2
        said.append(capsys.readouterr().err)
    assert said[0] == said[1]
    assert "nowhere" in said[0]


@every("verb", WRITING)
def test_nowhere_to_write_is_said_before_anything_is_read(verb, capsys):
    assert main([verb, "nowhere", *ONE.get(verb, ["nowhere2"])]) == 2
    assert "give --out FOLDER, or try --dry-run first" in capsys.readouterr().err

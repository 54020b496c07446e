"""A fraction for an option that is a whole number is refused by every command, before anything is read."""

from __future__ import annotations

from typing import get_args

from gradience.cli.main import BELOW, COMMANDS, GROUPS, build_app, main

_VERBS = [
    *((name,) for name in COMMANDS),
    *((name, below) for name, (_, commands) in GROUPS.items() for below in commands),
    *((name, below) for name, commands in BELOW.items() for below in commands),
]


def test_no_command_rounds_a_fraction(capsys):
    refused = []
    for verb in _VERBS:
        app = build_app(*verb)
        for word in verb:
            app = app[word]
        for argument in app.assemble_argument_collection():
            kinds = get_args(argument.hint) or (argument.hint,)
            if int in kinds and float not in kinds and argument.names[0].startswith("--"):
                code = main([*verb, f"{argument.name}=2.5"])
                assert (code, argument.name in capsys.readouterr().err) == (2, True), (verb, argument.name)
                refused.append(argument.name)
    assert len(refused) > len(_VERBS) / 2


def test_a_whole_number_may_be_written_with_a_point(capsys):
    main(["check", "--data", "missing", "--max-length", "768.0"])
    assert "missing: no such file" in capsys.readouterr().err

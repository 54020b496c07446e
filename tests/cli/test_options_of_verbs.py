"""The options of all commands: where --help lists them, and that none which is a whole number takes a fraction."""

from __future__ import annotations

from typing import get_args

from cyclopts.argument import Argument

from gradience.cli.main import BELOW, COMMANDS, GROUPS, build_app, main
from gradience.commands.options import FINDINGS

_VERBS = [
    *((name,) for name in COMMANDS),
    *((name, below) for name, (_, commands) in GROUPS.items() for below in commands),
    *((name, below) for name, commands in BELOW.items() for below in commands),
]
_SHARED = {"--select", "--ignore", "--fail-on", "--settings", "--format", "--json"}


def options_of(*verb: str) -> list[Argument]:
    app = build_app(*verb)
    for word in verb:
        app = app[word]
    return [option for option in app.assemble_argument_collection() if option.names[0].startswith("--") and option.show]


def test_no_command_rounds_a_fraction(capsys):
    refused = []
    for verb in _VERBS:
        for argument in options_of(*verb):
            kinds = get_args(argument.hint) or (argument.hint,)
            if int in kinds and float not in kinds:
                code = main([*verb, f"{argument.name}=2.5"])
                assert (code, argument.name in capsys.readouterr().err) == (2, True), (verb, argument.name)
                refused.append(argument.name)
    assert len(refused) > len(_VERBS) / 2


def test_a_verb_shows_twelve_options_of_its_own_at_most_and_the_shared_ones_in_one_group():
    for verb in _VERBS:
        groups: dict[str, set[str]] = {}
        for option in options_of(*verb):
            groups.setdefault(option.parameter.group[0].name, set()).add(option.name)
        shared = _SHARED - ({"--format"} if verb == ("import",) else set())  # there it is what is read
        assert len(groups.get("Parameters", ())) <= 12, verb
        assert groups.pop(FINDINGS, set()) <= shared, verb
        assert not shared & {name for names in groups.values() for name in names}, verb


def test_a_whole_number_may_be_written_with_a_point(capsys):
    main(["check", "--data", "missing", "--max-length", "768.0"])
    assert "missing: no such file" in capsys.readouterr().err

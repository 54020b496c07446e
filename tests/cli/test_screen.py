"""Commands at a terminal: groups, completion, colour, width, and what is said of a value outside a choice."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

from tables import every

from gradience.cli.main import COMMANDS, GROUPS, HEADINGS, main
from gradience.commands.output import coloured, wrapped


def test_help_has_the_commands_in_groups(capsys):
    for arguments in ([], ["--help"]):
        assert main(arguments) == 0
        shown = capsys.readouterr().out
        places = [shown.index(f"─ {group} ─") for group in HEADINGS]
        assert places == sorted(places)
        listed = [line.split()[1] for line in shown.splitlines() if line.startswith("│ ") and line[2].isalpha()]
        order = [name for names in HEADINGS.values() for name in names]
        assert [name for name in listed if name in order] == order
    assert "--version" in shown
    assert "--install-completion" in shown
    assert {name for names in HEADINGS.values() for name in names} == {*COMMANDS, *GROUPS}


def test_completion_is_installed_where_it_is_asked_for(tmp_path):
    env = {**os.environ, "HOME": str(tmp_path), "SHELL": "/bin/bash"}
    command = [sys.executable, "-m", "gradience", "--install-completion", "--shell", "bash"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any("verify" in path.read_text() for path in written)
    assert str(tmp_path) in done.stdout


@every(
    ("given", "said"),
    [
        (
            ["check", "--set", "lr=1e-4", "--fail-on", "warn"],
            'Choose from: "info", "warning", "error", "critical", "never". Did you mean "warning"?',
        ),
        (["check", "--set", "lr=1e-4", "--fail-on", "xyz"], '"never". (see'),
        (["schema", "audits"], 'Did you mean "audit"?'),
        (["monitor", "x", "--gap-threshold", "y"], "--gap-threshold"),
    ],
)
def test_a_value_outside_a_choice_is_answered_with_the_choice(given, said, capsys):
    assert main(given) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "Literal" not in err


def test_sentences_are_wrapped_under_themselves_and_tables_are_left_alone():
    assert wrapped("  one two three four five six seven eight nine ten", 40) == (
        "  one two three four five six seven\n    eight nine ten"
    )
    table = "  name   1.0   2.0   a row of a table that is wider than the screen"
    assert wrapped(table, 40) == table
    assert wrapped("=" * 72, 60) == "=" * 60
    assert wrapped("short", 40) == "short"
    assert wrapped("x" * 100, 40) == "x" * 100


def test_severities_alone_are_coloured():
    assert coloured("a [ERROR] b [INFO]") == "a \x1b[31m[ERROR]\x1b[0m b \x1b[36m[INFO]\x1b[0m"
    assert coloured("an ERROR without brackets") == "an ERROR without brackets"


# The same command once for each way to ask for colour or none, each behind a mark.
THRICE = """
import os
from gradience.cli.main import main
for colour in ({}, {"NO_COLOR": "1"}, {"TERM": "dumb"}):
    os.environ.update(TERM="xterm")
    os.environ.pop("NO_COLOR", None)
    os.environ.update(colour)
    print("next: ", flush=True)
    main(["check", "--set", "lr=5", "--set", "r=8", "--set", "alpha=16"])
"""


def test_on_a_terminal_and_only_there_a_report_has_colour_and_its_width(tmp_path):
    command = [sys.executable, "-c", THRICE]
    env = {**os.environ, "COLUMNS": "60"}
    piped = subprocess.run(command, env=env, capture_output=True, text=True, check=False, cwd=tmp_path)
    leader, follower = pty.openpty()
    child = subprocess.Popen(command, env=env, stdout=follower, cwd=tmp_path)
    os.close(follower)
    shown = b""
    while True:
        try:
            part = os.read(leader, 4096)
        except OSError:
            break
        if not part:
            break
        shown += part
    child.wait()
    os.close(leader)
    text = shown.decode()
    told = text.split("next: ")[1:]
    assert [any(f"\x1b[{code}m[" in one for code in (31, 33)) for one in told] == [True, False, False]
    assert "\x1b[" not in piped.stdout
    for one in told:
        sentences = [line for line in re.sub(r"\x1b\[\d+m", "", one).split("\r\n") if "  " not in line.lstrip()]
        assert max(map(len, sentences)) <= 60 < max(map(len, piped.stdout.splitlines()))

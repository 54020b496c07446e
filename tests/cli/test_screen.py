"""Commands at a terminal: groups, completion, colour, width, and what is said of a value outside a choice."""

from __future__ import annotations

import contextlib
import contextvars
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import termios
from collections import Counter
from itertools import pairwise
from pathlib import Path

from tables import every

from gradience.blocks.text import fit_terminal, folded, page_width
from gradience.cli.main import COMMANDS, GROUPS, HEADINGS, main
from gradience.commands.output import coloured


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
        (["check", "--set", "lr=1e-4", "--fail-on", "warn"],
         'Choose from: "info", "warning", "error", "critical", "never". Did you mean "warning"?'),
        (["check", "--set", "lr=1e-4", "--fail-on", "xyz"], '"never". (see'),
        (["schema", "audits"], 'Did you mean "audit"?'),
        (["monitor", "x", "--gap-threshold", "y"],
         "gradience: --gap-threshold is 'y', expected a number (see 'gradience"),
        (["monitor", "x", "--gap-threshold", "-1"], "gradience: --gap-threshold is -1, expected above 0 (see 'grad"),
        (["check", "--max-length", "abc"], "gradience: --max-length is 'abc', expected a whole number (see 'gradience"),
        (["check", "--max-length", "1.5"], "gradience: --max-length is '1.5', expected a whole number (see 'gradience"),
        (["compare", "a", "b", "--top", "-3"], "gradience: --top is -3, expected at least 0 (see 'gradience compare"),
        (["bench", "merge", "a", "--density", "2"], "gradience: --density is 2, expected at most 1.0 (see 'gradience"),
        (["audit", "a", "--heatmap=x"], "gradience: --heatmap takes no value (see 'gradience audit --help')"),
        (["bench", "a", "--out", "o", "--calibrate", "t"], ": --calibrate is gone: give --calibration-data (see"),
        (["receipt", "a", "--base", "b", "--prompts", "t"],
         "gradience: --prompts is gone: give --data (see 'gradience receipt"),
        (["bench", "a"], "gradience: needs --base (give --base MODEL)"),
        (["bench", "merge", "a", "b"], "gradience: needs --out (give --out FOLDER: evaluations are kept there)"),
        (["receipt", "a"], "gradience: needs --base (see 'gradience receipt --help')"),
        (["receipt", "a", "--base", "b"], "gradience: needs --out (give --out receipt.json)"),
        (["why", "a", "b", "c", "d"], "gradience: not understood: c, d (see 'gradience why --help')"),
        (["resize"], "gradience: needs PATH (see 'gradience resize --help')"),
        (["check", "--base"], "gradience: --base needs a value (see 'gradience check --help')"),
    ],
)  # fmt: skip
def test_a_wrong_word_is_answered_with_what_is_expected(given, said, capsys):
    assert main(given) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "Literal" not in err


@every(
    ("page", "line", "pieces"),
    [
        (40, "  one two three four five six seven eight nine ten",
         ["  one two three four five six seven", "      eight nine ten"]),
        (40, "short", ["short"]),
        (60, "=" * 72, ["=" * 60]),
        (40, "x" * 90, ["x" * 90]),
        (  # a row is folded between its columns, and a column that is too wide between its words
            40,
            "  01. attn r=8   util=12.7%  sr=1.02  layer.0.attention.query  told in many words that need a line",
            [
                "  01. attn r=8   util=12.7%  sr=1.02",
                "      layer.0.attention.query",
                "      told in many words that need a",
                "      line",
            ],
        ),
        (40, "runs/toy" + "  0.1234" * 5, ["runs/toy" + "  0.1234" * 4, "    0.1234"]),  # a row, and no place in a file
        (40, "Loss:       from 0.7026 to 0.138 in 240 rows", ["Loss:       from 0.7026 to 0.138 in 240", "    rows"]),
        (  # a command can still be copied, with the words before it
            40,
            "Next: gradience resize runs/toy/peft --rank 2 --out runs/toy/smaller",
            ["Next: gradience resize runs/toy/peft \\", "    --rank 2 --out runs/toy/smaller"],
        ),
        (40, "  -> compress it after training with gradience resize runs/t --rank 2",
         ["  -> compress it after training with", "      gradience resize runs/t --rank 2"]),
        (40, "  0.8266 |" + "\u2880" * 60, ["  0.8266 |" + "\u2880" * 60]),
    ],
)  # fmt: skip
def test_a_line_is_folded_once_at_the_page(page, line, pieces):
    context = contextvars.copy_context()
    context.run(fit_terminal, page)
    assert context.run(folded, line) == pieces


@every("line", ["Next: gradience resize runs/toy/peft" + " --rank 2" * 20, "  01. attn r=8" + "   util=12.7%" * 20])
def test_a_command_and_a_row_are_whole_in_a_pipe(line):
    assert folded(line) == [line]


@every(("columns", "page"), [(39, 100), (40, 40), (99, 99), (140, 100)])
def test_a_page_is_as_wide_as_its_terminal_and_at_most_100(columns, page):
    context = contextvars.copy_context()
    context.run(fit_terminal, columns)
    assert context.run(page_width) == page


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


def shown_by_a_terminal(command, columns, cwd):
    """What a process prints on a pseudo-terminal of so many columns."""
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (50, columns))
    env = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    child = subprocess.Popen(command, env=env, stdout=follower, cwd=cwd)
    os.close(follower)
    shown = b""
    with contextlib.suppress(OSError):  # how the end of a terminal is told
        while part := os.read(leader, 4096):
            shown += part
    child.wait()
    os.close(leader)
    return shown.decode().replace("\r\n", "\n")


def test_on_a_terminal_and_only_there_a_report_has_colour(tmp_path):
    command = [sys.executable, "-c", THRICE]
    piped = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    told = shown_by_a_terminal(command, 60, tmp_path).split("next: ")[1:]
    assert [any(f"\x1b[{code}m[" in one for code in (31, 33)) for one in told] == [True, False, False]
    assert "\x1b[" not in piped.stdout


SCREENS = """
import sys, termios
from gradience.cli.main import main
LONG = "a-run-whose-path-is-as-wide-as-this"
for columns in map(int, sys.argv[1:]):
    termios.tcsetwinsize(1, (50, columns))
    for words in ("monitor .", "audit peft", "diagnose .", "check peft", "runs .", "compare peft two/peft", LONG):
        main(words.split())
    print(end="\\f", flush=True)
"""


def test_a_terminal_gets_lines_of_its_width_folded_once(tmp_path):
    shutil.copytree(Path(__file__).parents[1] / "golden" / "readme", tmp_path, dirs_exist_ok=True)
    shutil.copytree(tmp_path / "peft", tmp_path / "two" / "peft")
    shutil.copytree(tmp_path / "peft", tmp_path / "a-run-whose-path-is-as-wide-as-this" / "peft")
    other = json.loads((file := tmp_path / "two" / "peft" / "adapter_config.json").read_text())
    file.write_text(json.dumps({**other, "target_modules": [f"a_projection_{n}" for n in range(4)]}))
    words, widths = {}, (60, 80, 140)
    shown = shown_by_a_terminal([sys.executable, "-c", SCREENS, *map(str, widths)], 120, tmp_path)
    *screens, rest = re.sub(r"\x1b\[\d+m", "", shown).split("\f")
    assert rest == ""
    for columns, text in zip(widths, screens, strict=True):
        lines = text.split("\n")
        assert [line for line in lines if len(line) > columns] == []
        folds = [
            pair for pair in pairwise(lines) if pair[1][:4] == "    " and pair[0].startswith(("Story:", "Verdict:"))
        ]
        assert folds
        for one, rest in folds:  # folded twice, a line would end before the page is full
            assert len(f"{one} {rest.split()[0]}") > min(columns, 100)
        words[columns] = [word for word in text.split() if word.isalpha()]
    assert Counter(words[60]) == Counter(words[80])

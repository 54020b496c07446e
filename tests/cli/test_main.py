"""The door: exit codes, one-line errors, one document on stdout."""

from __future__ import annotations

import contextlib
import io
import json
from importlib import import_module

import pytest
from tables import every

from gradience.cli import main as main_module
from gradience.cli.main import COMMANDS, build_app, main
from gradience.telemetry.writer import TelemetryWriter


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "run.jsonl"
    with TelemetryWriter(path) as writer:
        writer.run_start()
        writer.train_step(1, loss=1.0)
        writer.train_step(1, loss=float("nan"))  # an error
    return path


@every(("before", "after"), [(0, 0), (85, 0), (60, 120), (300, 60)])
def test_an_errors_advice_shows_no_secret_even_where_it_is_cut(before, after):
    """The middle that is left out of a long text begins 80 characters from its start, and ends so far from its end."""
    secret = "hf_" + "aBcD1234" * 4 + "xY"
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        assert main_module.refused("it failed", f"{'w ' * (before // 2)}{secret}{' w' * (after // 2)}") == 2
    assert said.getvalue().startswith("gradience: it failed (")
    assert secret[:11] not in said.getvalue()
    assert secret[-11:] not in said.getvalue()


def test_a_command_that_is_given_again_keeps_nothing_of_what_it_was_given_first(log, capsys):
    """Tests run many commands in one process: `kept_signatures.py`."""
    assert main(["monitor", str(log), "--json", "--fail-on", "info"]) == 1
    assert json.loads(capsys.readouterr().out)
    assert main(["monitor", str(log)]) == 0
    assert capsys.readouterr().out.startswith("=")
    assert main(["monitor"]) == 2
    assert main(["monitor", str(log), str(log)]) == 0


@every("command", ["monitor", "audit", "check", "merge"])
def test_the_kept_table_of_options_is_that_of_cyclopts(command):
    app = build_app(command)[command]
    kept, made = (
        [
            (a.field_info.name, a.keys, a.index, a.names, a.hint, a.required, a.parameter.show, len(a.children))
            for a in table
        ]
        for table in (app.assemble_argument_collection(), app.assemble_argument_collection(parse_docstring=True))
    )
    assert kept == made


def test_a_bug_of_ours_keeps_its_traceback_and_ends_with_70(monkeypatch, log, capsys):
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("gradience.verbs.monitor.command.monitored", broken)
    assert main(["monitor", str(log)]) == 70
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("Traceback")
    assert told[-2] == "ZeroDivisionError"
    assert told[-1].startswith("gradience: a bug of gradience, not of your input (ZeroDivisionError in broken)")


@every(
    ("error", "code", "says"),
    [
        (OSError(28, "No space left on device"), 2,
         "gradience: cannot write: No space left on device (check the space"),
        (OSError(36, "File name too long", "x"), 2, "gradience: cannot use x: File name too long (check the path)"),
        (OSError(1, "Operation not permitted"), 70, "Traceback"),
        (MemoryError(), 2, "gradience: not enough memory for this input"),
        (BrokenPipeError(32, "Broken pipe"), 0, ""),
    ],
)  # fmt: skip
def test_an_error_that_the_user_can_mend_is_no_bug(monkeypatch, log, capsys, error, code, says):
    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("gradience.verbs.monitor.command.monitored", broken)
    monkeypatch.setattr("gradience.commands.output.leave_stdout", lambda: None)
    assert main(["monitor", str(log)]) == code
    assert capsys.readouterr().err.startswith(says)


@every("command", sorted(COMMANDS))
def test_the_help_of_a_command_is_its_whole_docstring(command, capsys):
    assert main([command, "--help"]) == 0
    module, _, name = COMMANDS[command][0].partition(":")
    described = getattr(import_module(module), name).__doc__.partition("Parameters")[0]
    assert described.split()
    assert " ".join(described.split()) in " ".join(capsys.readouterr().out.split())

"""The ``gradience`` command: a table of lazily imported commands, and the exit codes.

Exit codes: 0 done, 1 findings at or above ``--fail-on``, not the same or not contained, 2 unusable input or usage, 3
undecided, 70 a bug of ours (EX_SOFTWARE of sysexits.h), 130 and 143 ended by SIGINT and SIGTERM.

Only the standard library is imported before `script` runs, so that an interrupt during imports ends in words too.
"""

from __future__ import annotations

import errno
import gc
import os
import shutil
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from contextvars import copy_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, TextIO

from gradience.errors import UNUSABLE, GradienceError
from gradience.io import interrupt

if TYPE_CHECKING:
    from cyclopts import App, Group

SOFTWARE: Final = 70  # EX_SOFTWARE; scripts act on 1 (findings) and 2 (unusable input), so a bug is neither

_GC_THRESHOLDS = (100_000, 50, 100)  # by the defaults (700, 10, 10), importing jax collects 100 times in vain

COMMANDS = {  # name: its function, imported when it runs, and its line in the list of commands
    "check": (
        "gradience.verbs.check.command:check",
        "Validate a PEFT and training configuration before burning compute.",
    ),
    "monitor": ("gradience.verbs.monitor.command:monitor", "Summarise a run from its telemetry (run.jsonl)."),
    "audit": (
        "gradience.verbs.audit.command:audit",
        "Analyse a trained adapter for waste, and for what is wrong with it.",
    ),
    "diagnose": (
        "gradience.verbs.diagnose.command:diagnose",
        "Join a run's config, log and weights into one verdict with its findings.",
    ),
    "report": (
        "gradience.verbs.report.command:report",
        "Write one file about a run: a page to look at, or Markdown for a pull request.",
    ),
    "runs": (
        "gradience.verbs.runs.command:runs",
        "List many runs in one table; runs best ranks them, runs query asks in SQL.",
    ),
    "why": ("gradience.verbs.why.command:why", "Name the first step at which two runs part, and the cause."),
    "compare": (
        "gradience.verbs.compare.command:compare",
        "Compare trained adapters, or the checkpoints of a run, by their weights.",
    ),
    "resize": (
        "gradience.verbs.resize.command:resize",
        "Write a copy of an adapter with lower ranks, each update the best of its rank.",
    ),
    "merge": (
        "gradience.verbs.merge.command:merge",
        "Merge adapters of one base model into one; with --check say what would collide.",
    ),
    "convert": (
        "gradience.verbs.convert.command:convert",
        "Write an adapter in another format: plain PEFT LoRA or MLX-LM.",
    ),
    "bench": (
        "gradience.verbs.bench.command:bench",
        "Measure what an adapter changes, and what a smaller or merged one loses.",
    ),
    "verify": (
        "gradience.verbs.verify.command:verify",
        "Tell whether what is shipped is what was trained: a merged model, or what serves.",
    ),
    "receipt": (
        "gradience.verbs.receipt.command:receipt",
        "Write down what an adapter answers, to compare with what is served later.",
    ),
    "import": ("gradience.verbs.imports:import_run", "Turn a finished run of another program into a run.jsonl."),
    "validate": ("gradience.verbs.validate:validate", "Check every line of a run.jsonl against the telemetry schema."),
    "schema": ("gradience.verbs.schema:schema", "Print a JSON Schema: of a line of a log, or of a report."),
    "rules": ("gradience.verbs.rules:rules", "List every rule by where it applies, or explain one with its evidence."),
}

GROUPS = {  # name: its line in the list, and its commands in the form of COMMANDS
    "fleet": (
        "Many adapters: audit every one below some folders, then show and query them.",
        {
            "audit": ("gradience.verbs.fleet.command:audit", "Audit every adapter below some folders or URLs."),
            "show": ("gradience.verbs.fleet.command:show", "Show what is in a fleet, and what needs a look."),
            "query": ("gradience.verbs.fleet.command:query", "Ask a fleet in SQL."),
        },
    ),
}

BELOW = {  # commands of a command, in the form of COMMANDS
    "runs": {
        "query": ("gradience.verbs.runs.command:query_runs", "Ask the runs in SQL."),
        "best": ("gradience.verbs.runs.command:best_run", "Find the best run by a metric, of all or of each group."),
    },
    "bench": {
        "merge": ("gradience.verbs.bench.command:merge", "Measure what merges lose on each adapter's own data."),
    },
}

HEADINGS = {  # heading: the commands under it, in this order; commands in no heading are listed under the last
    "A run and its adapter": ("check", "monitor", "audit", "diagnose", "report"),
    "Many of them": ("runs", "why", "compare", "fleet"),
    "Write an adapter": ("resize", "merge", "convert"),
    "Measure and ship": ("bench", "verify", "receipt"),
    "Logs and rules": ("import", "validate", "schema", "rules"),
    "More": (),
}

_GONE = {  # commands of earlier versions, and what does the same
    "drift": "gradience bench ADAPTER --base MODEL --data TEXTS",
    "merge-check": "gradience merge A B --check",
    "verify-merge": "gradience verify MERGED --adapter ADAPTER --base MODEL",
    "verify-served": "gradience verify ADDRESS --receipt FILE",
}

_SHORT = {"-V": ["--version"], "version": ["--version"]}  # what other programs call it
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG}  # an error of a write names no file
_MAX_ERROR = 800  # characters of an error's line: at most a screen, however long a file's name is


def build_app(*asked: str) -> App:
    """Return the command table; a command's module is imported when it runs.

    Args:
        asked: the command that will run. Its help is its own docstring; other commands have the line of the table.
    """
    from cyclopts import App, Group  # see the module's first lines

    from gradience.commands.output import refuse_fractions  # the same

    groups = {name: Group(name, sort_key=place) for place, name in enumerate(HEADINGS)}
    listed = {
        command: _Listed(groups[name], place)
        for name, commands in HEADINGS.items()
        for place, command in enumerate(commands)
    }

    app = App(
        name="gradience",
        help="Flight recorder and mechanic for LoRA fine-tuning. It instruments; you decide.",
        version=_version,
        help_format="markdown",
        result_action="return_value",
        group_commands=groups["More"],
        config=refuse_fractions,
    )
    app["--help"].group = app["--version"].group = groups["More"]
    verb = asked[0] if asked else ""
    _fill(app, COMMANDS, verb, listed)
    below = asked[1] if len(asked) > 1 else None
    if verb in BELOW:
        _fill(app[verb], BELOW[verb], below, {})
    for name, (line, commands) in GROUPS.items():
        group = App(name=name, help=line, version_flags=(), **listed[name]._asdict())
        _fill(group, commands, below if verb == name else None, {})
        app.command(group)
    if verb not in COMMANDS and verb not in GROUPS:  # commands run without importing it
        completion = "Install completion for your shell, and name the files changed."
        app.register_install_completion_command(help=completion, group=groups["More"])
    return app


class _Listed(NamedTuple):
    """Where the list of commands has one."""

    group: Group
    sort_key: int


def _fill(app: App, commands: Mapping[str, tuple[str, str]], asked: str | None, listed: Mapping[str, _Listed]) -> None:
    for name, (target, line) in commands.items():
        place = listed[name]._asdict() if name in listed else {}
        app.command(target, name=name, help=None if name == asked else line, **place)


def _version() -> str:
    from importlib.metadata import version  # 15 ms that only --version pays for

    from gradience.errors import other_project  # the same

    other = other_project()
    return version("gradience") + (f"\n{other}" if other else "")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    An error meant for the user becomes one line and exit code 2. Any other exception is a bug of ours: its traceback, a
    line that says so, and exit code 70.
    """
    interrupt.forget()
    if sys.stdout is None:  # closed, as by >&-: said before any work, which would be lost
        return refused("cannot write to stdout: it is closed", "send the report to a file or a pipe")
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except Exception as error:  # the last resort
        if interrupt.came():  # a library turned the interrupt into another error
            raise KeyboardInterrupt from error
        return _code_of(error)


def _code_of(error: Exception) -> int:
    if isinstance(error, GradienceError):
        return refused(error.message, error.advice)
    if isinstance(error, BrokenPipeError):
        from gradience.commands.output import leave_stdout  # only this failure pays for it

        leave_stdout()  # the reader closed the pipe (`| head`), which deserves no message
        return 0
    if isinstance(error, MemoryError):
        return refused("not enough memory for this input", "give a smaller one, or run it where more is free")
    if isinstance(error, OSError) and error.filename is not None:
        # An error about a path, such as a name that no disk can hold, is the user's. Any other is a bug of ours.
        return refused(f"cannot use {os.fsdecode(error.filename)}: {error.strerror}", "check the path")
    if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
        return refused(f"cannot write: {error.strerror}", "check the space left")
    return _failed(error)


def _run(tokens: list[str]) -> int:
    from cyclopts.exceptions import CycloptsError  # see the module's first lines

    from gradience.commands.output import KeptConsole, emit  # the same

    tokens = _SHORT.get(tokens[0], tokens) if len(tokens) == 1 else tokens
    is_help = not tokens or not {"--help", "-h", "--version"}.isdisjoint(tokens)
    context = copy_context()  # in which the width of the page ends with the command
    if not is_help and sys.stdout.isatty():
        from gradience.blocks.text import fit_terminal  # as late as a command's module

        context.run(fit_terminal, shutil.get_terminal_size().columns)
    if len(tokens) == 1 and _is_place(tokens[0]):
        from gradience.cli.here import here  # as late as a command's module

        return context.run(here, Path(tokens[0]))
    if tokens and tokens[0] in _GONE:
        return refused(f"{tokens[0]} is gone", f"give '{_GONE[tokens[0]]}'")
    app = build_app(*tokens[:2])
    kept = KeptConsole() if is_help else None
    console = None if kept is None else kept.console
    try:
        result = context.run(app, tokens, console=console, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        if isinstance(error.__cause__, GradienceError):  # of an option's record, in the words that Python has, too
            raise error.__cause__ from None
        from gradience.commands.output import usage_error  # only a mistyped command pays for it

        depth = 2 if tokens[0] in GROUPS or set(tokens[1:2]) & set(BELOW.get(tokens[0], ())) else 1
        verb = " ".join(tokens[:depth]) if tokens[0] in (*COMMANDS, *GROUPS) else ""
        return refused(usage_error(error), f"see 'gradience {verb} --help'" if verb else "see 'gradience --help'")
    if kept is not None:
        emit(kept.text())
    return result if isinstance(result, int) else 0


def _is_place(token: str) -> bool:
    """Whether the only word is no command, but the path of a file or folder."""
    if token.startswith("-") or token in COMMANDS or token in GROUPS:
        return False
    try:
        return Path(token).exists()
    except (OSError, ValueError):  # a name that no disk can hold
        return False


def script() -> int:
    """Run the command line as a process of its own."""
    gc.set_threshold(*_GC_THRESHOLDS)
    if sys.stderr is None:  # closed, as by 2>&-: progress and errors go nowhere
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  # as long as the process
    sys.stderr = EscapingStream(sys.stderr)  # all that is asked of a stream it has
    try:
        interrupt.install()
        _keep_descriptors()
        code = main()
        interrupt.ignore()  # the output is complete, so an interrupt no longer changes the exit code
    except (KeyboardInterrupt, SystemExit) as end:
        interrupt.ignore()
        number = interrupt.came()
        if isinstance(end, SystemExit) and not number:
            raise
        code = 128 + number if number else interrupt.INTERRUPTED
        if code == interrupt.INTERRUPTED:
            _tell("gradience: interrupted")
        if number:
            _leave(code)
    finally:
        gc.freeze()  # the process ends here: nothing is gained by searching it for garbage once more
    return code


class EscapingStream:
    """A stream that writes an escape for each character that steers a terminal.

    As stderr it is the way of all that is not ours to write: of warnings, logs, bars and traces of threads.
    """

    def __init__(self, plain: TextIO) -> None:
        self.plain = plain

    def write(self, text: str) -> int:
        """Write a text, and return its length."""
        from gradience.schema.document import escape_controls  # see the module's first lines

        self.plain.write(escape_controls(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write texts."""
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        """Whatever else the stream has."""
        return getattr(self.plain, name)


def _keep_descriptors() -> None:
    """Open the null device in place of a closed stdin, stdout or stderr, whose number a file of ours would get."""
    while (nowhere := os.open(os.devnull, os.O_RDWR)) <= 2:  # stderr's number
        pass
    os.close(nowhere)


def _leave(code: int) -> NoReturn:
    """End the process at once: threads still at work, such as XLA's, can crash an interpreter during shutdown."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


def _failed(error: Exception) -> int:
    """Report an error that is a bug in this program."""
    _tell("".join(traceback.format_exception(error)).rstrip("\n"))
    where = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{type(error).__name__} in {where.name}"
    _tell(f"gradience: a bug of gradience, not of your input ({place}): please report the lines above")
    from gradience.errors import other_project  # files of two projects may lie over each other

    if (other := other_project()) is not None:
        _tell(f"gradience: {other}")
    return SOFTWARE


def _tell(text: str) -> None:
    from gradience.commands.output import tell  # see the module's first lines

    tell(text)


def refused(message: str, advice: str) -> int:
    """Print the line of an error without secrets, and return its exit code."""
    from gradience.blocks import clean  # only a failure pays for it
    from gradience.telemetry.secrets import hide_secrets  # the same

    # Secrets are hidden before the cut to a screen, which could leave a part of one. The cut before that bounds the
    # work; half a secret beside it falls into the middle, which the second cut leaves out.
    def shown(text: str, most: int) -> str:
        return _middle_cut(hide_secrets(_middle_cut(" ".join(text.split()), 4 * _MAX_ERROR)), most)

    tail = f" ({shown(advice, _MAX_ERROR // 4)})" if advice else ""
    _tell(f"gradience: {clean(shown(message, _MAX_ERROR - len(tail)))}{clean(tail)}")
    return UNUSABLE


def _middle_cut(text: str, most: int) -> str:
    """The text; if it is too long, its beginning and end, and between them the number of characters left out."""
    if len(text) <= most:
        return text
    kept = (most - 40) // 2
    return f"{text[:kept]} <{len(text) - 2 * kept} characters left out> {text[-kept:]}"

"""The parts that every command shares: help, progress, printing, exit codes, and memory.

A command prints one report on stdout, once, at its end; progress and errors go to stderr. On a terminal, sentences are
wrapped to its width, and severities are in colour unless NO_COLOR is set.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib.metadata import version
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

import msgspec

from gradience.errors import OutputError, few
from gradience.io import interrupt
from gradience.schema import Severity
from gradience.schema.document import (
    SEVERITIES,
    Finding,
    FindingRef,
    NotRun,
    Report,
    RuleGroup,
    escape_all,
    escape_controls,
    writable,
)
from gradience.schema.reports import SourceLocation

if TYPE_CHECKING:
    from cyclopts.argument import ArgumentCollection
    from cyclopts.exceptions import CoercionError, CycloptsError, UnknownOptionError, ValidationError

    from gradience.schema.diagnose import DiagnoseReport


_TRIM, _MMAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h
_KEPT: Final = 16 << 20  # bytes at the top of a thread's heap
_OWN: Final = 16 << 20  # arrays of at least so many bytes have pages of their own, which are returned at once

DONE: Final = 0
FOUND: Final = 1
COULD_NOT_JUDGE: Final = 2
NOT_DECIDED: Final = 3

_COLOURS: Final = {"CRITICAL": "1;31", "ERROR": "31", "WARNING": "33", "INFO": "36"}  # SGR of ECMA-48
_TAG: Final = re.compile(r"\[(CRITICAL|ERROR|WARNING|INFO)\]")


def draws_blocks() -> bool:
    """Whether stdout can write block characters."""
    try:
        "█▁".encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def emit(text: str) -> None:
    """Write to stdout and flush. Every report, document and help text is written by this function.

    A character that the encoding lacks is written as its escape. An interrupt that came before ends the command first.

    Raises:
        OutputError: stdout is closed, or cannot be written to.
        BrokenPipeError: its reader has closed it.
    """
    interrupt.raise_delayed()
    if sys.stdout is None:
        raise OutputError("cannot write to stdout: it is closed", advice="send the report to a file or a pipe")
    encoding = sys.stdout.encoding or "utf-8"
    shown = text.encode(encoding, "backslashreplace").decode(encoding)
    try:
        sys.stdout.write(shown)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:  # ValueError: it was closed
        leave_stdout()
        reason = error.strerror if isinstance(error, OSError) else error
        raise OutputError(f"cannot write to stdout: {reason}", advice="free space, or send it elsewhere") from error


def leave_stdout() -> None:
    """Point stdout at the null device, because the interpreter flushes it once more at its end, and would complain."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


class KeptConsole:
    """A console for help and version that writes to memory, so that only `emit` meets a full disk or a closed pipe."""

    def __init__(self) -> None:
        from rich.console import Console  # only help pays for it

        on_screen = sys.stdout is not None and sys.stdout.isatty()
        self._encoding = getattr(sys.stdout, "encoding", None) or "utf-8"  # by which the console chooses its lines
        self._kept = io.BytesIO()
        file = io.TextIOWrapper(self._kept, encoding=self._encoding, errors="backslashreplace", write_through=True)
        self.console = Console(file=file, force_terminal=on_screen)

    def text(self) -> str:
        """The text that was printed."""
        return self._kept.getvalue().decode(self._encoding)


_ELSEWHERE: Final = {"--output-dir": "--out", "--output": "--out"}  # what trainers call an option

_ON_ROWS: Final = ("--calibrate", "--recover")  # flags that took a file in earlier versions

_EXPECTED: Final[dict[type | None, str]] = {int: "a whole number", float: "a number"}
_BOUNDS: Final = {">=": "at least", ">": "above", "<=": "at most", "<": "below"}

_GONE: Final = {  # options of earlier versions, and what does the same
    "--announce": "give --format github or --json, and pipe it; a callback takes announce=",
    "--address": "leave it out: processes of this machine carry it out",
    "--against": "ask the fleet: gradience fleet query FLEET SQL",
    "--engine": "leave it out: processes of this machine carry it out",
    "--write-clean": "leave the rows out that the findings name: --json has their numbers",
    "--merged": "give the merged model first: gradience verify MERGED --adapter ADAPTER --base MODEL",
    "--texts": "give --data",
    "--prompts": "give --data",
    "--calibrate": "give --calibration-data",
    "--top": "give --verbose",
    "--retrain": "train the adapter, and give its folder: --candidates adapter:FOLDER",
    "--seeds": "let the command print the mean of each example over its seeds",
    "--rel-error": "give --energy 1 - x^2",
    "--max-params": "give --max-mb",
    "--peft-dir": "give the adapter's folder without it",
    "--adapter-config": "put adapter_config.json beside the weights",
    "--layers": "give --verbose",
    "--model": "name it in a configuration file, or give --base",
    "--samples": "give --set samples=all",
    "--show-rows": "give --set show_rows=true",
    "--template": "give --set template=FILE",
}


def usage_error(error: CycloptsError) -> str:
    """The error for a wrong command line; a name or a choice that is none in cyclopts' words, with what is meant."""
    from cyclopts import exceptions as of  # only this one pays

    if isinstance(error, of.CoercionError | of.ValidationError):
        return _wrong_value(error) or str(error)
    if isinstance(error, of.MissingArgumentError) and error.argument is not None and not error.tokens_so_far:
        return f"{error.keyword} needs a value" if error.keyword else f"needs {error.argument.name}"
    if isinstance(error, of.UnusedCliTokensError):
        words = error.root_input_tokens or ()
        filed = [flag for flag, word in pairwise(words) if flag in _ON_ROWS and not word.startswith("-")]
        given = [str(token) for token in error.unused_tokens or ()]
        return _takes_no_file(filed[0]) if filed else f"not understood: {few(given)}"
    return (_unknown(error) if isinstance(error, of.UnknownOptionError) else None) or str(error)


def _wrong_value(error: CoercionError | ValidationError) -> str | None:
    """The error for a value that is no number, beyond a bound, or of a flag."""
    from cyclopts.exceptions import ValidationError  # as above

    if error.argument is None:
        return None
    token = next(iter(error.argument.tokens), None) if isinstance(error, ValidationError) else error.token
    name, value = error.argument.name, "" if token is None else token.value
    if isinstance(error, ValidationError):
        bound = re.fullmatch(r"Must be ([<>]=?) (.+)\.", error.exception_message)
        return bound and f"{name} is {value}, expected {_BOUNDS[bound[1]]} {bound[2]}"
    if error.target_type is bool:
        return _takes_no_file(name) if name in _ON_ROWS else f"{name} takes no value"
    expected = _EXPECTED.get(error.target_type)
    return expected and f"{name} is {value!r}, expected {expected}"


def _unknown(error: UnknownOptionError) -> str | None:
    """The error for an option of another program, of an earlier version, or of a configuration."""
    option = (error.token.keyword or error.token.value).partition("=")[0]
    meant = _ELSEWHERE.get(option)
    if any(meant in argument.names for argument in error.argument_collection):
        return f"Unknown option: {option}. Did you mean {meant}?"
    if option in _GONE:
        return f"{option} is gone: {_GONE[option]}"
    if any("--set" in argument.names for argument in error.argument_collection):
        from gradience.configs.settings import is_setting  # as above

        if is_setting(name := option.strip("-").replace("-", "_")):
            return f"Unknown option: {option}. A single setting is given as --set {name}=VALUE"
    return None


def _takes_no_file(flag: str) -> str:
    return f"{flag} takes no file: give --data FILE {flag}"


def refuse_fractions(_app: object, _commands: object, arguments: ArgumentCollection) -> None:
    """Refuse a fraction where an option is a whole number: the parser would round it.

    Raises:
        CoercionError: there is one.
    """
    from cyclopts.exceptions import CoercionError  # as above

    for argument in arguments:
        kinds = get_args(argument.hint) or (argument.hint,)
        for token in argument.tokens if int in kinds and float not in kinds else ():
            if token.value.partition(".")[2].strip("0"):
                raise CoercionError(token=token, argument=argument, target_type=int)


def emit_json(text: str) -> None:
    """Write a JSON document by `emit`, escaped so that its value arrives unchanged.

    Control characters are escaped. If the encoding of stdout is not a Unicode one, so is everything beyond ASCII.
    """
    everywhere = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf")
    emit((escape_controls(text) if everywhere else escape_all(text)) + "\n")


def print_text(text: str) -> None:
    """Print a report for people, with the secrets in its lines hidden."""
    shown = safe_lines(text.split("\n"))
    if sys.stdout is not None and sys.stdout.isatty():
        from gradience.blocks.text import folded  # a pipe or a file gets the text as it is

        shown = "\n".join(chain.from_iterable(map(folded, shown.split("\n"))))
        shown = coloured(shown) if has_colour() else shown
    emit(shown)


def safe_lines(lines: Iterable[str]) -> str:
    """Lines for people, without secrets, and with an escape for each character that steers a terminal."""
    from gradience.telemetry.secrets import hide_secrets  # --help needs none of it

    return "".join(f"{escape_controls(hide_secrets(line))}\n" for line in lines)


def tell(text: str, *, begin: str = "", end: str = "\n") -> None:
    """Write to stderr, if that is possible, with an escape for each character that steers a terminal.

    Progress and errors are written by this function. `begin` and `end` are our own, and written as they are.
    """
    stream = getattr(sys.stderr, "plain", sys.stderr)  # an `Escaped` would escape our own, too
    with suppress(OSError, ValueError):
        stream.write(f"{begin}{escape_controls(text)}{end}")
        stream.flush()


def print_document(document: Report) -> None:
    """Print exactly one JSON document."""
    emit_json(document.to_json())


def exit_code(findings: Iterable[Finding | FindingRef], fail_on: Severity | None) -> int:
    """Return 1 if a finding is at or above the severity, else 0."""
    if fail_on is None:
        return DONE
    bar = SEVERITIES.index(fail_on)
    return FOUND if any(SEVERITIES.index(f.severity) >= bar for f in findings) else DONE


def code_of(report: DiagnoseReport, code: int) -> int:
    """Return the exit code of a diagnosis whose findings alone give `code`."""
    if not report.complete:
        return COULD_NOT_JUDGE
    return code or (NOT_DECIDED if report.verdict == "could_not_judge" else DONE)


Format: TypeAlias = Literal["text", "json", "sarif", "github", "junit"]


def print_for_programs(
    kind: Literal["sarif", "github", "junit"],
    findings: Sequence[Finding],
    *,
    locations: Sequence[SourceLocation | None],
    groups: Sequence[RuleGroup],
    not_run: Iterable[NotRun] = (),
) -> None:
    """Print findings as SARIF 2.1.0 or JUnit (one document), or as annotations of GitHub Actions (a line each).

    Args:
        kind: the format.
        findings: the findings.
        locations: the location of each finding, in their order; None for a finding without one.
        groups: the groups of the rules that were applied, for SARIF and JUnit.
        not_run: the rules that could not be judged, for SARIF and JUnit.
    """
    if kind == "github":
        from gradience.blocks.programs import github_lines  # for those who ask

        emit("".join(f"{line}\n" for line in github_lines(findings, locations=locations)))
        return
    from gradience.blocks.programs import junit_xml, sarif_log  # the same
    from gradience.rules import cards_of  # the same

    if kind == "junit":
        emit(junit_xml(findings, locations=locations, known=cards_of(*groups), not_run=not_run))
        return
    log = sarif_log(
        findings,
        locations=locations,
        known=cards_of(*groups),
        not_run=not_run,
        version=version("gradience"),
        root=Path.cwd(),
    )
    emit_json(msgspec.json.format(msgspec.json.encode(writable(log))).decode())


def has_colour() -> bool:
    """Whether to use colours: not with NO_COLOR (no-color.org), and not on a terminal without colours."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def coloured(text: str) -> str:
    """Return the text with the tags of severities in colour."""
    return _TAG.sub(lambda hit: f"\x1b[{_COLOURS[hit[1]]}m{hit[0]}\x1b[0m", text)


def keep_freed() -> None:
    """Let glibc keep up to 16 MiB of freed memory per thread, for programs that read one module after another.

    By default glibc returns that memory to the system, which then clears every page again for the next module's
    factors: a tenth of the processor time of a `resize`. Other C libraries keep their behaviour.
    """
    import ctypes  # few verbs need it

    try:
        mallopt = ctypes.CDLL(None).mallopt
    # Windows has no CDLL(None), musl and macOS have no mallopt.
    except (AttributeError, OSError, TypeError):
        return
    # To set one of them ends glibc's own adjustment of both.
    mallopt(_MMAP, _OWN)
    mallopt(_TRIM, _KEPT)

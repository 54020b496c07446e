"""The project's settings for a command: found from the working folder, under what the command line says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple, Protocol, TypeAlias, TypeVar

from cyclopts import Parameter

from gradience.cli.output import DONE, Format, chosen_format, exit_code, print_document, print_text
from gradience.configs.preferences import FailOn, Preferences, find_preferences, read_preferences
from gradience.errors import AdapterError, ConfigError
from gradience.rules.log.facts import DEFAULT_GAP
from gradience.schema.document import Report
from gradience.schema.findings import Finding, FindingRef
from gradience.schema.scalars import Severity


class Settings(NamedTuple):
    """The settings, and the file they come from."""

    values: Preferences = Preferences()
    path: Path | None = None


def project_settings(settings: Path | None = None, *, isolated: bool = False) -> Settings:
    """Return the settings of the file given, else of the nearest one from the working folder upwards.

    Raises:
        ConfigError: the file cannot be read or holds something else, or both options are given.
    """
    if isolated:
        if settings is not None:
            raise ConfigError("--isolated leaves settings files alone, --settings names one", advice="give one of them")
        return Settings()
    path = settings or find_preferences(Path.cwd())
    return Settings() if path is None else Settings(read_preferences(path), path)


def severity(option: FailOn | None, settings: Settings) -> Severity | None:
    """Return the severity from which a command exits with 1: the option, else the settings; None for never."""
    asked = option or settings.values.fail_on
    return None if asked is None or asked == "never" else asked


_Repeat = Parameter(negative=())
_Switch = Parameter(negative=())


class ResolvedOptions(NamedTuple):
    """What the command line and the project's settings come to."""

    format: Format
    select: Sequence[str]
    ignore: Sequence[str]
    fail_on: Severity | None
    project: Settings

    @property
    def settings(self) -> Path | None:
        """The settings file that applies."""
        return self.project.path

    def gap(self, option: float | None) -> float:
        """Return held-out over train perplexity from which a gap is a finding: the option, else the settings."""
        return option or self.project.values.gap_threshold or DEFAULT_GAP

    def exit_code(self, findings: Iterable[Finding | FindingRef]) -> int:
        """Return 1 if a finding is as severe as was asked for, else 0."""
        return exit_code(findings, self.fail_on)


@dataclass(frozen=True, kw_only=True)
class RuleOptions:
    """The options.

    Parameters
    ----------
    select:
        Apply only these rules: an id, or the beginning of ids such as LR; may be repeated.
    ignore:
        Leave these rules out, likewise.
    fail_on:
        Exit with 1 if a finding is at least this severe.
    settings:
        A file with settings, instead of the nearest gradience.toml or pyproject.toml with [tool.gradience].
    isolated:
        Read no file with settings.
    format:
        text; json (one document, see gradience schema); sarif (2.1.0); github (annotations of a workflow).
    json:
        The same as --format json.
    """

    select: Annotated[list[str] | None, _Repeat] = None
    ignore: Annotated[list[str] | None, _Repeat] = None
    fail_on: FailOn | None = None
    settings: Path | None = None
    isolated: Annotated[bool, _Switch] = False
    format: Format | None = None
    json: Annotated[bool, _Switch] = False

    def settled(self) -> ResolvedOptions:
        """Return the options over the project's settings.

        Raises:
            GradienceError: two options contradict each other, or the settings cannot be read.
        """
        project = project_settings(self.settings, isolated=self.isolated)
        return ResolvedOptions(
            format=chosen_format(self.format, json=self.json),
            select=self.select or (),
            ignore=self.ignore or (),
            fail_on=severity(self.fail_on, project),
            project=project,
        )


NONE_GIVEN = RuleOptions()
Options: TypeAlias = Annotated[RuleOptions, Parameter(name="*")]


DryRun: TypeAlias = Annotated[
    bool, Parameter(negative=(), help="Write nothing; print what would be written, and what it costs.")
]
Force: TypeAlias = Annotated[
    bool,
    Parameter(negative=(), help="Replace --out if it is an adapter that exists, once the new one is complete."),
]
Verbose: TypeAlias = Annotated[bool, Parameter(alias="-v", negative=(), help="List every module.")]

_Report_contra = TypeVar("_Report_contra", bound=Report, contravariant=True)


class _Render(Protocol[_Report_contra]):
    def __call__(self, report: _Report_contra, /, *, verbose: bool) -> str: ...


def given_once(verb: str, path: Path | None, peft_dir: Path | None) -> Path:
    """Return the adapter's place, which is an argument or an option.

    Raises:
        AdapterError: it is given twice, or not at all.
    """
    place = path or peft_dir
    if place is None or (path is not None and peft_dir is not None):
        raise AdapterError(f"give the adapter's folder once: 'gradience {verb} DIR' or '--peft-dir DIR'")
    return place


def place_of(out: Path | None, *, dry_run: bool) -> Path | None:
    """Return where to write, or None for a dry run.

    Raises:
        AdapterError: there is no place, and it is no dry run.
    """
    if out is None and not dry_run:
        raise AdapterError("nowhere to write to", advice="give --out FOLDER, or look first with --dry-run")
    return None if dry_run else out


def printed(report: _Report_contra, render: _Render[_Report_contra], *, verbose: bool, json: bool) -> int:
    """Print the report, once, and return the exit code."""
    if json:
        print_document(report)
    else:
        print_text(render(report, verbose=verbose))
    return DONE

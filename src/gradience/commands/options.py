"""Options that several commands share, declared once, and the project's settings.

The aliases carry their own help text, so that a command's docstring describes only its particular options. Settings
come from the nearest gradience.toml or pyproject.toml, and the command line overrides them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple, TypeAlias, TypedDict, TypeVar

from cyclopts import Parameter
from cyclopts.validators import Number

from gradience.commands.output import DONE, Format, exit_code, print_document, print_for_programs, print_text
from gradience.configs import FailOn, Preferences, find_preferences, read_preferences
from gradience.errors import AdapterError, GradienceError
from gradience.ranges import SELDOM, VerbOptions
from gradience.schema import Severity
from gradience.schema.document import Finding, FindingRef, NotRun, Report, RuleGroup
from gradience.schema.reports import SourceLocation
from gradience.telemetry.redact import hide_in

FINDINGS: Final = "Findings and formats"

Flag: TypeAlias = Annotated[bool, Parameter(negative=(), show_default=False)]
Strings: TypeAlias = Annotated[list[str] | None, Parameter(negative=())]
ServerFlags: TypeAlias = Annotated[str, Parameter(allow_leading_hyphen=True)]
Share: TypeAlias = Annotated[float | None, Parameter(validator=Number(gt=0.0, lte=1.0))]


def _shown(default: object) -> str | None:
    """A default as the help shows it; a flag that is off and a list that is empty go without."""
    return None if default is None or default is False or default == () else str(default)


def _refuse_bad(_: object, record: object) -> None:
    if isinstance(record, VerbOptions):
        record.refuse_bad()


RECORD: Final = Parameter(name="*", negative=(), show_default=_shown, validator=_refuse_bad)
"""A record of the library as options of a command: each by its own name, and flags without --no-."""

PeftDir: TypeAlias = Annotated[Path | None, Parameter(name=("--adapter", "--peft-dir"), help="Alias of PATH.")]
_BASE_HELP = "Base model: a folder with safetensors, or organisation/name in the local hub cache. Never downloaded."
Base: TypeAlias = Annotated[Path | None, Parameter(help=_BASE_HELP)]
RequiredBase: TypeAlias = Annotated[Path, Parameter(help=_BASE_HELP)]
OutFolder: TypeAlias = Annotated[Path | None, Parameter(help="Folder to write.")]
Device: TypeAlias = Annotated[Literal["auto", "cpu", "gpu", "tpu"], SELDOM, Parameter(help="Device for JAX.")]
Details: TypeAlias = Annotated[
    Flag, Parameter(alias="-v", help="Show the evidence for each finding, and which rules were skipped.")
]
Verbose: TypeAlias = Annotated[Flag, Parameter(alias="-v", help="List every module.")]
AsJson: TypeAlias = Annotated[
    Flag, Parameter(name="--json", group=FINDINGS, help="Print one JSON document; its schema: 'gradience schema'.")
]

_NO_FILE: Final = Path("none")  # a file of that name is ./none
_ReportT = TypeVar("_ReportT", bound=Report)


class Settings(NamedTuple):
    """The settings, and the file they come from."""

    values: Preferences = Preferences()
    path: Path | None = None


def project_settings(settings: Path | None = None) -> Settings:
    """Return the settings of the file given, else of the nearest one from the working folder upwards; `none` for none.

    Raises:
        ConfigError: the file cannot be read or holds something else.
    """
    if settings == _NO_FILE:
        return Settings()
    path = settings or find_preferences(Path.cwd())
    return Settings() if path is None else Settings(read_preferences(path), path)


def severity(option: FailOn | None, settings: Settings) -> Severity | None:
    """Return the severity from which a command exits with 1: the option, else the settings; None if never."""
    level = option or settings.values.fail_on
    return None if level is None or level == "never" else level


class RuleChoice(TypedDict):
    """The arguments by which every judging function of the library takes a choice of rules."""

    select: Sequence[str]
    ignore: Sequence[str]
    settings: Path | None


class ResolvedOptions(NamedTuple):
    """The options of the command line, completed by the project's settings."""

    format: Format
    select: Sequence[str]
    ignore: Sequence[str]
    fail_on: Severity | None
    project: Settings

    @property
    def rules(self) -> RuleChoice:
        """The choice of rules, as keyword arguments."""
        return {"select": self.select, "ignore": self.ignore, "settings": self.project.path}

    def gap(self, option: float | None) -> float:
        """Ratio of held-out to train perplexity from which a gap is a finding: the option, else the settings."""
        from gradience.rules.log.facts import DEFAULT_GAP  # for commands that read a log

        ratio = self.project.values.gap_threshold if option is None else option
        return DEFAULT_GAP if ratio is None else ratio

    def exit_code(self, findings: Iterable[Finding | FindingRef]) -> int:
        """1 if a finding is at least as severe as --fail-on, else 0."""
        return exit_code(findings, self.fail_on)

    def show(
        self,
        report: _ReportT,
        text: Callable[[_ReportT], str],
        findings: Sequence[Finding],
        *,
        groups: Sequence[RuleGroup],
        locations: Callable[[], Sequence[SourceLocation | None]],
        not_run: Sequence[NotRun] = (),
    ) -> int:
        """Print the report in the chosen format, once, and return the exit code.

        Args:
            report: the report, which is also the JSON document.
            text: a function that renders the report for people.
            findings: the findings of the report.
            groups: the groups of the rules that were applied, for SARIF.
            locations: a function that returns the findings' locations; called only for SARIF and GitHub.
            not_run: the rules that were skipped, for SARIF.
        """
        report, findings = hide_in(report), hide_in(list(findings))  # other programs' logs and configs hold secrets
        if self.format == "json":
            print_document(report)
        elif self.format == "text":
            print_text(text(report))
        else:
            print_for_programs(
                self.format, findings, locations=locations(), groups=groups, not_run=hide_in(list(not_run))
            )
        return self.exit_code(findings)


@dataclass(frozen=True, kw_only=True)
class RuleOptions:
    """The options of every command that judges.

    Parameters
    ----------
    select:
        Apply only these rules: an id, or a prefix of ids such as LR; may be repeated.
    ignore:
        Skip these rules; same form.
    fail_on:
        Exit with 1 if a finding is at least this severe.
    settings:
        Settings file to use instead of the nearest gradience.toml or pyproject.toml with [tool.gradience]; none to
        use none.
    format:
        text; json (one document, see gradience schema); sarif (2.1.0); github (workflow annotations); junit.
    json:
        Same as --format json.
    """

    select: Strings = None
    ignore: Strings = None
    fail_on: FailOn | None = None
    settings: Path | None = None
    format: Format | None = None
    json: Flag = False

    def resolved(self) -> ResolvedOptions:
        """The options, completed by the project's settings.

        Raises:
            GradienceError: two options contradict each other, or the settings cannot be read.
        """
        if self.json and self.format not in {None, "json"}:
            raise GradienceError(f"--json contradicts --format {self.format}", advice="give one of them")
        project = project_settings(self.settings)
        return ResolvedOptions(
            format="json" if self.json else self.format or "text",
            select=self.select or (),
            ignore=self.ignore or (),
            fail_on=severity(self.fail_on, project),
            project=project,
        )


@dataclass(frozen=True, kw_only=True)
class GateOptions:
    """The options of a command that shows findings made before, or of many adapters.

    Parameters
    ----------
    fail_on:
        Exit with 1 if a finding is at least this severe, with 2 if an adapter could not be read and none is.
    format:
        text; json (one document, see gradience schema); sarif (2.1.0); github (workflow annotations); junit.
    json:
        Same as --format json.
    """

    fail_on: FailOn | None = None
    format: Format | None = None
    json: Flag = False

    def resolved(self) -> ResolvedOptions:
        """The options, completed by the project's settings.

        Raises:
            GradienceError: two options contradict each other, or the settings cannot be read.
        """
        return RuleOptions(fail_on=self.fail_on, format=self.format, json=self.json).resolved()


DEFAULT_OPTIONS = RuleOptions()
Gate: TypeAlias = Annotated[GateOptions, Parameter(name="*", group=FINDINGS)]
DEFAULT_GATE = GateOptions()
Options: TypeAlias = Annotated[RuleOptions, Parameter(name="*", group=FINDINGS)]


def given_once(verb: str, path: Path | None, peft_dir: Path | None) -> Path:
    """Return the adapter's path, which is given as an argument or as an option.

    Raises:
        AdapterError: it is given twice, or not at all.
    """
    place = path or peft_dir
    if place is None or (path is not None and peft_dir is not None):
        raise AdapterError(f"give the adapter's folder once: 'gradience {verb} DIR' or '--adapter DIR'")
    return place


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """An adapter's files, where their names do not say which they are.

    Parameters
    ----------
    adapter_config:
        Path to adapter_config.json, if not next to the weights.
    """

    adapter_config: Annotated[Path | None, SELDOM] = None


@dataclass(frozen=True, kw_only=True)
class WritingOptions:
    """The options of every command that writes an adapter.

    Parameters
    ----------
    dry_run:
        Write nothing; print what would be written, and its cost.
    force:
        Replace --out if it is an existing adapter, once the new one is complete.
    """

    dry_run: bool = False
    force: Annotated[bool, SELDOM] = False
    verbose: Verbose = False
    json: AsJson = False

    def place(self, out: Path | None) -> Path | None:
        """Return the path to write, or None for a dry run.

        Raises:
            AdapterError: --out is missing and this is not a dry run.
        """
        if out is None and not self.dry_run:
            raise AdapterError("needs --out", advice="give --out FOLDER, or try --dry-run first")
        return None if self.dry_run else out

    def shown(self, report: _ReportT, text: Callable[..., str]) -> int:
        """Print the report, and return exit code 0."""
        return print_report(report, lambda it: text(it, verbose=self.verbose), json=self.json)


BESIDE = FileOptions()
WRITING = WritingOptions()
Files: TypeAlias = Annotated[FileOptions, RECORD]
Writing: TypeAlias = Annotated[WritingOptions, RECORD]


def print_report(report: _ReportT, text: Callable[[_ReportT], str], *, json: bool) -> int:
    """Print the report of a verb without rules, as text or as JSON, and return exit code 0."""
    report = hide_in(report)
    if json:
        print_document(report)
    else:
        print_text(text(report))
    return DONE

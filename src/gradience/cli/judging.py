"""The options of every command that judges: which rules speak, in which format, and when the exit code is 1."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple, TypeAlias

from cyclopts import Parameter

from gradience.cli.formats import Format, chosen_format
from gradience.cli.output import exit_code
from gradience.cli.preferences import Settings, project_settings, severity
from gradience.configs.preferences import FailOn
from gradience.policy.detectors.facts import DEFAULT_GAP
from gradience.schema.findings import Finding, FindingRef
from gradience.schema.scalars import Severity

__all__ = ["NONE_GIVEN", "Judging", "Options", "Settled"]

_Repeat = Parameter(negative=())
_Switch = Parameter(negative=())


class Settled(NamedTuple):
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
class Judging:
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

    def settled(self) -> Settled:
        """Return the options over the project's settings.

        Raises:
            GradienceError: two options contradict each other, or the settings cannot be read.
        """
        project = project_settings(self.settings, isolated=self.isolated)
        return Settled(
            format=chosen_format(self.format, json=self.json),
            select=self.select or (),
            ignore=self.ignore or (),
            fail_on=severity(self.fail_on, project),
            project=project,
        )


NONE_GIVEN = Judging()
Options: TypeAlias = Annotated[Judging, Parameter(name="*")]

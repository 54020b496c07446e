"""Findings as workflow commands of GitHub Actions, which show as annotations on the lines of a pull request.

One line for each finding, in the syntax of actions/toolkit (command.ts). Messages come from logs and adapters, so every
text is escaped: none can end its command, start another or add a parameter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from gradience.render.text import clean
from gradience.schema.findings import Finding
from gradience.schema.reports import SourceLocation
from gradience.schema.scalars import Severity

_COMMANDS: Final[dict[Severity, str]] = {"info": "notice", "warning": "warning", "error": "error", "critical": "error"}


def github_lines(findings: Sequence[Finding], *, locations: Sequence[SourceLocation | None]) -> Iterator[str]:
    """One workflow command for each finding.

    Args:
        findings: what was found.
        locations: the file and line that each of them points at, in their order; None for none.
    """
    for finding, at in zip(findings, locations, strict=True):
        action = f" ({clean(finding.action)})" if finding.action else ""
        parameters = ",".join(f"{name}={_parameter(value)}" for name, value in _parameters(finding, at))
        yield f"::{_COMMANDS[finding.severity]} {parameters}::{_message(clean(finding.message) + action)}"


def _parameters(finding: Finding, at: SourceLocation | None) -> Iterator[tuple[str, str]]:
    if at is not None:
        yield "file", clean(at.path)
        if at.line is not None:
            yield "line", str(at.line)
    yield "title", f"gradience {finding.id}"


def _message(text: str) -> str:
    r"""The text with the characters escaped that would end a command.

    >>> _message("50 % of\n100")
    '50 %25 of%0A100'
    """
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _parameter(text: str) -> str:
    """The text as a parameter's value: escaped as a message, and colon and comma as well, which separate parameters."""
    return _message(text).replace(":", "%3A").replace(",", "%2C")

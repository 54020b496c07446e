"""Findings as workflow commands of GitHub Actions: annotations on the lines of a pull request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from gradience.render.cards import Place
from gradience.render.text import clean
from gradience.schema.findings import Finding
from gradience.schema.scalars import Severity

__all__ = ["github_lines"]

_COMMANDS: Final[dict[Severity, str]] = {"info": "notice", "warning": "warning", "error": "error", "critical": "error"}


def github_lines(findings: Sequence[Finding], *, places: Sequence[Place | None]) -> Iterator[str]:
    """Yield one workflow command for each finding; `places` are where they point, in their order."""
    for finding, place in zip(findings, places, strict=True):
        action = f" ({clean(finding.action)})" if finding.action else ""
        parameters = ",".join(f"{name}={_property(value)}" for name, value in _parameters(finding, place))
        yield f"::{_COMMANDS[finding.severity]} {parameters}::{_data(clean(finding.message) + action)}"


def _parameters(finding: Finding, place: Place | None) -> Iterator[tuple[str, str]]:
    if place is not None:
        yield "file", place.path
        if place.line is not None:
            yield "line", str(place.line)
    yield "title", f"gradience {finding.id}"


def _data(text: str) -> str:
    r"""Return a message as the runner reads it back (actions/toolkit, command.ts).

    >>> _data("50 % of\n100")
    '50 %25 of%0A100'
    """
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """Return a parameter's value: as a message, and neither a colon nor a comma in it."""
    return _data(text).replace(":", "%3A").replace(",", "%2C")

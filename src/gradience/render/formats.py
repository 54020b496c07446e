"""Findings as workflow commands of GitHub Actions: annotations on the lines of a pull request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Final
from urllib.parse import quote

from msgspec import UNSET

from gradience.render.text import Place, cards, clean
from gradience.schema.findings import Finding, NotRun, RuleCard
from gradience.schema.sarif import (
    ArtifactLocation,
    Configuration,
    Descriptor,
    Driver,
    Invocation,
    Level,
    Location,
    Log,
    Message,
    Notification,
    PhysicalLocation,
    Reference,
    Region,
    Result,
    Run,
    Text,
    Tool,
)
from gradience.schema.scalars import Severity

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


_LEVELS: Final[dict[Severity, Level]] = {"info": "note", "warning": "warning", "error": "error", "critical": "error"}
_HOME: Final = "https://github.com/johntnanney/gradience"


def sarif_log(
    findings: Sequence[Finding],
    *,
    places: Sequence[Place | None],
    known: Iterable[RuleCard] = (),
    not_run: Iterable[NotRun] = (),
    version: str,
    root: Path,
) -> Log:
    """Return the findings as SARIF.

    Args:
        findings: what was found.
        places: where each of them points, in their order; None where nowhere.
        known: the rules that were applied; a finding of another rule describes its own.
        not_run: rules that could not be judged, as notifications: silence is not a pass.
        version: of this program.
        root: the folder that paths are made relative to.
    """
    rules = cards(known, findings)
    index = {card.id: number for number, card in enumerate(rules)}
    results = [_result(item, place, index, root) for item, place in zip(findings, places, strict=True)]
    notes = [_notification(item, index) for item in not_run]
    driver = Driver(
        name="gradience", version=version, information_uri=_HOME, rules=[_descriptor(card) for card in rules]
    )
    invocation = Invocation(execution_successful=True, tool_execution_notifications=notes)
    return Log(runs=[Run(tool=Tool(driver=driver), invocations=[invocation], results=results)])


def _result(finding: Finding, place: Place | None, index: dict[str, int], root: Path) -> Result:
    action = f" ({clean(finding.action)})" if finding.action else ""
    confidence = {} if finding.confidence is None else {"confidence": finding.confidence}
    return Result(
        rule_id=finding.id,
        rule_index=index[finding.id],
        level=_LEVELS[finding.severity],
        message=Message(text=f"{clean(finding.message)}{action}"),
        locations=[] if place is None else [_location(place, root)],
        properties={"severity": finding.severity, **confidence, "values": finding.values},
    )


def _location(place: Place, root: Path) -> Location:
    region = UNSET if place.line is None else Region(start_line=place.line)
    return Location(
        physical_location=PhysicalLocation(
            artifact_location=ArtifactLocation(uri=_uri(place.path, root)), region=region
        )
    )


def _uri(path: str, root: Path) -> str:
    """Return the path relative to the root where it lies inside, else as a file: URI."""
    whole = root / path
    try:
        return quote(PurePath(whole.resolve().relative_to(root.resolve())).as_posix())
    except ValueError:
        return whole.resolve().as_uri()


def _descriptor(card: RuleCard) -> Descriptor:
    confidence = {} if card.confidence is None else {"confidence": card.confidence}
    return Descriptor(
        id=card.id,
        short_description=Text(text=_sentence(card.title)),
        full_description=Text(text=card.rationale or _sentence(card.title)),
        help=Text(text="\n".join(_help(card, "", ": ")), markdown="\n\n".join(_help(card, "**", ":** "))),
        default_configuration=Configuration(level=_LEVELS[card.severity]),
        properties={"tags": ["lora"], **confidence},
    )


def _help(card: RuleCard, before: str, after: str) -> Iterator[str]:
    words = {
        "When": card.condition,
        "Why": card.rationale,
        "Action": card.action,
        "Scope": card.scope,
        "Verify": card.verify,
    }
    yield from (f"{before}{label}{after}{text}" for label, text in words.items() if text)
    for ground in card.evidence:
        yield f"{before}Evidence{after}{ground.source}: {ground.says}"
    if not any(words.values()) and not card.evidence:
        yield card.title


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith((".", "!", "?")) else ".")


def _notification(item: NotRun, index: dict[str, int]) -> Notification:
    rule = Reference(id=item.id, index=index[item.id]) if item.id in index else UNSET
    return Notification(
        level="note", message=Message(text=f"{item.id} was not judged: {clean(item.reason)}"), associated_rule=rule
    )

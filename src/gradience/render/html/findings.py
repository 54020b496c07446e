"""The section of findings, and that of what was not judged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.etree.ElementTree import Element

from gradience.render.html.content import Story
from gradience.render.html.markup import Node, tag
from gradience.render.html.pieces import Numbered, fold, section, table
from gradience.schema.diagnose import Cause, Piece
from gradience.schema.findings import Evidence, Finding
from gradience.schema.reports import MonitorReport


def findings_section(story: Story, found: Sequence[Numbered]) -> Element:
    """Return every cause with its evidence, then alerts and recommendations that the log holds."""
    note = "Hypotheses with their grounds: verify on held-out data. You decide."
    if not found:
        note = "No check that could run has found anything. What could not run is listed under Not judged."
    recorded = [] if story.diagnosis.monitor is None else list(_recorded(story.diagnosis.monitor))
    lead = tag("p", note, class_="note")
    return section("findings", f"Findings ({len(found)})", lead, [_article(n) for n in found], recorded)


def _article(n: Numbered) -> Element:
    cause = n.cause
    where = f"{' and '.join(n.sources)}{'' if n.step is None else f', step {n.step:,}'}"
    head = tag(
        "h3",
        tag("span", str(n.number), class_=f"disc {cause.severity}"),
        " ",
        tag("span", cause.severity, class_=f"severity {cause.severity}"),
        f" {cause.id} ",
        tag("span", f"({where})", class_="where"),
    )
    action = tag("p", tag("strong", "Suggestion: "), cause.action) if cause.action else None
    body = [tag("p", cause.message), _pieces(cause), action, _grounds(cause)]
    return tag("article", head, body, id=n.anchor, class_=cause.severity)


def _pieces(cause: Cause) -> Element | None:
    """Return what each source says, where several say something."""
    return tag("ul", [_piece(piece) for piece in cause.pieces], class_="pieces") if cause.joined else None


def _piece(piece: Piece) -> Element:
    finding = f" {piece.id}" if piece.severity else ""
    return tag("li", tag("strong", f"{piece.source}{finding}: "), piece.says)


def _grounds(f: Finding) -> Element:
    parts: tuple[tuple[str, Node], ...] = (
        ("Why", f.rationale),
        ("Confidence", None if f.confidence is None else f"{f.confidence:.2f} of 1, a judgement"),
        ("Scope", f.scope),
        ("Evidence", tag("ul", [_evidence(item) for item in f.evidence]) if f.evidence else None),
        ("Verify", f.verify),
    )
    shown: list[Node] = [[tag("dt", name), tag("dd", value)] for name, value in parts if value is not None]
    return fold("Grounds: why, confidence, evidence, how to verify", tag("dl", shown))


def _evidence(item: Evidence) -> Element:
    return tag("li", tag("cite", item.source), f": {item.says}")


def _recorded(report: MonitorReport) -> Iterator[Element]:
    """Yield what the log itself holds of alerts and recommendations."""
    alerts = [(a.code, a.severity, a.message, "-" if a.step is None else f"{a.step:,}") for a in report.alerts]
    items = [(i.action, i.severity, i.message, "-") for i in report.recommendations]
    if alerts or items:
        head, caption = ("Code", "Severity", "Message", "Step"), "Recorded in the log by its writer"
        yield table(head, [*alerts, *items], caption=caption, numbers=1)


def not_judged_section(story: Story) -> Element:
    """Return every check that did not run, those of one reason together; and tensors that no number speaks of."""
    report = story.diagnosis
    groups: dict[tuple[str, str], list[str]] = {}
    for item in report.not_run:
        groups.setdefault((item.source, item.reason), []).append(item.id)
    rows: list[list[Node]] = [
        [source, reason, " ".join(dict.fromkeys(ids))] for (source, reason), ids in groups.items()
    ]
    if report.audit is not None:
        rows += [["weights", item.reason, item.name] for item in report.audit.not_analysed]
    judged = ", ".join(f"{c.source} {c.judged} of {c.total}" for c in report.coverage)
    lead = tag("p", f"Checks that ran: {judged}. Silence of the others is no pass; this is why they did not run.")
    named = table(("Source", "Reason", "Checks"), rows, caption="Checks that did not run, by reason") if rows else None
    return section("not-judged", f"Not judged ({sum(map(len, groups.values()))})", lead, named)

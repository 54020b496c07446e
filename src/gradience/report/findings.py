"""The section of findings, and that of what was not judged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gradience.report.gather import Story
from gradience.report.markup import Element, Node, tag
from gradience.report.numbered import Numbered
from gradience.report.pieces import fold, section, table
from gradience.schema.findings import Evidence, Finding

__all__ = ["findings_section", "not_judged_section"]


def findings_section(story: Story, found: Sequence[Numbered]) -> Element:
    """Return every finding with its evidence, then alerts and recommendations that the log holds."""
    title = f"Findings ({len(found)})"
    note = "Hypotheses with their grounds, not verdicts: verify on held-out data. You decide."
    if not found:
        note = "No check that could run has found anything. What could not run is listed under Not judged."
    return section(
        "findings", title, tag("p", note, class_="note"), [_article(n) for n in found], list(_recorded(story))
    )


def _article(n: Numbered) -> Element:
    f = n.finding
    where = f"{' and '.join(n.sources)}{'' if n.step is None else f', step {n.step:,}'}"
    head = tag(
        "h3",
        tag("span", str(n.number), class_=f"disc {f.severity}"),
        " ",
        tag("span", f.severity, class_=f"severity {f.severity}"),
        f" {f.id} ",
        tag("span", f"({where})", class_="where"),
    )
    action = tag("p", tag("strong", "Suggestion: "), f.action) if f.action else None
    return tag("article", head, tag("p", f.message), action, _grounds(f), id=n.anchor, class_=f.severity)


def _grounds(f: Finding) -> Element:
    parts = (
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


def _recorded(story: Story) -> Iterator[Element]:
    """Yield what the log itself holds of alerts and recommendations."""
    report = story.run
    if report is None or not (report.alerts or report.recommendations):
        return
    alerts = [(a.code, a.severity, a.message, "-" if a.step is None else f"{a.step:,}") for a in report.alerts]
    items = [(i.action, i.severity, i.message, "-") for i in report.recommendations]
    yield table(
        ("Code", "Severity", "Message", "Step"),
        [*alerts, *items],
        caption="Recorded in the log by its writer",
        numbers=1,
    )


def not_judged_section(story: Story) -> Element:
    """Return every check that did not run, and why; and tensors that no number speaks of."""
    rows = [(item.id, source, item.reason) for source, item in story.not_run]
    if story.audit is not None:
        rows += [(item.name, "weights", item.reason) for item in story.audit.not_analysed]
    if not rows:
        return section("not-judged", "Not judged", tag("p", "Every check could run."))
    note = tag("p", "Silence here is no pass: these did not run, for want of input or because they do not fit.")
    return section(
        "not-judged",
        f"Not judged ({len(rows)})",
        note,
        table(("Check", "Source", "Reason"), rows, caption="Checks that did not run"),
    )

"""The whole page: one HTML document without script, link or request."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from importlib.resources import files
from itertools import chain
from typing import Final

from gradience.render.check import config_rows
from gradience.render.text import number, percent, short_path
from gradience.report.comparison import comparison_section
from gradience.report.findings import findings_section, not_judged_section
from gradience.report.gather import Story
from gradience.report.markup import Element, Node, document, style_sheet, tag
from gradience.report.numbered import numbered
from gradience.report.pieces import section, table
from gradience.report.training import training_section
from gradience.report.weights import weights_section
from gradience.schema.audit import AuditReport
from gradience.schema.reports import MonitorReport

__all__ = ["report_html"]

_MOST_NOTES: Final = 50
_MOST_TEXT: Final = 600  # characters of a note


def report_html(story: Story) -> str:
    """Return the page. The same sources give the same bytes."""
    found = numbered(story.diagnosis)
    css = files("gradience.report").joinpath("style.css").read_text(encoding="utf-8")
    sections = [
        findings_section(story, found),
        training_section(story, found),
        weights_section(story),
        comparison_section(story.comparison),
        _config_section(story),
        not_judged_section(story),
        _provenance_section(story),
    ]
    shown = [part for part in sections if part is not None]
    name = _name(story)
    body = tag(
        "body",
        tag("a", "Skip to the findings", href="#findings", class_="skip"),
        _header(story, name),
        _contents(shown),
        tag("main", shown),
        tag("footer", tag("p", "Made by gradience: it instruments, you decide. No script, no network.")),
    )
    return document(tag("html", _head(name, css), body, lang="en"))


def _head(name: str, css: str) -> Element:
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", f"{name}: gradience report"),
        style_sheet(css),
    )


def _name(story: Story) -> str:
    """Return the model's name, else that of the log or of the adapter's folder."""
    run, audit, check = story.diagnosis.monitor, story.diagnosis.audit, story.diagnosis.check
    names = (
        run.config.model_name if run is not None else None,
        audit.base_model if audit is not None else None,
        check.config.model_name if check is not None else None,
        story.diagnosis.path,
    )
    return short_path(next(name for name in names if name))


def _header(story: Story, name: str) -> Element:
    report = story.diagnosis
    run, audit = report.monitor, report.audit
    facts = chain(_run_facts(run) if run is not None else (), _weight_facts(audit) if audit is not None else ())
    verdict, _, seen = report.headline.partition("; ")
    told = run.story if run is not None else ""
    return tag(
        "header",
        tag("p", "Gradience report", class_="kicker"),
        tag("h1", name),
        tag("p", tag("strong", verdict[:1].upper() + verdict[1:]), f"; {seen}", class_=f"verdict {report.verdict}"),
        tag("p", f"{told[:1].upper()}{told[1:]}.", class_="story") if told else None,
        tag("dl", [tag("div", tag("dt", k), tag("dd", v)) for k, v in facts], class_="facts"),
    )


def _run_facts(report: MonitorReport) -> Iterator[tuple[str, str]]:
    t, planned = report.train, report.config.training.max_steps
    yield "Data set", report.config.dataset_name or "not recorded"
    at = "" if t.last_step is None else f", step {t.last_step:,}" + (f" of {planned:,}" if planned else "")
    yield "Status", report.status.replace("_", " ") + at
    if t.rows:
        yield "Training loss", f"{number(t.first_loss, '.4g')} to {number(t.last_loss, '.4g')}"
    for point in report.evals[:2]:
        if point.metrics.accuracy is not None:
            yield f"Accuracy, {point.split}", percent(point.metrics.accuracy)
    if report.gap is not None:
        yield "Perplexity gap", f"{number(report.gap.ratio)}x"
    if t.duration_s is not None:
        yield "Time in the log", _duration(t.duration_s)


def _weight_facts(report: AuditReport) -> Iterator[tuple[str, str]]:
    yield "Adapter", report.health.verdict.replace("_", " ")
    yield "Utilization, mean", percent(report.summary.utilization_mean)


def _duration(seconds: float) -> str:
    """Return a time in words.

    >>> _duration(42.4), _duration(3_725.0)
    ('42 s', '1 h 2 min')
    """
    minutes = int(seconds // 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {seconds % 60:.0f} s"  # noqa: PLR2004  # an hour


def _contents(sections: list[Element]) -> Element:
    links = [tag("li", tag("a", part[0].text or "", href=f"#{part.get('id')}")) for part in sections]
    return tag("nav", tag("ul", links), aria_label="Contents")


def _config_section(story: Story) -> Element | None:
    check = story.diagnosis.check
    if check is None:
        return None
    rows: list[list[Node]] = [[label, value] for label, value in config_rows(check)]
    unknown = f"Keys that no rule reads: {', '.join(check.unknown_keys)}." if check.unknown_keys else None
    return section(
        "config",
        "Config as understood",
        table(("Setting", "Value"), rows, caption="The configuration as the rules read it"),
        tag("p", unknown, class_="note") if unknown else None,
    )


def _provenance_section(story: Story) -> Element:
    report = story.diagnosis
    head, caption = ("Read as", "File", "SHA-256", "Bytes"), "Files that were read"
    rows: list[list[Node]] = [[f.role, short_path(f.path), tag("code", f.sha256), f"{f.bytes:,}"] for f in story.files]
    notes = tag("ul", [tag("li", note[:_MOST_TEXT]) for note in report.notes[:_MOST_NOTES]]) if report.notes else None
    return section(
        "provenance",
        "Provenance",
        _sources(story),
        table(head, rows, caption=caption, numbers=1) if rows else None,
        [tag("p", line) for line in _origin(story)],
        notes,
    )


def _sources(story: Story) -> Element:
    rows: list[list[Node]] = [
        [s.source, s.state, "-" if s.path is None else short_path(s.path), s.reason or s.holds, s.chosen or "-"]
        for s in story.diagnosis.sources
    ]
    head = ("Source", "State", "Place", "What it holds, or why it was not read", "Why this one")
    return table(head, rows, caption="Sources of this report")


def _origin(story: Story) -> Iterator[str]:
    run, audit = story.diagnosis.monitor, story.diagnosis.audit
    yield f"Made with {', '.join(f'{name} {number}' for name, number in story.versions.items())}."
    if run is not None and run.run_id:
        yield f"Run {run.run_id}; sessions recorded: {run.sessions}."
    if audit is not None and audit.base is not None and audit.base.identity:
        yield f"Base model: {short_path(audit.base.path)}, identity {audit.base.identity}."

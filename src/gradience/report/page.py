"""The whole page: one HTML document without script, link or request."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from importlib.resources import files
from itertools import chain

from gradience.render.check import config_rows
from gradience.render.text import number, percent
from gradience.report.findings import findings_section, not_judged_section
from gradience.report.gather import Story
from gradience.report.markup import Element, Node, document, style_sheet, tag
from gradience.report.numbered import Numbered, numbered
from gradience.report.pieces import section, short_path, table
from gradience.report.training import training_section
from gradience.report.weights import weights_section
from gradience.schema.findings import SEVERITIES
from gradience.schema.reports import MonitorReport

__all__ = ["report_html"]


def report_html(story: Story) -> str:
    """Return the page. The same sources give the same bytes."""
    found = numbered(story)
    css = files("gradience.report").joinpath("style.css").read_text(encoding="utf-8")
    sections = [
        findings_section(story, found),
        training_section(story, found),
        weights_section(story),
        _config_section(story),
        not_judged_section(story),
        _provenance_section(story),
    ]
    shown = [part for part in sections if part is not None]
    name = _name(story)
    body = tag(
        "body",
        tag("a", "Skip to the findings", href="#findings", class_="skip"),
        _header(story, found, name),
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
    run, audit, check = story.run, story.audit, story.check
    names = (
        run.config.model_name if run is not None else None,
        audit.base_model if audit is not None else None,
        check.config.model_name if check is not None else None,
    )
    places = (run.file if run is not None else None, audit.peft_dir if audit is not None else None, "unnamed model")
    return short_path(next(name for name in (*names, *places) if name))


def _header(story: Story, found: list[Numbered], name: str) -> Element:
    facts = chain(_run_facts(story.run) if story.run is not None else (), _weight_facts(story))
    counts = ", ".join(f"{n} {s}" for s in reversed(SEVERITIES) if (n := sum(f.finding.severity == s for f in found)))
    told = story.run.story if story.run is not None else ""
    return tag(
        "header",
        tag("p", "Gradience report", class_="kicker"),
        tag("h1", name),
        tag("p", told[:1].upper() + told[1:] + ".", class_="story") if told else None,
        tag(
            "dl",
            [tag("div", tag("dt", k), tag("dd", v)) for k, v in [*facts, ("Findings", counts or "none")]],
            class_="facts",
        ),
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


def _weight_facts(story: Story) -> Iterator[tuple[str, str]]:
    if story.audit is not None:
        yield "Adapter", story.audit.health.verdict.replace("_", " ")
        yield "Utilization, mean", percent(story.audit.summary.utilization_mean)


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
    check = story.check
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
    rows: list[list[Node]] = [[f.role, short_path(f.path), tag("code", f.sha256), f"{f.bytes:,}"] for f in story.files]
    made = ", ".join(f"{name} {number}" for name, number in story.versions.items())
    lines = [f"Made with {made}."]
    if story.run is not None and story.run.run_id:
        lines.append(f"Run {story.run.run_id}; sessions recorded: {story.run.sessions}.")
    if story.audit is not None and story.audit.base is not None and story.audit.base.identity:
        lines.append(f"Base model: {short_path(story.audit.base.path)}, identity {story.audit.base.identity}.")
    reports = (story.run, story.audit)
    notes = [note for report in reports if report is not None for note in report.notes]
    return section(
        "provenance",
        "Provenance",
        table(("Read as", "File", "SHA-256", "Bytes"), rows, caption="Files that were read", numbers=1)
        if rows
        else None,
        [tag("p", line) for line in lines],
        tag("ul", [tag("li", note) for note in notes]) if notes else None,
    )

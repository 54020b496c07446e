"""Whole pages: each one is an HTML document without script, link or request.

The page of a run begins with the verdict, what to do next, the curve of the losses and the main numbers. A section each
follows for findings, training, weights,
a comparison, a bench, the configuration, the skipped checks, and the provenance of what was read. Two other pages are
about many: a fleet of adapters, and the curves of several runs.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Final
from xml.etree.ElementTree import Element

from gradience.render import SKIPPED, clean, grounds, number, sentence, short_path, words
from gradience.render.check import by_reason, config_rows, split_headline
from gradience.render.fleet import size_text
from gradience.render.html import Node, Story, document, style_element, tag
from gradience.render.html.figures import STYLES, WIDE, style_sheet
from gradience.render.html.measured import LossFigures, bench_section, data_section, loss_figures, training_section
from gradience.render.html.pieces import Columns, Numbered, facts, fold, note, numbered, plot_figure, section, table
from gradience.render.html.plot import Line, Plot, envelope
from gradience.render.html.weights import comparison_section, weights_section
from gradience.render.markdown import main_facts, run_name, subject
from gradience.schema.diagnose import Piece
from gradience.schema.fleet import (
    Alike,
    Counted,
    Curve,
    Faulty,
    FleetShowReport,
    OtherShape,
    RunsCurvesReport,
    Serving,
    Wasteful,
)
from gradience.schema.reports import MonitorReport

_NOTES: Final = 50
_TEXT: Final = 600  # characters of a note

_COUNTS: Final[Columns[tuple[str, Counted]]] = (
    ("by", lambda row: row[0]),
    ("value", lambda row: clean(row[1].value)),
    ("adapters", lambda row: f"{row[1].adapters:,}"),
)
_FAULTY: Final[Columns[Faulty]] = (
    ("adapter", lambda row: clean(row.path)),
    ("verdict", lambda row: words(row.verdict)),
    ("reason", lambda row: clean(row.reason)),
)
_WASTE: Final[Columns[Wasteful]] = (
    ("adapter", lambda row: clean(row.path)),
    ("r", lambda row: str(row.r)),
    ("to", lambda row: str(row.suggested_rank)),
    ("utilization", lambda row: f"{row.utilization_mean:.1%}"),
    ("saves", lambda row: size_text(row.bytes_saved)),
)
_SERVING: Final[Columns[Serving]] = (
    ("base", lambda row: clean(row.base_model)),
    ("adapters", lambda row: f"{row.adapters:,}"),
    ("max_lora_rank", lambda row: str(row.max_lora_rank or "-")),
    ("factors", lambda row: size_text(row.used_bytes)),
    ("padding", lambda row: size_text(row.padding_bytes)),
    ("padding of the best split", lambda row: size_text(row.buckets[-1].padding_bytes) if row.buckets else "-"),
)
_SAME: Final[Columns[Alike]] = (
    ("adapters", lambda row: ", ".join(map(clean, row.paths))),
    ("how many", lambda row: str(len(row.paths))),
)
_NEAR: Final[Columns[Alike]] = (
    ("adapters", lambda row: ", ".join(map(clean, row.paths))),
    ("cosine", lambda row: f"{row.cosine or 0.0:.5f}"),
)
_OTHER: Final[Columns[OtherShape]] = (
    ("adapter", lambda row: clean(row.path)),
    ("declares", lambda row: clean(row.base_model)),
    ("module", lambda row: clean(row.module)),
    ("shape", lambda row: " x ".join(map(str, row.shape))),
    ("usual", lambda row: " x ".join(map(str, row.usual))),
)

_CURVES: Final[Columns[Curve]] = (
    ("run", lambda row: clean(row.name)),
    ("rows", lambda row: f"{len(row.steps):,}"),
    ("first", lambda row: f"{row.values[0]:.4g}"),
    ("last", lambda row: f"{row.values[-1]:.4g}"),
    ("lowest", lambda row: f"{min(row.values):.4g}"),
    ("highest", lambda row: f"{max(row.values):.4g}"),
)


def report_html(story: Story) -> str:
    """The page of a run. The same sources give the same bytes."""
    found = numbered(story.diagnosis)
    losses = LossFigures(None, None) if story.series is None else loss_figures(story.series, found)
    sections = (
        _findings(story, found),
        training_section(story, found, losses.whole),
        data_section(story),
        weights_section(story),
        comparison_section(story.comparison),
        bench_section(story.bench),
        _config(story),
        _skipped(story),
        _provenance(story),
    )
    name = run_name(story.diagnosis)
    header = _header(story, name, losses.first)
    return whole_page(name, header, sections, first=("findings", "Skip to the findings"))


def whole_page(
    name: str, header: Element, sections: Sequence[Element | None], *, first: tuple[str, str] | None = None
) -> str:
    """A complete page, without script, link to elsewhere or request.

    Args:
        name: name of the page's subject, for its title.
        header: the beginning of the page.
        sections: the sections; those that are not None are shown and listed in the contents.
        first: the id of a section, and the text of a link to it before everything else.
    """
    shown = [part for part in sections if part is not None]
    links = [tag("li", tag("a", part[0].text or "", href=f"#{part.get('id')}")) for part in shown]
    body = tag(
        "body",
        tag("a", first[1], href=f"#{first[0]}", class_="skip") if first is not None else None,
        header,
        tag("nav", tag("ul", links), aria_label="Contents"),
        tag("main", shown),
        tag("footer", tag("p", "Made by gradience: it instruments, you decide. No script, no network.")),
    )
    return document(tag("html", _head(name), body, lang="en"))


def _head(name: str) -> Element:
    css = style_sheet()
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
        style_element(css),
    )


def _header(story: Story, name: str, curve: Element | None) -> Element:
    report = story.diagnosis
    verdict, rest = split_headline(report)
    run_story = report.monitor.story if report.monitor is not None else ""
    model = subject(report)
    advice = report.advice
    told = None if advice is None else "; or: ".join(filter(None, (advice.text, advice.alternative)))
    return tag(
        "header",
        tag("p", "Gradience report" if model == name else f"Gradience report: {model}", class_="kicker"),
        tag("h1", name),
        tag("p", tag("strong", sentence(verdict)), rest, class_=f"verdict {report.verdict}"),
        tag("p", f"{sentence(run_story)}.", class_="story") if run_story else None,
        tag("p", tag("strong", "Next: "), told) if told else None,
        curve,
        facts(main_facts(report)),
    )


def _findings(story: Story, found: Sequence[Numbered]) -> Element:
    """The section with every cause and its evidence, then the alerts and recommendations in the log."""
    lead = "Hypotheses with their grounds: verify on held-out data. You decide."
    if not found:
        lead = "None of the checks that ran has found anything. Those that could not run are listed under Skipped."
    recorded = _recorded(story.diagnosis.monitor)
    causes = tag("div", list(map(_cause, found)), class_="causes") if found else None
    return section("findings", f"Findings ({len(found)})", note(lead), causes, recorded)


def _cause(n: Numbered) -> Element:
    cause = n.cause
    step = "" if n.step is None else f", step {n.step:,}"
    head = tag("h3", tag("span", str(n.number), class_=f"disc {cause.severity}"), " ", cause.message)
    kind = tag(
        "p",
        tag("span", cause.severity, class_=f"severity {cause.severity}"),
        f" {cause.id} ",
        tag("span", f"({' and '.join(n.sources)}{step})", class_="where"),
    )
    pieces = tag("ul", list(map(_piece, cause.pieces)), class_="pieces") if cause.joined else None
    terms = [[tag("dt", sentence(label)), tag("dd", text)] for label, text in grounds(cause)]
    folded = fold("Grounds: why, confidence, evidence, how to verify", tag("dl", terms))
    return tag("article", head, kind, pieces, folded, id=f"finding-{n.number}", class_=cause.severity)


def _piece(piece: Piece) -> Element:
    finding = f" {piece.id}" if piece.severity else ""
    return tag("li", tag("strong", f"{piece.source}{finding}: "), piece.says)


def _recorded(report: MonitorReport | None) -> Element | None:
    if report is None:
        return None
    rows = [(a.code, a.severity, a.message, number(a.step, ",d")) for a in report.alerts]
    rows += [(i.action, i.severity, i.message, "-") for i in report.recommendations]
    return table(_columns("Code", "Severity", "Message", "Step"), rows, caption="Recorded in the log", numbers=1)


def _columns(*titles: str) -> Columns[Sequence[Node]]:
    """The columns of rows that already hold their cells."""
    return [(title, itemgetter(i)) for i, title in enumerate(titles)]


def _config(story: Story) -> Element | None:
    check = story.diagnosis.check
    if check is None:
        return None
    unknown = f"Keys that no rule reads: {', '.join(check.unknown_keys)}." if check.unknown_keys else None
    settings = table(
        _columns("Setting", "Value"), list(config_rows(check)), caption="The configuration as the rules read it"
    )
    return section("config", "Config as understood", settings, note(unknown) if unknown else None)


def _skipped(story: Story) -> Element:
    """The section with the checks that did not run, by reason, and the tensors that were not analysed."""
    report = story.diagnosis
    rows = [(source, reason, ids) for (source, reason), ids in by_reason(report.not_run).items()]
    if report.audit is not None:
        rows += [("weights", item.reason, item.name) for item in report.audit.not_analysed]
    ran = ", ".join(f"{c.source} {c.judged} of {c.total}" for c in report.coverage)
    lead = tag("p", f"Checks that ran: {ran}. A check that did not run has not passed; these are the reasons.")
    listed = table(_columns("Source", "Reason", "Checks"), rows, caption=f"{SKIPPED}, by reason")
    return section(
        "not-judged",
        f"Skipped ({len(report.not_run)})",
        lead,
        fold("Each with its reason", listed) if listed is not None else None,
    )


def _provenance(story: Story) -> Element:
    report = story.diagnosis
    sources = [
        (s.source, s.state, "-" if s.path is None else short_path(s.path), s.reason or s.holds, s.chosen or "-")
        for s in report.sources
    ]
    head = _columns("Source", "State", "Place", "Content, or why it was not read", "Why this one")
    hashed = [(f.role, short_path(f.path), tag("code", f.sha256), f"{f.bytes:,}") for f in story.files]
    return section(
        "provenance",
        "Provenance",
        table(head, sources, caption="Sources of this report"),
        table(_columns("Read as", "File", "SHA-256", "Bytes"), hashed, caption="Files that were read", numbers=1),
        [tag("p", line) for line in _origin(story)],
        tag("ul", [tag("li", text[:_TEXT]) for text in report.notes[:_NOTES]]) if report.notes else None,
    )


def _origin(story: Story) -> Iterator[str]:
    run, audit = story.diagnosis.monitor, story.diagnosis.audit
    yield f"Made with {', '.join(f'{name} {number}' for name, number in story.versions.items())}."
    if run is not None and run.run_id:
        yield f"Run {run.run_id}; sessions recorded: {run.sessions}."
    if audit is not None and audit.base is not None and audit.base.identity:
        yield f"Base model: {short_path(audit.base.path)}, identity {audit.base.identity}."


def fleet_html(report: FleetShowReport) -> str:
    """The page about a fleet. The same report gives the same bytes."""
    verdicts = [(words(item.value), f"{item.adapters:,}") for item in report.verdicts]
    main = [
        ("adapters", f"{report.adapters:,}"),
        ("modules", f"{report.modules:,}"),
        ("tensors", size_text(report.bytes)),
    ]
    header = tag(
        "header", tag("p", "Gradience fleet", class_="kicker"), tag("h1", report.fleet), facts([*main, *verdicts])
    )
    close, alike = f"Cosine of the updates at least {report.similar.threshold:g}", report.similar
    parts: dict[str, tuple[str, list[Element | None]]] = {
        "faulty": ("What needs a look", [table(_FAULTY, report.faulty, caption="By fault")]),
        "wasteful": ("What could be cut away", [table(_WASTE, report.wasteful, caption="Most bytes first", numbers=4)]),
        "serving": ("What a server pads", [table(_SERVING, report.serving, caption="By declared base", numbers=5)]),
        "alike": (
            "What is alike",
            [
                table(_SAME, alike.same, caption="Equal content", numbers=1),
                table(_NEAR, alike.near, caption=close, numbers=1),
            ],
        ),
        "bases": ("What declares another base", [table(_OTHER, report.other_shapes, caption="By shape")]),
        "counts": ("How many of each", [_counts(report)]),
    }
    sections = [_section(name, title, content) for name, (title, content) in parts.items()]
    return whole_page(report.fleet, header, sections)


def _section(name: str, title: str, content: Sequence[Element | None]) -> Element | None:
    shown: list[Node] = [part for part in content if part is not None]
    return section(name, title, *shown) if shown else None


def _counts(report: FleetShowReport) -> Element | None:
    groups = {"base": report.bases, "type": report.types, "rank": report.ranks, "finding": report.findings}
    rows = [(kind, item) for kind, items in groups.items() for item in items]
    return table(_COUNTS, rows, caption="Adapters by base, type, rank and finding", numbers=1)


def curves_html(report: RunsCurvesReport) -> str:
    """The page with the curves of several runs over each other."""
    header = tag("header", tag("p", "Gradience runs", class_="kicker"), tag("h1", report.metric))
    drawn, rest = report.curves[:STYLES], report.curves[STYLES:]
    lines = [Line(curve.name, envelope(curve.steps, curve.values)) for curve in drawn]
    summary = " ".join(f"{c.name} goes from {c.values[0]:.4g} to {c.values[-1]:.4g}." for c in drawn)
    plot = Plot(lines, "step", report.metric)
    caption = "Rows of a long run are put together in buckets: the line is their median."
    content: list[Node] = [plot_figure("Over their steps", plot, wide=WIDE, summary=summary, caption=caption)]
    if rest:
        content.append(note(f"{len(rest)} further curves are in the table alone."))
    rows = table(_CURVES, report.curves, caption="First, last and best values", numbers=5)
    return whole_page(report.metric, header, [section("curves", "Curves", *content, rows)])

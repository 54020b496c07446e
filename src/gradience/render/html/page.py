"""The whole page: one HTML document without script, link or request."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Collection, Iterator, Sequence
from importlib.resources import files
from itertools import chain
from typing import Final
from xml.etree.ElementTree import Element

import numpy as np

from gradience.render.check import config_rows
from gradience.render.html.content import Story
from gradience.render.html.drawing import STYLES, WIDE, Axis, Envelope, Line, Plot, envelope, y_axis
from gradience.render.html.findings import findings_section, not_judged_section
from gradience.render.html.markup import Node, document, style_sheet, tag
from gradience.render.html.pieces import Numbered, caption_of, marks_of, numbered, plot_figure, section, table
from gradience.render.html.weights import comparison_section, weights_section
from gradience.render.text import number, percent, short_path
from gradience.schema.audit import AuditReport
from gradience.schema.diagnose import BestCheckpoint, Checkpoint, DiagnoseReport
from gradience.schema.events import Eval
from gradience.schema.reports import MonitorReport
from gradience.schema.scalars import Real, as_float
from gradience.telemetry.series import RunSeries

_MOST_NOTES: Final = 50
_MOST_TEXT: Final = 600  # characters of a note


def report_html(story: Story) -> str:
    """Return the page. The same sources give the same bytes."""
    found = numbered(story.diagnosis)
    css = files("gradience.render.html").joinpath("style.css").read_text(encoding="utf-8")
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
    return (
        f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {seconds % 60:.0f} s"
    )  # an hour


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


_TRAIN: Final = "training rows"
_CLOSE: Final = (0.5, 99.5)  # percentiles of the rows that a close-up shows
_FAR: Final = 3.0  # whole range over that of the percentiles from which a close-up is drawn


def training_section(story: Story, found: Sequence[Numbered]) -> Element | None:
    """Return the curves of the run with its findings at their steps, or None where there was no log."""
    run = story.series
    if run is None:
        return None
    figures = [*_loss(run, found), *_others(run, found)]
    empty = None if figures else tag("p", "The log holds no training row and no evaluation.")
    return section(
        "training",
        "Training",
        empty,
        tag("div", figures, class_="figures"),
        _evaluations(run),
        _checkpoints(story.diagnosis),
    )


def _loss(run: RunSeries, found: Sequence[Numbered]) -> Iterator[Element]:
    train = envelope(run.steps, run.losses)
    lines = [Line(_TRAIN, train)] if len(run.steps) else []
    lines += [Line(f"{split}, evaluated", data, points=True) for split, data in _by_split(run, "loss").items()]
    if not lines:
        return
    left_out = len(lines) - STYLES
    captions = [caption_of("Training loss", train)] if len(run.steps) else []
    captions += [f"Superseded by a resume and not shown: {run.superseded:,} rows."] if run.superseded else []
    captions += [f"{left_out} further splits are in the table only."] if left_out > 0 else []
    plot = Plot(lines[:STYLES], "step", "loss", marks_of(found))
    says = " ".join(_says(line) for line in plot.lines)
    yield plot_figure("Loss", plot, wide=WIDE, says=says, caption=" ".join(captions))
    span = _close_up(run.losses)
    if span is not None and not y_axis(plot).log:
        near = plot._replace(marks=(), span=span)
        words = _beyond(run.losses, y_axis(near))
        yield plot_figure("Loss, close up", near, wide=WIDE, says=words, caption=words)


def _close_up(losses: Sequence[float]) -> tuple[float, float] | None:
    """Return what nearly all rows span, or None where the axis of all rows shows that well enough."""
    column = np.asarray(losses, np.float64)
    finite = column[np.isfinite(column)]
    if not len(finite):
        return None
    low, high = (float(x) for x in np.percentile(finite, _CLOSE))
    return (low, high) if 0.0 < (high - low) * _FAR < float(finite.max()) - float(finite.min()) else None


def _beyond(losses: Sequence[float], axis: Axis) -> str:
    column = np.asarray(losses, np.float64)
    beyond = int((np.isfinite(column) & ((column < axis.low) | (column > axis.high))).sum())
    rows = "1 training row lies" if beyond == 1 else f"{beyond:,} training rows lie"
    return f"The same, from {axis.low:.4g} to {axis.high:.4g}: {rows} beyond, drawn at the edge."


def _others(run: RunSeries, found: Sequence[Numbered]) -> Iterator[Element]:
    rate = Plot((), "step", "learning rate", marks_of(found, "LRS"), log=False, zero=True)
    norm = Plot((), "step", "norm before clipping", marks_of(found, "GRD"), zero=True)
    yield from _recorded(run, run.rates, "Learning rate", rate)
    yield from _recorded(run, run.grad_norms, "Gradient norm", norm, run.lost_norms)
    accuracy = [Line(split, data, points=True) for split, data in _by_split(run, "accuracy").items() if data.rows > 1]
    if accuracy:
        plot = Plot(accuracy[:STYLES], "step", "fraction correct", log=False)
        says = " ".join(_says(line) for line in plot.lines)
        yield plot_figure("Accuracy", plot, says=says, caption="Every evaluation is drawn.")


def _recorded(
    run: RunSeries, values: Sequence[float], title: str, plot: Plot, lost: Collection[int] = ()
) -> Iterator[Element]:
    """Yield a column's figure: NaN stands for rows without a value, unless it was recorded as such."""
    column = np.asarray(values, np.float64)
    there = ~np.isnan(column) | np.isin(run.steps, list(lost))
    if not there.any():
        return
    line = Line(title.lower(), envelope(np.asarray(run.steps)[there], column[there]))
    caption = caption_of(title, line.data, absent=int(len(column) - there.sum()))
    yield plot_figure(title, plot._replace(lines=[line]), says=_says(line), caption=caption)


def _by_split(run: RunSeries, name: str) -> dict[str, Envelope]:
    """Return an evaluated quantity of every split by step; of two at one step, the later."""
    points: dict[str, dict[int, float]] = {}
    for event in run.evals:
        value = _value(event, name)
        if value is not None and event.step is not None:
            points.setdefault(event.split, {})[event.step] = as_float(value)
    return {split: envelope(list(at), list(at.values())) for split, at in points.items()}


def _value(event: Eval, name: str) -> Real | None:
    return event.metrics.accuracy if name == "accuracy" else event.metrics.loss


def _says(line: Line) -> str:
    """Return what a line shows in a sentence, for those who do not see it."""
    data = line.data
    lost = f", {data.lost_rows} not finite" if data.lost_rows else ""
    if not data.rows:
        return f"{line.label}: no finite row{lost}."
    low, high = int(data.low.argmin()), int(data.high.argmax())
    return (
        f"{line.label}: {data.middle[0]:.4g} at step {data.steps[0]:.0f}, {data.middle[-1]:.4g} at step "
        f"{data.steps[-1]:.0f}; lowest {data.low[low]:.4g} near step {data.steps[low]:.0f}, highest "
        f"{data.high[high]:.4g} near step {data.steps[high]:.0f}{lost}."
    )


def _evaluations(run: RunSeries) -> Element | None:
    if not run.evals:
        return None
    splits: dict[str, list[Eval]] = {}
    for event in run.evals:
        splits.setdefault(event.split, []).append(event)
    rows = [_split_row(split, events) for split, events in splits.items()]
    head = ("Split", "Times", "Best loss", "at step", "Last loss", "Perplexity", "Accuracy", "Examples", "at step")
    return table(head, rows, caption="Evaluations by split: the lowest loss, and the newest evaluation", numbers=8)


def _split_row(split: str, events: Sequence[Eval]) -> list[str]:
    losses = [(as_float(e.metrics.loss), e.step) for e in events if e.metrics.loss is not None]
    finite = [pair for pair in losses if math.isfinite(pair[0])]
    best, at = min(finite, key=lambda pair: pair[0]) if finite else (None, None)
    last = events[-1]
    m = last.metrics
    ppl = math.exp(min(as_float(m.loss), 700.0)) if m.ppl is None and m.loss is not None else m.ppl
    counts = ["-" if n is None else f"{n:,}" for n in (at, m.n, last.step)]
    return [
        split,
        str(len(events)),
        number(best, ".4g"),
        counts[0],
        number(m.loss, ".4g"),
        number(ppl, ".4g"),
        percent(m.accuracy),
        *counts[1:],
    ]


def _checkpoints(report: DiagnoseReport) -> Element | None:
    best = report.best_checkpoint
    if not report.checkpoints:
        return None
    rows = [[c.name, f"{c.step:,}", number(c.loss, ".4g"), _standing(c, best)] for c in report.checkpoints]
    noise = "unknown" if best is None or best.noise is None else f"{best.noise:.2g} ({best.noise_from})"
    caption = f"Checkpoints with an adapter on disk; noise of one evaluation: {noise}"
    return table(("Checkpoint", "Step", "Held-out loss", "Standing"), rows, caption=caption)


def _standing(checkpoint: Checkpoint, best: BestCheckpoint | None) -> str:
    if best is not None and checkpoint.name == best.name:
        return "best"
    return "as good, within the noise" if checkpoint.tied else "-"

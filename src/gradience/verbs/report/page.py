"""The page of a run, and its short form for a comment: verdict, story, what to do next, curve and main numbers.

A section each follows for findings, training, data, weights, a comparison, a bench, the configuration, the skipped
checks, and the provenance of what was read. A comment has those that a reader of a pull request decides by.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Final

from msgspec.structs import replace

from gradience.blocks import (
    SKIPPED,
    Bars,
    Block,
    Columns,
    Figure,
    Findings,
    Fold,
    Next,
    Note,
    Page,
    Section,
    Table,
    VerdictLine,
    count,
    duration,
    facts,
    number,
    percent,
    sentence,
    short_path,
    table,
    words,
)
from gradience.blocks.markdown import page_markdown
from gradience.schema import as_float
from gradience.schema.diagnose import Cause, Checkpoint, DiagnoseReport
from gradience.schema.events import Eval
from gradience.schema.reports import LossKind, MetricAccount, MonitorReport
from gradience.telemetry.series import RunSeries
from gradience.verbs.audit.view import ranks_section, weights_section
from gradience.verbs.bench.view import bench_section
from gradience.verbs.check.view import config_facts
from gradience.verbs.compare.view import comparison_section
from gradience.verbs.diagnose.view import by_reason, causes, little_used, split_headline, step_of
from gradience.verbs.monitor.view import fed, marks, perplexity, run_facts
from gradience.verbs.report.story import Story

_SPLITS: Final = 5  # splits among the main numbers
_MOST: Final = 200  # bars at most, because a log may come from another program
_NOTES: Final = 50
_TEXT: Final = 600  # characters of a note
_LEAD: Final = "Hypotheses with their grounds: verify on held-out data. You decide."
_NONE: Final = "None of the checks that ran has found anything. Those that could not run are listed under Skipped."


def report_html(story: Story) -> str:
    """The page of a run as HTML. The same sources give the same bytes."""
    from gradience.blocks.html.pieces import page_html  # matplotlib
    from gradience.verbs.report import weights  # the same
    from gradience.verbs.runs import curves

    report, run = story.diagnosis, story.series
    losses = curves.LossFigures(None, None) if run is None else curves.loss_figures(run, report.findings)
    others = [] if run is None else [*curves.training_figures(run, report.findings)]
    spectra = [] if report.audit is None else list(weights.spectra(report.audit.modules))
    differing = [] if story.comparison is None else list(weights.differing(story.comparison))
    sections = [
        _findings(report, [_recorded(report.monitor)]),
        *_training(story, [*filter(None, [losses.whole]), *others]),
        *_fed(report.monitor),
        *weights_section(report.audit, spectra),
        *comparison_section(story.comparison, differing),
        *bench_section(story.bench),
        *_config(report),
        _skipped(report),
        _provenance(story),
    ]
    return page_html(_page(story, sections, [*filter(None, [losses.first])]))


def report_markdown(story: Story) -> str:
    """The report on a run in Markdown, short enough for a comment on a pull request."""
    report = story.diagnosis
    sections = [
        _findings(report),
        *ranks_section(report.audit),
        *comparison_section(story.comparison),
        *bench_section(story.bench),
        _skipped(report),
    ]
    return page_markdown(_page(story, sections, marks(report.monitor)))


def _page(story: Story, sections: Sequence[Section], further: Sequence[Block]) -> Page:
    report = story.diagnosis
    verdict, rest = split_headline(report)
    line = report.monitor.story if report.monitor is not None else ""
    header: tuple[Block, ...] = (
        VerdictLine(verdict, rest, report.verdict),
        *([f"{sentence(line)}."] if line else []),
        *([Next(report.advice.text, report.advice.alternative)] if report.advice is not None else []),
        *(block for block in further if isinstance(block, Figure)),
        facts(_main(report)),
        *(block for block in further if not isinstance(block, Figure)),
    )
    return Page("report", run_name(report), subject(report), header, tuple(sections))


def subject(report: DiagnoseReport) -> str:
    """The model's name, or else the name of the log or of the adapter's folder."""
    names = (
        report.monitor.config.model_name if report.monitor else None,
        report.audit.base_model if report.audit else None,
        report.check.config.model_name if report.check else None,
        report.path,
    )
    return short_path(next(name for name in names if name))


def run_name(report: DiagnoseReport) -> str:
    """The name of the run's folder, or of the folder of its log; the model's name if that folder has none."""
    place = PurePath(report.path)
    return (place.parent.name if place.suffix else place.name) or subject(report)


def _lowest(loss: MetricAccount) -> str:
    return f"lowest {number(loss.best, '.4g')} at step {loss.best_step}"


def _main(report: DiagnoseReport) -> Iterator[tuple[str, str | None]]:
    """The main numbers of a run and its adapter: labels and values."""
    run, audit = report.monitor, report.audit
    if run is not None:
        yield from run_facts(run)
        for point in run.evals[:_SPLITS]:
            low = run.account.held_out_loss if point.split == run.account.split else None
            best = "" if low is None or low.best_step == point.step else f" ({_lowest(low)})"
            accuracy = "" if point.metrics.accuracy is None else f", accuracy {percent(point.metrics.accuracy)}"
            at = "" if point.step is None else f" at step {point.step}"
            n = "" if point.metrics.n is None else f", {point.metrics.n:,} examples"
            kind = "Newest evaluation" if point.split == "train" else "Held-out loss"
            yield f"{kind}, {point.split}", f"{number(point.metrics.loss, '.4g')}{at}{best}{accuracy}{n}"
        if run.gap is not None:
            yield "Perplexity gap", f"{number(run.gap.ratio)}x"
        if run.train.duration_s is not None:
            yield "Time in the log", duration(run.train.duration_s)
    if audit is not None:
        s = audit.summary
        yield "Adapter", f"{words(audit.health.verdict)} ({audit.health.reason})"
        yield "Parameters", f"{count(s.total_lora_params)} in {s.n_layers} modules"
        yield "Update, means", f"stable rank {number(s.stable_rank_mean)}, utilization {percent(s.utilization_mean)}"
    if told := little_used(report):
        yield "Readings", " ".join(told)


def _findings(report: DiagnoseReport, recorded: Sequence[Table] = ()) -> Section:
    """Every cause with its evidence, then the alerts and recommendations in the log."""
    lead = Note(_LEAD if report.findings else _NONE)
    causes_of = Findings(causes(report, _where))
    return Section("findings", f"Findings ({len(report.findings)})", (lead, causes_of, *recorded))


def _where(cause: Cause) -> str:
    step = step_of(cause)
    sources = " and ".join(dict.fromkeys(piece.source for piece in cause.pieces))
    return f" ({sources}{'' if step is None else f', step {step:,}'})"


def _recorded(report: MonitorReport | None) -> Table:
    alerts, advice = ([], []) if report is None else (report.alerts, report.recommendations)
    rows = [(a.code, a.severity, a.message, number(a.step, ",d")) for a in alerts]
    rows += [(i.action, i.severity, i.message, "-") for i in advice]
    return _rows(("code", "severity", "message", ">step"), rows, "Recorded in the log")


def _rows(titles: Sequence[str], rows: Sequence[tuple[str, ...]], caption: str) -> Table:
    """A table of rows that hold their cells already; a title that begins with `>` is of numbers."""
    columns = [(title.removeprefix(">"), ">" if title[0] == ">" else "") for title in titles]
    return Table(tuple(columns), tuple(rows), caption=caption)


def _training(story: Story, figures: Sequence[Figure]) -> list[Section]:
    """The curves of the run, its evaluations and its checkpoints; nothing without a log."""
    run, report = story.series, story.diagnosis
    if run is None:
        return []
    nothing = not figures and not len(run.steps) and not run.evals
    loss: LossKind = "unknown" if report.monitor is None else report.monitor.account.loss
    content = (
        *(["The log holds no training row and no evaluation."] if nothing else []),
        *figures,
        _evaluations(run, loss),
        *marks(report.monitor),
        _checkpoints(report),
    )
    return [Section("training", "Training", content)]


_BEST_AND_LAST: Final[Columns[Sequence[Eval]]] = (
    ("Split", "", lambda events: events[-1].split),
    ("Times", ">6", lambda events: str(len(events))),
    ("Best loss", ">6", lambda events: number(_best(events)[0], ".4g")),
    ("at step", ">6", lambda events: number(_best(events)[1], ",d")),
    ("Last loss", ">6", lambda events: number(events[-1].metrics.loss, ".4g")),
)
_NEWEST: Final[Columns[Sequence[Eval]]] = (
    ("Accuracy", ">6", lambda events: percent(events[-1].metrics.accuracy)),
    ("Examples", ">6", lambda events: number(events[-1].metrics.n, ",d")),
    ("at step", ">6", lambda events: number(events[-1].step, ",d")),
)


def _evaluations(run: RunSeries, loss: LossKind) -> Table:
    caption = "Evaluations by split: the lowest loss, and the newest evaluation"
    by_perplexity: Columns[Sequence[Eval]] = (
        ("Perplexity", ">6", lambda events: number(perplexity(events[-1].metrics, loss), ".4g")),
    )
    known = any(perplexity(event.metrics, loss) is not None for event in run.evals)
    columns = (*_BEST_AND_LAST, *(by_perplexity if known else ()), *_NEWEST)
    return table(columns, list(_events_by_split(run).values()), caption=caption)


def _events_by_split(run: RunSeries) -> dict[str, list[Eval]]:
    splits: dict[str, list[Eval]] = {}
    for event in run.evals:
        splits.setdefault(event.split, []).append(event)
    return splits


def _best(events: Sequence[Eval]) -> tuple[float | None, int | None]:
    """The lowest finite loss with its step; (None, None) without one."""
    losses = [(as_float(e.metrics.loss), e.step) for e in events if e.metrics.loss is not None]
    return min((pair for pair in losses if math.isfinite(pair[0])), default=(None, None))


def _checkpoints(report: DiagnoseReport) -> Table:
    best = report.best_checkpoint
    noise = "unknown" if best is None or best.noise is None else f"{best.noise:.2g} ({best.noise_from})"
    tied = "as good, within the noise"
    columns: Columns[Checkpoint] = (
        ("checkpoint", "", lambda c: c.name),
        ("step", ">6", lambda c: f"{c.step:,}"),
        ("held-out loss", ">8", lambda c: number(c.loss, ".4g")),
        ("standing", "", lambda c: "best" if best and c.name == best.name else tied if c.tied else "-"),
    )
    caption = f"Checkpoints with an adapter on disk; noise of one evaluation: {noise}"
    return table(columns, report.checkpoints, caption=caption)


def _fed(report: MonitorReport | None) -> list[Section]:
    """What the model was fed in the watched batches; nothing if that was not recorded."""
    shown = fed(report)
    if report is None or not shown:
        return []
    return [Section("data", "Data", (*shown, *_lengths((report.data or {}).get("announced"))))]


def _lengths(announced: object) -> list[Figure]:
    """The histogram of lengths that a check of the data recorded, or nothing without one."""
    counts: Mapping[str, Any] = announced if isinstance(announced, dict) else {}
    bins, width, limit = counts.get("bins"), counts.get("bin_width"), counts.get("max_length")
    if not isinstance(bins, list) or not all(isinstance(n, int) and n >= 0 for n in bins) or not any(bins):
        return []
    if not isinstance(width, int) or width < 1:
        return []
    cut = limit if isinstance(limit, int) and limit > 0 else None
    about = f"Sequences by their tokens before the cut, {width:,} tokens a bar; by `gradience check --data`."
    drawing, summary = Bars(tuple(bins[:_MOST]), width, cut), f"{sum(bins):,} sequences, in tokens"
    return [Figure("Tokens per sequence", drawing, summary=summary, caption=about, wide=True)]


def _config(report: DiagnoseReport) -> list[Section]:
    if report.check is None:
        return []
    unknown = f"Keys that no rule reads: {', '.join(report.check.unknown_keys)}." if report.check.unknown_keys else ""
    settings = config_facts(report.check, caption="The configuration as the rules read it")
    return [Section("config", "Config as understood", (settings, *([Note(unknown)] if unknown else [])))]


def _skipped(report: DiagnoseReport) -> Section:
    """The checks that did not run, by reason, and the tensors that were not analysed."""
    ran = ", ".join(f"{c.source} {c.judged} of {c.total}" for c in report.coverage)
    lead = f"Checks that ran: {ran}. A check that did not run has not passed; these are the reasons."
    listed, left = by_reason(report), report.audit.not_analysed if report.audit is not None else []
    rows = (*listed.rows, *(("weights", item.reason, item.name) for item in left))
    fold = [Fold(f"{SKIPPED}: {len(report.not_run)}", (replace(listed, rows=rows),))] if rows else []
    return Section("not-judged", f"Skipped ({len(report.not_run)})", (lead, *fold))


def _provenance(story: Story) -> Section:
    report = story.diagnosis
    sources = [
        (s.source, s.state, "-" if s.path is None else short_path(s.path), s.reason or s.holds, s.chosen or "-")
        for s in report.sources
    ]
    titles = ("source", "state", "place", "content, or why it was not read", "why this one")
    hashed = [(f.role, short_path(f.path), f.sha256, f"{f.bytes:,}") for f in story.files]
    content: tuple[Block, ...] = (
        _rows(titles, sources, "Sources of this report"),
        _rows(("read as", "file", "SHA-256", ">bytes"), hashed, "Files that were read"),
        *_origin(story),
        *(Note(text[:_TEXT]) for text in report.notes[:_NOTES]),
    )
    return Section("provenance", "Provenance", content)


def _origin(story: Story) -> Iterator[str]:
    run, audit = story.diagnosis.monitor, story.diagnosis.audit
    yield f"Made with {', '.join(f'{name} {number}' for name, number in story.versions.items())}."
    if run is not None and run.run_id:
        yield f"Run {run.run_id}; sessions recorded: {run.sessions}."
    if audit is not None and audit.base is not None and audit.base.identity:
        yield f"Base model: {short_path(audit.base.path)}, identity {audit.base.identity}."

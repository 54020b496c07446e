"""A run in Markdown, short enough for a comment on a pull request."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from gradience.render.text import clean, count, number, percent, short_path
from gradience.schema.audit import AuditReport
from gradience.schema.compare import CompareAdaptersReport
from gradience.schema.diagnose import Cause, DiagnoseReport, Unjudged
from gradience.schema.reports import MonitorReport

_MOST_FINDINGS: Final = 20
_MOST_TEXT: Final = 300  # characters of one cell
_SPECIAL: Final = re.compile(r"[\\`*\[\]<|~$&#]|(?<![^\W_])_|_(?![^\W_])|(?<=https):(?=//)|(?<=http):(?=//)|(?<=www)\.")
_SUMMONS: Final = re.compile(r"([@#])(?=\w)")


def report_markdown(report: DiagnoseReport, comparison: CompareAdaptersReport | None = None) -> str:
    """Return the report: verdict, story, facts, findings, suggested ranks, adapters compared, what was not judged."""
    return "\n".join(_lines(report, comparison)) + "\n"


def escape(text: str) -> str:
    r"""Return text that Markdown shows as it is: no markup, table cell, link, mention or reference of it.

    >>> escape("a|b @me <b> to_q")
    'a\\|b @<!-- -->me \\<b> to_q'
    """
    flat = clean(text)
    cut = flat if len(flat) <= _MOST_TEXT else f"{flat[: _MOST_TEXT - 3]}..."
    return _SUMMONS.sub(r"\1<!-- -->", _SPECIAL.sub(r"\\\g<0>", cut))


def _lines(report: DiagnoseReport, comparison: CompareAdaptersReport | None) -> Iterator[str]:
    run, audit = report.monitor, report.audit
    verdict, _, seen = report.headline.partition("; ")
    yield f"### Gradience report: {escape(_model(report))}"
    yield ""
    yield f"**{escape(verdict[:1].upper() + verdict[1:])}**; {escape(seen)}"
    yield ""
    if run is not None and run.story:
        yield f"{escape(run.story[:1].upper() + run.story[1:])}."
        yield ""
    yield from _table(("Fact", "Value"), [*_run_facts(run), *_weight_facts(audit)])
    yield from _findings(report.causes)
    yield from _ranks(audit)
    yield from _compared(comparison)
    yield from _not_judged(report.not_run)
    yield "<sub>Hypotheses: verify on held-out data. It instruments, you decide.</sub>"


def _model(report: DiagnoseReport) -> str:
    names = (
        report.monitor.config.model_name if report.monitor else None,
        report.audit.base_model if report.audit else None,
        report.check.config.model_name if report.check else None,
        report.path,
    )
    return short_path(next(name for name in names if name))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield a table; the cells are Markdown already."""
    body = [f"| {' | '.join(row)} |" for row in rows]
    if body:
        yield f"| {' | '.join(head)} |"
        yield f"|{'---|' * len(head)}"
        yield from body
        yield ""


def _run_facts(run: MonitorReport | None) -> Iterator[tuple[str, str]]:
    if run is None:
        return
    t, planned = run.train, run.config.training.max_steps
    yield "Data set", escape(run.config.dataset_name or "not recorded")
    at = "" if t.last_step is None else f", step {t.last_step}" + (f" of {planned}" if planned else "")
    yield "Status", escape(run.status.replace("_", " ") + at)
    if t.rows:
        best = "" if t.min_loss is None else f" (lowest {number(t.min_loss, '.4g')} at step {t.min_loss_step})"
        yield "Training loss", f"{number(t.first_loss, '.4g')} to {number(t.last_loss, '.4g')}{best}, {t.rows} rows"
    for point in run.evals:
        accuracy = "" if point.metrics.accuracy is None else f", accuracy {percent(point.metrics.accuracy)}"
        at = "" if point.step is None else f" at step {point.step}"
        yield f"Newest evaluation, {escape(point.split)}", f"loss {number(point.metrics.loss, '.4g')}{accuracy}{at}"
    if run.gap is not None:
        yield "Perplexity gap", f"{number(run.gap.ratio)}x"


def _weight_facts(audit: AuditReport | None) -> Iterator[tuple[str, str]]:
    if audit is None:
        return
    s = audit.summary
    yield "Adapter", escape(f"{audit.health.verdict.replace('_', ' ')} ({audit.health.reason})")
    yield "Parameters", f"{count(s.total_lora_params)} in {s.n_layers} modules"
    used = f"stable rank {number(s.stable_rank_mean)}, utilization {percent(s.utilization_mean)}"
    yield "Update, means", used


def _findings(causes: Sequence[Cause]) -> Iterator[str]:
    yield f"**Findings: {len(causes) or 'none, of what could be judged'}**"
    yield ""
    head = ("Severity", "Id", "What was seen", "Suggestion", "Source")
    yield from _table(head, [_finding(cause) for cause in causes[:_MOST_FINDINGS]])
    if len(causes) > _MOST_FINDINGS:
        yield f"{len(causes) - _MOST_FINDINGS} more are not shown."
        yield ""


def _finding(cause: Cause) -> tuple[str, ...]:
    severity = cause.severity if cause.severity == "info" else f"**{cause.severity}**"
    sources = ", ".join(dict.fromkeys(piece.source for piece in cause.pieces))
    return severity, cause.id, escape(cause.message), escape(cause.action or "-"), sources


def _ranks(audit: AuditReport | None) -> Iterator[str]:
    if audit is None or not audit.suggested:
        return
    yield "**Suggested ranks** (compress after training; verify with an evaluation)"
    yield ""
    words = {"median": "most modules", "p90": "worst-case tail"}
    yield from _table(
        ("For", "Rank", "Energy kept", "Relative error", "Worst module", "Saves"),
        [
            (
                words.get(key, escape(key)),
                str(s.rank),
                percent(s.energy_kept),
                percent(s.relative_error),
                percent(s.relative_error_worst),
                f"{count(s.params_saved)} parameters",
            )
            for key, s in audit.suggested.items()
        ],
    )


def _compared(comparison: CompareAdaptersReport | None) -> Iterator[str]:
    if comparison is None:
        return
    yield "**Compared by weights** (two runs differ by their seed alone as well)"
    yield ""
    rows = [
        (
            escape(f"{pair.first} and {pair.second}"),
            number(pair.cosine, ".3f"),
            number(pair.norm_ratio, ".3g"),
            percent(pair.relative_change),
        )
        for pair in comparison.pairs[:_MOST_FINDINGS]
    ]
    yield from _table(("Adapters", "Cosine", "Norm ratio", "Change"), rows)
    if len(comparison.pairs) > _MOST_FINDINGS:
        yield f"{len(comparison.pairs) - _MOST_FINDINGS} more are not shown."
        yield ""


def _not_judged(items: Sequence[Unjudged]) -> Iterator[str]:
    """Yield what did not run, that of one reason together, folded."""
    groups: dict[tuple[str, str], list[str]] = {}
    for item in items:
        groups.setdefault((item.source, item.reason), []).append(item.id)
    if not groups:
        return
    yield f"<details><summary>Not judged: {len(items)}</summary>"
    yield ""
    for (source, reason), ids in groups.items():
        yield f"- {source}: {escape(reason)} ({escape(' '.join(dict.fromkeys(ids)))})"
    yield ""
    yield "</details>"
    yield ""

"""The report on a run in Markdown, short enough for a comment on a pull request.

Names come from logs and adapters, so every text is escaped: none can become markup, notify a person or create a link.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Final

from gradience.render import SKIPPED, clean, count, duration, number, percent, sentence, short_path, shorter, words
from gradience.render.bench import harm_cell, outcome_cell, rows_of, task_line
from gradience.render.check import by_reason, split_headline
from gradience.render.monitor import loss_ends, mark_cells, marks_title, step_of_plan
from gradience.schema.audit import AuditReport, Standing
from gradience.schema.compare import BenchReport, CompareAdaptersReport
from gradience.schema.diagnose import Cause, CauseAdvice, DiagnoseReport, Unjudged
from gradience.schema.reports import EvaluationMark, MetricAccount

_ROWS: Final = 20
_SPLITS: Final = 5  # splits among the main numbers
_TEXT: Final = 300  # characters of one cell
_PURPOSES: Final = {"median": "most modules", "p90": "worst-case tail"}
_SPECIAL: Final = re.compile(r"[\\`*\[\]<|~$&#]|(?<![^\W_])_|_(?![^\W_])|(?<=https):(?=//)|(?<=http):(?=//)|(?<=www)\.")
_SUMMONS: Final = re.compile(r"([@#])(?=\w)")


def report_markdown(
    report: DiagnoseReport, comparison: CompareAdaptersReport | None = None, bench: BenchReport | None = None
) -> str:
    """The report: verdict, story, facts, findings, suggested ranks, comparison, bench, and skipped checks."""
    return "\n".join(_lines(report, comparison, bench)) + "\n"


def escape(text: str) -> str:
    r"""The text escaped for Markdown: no part becomes markup, a table cell, a link, mention or reference.

    >>> escape("a|b @me <b> to_q")
    'a\\|b @<!-- -->me \\<b> to_q'
    """
    return _SUMMONS.sub(r"\1<!-- -->", _SPECIAL.sub(r"\\\g<0>", shorter(clean(text), _TEXT)))


def _lines(
    report: DiagnoseReport, comparison: CompareAdaptersReport | None, bench: BenchReport | None
) -> Iterator[str]:
    run, audit = report.monitor, report.audit
    verdict, rest = split_headline(report)
    name, model = run_name(report), subject(report)
    yield f"### Gradience report: {escape(name)}" + ("" if name == model else f" ({escape(model)})")
    yield ""
    yield f"**{sentence(verdict)}**{escape(rest)}"
    yield ""
    if run is not None and run.story:
        yield f"{escape(sentence(run.story))}."
        yield ""
    facts = [(escape(label), escape(value)) for label, value in main_facts(report)]
    yield from _table(("Fact", "Value"), facts)
    yield from _marks(run.account.marks if run is not None else [])
    yield from _findings(report.findings, report.advice)
    yield from _ranks(audit)
    yield from _compared(comparison)
    yield from _benched(bench)
    yield from _skipped(report.not_run)
    yield "<sub>Hypotheses: verify on held-out data. It instruments, you decide.</sub>"


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


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table of cells that are already Markdown, and a line with the number of rows cut; nothing without rows."""
    if rows:
        yield f"| {' | '.join(titles)} |"
        yield f"|{'---|' * len(titles)}"
        yield from (f"| {' | '.join(row)} |" for row in rows[:_ROWS])
        yield ""
    if len(rows) > _ROWS:
        yield f"{len(rows) - _ROWS} more are not shown."
        yield ""


def _marks(marks: Sequence[EvaluationMark]) -> Iterator[str]:
    if marks:
        yield f"{escape(marks_title(marks))}:"
        yield ""
        cells = [[escape(cell) for cell in mark_cells(mark)] for mark in marks]
        yield from _table(("Step", "Loss", "Metric", "What it is"), cells)


def _lowest(loss: MetricAccount) -> str:
    return f"lowest {number(loss.best, '.4g')} at step {loss.best_step}"


def main_facts(report: DiagnoseReport) -> Iterator[tuple[str, str]]:
    """The main numbers of a run and its adapter: labels and values."""
    run, audit = report.monitor, report.audit
    if run is not None:
        t = run.train
        yield "Data set", run.config.dataset_name or "not recorded"
        yield "Status", words(run.status) + step_of_plan(run)
        if t.rows:
            best = "" if t.min_loss is None else f" (lowest {number(t.min_loss, '.4g')} at step {t.min_loss_step})"
            yield "Training loss", f"{loss_ends(t)}{best}, {t.rows} rows"
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
        if t.duration_s is not None:
            yield "Time in the log", duration(t.duration_s)
    if audit is not None:
        s = audit.summary
        yield "Adapter", f"{words(audit.health.verdict)} ({audit.health.reason})"
        yield "Parameters", f"{count(s.total_lora_params)} in {s.n_layers} modules"
        yield "Update, means", f"stable rank {number(s.stable_rank_mean)}, utilization {percent(s.utilization_mean)}"
        if audit.standing is not None:
            yield f"Utilization among those of {short_path(audit.standing.fleet)}", _among(audit.standing)


def _among(standing: Standing) -> str:
    used = [item for item in standing.percentiles if item.measure == "utilization"]
    places = (f"{p.module_type}, r {p.r}: above {p.percentile:.0f} % of them (n = {p.n})" for p in used)
    return "; ".join(places) or "nothing to compare with"


def _findings(causes: Sequence[Cause], advice: CauseAdvice | None) -> Iterator[str]:
    yield f"**Findings: {len(causes) or 'none, by the checks that ran'}**"
    yield ""
    yield from _table(("Severity", "Id", "Observation", "Source"), list(map(_finding, causes)))
    if advice is not None:
        yield f"**Next:** {escape('; or: '.join(filter(None, (advice.text, advice.alternative))))}"
        yield ""


def _finding(cause: Cause) -> tuple[str, ...]:
    severity = cause.severity if cause.severity == "info" else f"**{cause.severity}**"
    sources = ", ".join(dict.fromkeys(piece.source for piece in cause.pieces))
    return severity, cause.id, escape(cause.message), sources


def _ranks(audit: AuditReport | None) -> Iterator[str]:
    if audit is None or not audit.suggested:
        return
    yield "**Suggested ranks** (compress after training; verify with an evaluation)"
    yield ""
    yield from _table(
        ("For", "Rank", "Energy kept", "Relative error", "Worst module", "Saves"),
        [
            (
                _PURPOSES.get(key, escape(key)),
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
        for pair in comparison.pairs
    ]
    yield from _table(("Adapters", "Cosine", "Norm ratio", "Change"), rows)


def _benched(report: BenchReport | None) -> Iterator[str]:
    if report is None:
        return
    yield f"**Measured on held-out data: {escape(words(report.verdict.state))}** ({escape(report.verdict.says)})"
    yield ""
    for task in report.tasks:
        yield f"{escape(task_line(report, task))}."
        yield ""
        rows = [
            (
                escape(row.candidate.name),
                count(row.candidate.params),
                number(row.result.score, ".4g"),
                escape(harm_cell(row.result)),
                number(row.result.kl, ".2g"),
                percent(row.result.flips),
                outcome_cell(row.result),
            )
            for row in rows_of(report, task)
        ]
        titles = (
            "Adapter",
            "Parameters",
            escape(report.metric.name),
            "Worse by [least, worst]",
            "KL",
            "Flips",
            "Verdict",
        )
        yield from _table(titles, rows)


def _skipped(items: Sequence[Unjudged]) -> Iterator[str]:
    """The checks that did not run, by reason, in a folded block."""
    if items:
        yield f"<details><summary>{SKIPPED}: {len(items)}</summary>"
        yield ""
        yield from (
            f"- {source}: {escape(reason)} ({escape(ids)})" for (source, reason), ids in by_reason(items).items()
        )
        yield ""
        yield "</details>"
        yield ""

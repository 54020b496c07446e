"""The report of a bench as text: the verdict, a table of candidates by size, and their intervals on one axis."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from gradience.render import Columns, as_text, banner, clean, count, labelled, number, percent, short_path, table
from gradience.schema import as_float
from gradience.schema.compare import BenchCandidate, BenchReport, BenchResult, BenchTask

OUTCOMES: Final = {
    "within": "within",
    "over": "over",
    "open": "open",
    "not_finite": "not finite",
    "reference": "-",
    "anchor": "-",
}
_VERDICTS: Final = {
    "holds": "HOLDS",
    "none": "NONE",
    "not_decided": "NOT DECIDED",
    "no_contrast": "CANNOT TELL",
}
_WIDTH: Final = 61  # characters of the axis
_NAME: Final = 24


class Row(NamedTuple):
    """A candidate and its result on one task."""

    candidate: BenchCandidate
    result: BenchResult


def rows_of(report: BenchReport, task: BenchTask) -> list[Row]:
    """The candidates that were scored on a task, in the report's order."""
    return [Row(c, result) for c in report.candidates for result in c.results if result.task == task.name]


@as_text
def bench_text(report: BenchReport, *, unicode: bool = True) -> Iterator[str]:
    """The report of a bench for a terminal; `unicode` draws intervals with line characters instead of ASCII."""
    yield from banner(f"GRADIENCE BENCH{'' if report.kind == 'resize' else f' {report.kind.upper()}'}")
    yield from labelled(
        [
            *(("Adapter", clean(path)) for path in report.adapters),
            *([("Base", clean(report.base))] if report.base else []),
            ("Metric", f"{clean(report.metric.name)} ({direction(report)}), {mean_words(report)}"),
            ("Tolerance", f"{tolerance_words(report)}; bounds hold with {report.confidence:.0%} for all at once"),
            *([("Cap", cap_words(report))] if report.cap is not None else []),
            ("Evaluated", f"{report.evaluated} now, {report.reused} taken from {clean(report.out)}"),
        ]
    )
    for task in report.tasks:
        yield ""
        yield from _task(report, task, unicode=unicode)
    yield ""
    yield f"Verdict: {_VERDICTS[report.verdict.state]}: {clean(report.verdict.says)}."
    yield from (f"Note: {clean(note)}." for note in report.notes)
    yield "Within the tolerance means no more than that: a difference that looks like a gain may be noise."


def direction(report: BenchReport) -> str:
    """Words for the direction in which the metric improves."""
    return "higher is better" if report.metric.higher_is_better else "lower is better"


def mean_words(report: BenchReport) -> str:
    """What the mean is over where rows differ in length, else what the pairs are."""
    metric = report.metric
    return f"mean over {metric.mean_over}" if metric.name in {"loss", "accuracy"} else f"paired by {metric.unit}"


def tolerance_words(report: BenchReport) -> str:
    """The tolerance in words."""
    return f"{report.tolerance} of the reference's score" if report.tolerance.endswith("%") else report.tolerance


def cap_words(report: BenchReport) -> str:
    """What the cap means, in words."""
    unit = " nats" if report.metric.name == "loss" else ""
    return f"an example counts at most {report.cap:g}{unit}; the bounds hold at every look at more rows"


def unseen_line(task: BenchTask) -> str | None:
    """What the sample can and cannot show of rare failures; None for seeds."""
    if task.missed is None or task.seen_from is None:
        return None
    return (
        f"These {task.n:,} examples show a failure of {task.seen_from:.1%} of such examples or more (95 %); one in 1 % "
        f"would be missed with probability {task.missed:.2f}."
    )


def task_line(report: BenchReport, task: BenchTask) -> str:
    """A line about the task: its data, the reference's score, and the tolerance."""
    score, by_tokens = as_float(task.score), report.metric.mean_over == "tokens"
    also = f" (perplexity {math.exp(min(score, 700.0)):.4g})" if by_tokens and report.metric.name == "loss" else ""
    data = f", {short_path(task.data)}" if task.data else ""
    aside = "" if task.judged else "; reported beside the verdict"
    unit = report.metric.unit if task.n == 1 else f"{report.metric.unit}s"
    own = f"{task.reference} {score:.4g}{also}"
    return f"{task.name}{data}: n = {task.n:,} {unit}, {own}, tolerance {task.margin:.3g}{aside}"


def contrast_line(task: BenchTask) -> str | None:
    """A warning if the data cannot show a loss; otherwise None."""
    if task.has_contrast is False and task.judged:
        return "The base without the update is not shown to be worse by the tolerance: these data cannot show a loss."
    return None


def _task(report: BenchReport, task: BenchTask, *, unicode: bool) -> Iterator[str]:
    rows = rows_of(report, task)
    yield clean(task_line(report, task))
    yield from table(_COLUMNS, rows)
    yield from dilution_lines(rows)
    drawn = [row for row in rows if row.candidate.role == "candidate" and row.result.worst is not None]
    if drawn:
        yield ""
        marks = _UNICODE if unicode else _ASCII
        yield f"  How much worse, the largest candidate first; | is 0, {marks.tolerance} the tolerance:"
        yield from _forest(drawn, task.margin, marks)
    yield from filter(None, (contrast_line(task), unseen_line(task)))


def harm_cell(result: BenchResult) -> str:
    """The harm with its bounds, or `-` without one."""
    if result.harm is None:
        return "-"
    if result.low is None or result.worst is None:
        return signed(result.harm)
    return f"{signed(result.harm)} [{signed(result.low)}, {signed(result.worst)}]"


def signed(value: float | str | None) -> str:
    """A number with its sign and three digits; `0` for zero."""
    if not isinstance(value, float | int):
        return number(value)  # type: ignore[arg-type]  # None, or the name of a number that is not finite
    return f"{value:+.3g}" if value else "0"


def outcome_cell(result: BenchResult) -> str:
    """The outcome; for an open one, with the number of examples that it needs."""
    least, most = result.needed_from, result.needed
    if least is None:
        return OUTCOMES[result.outcome]
    far = f"{least:,} or more" if most is None else f"{most:,}" if least == most else f"{least:,} to {most:,}"
    return f"{OUTCOMES[result.outcome]}, needs {far}"


_COLUMNS: Final[Columns[Row]] = (
    ("candidate", f"<{_NAME}", lambda row: clean(row.candidate.name)[:_NAME]),
    ("params", ">7", lambda row: count(row.candidate.params)),
    ("share", ">6", lambda row: "-" if row.candidate.share is None else f"{row.candidate.share:.0%}"),
    ("score", ">8", lambda row: number(row.result.score, ".4g")),
    ("worse by [least, worst]", "<29", lambda row: harm_cell(row.result)),
    ("KL", ">8", lambda row: number(row.result.kl, ".2g")),
    ("flips", ">6", lambda row: percent(row.result.flips)),
    ("", "", lambda row: outcome_cell(row.result)),
)


_DILUTION: Final[Columns[Row]] = (
    ("merge", f"<{_NAME}", lambda row: clean(row.candidate.name)[:_NAME]),
    ("worse by", ">9", lambda row: signed(row.result.harm)),
    ("dilution", ">9", lambda row: signed(row.result.diluted)),
    ("the rest", ">9", lambda row: signed(_rest(row.result))),
)


def _rest(result: BenchResult) -> float:
    return as_float(result.harm or 0.0) - as_float(result.diluted or 0.0)


def dilution_lines(rows: Sequence[Row]) -> Iterator[str]:
    """What each merge loses, split in what the adapter alone at its weight loses and the rest; nothing without merges.

    Differences of means, without bounds of their own.
    """
    split = [row for row in rows if row.result.diluted is not None and row.result.harm is not None]
    if split:
        yield ""
        yield "  Dilution: what the adapter loses alone at its merge weight. The rest: the others, and the method."
        yield from table(_DILUTION, split)


class _Marks(NamedTuple):
    """The characters of an interval, and of the tolerance."""

    line: str
    left: str
    right: str
    mean: str
    tolerance: str


_UNICODE: Final = _Marks("─", "├", "┤", "●", "┊")
_ASCII: Final = _Marks("-", "[", "]", "o", ":")


def _forest(rows: Sequence[Row], margin: float, marks: _Marks) -> Iterator[str]:
    """A line for each interval, on one axis that spans all intervals, 0 and the tolerance."""
    spans = [[as_float(v) for v in (r.result.low, r.result.harm, r.result.worst) if v is not None] for r in rows]
    ends = [value for span in spans for value in span]
    low, high = min([0.0, *ends]), max([margin, *ends])
    width = high - low or 1.0  # all scores are 0, and so is a tolerance in percent

    def at(value: float) -> int:
        return round((value - low) / width * (_WIDTH - 1))

    for row, span in zip(rows, spans, strict=True):
        drawn = [" "] * _WIDTH
        drawn[at(0.0)], drawn[at(margin)] = "|", marks.tolerance
        first, middle, last = map(at, span)
        drawn[first : last + 1] = marks.line * (last + 1 - first)
        drawn[first], drawn[last] = marks.left, marks.right
        drawn[middle] = marks.mean
        yield f"  {clean(row.candidate.name)[:_NAME]:<{_NAME}} {''.join(drawn).rstrip()}"
    least = f"{low:.3g}"
    yield f"  {'':<{_NAME}} {least}{f'{high:.3g}':>{_WIDTH - len(least)}}"

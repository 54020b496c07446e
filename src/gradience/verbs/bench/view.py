"""The report of a bench: the verdict, a table of candidates by size, and their intervals on one axis."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from gradience.blocks import (
    Block,
    Columns,
    Figure,
    Intervals,
    Note,
    Section,
    Title,
    VerdictLine,
    count,
    counted,
    facts,
    number,
    percent,
    sentence,
    short_path,
    table,
)
from gradience.blocks.text import as_text
from gradience.schema import as_float
from gradience.schema.compare import BenchCandidate, BenchReport, BenchResult, BenchTask

_OUTCOMES: Final = {
    "within": "within",
    "over": "over",
    "open": "open",
    "not_finite": "not finite",
    "reference": "-",
    "anchor": "-",
}
_VERDICTS: Final = {
    "holds": "holds",
    "none": "none",
    "not_decided": "not decided",
    "no_contrast": "cannot tell",
}
_NAME: Final = "<24.24"
_CAPTION: Final = (
    "How much worse than the adapter each candidate is, by its size: a dot is the mean of the paired differences, "
    "the bar spans what is plausible with 95 % for all candidates at once. A bar that ends under the tolerance holds."
)


class ScoredCandidate(NamedTuple):
    """A candidate and its result on one task."""

    candidate: BenchCandidate
    result: BenchResult


@as_text
def bench_text(report: BenchReport, *, unicode: bool = True) -> Iterator[Block]:
    """The report of a bench for a terminal; `unicode` draws intervals with line characters instead of ASCII."""
    yield Title(f"GRADIENCE BENCH{'' if report.kind == 'resize' else f' {report.kind.upper()}'}")
    tolerance = f"{_tolerance(report)}; bounds hold with {report.confidence:.0%} for all at once"
    yield facts(
        [
            *(("Adapter", path) for path in report.adapters),
            ("Base", report.base),
            ("Metric", f"{report.metric.name} ({_direction(report)}), {_mean(report)}"),
            ("Tolerance", tolerance),
            ("Cap", "" if report.cap is None else _cap(report)),
            ("Evaluated", f"{report.evaluated} now, {report.reused} taken from {report.out}"),
        ]
    )
    for task in report.tasks:
        yield from ("", *_task(report, task, unicode=unicode))
    yield from ("", _verdict(report))
    yield from (Note(f"{note}.") for note in report.notes)
    yield "Within the tolerance means no more than that: a difference that looks like a gain may be noise."


def bench_section(report: BenchReport | None) -> list[Section]:
    """The part of a page on what was measured on held-out data; nothing without a bench."""
    if report is None:
        return []
    about = [
        ("Metric", f"{report.metric.name} ({_direction(report)})"),
        ("Tolerance", _tolerance(report)),
    ]
    tasks = [block for task in report.tasks for block in _task(report, task)]
    notes = [Note(f"{sentence(text)}.") for text in report.notes]
    return [Section("bench", "Measured on held-out data", (_verdict(report), facts(about), *tasks, *notes))]


def _verdict(report: BenchReport) -> VerdictLine:
    return VerdictLine(_VERDICTS[report.verdict.state], f": {report.verdict.says}.")


def _direction(report: BenchReport) -> str:
    """Words for the direction in which the metric improves."""
    return "higher is better" if report.metric.higher_is_better else "lower is better"


def _mean(report: BenchReport) -> str:
    """What the mean is over where rows differ in length, else that examples are paired."""
    metric = report.metric
    return f"mean over {metric.mean_over}" if metric.name in {"loss", "accuracy"} else "paired by example"


def _tolerance(report: BenchReport) -> str:
    """The tolerance in words."""
    return f"{report.tolerance} of the reference's score" if report.tolerance.endswith("%") else report.tolerance


def _cap(report: BenchReport) -> str:
    """What the cap means, in words."""
    unit = " nats" if report.metric.name == "loss" else ""
    return f"an example counts at most {report.cap:g}{unit}; the bounds hold at every look at more rows"


def _data(report: BenchReport, task: BenchTask) -> str:
    """A line about the task: its data, the reference's score, and the tolerance."""
    score, by_tokens = as_float(task.score), report.metric.mean_over == "tokens"
    also = f" (perplexity {math.exp(min(score, 700.0)):.4g})" if by_tokens and report.metric.name == "loss" else ""
    data = f", {short_path(task.data)}" if task.data else ""
    own = f"{task.reference} {score:.4g}{also}"
    return f"{task.name}{data}: n = {counted(task.n, 'example')}, {own}, tolerance {task.margin:.3g}"


def _limits(task: BenchTask) -> Iterator[str]:
    """What the data cannot show: a loss at all, or rare failures."""
    if task.has_contrast is False:
        yield "The base without the update is not shown to be worse by the tolerance: these data cannot show a loss."
    yield (
        f"These {task.n:,} examples show a failure of {task.seen_from:.1%} of such examples or more (95 %); one in "
        f"1 % would be missed with probability {task.missed:.2f}."
    )


def _task(report: BenchReport, task: BenchTask, *, unicode: bool = True) -> Iterator[Block]:
    rows = [ScoredCandidate(c, result) for c in report.candidates for result in c.results if result.task == task.name]
    yield _data(report, task)
    yield table(_COLUMNS, rows)
    yield from _dilution(rows)
    drawn = [(row, span) for row in rows if (span := _span(row)) is not None]
    if drawn:
        yield ""
        order, size = "How much worse, the largest candidate first", "parameters, % of the adapter's"
        drawing = Intervals(
            tuple(span for _, span in drawn), task.margin, size, "worse than the adapter by", order, unicode
        )
        by_size = sorted((row for row, _ in drawn), key=lambda row: row.candidate.params)
        least = ", ".join(f"{row.candidate.name} {_harm(row.result)}" for row in by_size)
        summary = f"Tolerance {task.margin:.3g}: {least}."
        yield Figure(f"Loss by size on {task.name}", drawing, summary=summary, caption=_CAPTION)
    yield from _limits(task)


def _span(row: ScoredCandidate) -> tuple[str, float, float, float, float] | None:
    """The name, the share of the parameters in per cent, and the harm between its bounds; None for no candidate."""
    ends = (row.result.low, row.result.harm, row.result.worst)
    if row.candidate.role != "candidate" or None in ends:
        return None
    low, harm, worst = (as_float(end) for end in ends if end is not None)
    return row.candidate.name, 100.0 * (row.candidate.share or 0.0), low, harm, worst


def _harm(result: BenchResult) -> str:
    """The harm with its bounds, or `-` without one."""
    if result.harm is None:
        return "-"
    if result.low is None or result.worst is None:
        return _signed(result.harm)
    return f"{_signed(result.harm)} [{_signed(result.low)}, {_signed(result.worst)}]"


def _signed(value: float | str | None) -> str:
    """A number with its sign and three digits; `0` for zero."""
    if not isinstance(value, float | int):
        return number(value)  # type: ignore[arg-type]  # None, or the name of a number that is not finite
    return f"{value:+.3g}" if value else "0"


def _outcome(result: BenchResult) -> str:
    """The outcome; for an open one, with the number of examples that it needs."""
    least, most = result.needed_from, result.needed
    if least is None:
        return _OUTCOMES[result.outcome]
    far = f"{least:,} or more" if most is None else f"{most:,}" if least == most else f"{least:,} to {most:,}"
    return f"{_OUTCOMES[result.outcome]}, needs {far}"


_COLUMNS: Final[Columns[ScoredCandidate]] = (
    ("candidate", _NAME, lambda row: row.candidate.name),
    ("params", ">7", lambda row: count(row.candidate.params)),
    ("share", ">6", lambda row: "-" if row.candidate.share is None else f"{row.candidate.share:.0%}"),
    ("score", ">8", lambda row: number(row.result.score, ".4g")),
    ("worse by [least, worst]", "<29", lambda row: _harm(row.result)),
    ("KL", ">8", lambda row: number(row.result.kl, ".2g")),
    ("flips", ">6", lambda row: percent(row.result.flips)),
    ("verdict", "", lambda row: _outcome(row.result)),
)


_DILUTION: Final[Columns[ScoredCandidate]] = (
    ("merge", _NAME, lambda row: row.candidate.name),
    ("worse by", ">9", lambda row: _signed(row.result.harm)),
    ("dilution", ">9", lambda row: _signed(row.result.diluted)),
    ("the rest", ">9", lambda row: _signed(_rest(row.result))),
)


def _rest(result: BenchResult) -> float:
    return as_float(result.harm or 0.0) - as_float(result.diluted or 0.0)


def _dilution(rows: Sequence[ScoredCandidate]) -> Iterator[Block]:
    """What each merge loses, split in what the adapter alone at its weight loses and the rest; nothing without merges.

    Differences of means, without bounds of their own.
    """
    split = [row for row in rows if row.result.diluted is not None and row.result.harm is not None]
    lead = "  Dilution: what the adapter loses alone at its merge weight. The rest: the others, and the method."
    yield from ("", lead, table(_DILUTION, split)) if split else ()

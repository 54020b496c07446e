"""The report of a diagnosis as text: its verdict, the sources behind the verdict, and the causes.

Without `verbose`, it gives the number of checks that did not run in one line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Final

from gradience.blocks import (
    Block,
    Columns,
    Findings,
    Fold,
    Next,
    ShownFinding,
    Table,
    Title,
    VerdictLine,
    number,
    part,
    skipped_line,
    table,
)
from gradience.blocks.text import as_text
from gradience.render.pace import memory_words
from gradience.schema.diagnose import VERDICT_LABELS, BestCheckpoint, Cause, DiagnosedSource, DiagnoseReport
from gradience.verbs.diagnose.spare_view import spare_lines
from gradience.verbs.monitor.view import marks, probe_lines

_SOURCE: Final = 8  # columns of a source's name


@as_text
def diagnose_text(report: DiagnoseReport, *, verbose: bool = False, fails: bool = True) -> Iterator[Block]:
    """The report of a diagnosis for a terminal.

    Args:
        report: the report.
        verbose: add the notes, the evidence and the action of each cause, and the skipped checks.
        fails: whether a cause may make the command fail; if not, a verdict of something wrong says so.
    """
    yield Title("GRADIENCE DIAGNOSE")
    yield f"Run:     {report.path}"
    label, rest = split_headline(report)
    code = "" if fails or report.verdict not in {"broken", "needs_attention"} else "; exit 0: no --fail-on"
    yield VerdictLine(label, f"{rest}{code}")
    if report.monitor is not None and report.monitor.story:
        yield f"Story:   {report.monitor.story}"
        yield from (f"Adapter: {line}" for line in probe_lines(report.monitor))
    yield ""
    sources = (f"  {source.source:<{_SOURCE}}{_source(source)}" for source in report.sources)
    yield from part("Sources", (*sources, *_used(report)))
    yield f"Findings ({len(report.findings)}):" if report.findings else "Findings: none by the checks that ran"
    yield Findings(causes(report), verbose=verbose, actions=verbose)
    yield ""
    if report.advice is not None:
        yield from (Next(report.advice.text, report.advice.alternative), "")
    if evaluations := marks(report.monitor):
        yield from (*evaluations, "")
    if report.best_checkpoint is not None:
        yield from (_best(report.best_checkpoint), *spare_lines(report.spare), "")
    if report.not_run:
        yield from (Fold(skipped_line(report.not_run, verbose=verbose), (by_reason(report),), is_open=verbose), "")
    of_parts = {note for part in (report.monitor, report.audit) if part is not None for note in part.notes}
    yield from (f"Note: {note}." for note in dict.fromkeys(report.notes) if verbose or note not in of_parts)
    if verbose or report.verdict in {"broken", "needs_attention", "worth_a_look"}:
        yield "Findings are hypotheses with their grounds: verify on held-out data."


def _used(report: DiagnoseReport) -> Iterator[Block]:
    """The memory foretold beside what the run took; nothing where one of them is not known."""
    foretold = None if report.check is None or report.check.memory is None else report.check.memory.peak_bytes
    used = None if report.monitor is None else report.monitor.pace
    if foretold is not None and used is not None and (words := memory_words(foretold, used)):
        yield f"  Memory: {words}"


def causes(report: DiagnoseReport, where: Callable[[Cause], str] | None = None) -> tuple[ShownFinding, ...]:
    """The causes, numbered from 1; a joined one with what each source shows, another with its source."""
    shown = where or (lambda cause: "" if cause.joined else f" ({cause.pieces[0].source})")
    return tuple(
        ShownFinding(
            cause,
            where=shown(cause),
            pieces=tuple(
                (piece.source, piece.id if piece.severity else "", piece.says)
                for piece in cause.pieces
                if cause.joined and piece.says not in cause.message  # which may be made of it
            ),
            number=number,
        )
        for number, cause in enumerate(report.findings, 1)
    )


_STEPS: Final = ("step", "first_step", "best_step", "from_step", "lowest_step")  # values of a finding that are its step


def step_of(cause: Cause) -> int | None:
    """The step of a cause, or None if it has no single one."""
    values = (cause.values.get(name) for name in _STEPS)
    return next((v for v in values if isinstance(v, int) and not isinstance(v, bool)), None)


def steps_of(cause: Cause) -> list[int]:
    """Every step at which a cause was seen, such as each spike of a burst."""
    several = cause.values.get("steps")
    if isinstance(several, list):
        return [v for v in several if isinstance(v, int) and not isinstance(v, bool)]
    step = step_of(cause)
    return [] if step is None else [step]


def by_reason(report: DiagnoseReport) -> Table:
    """The checks that did not run by source and reason, and the tensors that were not analysed."""
    groups: dict[tuple[str, str], list[str]] = {}
    for item in report.not_run:
        groups.setdefault((item.source, item.reason), []).append(item.id)
    rows = [(source, reason, " ".join(dict.fromkeys(ids))) for (source, reason), ids in groups.items()]
    columns: Columns[tuple[str, str, str]] = [
        (title, "", itemgetter(place)) for place, title in enumerate(("source", "reason", "checks"))
    ]
    return table(columns, rows, told=lambda row: f"  {row[0]:<{_SOURCE}}{row[1]}: {row[2]}")


def split_headline(report: DiagnoseReport) -> tuple[str, str]:
    """The verdict in words, and the rest of the headline: what was checked, found and missing."""
    label = VERDICT_LABELS[report.verdict]
    return label, report.headline.removeprefix(label)


def _source(source: DiagnosedSource) -> str:
    if source.state == "absent":
        return f"not there: {source.reason}"
    if source.state == "unreadable":
        return f"NOT READABLE: {source.reason}"
    chosen = f" ({source.chosen})" if source.chosen else ""
    return f"{source.path or 'in the log'}: {source.holds}{chosen}"


def _best(best: BestCheckpoint) -> str:
    noise = "" if best.noise is None else f"; noise +/- {best.noise:.2g}"
    same = ", which the weights here are" if best.saved_as else ""
    value = f"{best.split} {best.by} {number(best.value, '.4g')}"
    return f"Best checkpoint on disk: {best.name}{same} ({value}{noise})"

"""The diagnosis as text: the verdict on top, then what was seen, causes with their pieces, and what was not judged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from gradience.render.text import banner, clean, number
from gradience.schema.diagnose import BestCheckpoint, Cause, DiagnosedSource, DiagnoseReport, Unjudged

__all__ = ["diagnose_text"]

_WIDTH: Final = 8  # of the longest name of a source and a blank


def diagnose_text(report: DiagnoseReport, *, verbose: bool = False) -> str:
    """Return the report for a terminal; verbose adds to each cause why, confidence, scope, evidence, verification."""
    return "\n".join(_lines(report, verbose=verbose))


def _lines(report: DiagnoseReport, *, verbose: bool) -> Iterator[str]:
    yield from banner("GRADIENCE DIAGNOSE")
    yield f"Run:     {clean(report.path)}"
    yield f"Verdict: {_verdict(report.headline)}"
    if report.monitor is not None and report.monitor.story:
        yield f"Story:   {clean(report.monitor.story)}"
    yield ""
    yield "Sources:"
    for source in report.sources:
        yield f"  {source.source:<{_WIDTH}}{_source(source)}"
    yield ""
    yield from _causes(report.causes, verbose=verbose)
    if report.best_checkpoint is not None:
        yield from _best(report.best_checkpoint)
    yield from _not_judged(report.not_run)
    for note in report.notes:
        yield f"Note: {clean(note)}."
    yield "Causes are hypotheses with their grounds: verify on held-out data."


def _verdict(headline: str) -> str:
    """Return the headline with the verdict itself in capitals, so that it is seen first."""
    first, mark, rest = clean(headline).partition(";")
    words, bracket, counts = first.partition(" (")
    return f"{words.upper()}{bracket}{counts}{mark}{rest}"


def _source(source: DiagnosedSource) -> str:
    if source.state == "absent":
        return f"not there: {clean(source.reason)}"
    if source.state == "unreadable":
        return f"NOT READABLE: {clean(source.reason)}"
    chosen = f" ({clean(source.chosen)})" if source.chosen else ""
    return f"{clean(source.path or 'in the log')}: {clean(source.holds)}{chosen}"


def _causes(causes: Iterable[Cause], *, verbose: bool) -> Iterator[str]:
    told = list(causes)
    yield f"Causes ({len(told)}):" if told else "Causes: none found by what could be judged"
    for cause in told:
        yield from _cause(cause, verbose=verbose)
    yield ""


def _cause(cause: Cause, *, verbose: bool) -> Iterator[str]:
    alone = "" if cause.joined else f" ({cause.pieces[0].source})"
    yield f"  [{cause.severity.upper()}] {cause.id}{alone}: {clean(cause.message)}"
    for piece in cause.pieces if cause.joined else ():
        yield f"      {piece.source:<{_WIDTH}}{piece.id + ': ' if piece.severity else ''}{clean(piece.says)}"
    if cause.action:
        yield f"      -> {clean(cause.action)}"
    if verbose:
        yield from _grounds(cause)


def _grounds(cause: Cause) -> Iterator[str]:
    if cause.rationale:
        yield f"      why: {clean(cause.rationale)}"
    if cause.confidence is not None:
        yield f"      confidence: {cause.confidence:.2f}"
    if cause.scope:
        yield f"      scope: {clean(cause.scope)}"
    for item in cause.evidence:
        yield f"      evidence: {clean(item.source)}: {clean(item.says)}"
    if cause.verify:
        yield f"      verify: {clean(cause.verify)}"


def _best(best: BestCheckpoint) -> Iterator[str]:
    noise = "noise unknown" if best.noise is None else f"noise +/- {best.noise:.2g}"
    same = ", which the weights here are" if best.saved_as else ""
    loss = f"{clean(best.split)} loss {number(best.loss, '.4g')}"
    yield f"Best checkpoint on disk: {clean(best.name)}{same} ({loss}; {noise})"
    yield ""


def _not_judged(not_run: Iterable[Unjudged]) -> Iterator[str]:
    """Yield every check that did not run, those of one reason together."""
    groups: dict[tuple[str, str], list[str]] = {}
    for item in not_run:
        groups.setdefault((item.source, item.reason), []).append(item.id)
    if not groups:
        return
    yield f"Not judged ({sum(map(len, groups.values()))}):"
    for (source, reason), ids in groups.items():
        yield f"  {source:<{_WIDTH}}{clean(reason)}: {clean(' '.join(dict.fromkeys(ids)))}"
    yield ""

"""END114 to DUP117: whether the log itself is whole."""

from __future__ import annotations

from collections import Counter

from gradience.rules.evidence import REPLAY, SEQUENCE, TORN
from gradience.rules.log import thresholds as t
from gradience.rules.log.curve import median
from gradience.rules.log.detector import Detector, Sighting
from gradience.rules.log.facts import RunFacts


def _no_end(facts: RunFacts) -> Sighting | None:
    if facts.status != "no_run_end":
        return None
    planned = f" of {facts.max_steps} planned" if facts.max_steps else ""
    at = f"at step {facts.last_step}{planned}" if facts.last_step is not None else "before the first step"
    return Sighting(
        f"The log stops {at} without run_end: crashed, killed, or still running.",
        {},
        seen=("no run_end event for this run",),
    )


def _bad_lines(facts: RunFacts) -> Sighting | None:
    if facts.issues_total:
        return _unreadable(facts)
    if not facts.record.missing:
        return None
    return Sighting(
        f"{facts.record.missing} lines are missing by the numbers that the recorder gave them.",
        {"missing": facts.record.missing},
        severity="warning",
        action="Lines were deleted, or the recorder dropped events (disk full): the curve has holes.",
        seen=(f"gaps of {facts.record.missing} in seq",),
    )


def _unreadable(facts: RunFacts) -> Sighting:
    first = facts.issues[0]
    torn = facts.issues_total == 1 and first.torn
    return Sighting(
        "The last line is torn: the writer was cut off in the middle of it."
        if torn
        else f"{facts.issues_total} lines are no events (first: line {first.line}: {first.reason}).",
        {"lines": facts.issues_total},
        severity="info" if torn else "warning",
        action="Nothing to do: the next writer repairs it." if torn else None,
        seen=(f"line {first.line}, byte {first.offset}: {first.reason}",),
    )


def _resumed(facts: RunFacts) -> Sighting | None:
    if not facts.record.resumed_from:
        return None
    now = dict(zip(facts.series.steps, facts.series.losses, strict=True)) if facts.record.replaced else {}
    apart = [
        abs(now[step] - loss) / abs(loss)
        for step, loss in facts.record.replaced
        if step in now and loss and abs(now[step]) + abs(loss) < float("inf")
    ]
    difference = median(apart) if apart else None
    other = difference is not None and len(apart) >= t.REPLAY_ROWS.value and difference > t.REPLAY_DIFFERENCE.value
    replayed = f"; {len(apart)} logged steps were run again" if apart else ""
    apart_by = f", their losses {difference:.0%} apart in the median: other data or another checkpoint" if other else ""
    return Sighting(
        f"Resumed from step {', '.join(map(str, facts.record.resumed_from))}{replayed}{apart_by}.",
        {
            "resumed_from": list(facts.record.resumed_from),
            "sessions": len(facts.record.sessions),
            "replayed": len(apart),
            "difference": difference,
        },
        severity="warning" if other else "info",
        confidence=0.6 if other else None,
        action="Check that the data order and the optimizer's state were restored with the weights." if other else None,
    )


def _duplicates(facts: RunFacts) -> Sighting | None:
    evals = Counter((e.session, e.split, e.step) for e in facts.history if e.step is not None)
    again = sum(count - 1 for count in evals.values())
    counts = {
        "duplicates": facts.record.duplicates,
        "out_of_order": facts.record.out_of_order,
        "interleaved": facts.record.interleaved,
        "evaluations": again,
    }
    if not any(counts.values()):
        return None
    told = {
        "duplicates": "rows repeat a step",
        "out_of_order": "rows go back to a step already passed",
        "interleaved": "times another process went on writing",
        "evaluations": "evaluations repeat a step",
    }
    only_evals = not (facts.record.duplicates or facts.record.out_of_order or facts.record.interleaved)
    said = ", ".join(f"{count} {told[name]}" for name, count in counts.items() if count)
    return Sighting(
        f"Rows that should be single: {said}.",
        dict(counts),
        severity="info" if only_evals else "warning",
        action="Nothing to do: a second evaluate() at the end does that; the later one counts." if only_evals else None,
        seen=(said,),
    )


DETECTORS = (
    Detector(
        id="END114",
        severity="warning",
        title="no end",
        condition=_no_end,
        confidence=0.9,
        evidence=(),
        action="If it is not running any more, resume from the last checkpoint or treat the run as incomplete.",
        scope="any log",
        verify="Look for the process, and whether the log still grows.",
    ),
    Detector(
        id="TRN115",
        severity="warning",
        title="torn, invalid or missing lines",
        condition=_bad_lines,
        confidence=1.0,
        evidence=(TORN, SEQUENCE),
        action="Run 'gradience validate' on the log: corruption, or two writers in one file.",
        scope="any log",
        rationale="What those lines said is in no number of this report.",
        verify="'gradience validate' names each line, and what is wrong with it.",
    ),
    Detector(
        id="RES116",
        severity="info",
        title="resumed",
        condition=_resumed,
        confidence=1.0,
        evidence=(REPLAY,),
        action="Nothing to do: rows that the resume superseded are not counted.",
        scope="logs that say so",
        verify="Compare the losses of the steps that were run twice.",
        thresholds=(t.REPLAY_DIFFERENCE, t.REPLAY_ROWS),
    ),
    Detector(
        id="DUP117",
        severity="warning",
        title="duplicate or interleaved rows",
        condition=_duplicates,
        confidence=0.9,
        evidence=(SEQUENCE,),
        action="Let one process write one log: two runs in one file, or every rank of a distributed run, do this.",
        scope="any log",
        verify="Look at run_id and session in the lines around it.",
    ),
)

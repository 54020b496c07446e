"""END114 to GAP118: is the log whole, and can it show small effects?"""

from __future__ import annotations

from typing import Final

from gradience.rules import LOGGING_DEFAULT, Observation, Threshold, Unknown, cite
from gradience.rules.log.facts import JUDGEMENT, LogRule, RunFacts, find, seen, shown
from gradience.rules.log.statistics import median
from gradience.schema import as_float
from gradience.telemetry.signals import REWARD

FEW_ROWS = Threshold("few_rows", 3, "training rows", "definition: a curve has a start, a middle and an end")
PLANNED_ROWS = Threshold("planned_rows", 20, "rows that the settings would log in all", "50 logs: no change from 2 on")
SOME_STEPS = Threshold("some_steps", 20, "steps", "124 logs: no change from 5 to 20")
REPLAY_DIFFERENCE = Threshold(
    "replay_difference", 0.2, "median relative difference", "proposal of the project's design"
)
_ROWS_WANTED: Final = 50  # enough for a curve
ENDED = Threshold("ended", 0.9, "of the planned steps", "arithmetic: a linear decay has 1 % of its rates left")
REPLAY_ROWS = Threshold("replay_rows", 3, "steps logged before and after", JUDGEMENT)

_SEQUENCE: Final = cite("the recorder", "seq counts the lines of one session; one writer holds the log's lock")

_BAD_ENDS: Final = {"error": "ended with an error", "aborted": "was aborted", "interrupted": "was interrupted"}


@LogRule("END114", severity="warning", confidence=0.9, signs=("cut_off",), place="end", cause="cut_off")
def _no_end(facts: RunFacts) -> Observation | None:
    """no regular end

    the log has no run_end, or one with the status error (an error), aborted or interrupted

    Scope: any log
    Verify: See whether the process runs and the log still grows.
    Seen: https://github.com/johntnanney/gradience -- a log that stops at step 100 of 400
    """
    if facts.status in _BAD_ENDS:
        return _bad_end(facts)
    if facts.status != "no_run_end":
        return None
    planned = f" of {facts.max_steps} planned" if facts.max_steps else ""
    at = f"at step {facts.run.last_step}{planned}" if facts.run.last_step is not None else "before the first step"
    return Observation(
        f"The log stops {at} without run_end: crashed, killed, or still running.",
        evidence=seen("no run_end event for this run"),
    )


def _bad_end(facts: RunFacts) -> Observation:
    planned = f" of {facts.max_steps} planned" if facts.max_steps else ""
    at = f" at step {facts.run.last_step}{planned}" if facts.run.last_step is not None else " before the first step"
    why = f": {facts.status_reason}" if facts.status_reason else ", and the log does not say why"
    return Observation(
        f"The run {_BAD_ENDS[facts.status]}{at}{why}.",
        {"status": facts.status, "reason": facts.status_reason},
        severity="error" if facts.status == "error" else "warning",
        confidence=1.0,
        evidence=seen(f"run_end with status {facts.status}"),
    )


@LogRule(
    "END183",
    severity="warning",
    confidence=0.8,
    place="end",
    phrase=lambda v: f"ended at step {shown(v, 'step', 'd')} of {shown(v, 'planned', 'd')} planned",
    as_info=True,
    thresholds=(ENDED,),
)
def _short(facts: RunFacts) -> Observation | None:
    """ended before its planned steps

    run_end has the status ok, at under {ended} of the planned steps; info if the held-out loss was no longer at its
    best

    Why: A schedule that is cut off leaves the learning rate high, and the run short of what was planned.
    Scope: logs of a recorder that knows the planned steps; early stopping by a task metric looks the same
    Action: See what ended it: a callback, a time limit, or data that ran out.
    Verify: The output of the training, and its callbacks.
    Seen: https://github.com/huggingface/trl/issues/475 -- training stops before the end of the epoch
    """
    if facts.status != "ok":
        raise Unknown("the log holds no regular end (see END114)")
    last, planned = facts.run.last_step, facts.max_steps
    if not planned or last is None:
        raise Unknown("the log does not say how many steps were planned")
    if last >= ENDED.value * planned:
        return None
    curve = facts.held_out_curve
    meant = curve is not None and len(curve.losses) > 1 and curve.best < len(curve.losses) - 1
    return Observation(
        f"The run ended at step {last} of {planned} planned"
        + (", after a held-out loss that had stopped falling: stopped early, as it seems." if meant else "."),
        {"step": last, "planned": planned},
        severity="info" if meant else None,
        evidence=seen(f"run_end with status ok at step {last}, max_steps {planned}"),
    )


@LogRule(
    "TRN115",
    severity="warning",
    confidence=1.0,
    signs=("torn_lines",),
    place="log",
    phrase=lambda v: f"{v.get('lines', v.get('missing'))} lines of the log are lost",
    evidence=(_SEQUENCE,),
)
def _bad_lines(facts: RunFacts) -> Observation | None:
    """torn, invalid or missing lines

    a line is torn, is not an event, or is missing from the recorder's line numbers; one torn last line is info

    Why: The content of those lines is missing from every number of this report.
    Scope: any log
    Action: Run 'gradience validate' on the log: it names each line.
    Verify: 'gradience validate' names each line, and what is wrong with it.
    Source: the recorder -- one event is one write: only a kill, a full disk or a second writer tears a line
    Source: arithmetic -- a line that is torn cannot be read
    """
    if facts.issues_total:
        return _unreadable(facts)
    if not facts.run.record.missing:
        return None
    return Observation(
        f"{facts.run.record.missing} lines are missing: the recorder's line numbers have gaps.",
        {"missing": facts.run.record.missing},
        severity="warning",
        evidence=seen(f"gaps of {facts.run.record.missing} in seq"),
    )


def _unreadable(facts: RunFacts) -> Observation:
    first = facts.issues[0]
    torn = facts.issues_total == 1 and first.torn
    return Observation(
        "The last line is torn: the writer was cut off in the middle of it."
        if torn
        else f"{facts.issues_total} lines are not events (first: line {first.line}: {first.reason}).",
        {"lines": facts.issues_total},
        severity="info" if torn else "warning",
        evidence=seen(f"line {first.line}, byte {first.offset}: {first.reason}"),
    )


@LogRule(
    "RES116",
    severity="info",
    confidence=1.0,
    place="log",
    phrase=lambda _: "the steps run again after the resume had other losses",
    cause="resumed_otherwise",
    thresholds=(REPLAY_DIFFERENCE, REPLAY_ROWS),
)
def _resumed(facts: RunFacts) -> Observation | None:
    """resumed

    the log says that it was resumed; a warning if steps were run again, {replay_rows} or more, and their losses
    differ by over {replay_difference} in the median

    Scope: logs that say so
    Verify: Compare the losses of the steps that were run twice.
    Source: transformers/training_args.py:TrainingArguments@5.24.0 -- ignore_data_skip: else a resumed run sees the
        same data at the same step
    """
    if not facts.run.record.resumed_from:
        return None
    now = dict(zip(facts.series.steps, facts.series.losses, strict=True)) if facts.run.record.replaced else {}
    apart = [
        abs(now[step] - loss) / abs(loss)
        for step, loss in facts.run.record.replaced
        if step in now and loss and abs(now[step]) + abs(loss) < float("inf")
    ]
    difference = median(apart) if apart else None
    other = difference is not None and len(apart) >= REPLAY_ROWS.value and difference > REPLAY_DIFFERENCE.value
    replayed = f"; {len(apart)} logged steps were run again" if apart else ""
    apart_by = (
        f", their losses differ by {difference:.0%} in the median: other data or another checkpoint" if other else ""
    )
    return Observation(
        f"Resumed from step {', '.join(map(str, facts.run.record.resumed_from))}{replayed}{apart_by}.",
        {
            "resumed_from": list(facts.run.record.resumed_from),
            "sessions": len(facts.run.record.sessions),
            "replayed": len(apart),
            "difference": difference,
        },
        severity="warning" if other else "info",
        confidence=0.6 if other else None,
    )


@LogRule(
    "DUP117",
    severity="warning",
    confidence=0.9,
    place="log",
    phrase=lambda _: "rows repeat or go back",
    evidence=(_SEQUENCE,),
)
def _duplicates(facts: RunFacts) -> Observation | None:
    """duplicate or interleaved rows

    a step twice in one session, steps that go back, or two processes in one log

    Scope: any log
    Action: Give each process a log of its own, or let the main one write.
    Verify: Look at run_id and session in the lines around it.
    Source: arithmetic -- a step that is there twice is no curve
    """
    counts = {
        "duplicates": facts.run.record.duplicates,
        "out_of_order": facts.run.record.out_of_order,
        "interleaved": facts.run.record.interleaved,
    }
    if not any(counts.values()):
        return None
    words = {
        "duplicates": "rows repeat a step",
        "out_of_order": "rows go back to a step already passed",
        "interleaved": "times another process wrote in between",
    }
    shown = ", ".join(f"{count} {words[name]}" for name, count in counts.items() if count)
    return Observation(f"Rows that should occur once: {shown}.", dict(counts), evidence=seen(shown))


def _no_row(facts: RunFacts) -> str | None:
    """Why a log holds no training row, if its settings or its end tell."""
    every, steps = facts.config.training.logging_steps, facts.run.last_step or facts.max_steps
    if every is not None and steps and as_float(every) > steps:
        return f"No training loss was logged: the run had {steps} steps, and logging_steps is {as_float(every):g}."
    if facts.max_steps and facts.run.last_step is None and not facts.history and facts.status == "unknown":
        return "The run ended before its first row was logged" + (
            f": {facts.status_reason}." if facts.status_reason else "."
        )
    return None


@LogRule(
    "GAP118",
    severity="info",
    confidence=0.95,
    signs=("few_rows",),
    thresholds=(FEW_ROWS, SOME_STEPS, PLANNED_ROWS),
    evidence=(LOGGING_DEFAULT,),
)
def _sparse(facts: RunFacts) -> Observation | None:
    """sparse log

    fewer than {few_rows} training rows in {some_steps} steps or more, unless the log is cut and the settings would
    give {planned_rows} in all

    Why: Without a curve neither a spike nor a plateau nor a divergence can be seen.
    Scope: any log but one of RL with its reward: a policy's loss says nothing, and not all trainers log it
    Verify: Compare logging_steps with the number of steps.
    Seen: https://github.com/Franmartin09/Requirement-Classification-Fine-Tuning -- one row of training loss in 500
        steps
    """
    if not facts.series.steps and facts.objective.kind == "rl" and find(facts, REWARD, FEW_ROWS.value):
        return None  # Tinker logs no loss of a policy, which would say nothing
    rows, evaluations = len(facts.series.steps), len(facts.history or facts.evals)
    last, every = facts.run.last_step, facts.config.training.logging_steps
    wanted = f"Set logging_steps to {max(1, (last or 0) // _ROWS_WANTED)} in the next run."
    if not rows and (why := _no_row(facts)) is not None:
        return Observation(why, {"rows": 0, "evals": evaluations}, action=wanted)
    if rows >= FEW_ROWS.value or not last or last < SOME_STEPS.value:
        return None
    planned = (facts.max_steps or 0) / as_float(every) if every is not None and as_float(every) > 0.0 else 0.0
    if facts.in_mid_run and rows and planned >= PLANNED_ROWS.value:
        return None  # the log is cut early; it would have had its rows
    interval = f" (logging_steps {as_float(every):g})" if every is not None else ""
    what = (
        "No training loss was logged"
        if not rows
        else "1 training loss was logged"
        if rows == 1
        else "2 training losses were logged"
    )
    return Observation(
        f"{what} in {last} steps{interval}: the training loss has no curve.",
        {"rows": rows, "evals": evaluations},
        action=wanted,
    )


RULES: Final[tuple[LogRule, ...]] = (_no_end, _short, _bad_lines, _resumed, _duplicates, _sparse)

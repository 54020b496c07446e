"""The command ``gradience why``."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from gradience.commands import options as opt
from gradience.commands.output import DONE, NOT_DECIDED
from gradience.errors import RecorderError

_TOLD: Final = frozenset({"same", "one_cause"})


def why(
    first: Path,
    second: Path | None = None,
    /,
    *,
    run: tuple[str, ...] = (),
    verbose: opt.Details = False,
    json: opt.AsJson = False,
) -> int:
    """Name the first step at which two runs part, and the cause.

    Exit code 0: one cause is named, or the runs do not part. Exit code 3: it cannot be told; the report says what to
    record.

    Parameters
    ----------
    first:
        A run.jsonl, the folder that holds one, or anything that gradience import reads.
    second:
        The other run. If it is the same log as the first, or none: a run and its resume, or its last two runs.
    run:
        Of several runs, the one of this name or id: once for the first run, and once for the second.
    """
    if len(run) > 2:  # a pair
        raise RecorderError("why compares two runs", advice="give --run once for each")
    from gradience.verbs.why.run import explain_difference  # --help needs none of it
    from gradience.verbs.why.view import why_text  # the same

    report = explain_difference(first, second or first, runs=run)
    opt.print_report(report, lambda it: why_text(it, verbose=verbose), json=json)
    return DONE if report.verdict in _TOLD else NOT_DECIDED

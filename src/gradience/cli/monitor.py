"""``gradience monitor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.types import PositiveFloat

from gradience.cli.output import exit_code, print_document, print_text
from gradience.monitor import monitor_run
from gradience.policy.run_detectors import DEFAULT_GAP
from gradience.render.monitor import monitor_text
from gradience.schema.scalars import Severity

__all__ = ["monitor"]


def monitor(
    log: Path,
    /,
    *,
    gap_threshold: PositiveFloat = DEFAULT_GAP,
    fail_on: Severity | None = None,
    verbose: Annotated[bool, Parameter(alias="-v")] = False,
    json: bool = False,
) -> int:
    """Summarise a run from its telemetry, or from what another program left of it.

    Parameters
    ----------
    log:
        The run.jsonl, the folder of a run, or anything that gradience import reads.
    gap_threshold:
        Held-out over train perplexity from which the gap is a finding.
    fail_on:
        Exit with 1 if a finding is at least this severe.
    verbose:
        Show the grounds of each finding, and which detectors could not run.
    json:
        Print one JSON document (schemas/monitor-report-v1.schema.json).
    """
    report = monitor_run(log, gap_threshold=gap_threshold)
    if json:
        print_document(report)
    else:
        print_text(monitor_text(report, verbose=verbose))
    return exit_code(report.findings, fail_on)

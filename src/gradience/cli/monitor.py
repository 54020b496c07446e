"""``gradience monitor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.types import PositiveFloat

from gradience.cli.output import exit_code, print_document, print_text
from gradience.errors import RecorderError
from gradience.monitor import monitor_run
from gradience.monitor.source import is_log
from gradience.policy.run_detectors import DEFAULT_GAP
from gradience.render.monitor import monitor_text
from gradience.schema.scalars import Severity

__all__ = ["monitor"]


def monitor(
    *logs: Path,
    gap_threshold: PositiveFloat = DEFAULT_GAP,
    fail_on: Severity | None = None,
    run: str | None = None,
    all_runs: Annotated[bool, Parameter(negative="")] = False,
    follow: Annotated[bool, Parameter(alias="-f", negative="")] = False,
    verbose: Annotated[bool, Parameter(alias="-v")] = False,
    json: bool = False,
) -> int:
    """Summarise a run from its telemetry, or from what another program left of it; several side by side.

    Parameters
    ----------
    logs:
        The run.jsonl, the folder of a run, or anything that gradience import reads. Several of them, or a
        folder of runs, are compared.
    gap_threshold:
        Held-out over train perplexity from which the gap is a finding.
    fail_on:
        Exit with 1 if a finding is at least this severe.
    run:
        Show the run of this id, where a log holds several; else the last is shown.
    all_runs:
        Compare all runs of a log that holds several.
    follow:
        Watch a log while it is written, until its run ends; then print the report. Ctrl-C stops watching.
    verbose:
        Show the grounds of each finding, and which detectors could not run.
    json:
        Print one JSON document (schemas/monitor-report-v1.schema.json; of several runs compare-report-v1).
    """
    if not logs:
        raise RecorderError("monitor needs a log: none was given", advice="give a run.jsonl or the folder of a run")
    several = all_runs or len(logs) > 1
    if run is not None and several:
        raise RecorderError("--run shows one run of one log", advice="leave --run away, or the other logs")
    if follow:
        if several:
            raise RecorderError("--follow watches one log", advice="give one run.jsonl")
        return _follow(logs[0], run, gap_threshold, fail_on, verbose=verbose, json=json)
    if several or (run is None and _holds_runs(logs[0])):
        return _compare(logs, gap_threshold, fail_on, all_runs=all_runs, verbose=verbose, json=json)
    return _one(logs[0], run, gap_threshold, fail_on, verbose=verbose, json=json)


def _holds_runs(path: Path) -> bool:
    if not path.is_dir() or is_log(path / "run.jsonl"):
        return False
    from gradience.monitor.collection import holds_runs  # noqa: PLC0415  # a log of one run need not pay for it

    return holds_runs(path)


def _one(
    log: Path, run: str | None, gap_threshold: float, fail_on: Severity | None, *, verbose: bool, json: bool
) -> int:
    report = monitor_run(log, gap_threshold=gap_threshold, run=run)
    if json:
        print_document(report)
    else:
        print_text(monitor_text(report, verbose=verbose))
    return exit_code(report.findings, fail_on)


def _compare(
    logs: tuple[Path, ...],
    gap_threshold: float,
    fail_on: Severity | None,
    *,
    all_runs: bool,
    verbose: bool,
    json: bool,
) -> int:
    from gradience.monitor.compare import compare_runs  # noqa: PLC0415  # the same
    from gradience.render.compare_runs import compare_text  # noqa: PLC0415  # the same

    report = compare_runs(logs, gap_threshold=gap_threshold, all_runs=all_runs)
    if json:
        print_document(report)
    else:
        print_text(compare_text(report, verbose=verbose))
    return exit_code((finding for column in report.runs for finding in column.findings), fail_on)


def _follow(
    log: Path, run: str | None, gap_threshold: float, fail_on: Severity | None, *, verbose: bool, json: bool
) -> int:
    from gradience.cli.follow import follow_log, log_to_follow  # noqa: PLC0415  # the same

    log = log_to_follow(log)
    if follow_log(log, quiet=json):
        return _one(log, run, gap_threshold, fail_on, verbose=verbose, json=json)
    return 0

"""``gradience monitor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.types import PositiveFloat

from gradience.cli.formats import print_for_programs
from gradience.cli.judging import NONE_GIVEN, Options, Settled
from gradience.cli.output import DONE, print_document, print_text
from gradience.errors import RecorderError
from gradience.monitor import monitor_run
from gradience.monitor.source import is_log
from gradience.render.monitor import monitor_text
from gradience.schema.reports import MonitorReport

__all__ = ["monitor"]


def monitor(
    *logs: Path,
    gap_threshold: PositiveFloat | None = None,
    run: str | None = None,
    all_runs: Annotated[bool, Parameter(negative=())] = False,
    follow: Annotated[bool, Parameter(alias="-f", negative=())] = False,
    judging: Options = NONE_GIVEN,
    verbose: Annotated[bool, Parameter(alias="-v", negative=())] = False,
) -> int:
    """Summarise a run from its telemetry, or from what another program left of it; several side by side.

    Parameters
    ----------
    logs:
        The run.jsonl, the folder of a run, or anything that gradience import reads. Several of them, or a
        folder of runs, are compared.
    gap_threshold:
        Held-out over train perplexity from which the gap is a finding; 1.5 without it.
    run:
        Show the run of this id, where a log holds several; else the last is shown.
    all_runs:
        Compare all runs of a log that holds several.
    follow:
        Watch a log while it is written, until its run ends; then print the report. Ctrl-C stops watching.
    verbose:
        Show the grounds of each finding, and which detectors could not run.
    """
    settled = judging.settled()
    if not logs:
        raise RecorderError("monitor needs a log: none was given", advice="give a run.jsonl or the folder of a run")
    several, gap = all_runs or len(logs) > 1, settled.gap(gap_threshold)
    if run is not None and several:
        raise RecorderError("--run shows one run of one log", advice="leave --run away, or the other logs")
    if follow:
        if several:
            raise RecorderError("--follow watches one log", advice="give one run.jsonl")
        return _follow(logs[0], run, gap, settled, verbose=verbose)
    if several or (run is None and _holds_runs(logs[0])):
        return _compare(logs, gap, settled, all_runs=all_runs, verbose=verbose)
    return _one(logs[0], run, gap, settled, verbose=verbose)


def _holds_runs(path: Path) -> bool:
    if not path.is_dir() or is_log(path / "run.jsonl"):
        return False
    from gradience.monitor.collection import holds_runs  # noqa: PLC0415  # a log of one run need not pay for it

    return holds_runs(path)


def _one(log: Path, run: str | None, gap: float, settled: Settled, *, verbose: bool) -> int:
    report = monitor_run(
        log, gap_threshold=gap, run=run, select=settled.select, ignore=settled.ignore, settings=settled.settings
    )
    _show(report, settled, verbose=verbose)
    return settled.exit_code(report.findings)


def _show(report: MonitorReport, settled: Settled, *, verbose: bool) -> None:
    if settled.format == "json":
        print_document(report)
    elif settled.format == "text":
        print_text(monitor_text(report, verbose=verbose))
    else:
        from gradience.monitor.places import log_place  # noqa: PLC0415  # only for programs

        places = [log_place(report.file)] * len(report.findings)
        print_for_programs(settled.format, report.findings, places=places, groups=("log",), not_run=report.not_run)


def _compare(logs: tuple[Path, ...], gap: float, settled: Settled, *, all_runs: bool, verbose: bool) -> int:
    if settled.format not in {"text", "json"}:
        raise RecorderError(f"--format {settled.format} is for one run", advice="call it once for each log")
    from gradience.monitor.compare import compare_runs  # noqa: PLC0415  # the same
    from gradience.render.compare_runs import compare_text  # noqa: PLC0415  # the same

    report = compare_runs(
        logs,
        gap_threshold=gap,
        all_runs=all_runs,
        select=settled.select,
        ignore=settled.ignore,
        settings=settled.settings,
    )
    if settled.format == "json":
        print_document(report)
    else:
        print_text(compare_text(report, verbose=verbose))
    return settled.exit_code(finding for column in report.runs for finding in column.findings)


def _follow(log: Path, run: str | None, gap: float, settled: Settled, *, verbose: bool) -> int:
    from gradience.cli.follow import follow_log, log_to_follow  # noqa: PLC0415  # the same

    log = log_to_follow(log)
    if follow_log(log, quiet=settled.format != "text"):
        return _one(log, run, gap, settled, verbose=verbose)
    return DONE

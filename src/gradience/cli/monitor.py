"""``gradience monitor``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.types import PositiveFloat

from gradience.cli import options as opt
from gradience.cli.follow import follow_log, log_to_follow
from gradience.cli.output import DONE
from gradience.errors import RecorderError
from gradience.render.monitor import monitor_text
from gradience.verbs.monitor import monitor_run
from gradience.verbs.monitor.source import is_log


def monitor(
    *logs: Path,
    gap_threshold: PositiveFloat | None = None,
    run: str | None = None,
    all_runs: opt.Flag = False,
    follow: Annotated[bool, Parameter(alias="-f", negative=())] = False,
    options: opt.Options = opt.DEFAULT_OPTIONS,
    verbose: opt.Details = False,
) -> int:
    """Summarise a run from its telemetry, or from what another program left of it; several side by side.

    Parameters
    ----------
    logs:
        The run.jsonl, the folder of a run, or anything that gradience import reads. Several of them, or a
        folder of runs, are compared.
    gap_threshold:
        Held-out over train perplexity from which the gap is a finding. Default: 1.5.
    run:
        Show the run of this id, where a log holds several; else the last is shown.
    all_runs:
        Compare all runs of a log that holds several.
    follow:
        Watch a log while it is written, until its run ends; then print the report. Ctrl-C stops watching.
    """
    resolved = options.resolved()
    if not logs:
        raise RecorderError("monitor needs a log, none given", advice="give a run.jsonl or the folder of a run")
    several, gap = all_runs or len(logs) > 1, resolved.gap(gap_threshold)
    if run is not None and several:
        raise RecorderError("--run shows one run of one log", advice="leave --run away, or the other logs")
    if follow:
        if several:
            raise RecorderError("--follow watches one log", advice="give one run.jsonl")
        return _follow(logs[0], run, gap, resolved, verbose=verbose)
    if several or (run is None and _holds_runs(logs[0])):
        return _compare(logs, gap, resolved, all_runs=all_runs, verbose=verbose)
    return _one(logs[0], run, gap, resolved, verbose=verbose)


def _holds_runs(path: Path) -> bool:
    if not os.path.isdir(path) or is_log(path / "run.jsonl"):  # noqa: PTH112  # Path.is_dir raises where a name is too long
        return False
    from gradience.verbs.monitor.source import holds_runs  # noqa: PLC0415  # a log of one run need not pay for it

    return holds_runs(path)


def _one(log: Path, run: str | None, gap: float, resolved: opt.ResolvedOptions, *, verbose: bool) -> int:
    report = monitor_run(log, gap_threshold=gap, run=run, **resolved.rules)
    from gradience.verbs.monitor.source import log_place  # noqa: PLC0415  # a log of our own need not pay for it

    return resolved.show(
        report,
        lambda it: monitor_text(it, verbose=verbose),
        report.findings,
        groups=("log",),
        locations=lambda: [log_place(report.file)] * len(report.findings),
        not_run=report.not_run,
    )


def _compare(
    logs: tuple[Path, ...], gap: float, resolved: opt.ResolvedOptions, *, all_runs: bool, verbose: bool
) -> int:
    if resolved.format not in {"text", "json"}:
        raise RecorderError(f"--format {resolved.format} is for one run", advice="call it once for each log")
    from gradience.render.compare import compare_text  # noqa: PLC0415  # the same
    from gradience.verbs.monitor.compare import compare_runs  # noqa: PLC0415  # the same

    report = compare_runs(
        logs,
        gap_threshold=gap,
        all_runs=all_runs,
        **resolved.rules,
    )
    opt.print_report(report, lambda it: compare_text(it, verbose=verbose), json=resolved.format == "json")
    return resolved.exit_code(finding for column in report.runs for finding in column.findings)


def _follow(log: Path, run: str | None, gap: float, resolved: opt.ResolvedOptions, *, verbose: bool) -> int:
    log = log_to_follow(log)
    if follow_log(log, quiet=resolved.format != "text"):
        return _one(log, run, gap, resolved, verbose=verbose)
    return DONE

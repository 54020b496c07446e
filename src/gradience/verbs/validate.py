"""The command ``gradience validate``."""

from __future__ import annotations

from pathlib import Path

from cyclopts.types import NonNegativeInt

from gradience.commands import options as opt
from gradience.commands.output import DONE
from gradience.errors import UNUSABLE, RecorderError
from gradience.render.findings import validate_logs_text, validate_text
from gradience.telemetry.reader import DEFAULT_MAX_ISSUES, validate_log, validate_logs


def validate(*logs: Path, max_issues: NonNegativeInt = DEFAULT_MAX_ISSUES, json: opt.AsJson = False) -> int:
    """Check every line of logs against the telemetry schema.

    Exits with 2 if one of the logs is not valid. Warns of names that look like one that readers know.

    Parameters
    ----------
    logs:
        One run.jsonl or several.
    max_issues:
        How many faults to list of each log; all are counted.
    """
    if not logs:
        raise RecorderError("no log to check", advice="give one run.jsonl or several")
    if len(logs) == 1:
        report = validate_log(logs[0], max_issues=max_issues)
        opt.print_report(report, validate_text, json=json)
        return DONE if report.valid else UNUSABLE
    reports = validate_logs(logs, max_issues=max_issues)
    opt.print_report(reports, validate_logs_text, json=json)
    return DONE if reports.valid else UNUSABLE

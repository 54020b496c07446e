"""``gradience validate``."""

from __future__ import annotations

from pathlib import Path

from cyclopts.types import NonNegativeInt

from gradience.cli.main import UNUSABLE
from gradience.cli.output import DONE, print_document, print_text
from gradience.validate import DEFAULT_MAX_ISSUES, validate_log

__all__ = ["validate"]


def validate(log: Path, /, *, max_issues: NonNegativeInt = DEFAULT_MAX_ISSUES, json: bool = False) -> int:
    """Check every line of a run.jsonl against the telemetry schema.

    Exits with 2 if the log is not valid.

    Parameters
    ----------
    log:
        The run.jsonl.
    max_issues:
        How many faults to list; all are counted.
    json:
        Print one JSON document (schemas/validate-report-v1.schema.json).
    """
    report = validate_log(log, max_issues=max_issues)
    if json:
        print_document(report)
    else:
        from gradience.render.validate import validate_text  # noqa: PLC0415  # only for people

        print_text(validate_text(report))
    return DONE if report.valid else UNUSABLE

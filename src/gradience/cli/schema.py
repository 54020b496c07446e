"""``gradience schema``, ``gradience rules`` and ``gradience validate``: what the formats and the rules are."""

from __future__ import annotations

from pathlib import Path

from cyclopts.types import NonNegativeInt

from gradience.cli import options as opt
from gradience.cli.main import UNUSABLE
from gradience.cli.output import DONE, emit_json, print_document, print_text
from gradience.render.findings import rule_text, rules_text, validate_text
from gradience.rules.registry import list_rules
from gradience.schema.export import SchemaName, schema_text
from gradience.telemetry.reader import DEFAULT_MAX_ISSUES, validate_log


def schema(name: SchemaName = "telemetry", /) -> int:
    """Print a JSON Schema (draft 2020-12) of what gradience writes.

    Parameters
    ----------
    name:
        `telemetry` is one line of a run.jsonl; the others are what `--json` prints.
    """
    emit_json(schema_text(name).rstrip("\n"))
    return DONE


def rules(rule_id: str | None = None, /, *, json: opt.AsJson = False) -> int:
    """List every rule, the rules with a common prefix, or explain one.

    Parameters
    ----------
    rule_id:
        An id such as LR001, or a prefix of ids such as LR; case does not matter.
    """
    report = list_rules(rule_id)
    if json:
        print_document(report)
    elif len(report.rules) == 1:
        print_text(rule_text(report.rules[0]))
    else:
        print_text(rules_text(report.rules))
    return DONE


def validate(log: Path, /, *, max_issues: NonNegativeInt = DEFAULT_MAX_ISSUES, json: opt.AsJson = False) -> int:
    """Check every line of a run.jsonl against the telemetry schema.

    Exits with 2 if the log is not valid.

    Parameters
    ----------
    log:
        The run.jsonl.
    max_issues:
        How many faults to list; all are counted.
    """
    report = validate_log(log, max_issues=max_issues)
    opt.print_report(report, validate_text, json=json)
    return DONE if report.valid else UNUSABLE

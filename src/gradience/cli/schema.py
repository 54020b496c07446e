"""``gradience schema``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.types import NonNegativeInt

from gradience.cli.main import UNUSABLE
from gradience.cli.output import DONE, print_document, print_text
from gradience.errors import ConfigError
from gradience.render.findings import rule_text, rules_text
from gradience.rules.registry import rule_cards, rules_named
from gradience.schema.export import SchemaName, schema_text
from gradience.schema.findings import RULES_SCHEMA_ID, RuleCard, RulesReport
from gradience.telemetry.validate import DEFAULT_MAX_ISSUES, validate_log


def schema(name: SchemaName = "telemetry", /) -> int:
    """Print a JSON Schema (draft 2020-12) of what gradience writes.

    Parameters
    ----------
    name:
        `telemetry` is one line of a run.jsonl; the others are what `--json` prints.
    """
    sys.stdout.write(schema_text(name))
    sys.stdout.flush()
    return DONE


def rules(rule_id: str | None = None, /, *, json: Annotated[bool, Parameter(negative=())] = False) -> int:
    """List every rule of every command, those whose ids begin alike, or explain one.

    Parameters
    ----------
    rule_id:
        An id, as LR001, or the beginning of ids, as LR; in any case.
    json:
        Print one JSON document (schemas/rules-report-v2.schema.json).
    """
    cards = rule_cards() if rule_id is None else _named(rule_id)
    if json:
        print_document(RulesReport(schema=RULES_SCHEMA_ID, rules=list(cards)))
    elif len(cards) == 1:
        print_text(rule_text(cards[0]))
    else:
        print_text(rules_text(cards))
    return DONE


def _named(rule_id: str) -> list[RuleCard]:
    found = rules_named(rule_id)
    if not found:
        raise ConfigError(f"no rule is called {rule_id!r}", advice="'gradience rules' lists them")
    return found


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
        Print one JSON document (schemas/validate-report-v2.schema.json).
    """
    report = validate_log(log, max_issues=max_issues)
    if json:
        print_document(report)
    else:
        from gradience.render.findings import validate_text  # noqa: PLC0415  # only for people

        print_text(validate_text(report))
    return DONE if report.valid else UNUSABLE

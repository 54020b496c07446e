"""What the program knows, as data: its rules, and the JSON Schemas of what it writes."""

from __future__ import annotations

import json

from gradience.errors import ConfigError
from gradience.rules.registry import rule_cards, rules_named
from gradience.schema.export import SchemaName, schema_text
from gradience.schema.findings import RULES_SCHEMA_ID, RulesReport
from gradience.schema.scalars import Json


def list_rules(prefix: str | None = None) -> RulesReport:
    """Return every rule, or those whose id begins with a text such as `LR`; case does not matter.

    Raises:
        ConfigError: no id begins so.
    """
    cards = rule_cards() if prefix is None else rules_named(prefix)
    if not cards:
        raise ConfigError(f"unknown rule {prefix!r}", advice="'gradience rules' lists them")
    return RulesReport(schema=RULES_SCHEMA_ID, rules=list(cards))


def json_schema(name: SchemaName = "telemetry") -> dict[str, Json]:
    """Return a JSON Schema (draft 2020-12): of a line of a log, or of a report such as `audit`.

    Raises:
        ConfigError: there is no schema of that name.
    """
    try:
        found: dict[str, Json] = json.loads(schema_text(name))
    except KeyError:
        raise ConfigError(f"no schema is called {name!r}", advice="'gradience schema --help' lists them") from None
    return found

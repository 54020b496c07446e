"""The command ``gradience schema``."""

from __future__ import annotations

from gradience.commands.output import DONE, emit_json
from gradience.schema.export import SchemaName, schema_text


def schema(name: SchemaName = "telemetry", /) -> int:
    """Print a JSON Schema (draft 2020-12) of what gradience writes.

    Parameters
    ----------
    name:
        telemetry is one line of a run.jsonl; the others are what --json prints.
    """
    emit_json(schema_text(name).rstrip("\n"))
    return DONE

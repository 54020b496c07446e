"""``gradience schema``."""

from __future__ import annotations

import sys

from gradience.cli.output import DONE
from gradience.schema.export import SchemaName, schema_text

__all__ = ["schema"]


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

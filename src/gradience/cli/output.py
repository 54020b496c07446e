"""How a command ends: one print, and the exit code."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Final

import msgspec

from gradience.schema.findings import SEVERITIES, Finding, FindingRef
from gradience.schema.scalars import Severity

__all__ = ["DONE", "FOUND", "draws_blocks", "exit_code", "print_document", "print_text"]

DONE: Final = 0
FOUND: Final = 1


def draws_blocks() -> bool:
    """Return whether stdout can write block characters."""
    try:
        "█▁".encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def print_text(text: str) -> None:
    """Print a report for people."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def print_document(document: msgspec.Struct) -> None:
    """Print exactly one JSON document."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(document)).decode() + "\n")
    sys.stdout.flush()


def exit_code(findings: Iterable[Finding | FindingRef], fail_on: Severity | None) -> int:
    """Return 1 if a finding is at or above the severity, else 0."""
    if fail_on is None:
        return DONE
    bar = SEVERITIES.index(fail_on)
    return FOUND if any(SEVERITIES.index(f.severity) >= bar for f in findings) else DONE

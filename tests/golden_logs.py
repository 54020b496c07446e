"""The golden logs, and their lines as JSON documents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CASES = Path(__file__).parent / "golden" / "cases"
GOOD = sorted((CASES / "good").glob("*.jsonl"))
BAD = sorted((CASES / "bad").glob("*.jsonl"))
EXPECTED: dict[str, list[tuple[int, str | None]]] = json.loads((CASES / "bad" / "expected.json").read_text())


def lines(path: Path) -> list[tuple[int, bytes]]:
    """The lines of a log that are not blank, with their numbers."""
    return [(n, line) for n, line in enumerate(path.read_bytes().split(b"\n"), 1) if line.strip()]


def strictly(line: bytes) -> Any:
    """The JSON value of a line, read strictly: without NaN, infinities and lone surrogates.

    Raises:
        ValueError: the line is not strict JSON.
    """
    value = json.loads(line.decode(), parse_constant=_refuse)
    json.dumps(value, ensure_ascii=False).encode()
    return value


def _refuse(token: str) -> Any:
    raise ValueError(f"{token} is not JSON")


def documents(path: Path) -> dict[int, Any]:
    """The JSON values of those lines of a log that are JSON, by line number."""
    found = {}
    for number, line in lines(path):
        try:
            found[number] = strictly(line)
        except (ValueError, RecursionError):
            continue
    return found

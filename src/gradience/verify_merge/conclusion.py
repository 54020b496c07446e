"""One verdict out of many: what every module together says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gradience.schema.verify_merge import VerifiedModule, VerifyVerdict

__all__ = ["concluded"]

_FAILING: Final = {
    "absent": "without the update",
    "scaled": "with another factor of it",
    "other": "with something else",
}
_PROVEN: Final = {"exact", "within_rounding"}
_MOST: Final = 5  # reasons of one kind that are named


def concluded(rows: Sequence[VerifiedModule]) -> tuple[VerifyVerdict, list[str]]:
    """Return the verdict of the whole, and why it is not `contained`."""
    failing = [_phrase(rows, verdict, f"{words}") for verdict, words in _FAILING.items() if _named(rows, verdict)]
    if failing:
        return "not_contained", failing
    missed = [row for row in rows if row.verdict == "not_compared"]
    if missed:
        by_reason: dict[str, list[str]] = {}
        for row in missed:
            by_reason.setdefault(row.reason or "", []).append(row.name)
        named = [f"{_first(names)} not compared: {reason}" for reason, names in by_reason.items()]
        more = [f"and {len(named) - _MOST} more reasons"] if len(named) > _MOST else []
        return "inconclusive", [*named[:_MOST], *more]
    if not any(row.verdict in _PROVEN for row in rows):
        reasons = dict.fromkeys(row.reason or "" for row in rows)
        return "inconclusive", [f"no module can tell: {reason}" for reason in reasons]
    return "contained", []


def _named(rows: Sequence[VerifiedModule], verdict: str) -> list[str]:
    return [row.name for row in rows if row.verdict == verdict]


def _phrase(rows: Sequence[VerifiedModule], verdict: str, words: str) -> str:
    names = _named(rows, verdict)
    return f"{len(names)} of {len(rows)} {words} (first: {names[0]})"


def _first(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} (first: {names[0]})"

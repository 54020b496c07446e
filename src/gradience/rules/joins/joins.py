"""What a join is: several findings of different sources that have one cause, as data and one pure function."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from gradience.rules.rule import Threshold
from gradience.schema.diagnose import Cause, Piece, PieceSource, Source
from gradience.schema.findings import SEVERITIES, Evidence, Finding
from gradience.schema.scalars import Json, Severity


class Sign(NamedTuple):
    """One thing that a source shows: a finding of its own, or a plain fact that means something in a join only.

    `marks` tell findings of one id apart: the severity, the names of the values, the verdict on the weights.
    """

    source: PieceSource
    id: str
    says: str
    finding: Finding | None = None
    marks: frozenset[str] = frozenset()
    values: Mapping[str, Json] = {}
    action: str | None = None


class Leg(NamedTuple):
    """What a join asks of one source: any of these ids, or that every id of `quiet` was judged and found nothing."""

    source: PieceSource
    ids: tuple[str, ...] = ()
    marks: frozenset[str] = frozenset()  # any of them; empty: whatever its marks
    quiet: tuple[str, ...] = ()
    says: str = ""  # of quiet ids


class Wording(NamedTuple):
    """What is said where these sources agree. `{name}` is a value of a sign; without it the row does not fit."""

    sources: tuple[PieceSource, ...]
    text: str
    action: str | None = None
    severity: Severity | None = None  # else that of the gravest piece


class Join(NamedTuple):
    """One join: it holds where a wording's sources all have a leg that fits. `hints` are taken along."""

    id: str
    severity: Severity  # the usual one; a cause is as severe as the gravest of its pieces, unless its wording says
    title: str
    legs: tuple[Leg, ...]
    wordings: tuple[Wording, ...]
    confidence: float
    evidence: tuple[Evidence, ...]
    rationale: str
    action: str
    scope: str
    verify: str
    hints: tuple[Leg, ...] = ()
    thresholds: tuple[Threshold, ...] = ()
    least: int = 2  # pieces, hints counted: below it the finding stands better alone


class Joined(NamedTuple):
    """The causes, and the signs that are in none."""

    causes: list[Cause]
    left: list[Sign]


def join_signs(joins: Iterable[Join], signs: Iterable[Sign], quiet: frozenset[tuple[PieceSource, str]]) -> Joined:
    """Return the causes that the joins make of the signs. A sign is in one cause at most, that of the first join.

    Args:
        joins: the table, gravest first.
        signs: what the sources show.
        quiet: ids, with their source, that were judged and found nothing.
    """
    left, causes = list(signs), []
    for join in joins:
        core = _fitting(join.legs, left, quiet)
        taken = [*core, *_fitting(join.hints, _without(left, core), quiet)]
        values = _values(taken)
        wording = _wording(join, {sign.source for sign in core}, values)
        if wording is None or len(taken) < join.least:
            continue
        causes.append(_cause(join, wording, taken, values))
        left = _without(left, taken)
    return Joined(causes, left)


def unread_legs(join: Join, read: frozenset[Source]) -> str | None:
    """Return which sources a join lacks, or None where it could be judged."""
    lacking = [sorted(set(wording.sources) - {"disk"} - read) for wording in join.wordings]
    fewest = min(lacking, key=len)
    return f"needs {' and '.join(fewest)}" if fewest else None


def _fitting(legs: Iterable[Leg], signs: Sequence[Sign], quiet: frozenset[tuple[PieceSource, str]]) -> list[Sign]:
    found: list[Sign] = []
    for leg in legs:
        if leg.quiet and quiet.issuperset((leg.source, rule) for rule in leg.quiet):
            found.append(Sign(leg.source, " ".join(leg.quiet), leg.says))
        found += [sign for sign in _without(signs, found) if _fits(leg, sign)]
    return found


def _without(signs: Iterable[Sign], taken: Sequence[Sign]) -> list[Sign]:
    """Return the signs that are not among those taken; equal ones are apart."""
    gone = {id(sign) for sign in taken}
    return [sign for sign in signs if id(sign) not in gone]


def _fits(leg: Leg, sign: Sign) -> bool:
    return sign.source == leg.source and sign.id in leg.ids and (not leg.marks or not leg.marks.isdisjoint(sign.marks))


def _values(signs: Iterable[Sign]) -> dict[str, Json]:
    """Return the values of all signs that are known; of two of one name the first."""
    merged: dict[str, Json] = {}
    for sign in signs:
        merged = {**{name: value for name, value in sign.values.items() if value is not None}, **merged}
    return merged


def _wording(join: Join, sources: set[PieceSource], values: Mapping[str, Any]) -> Wording | None:
    for wording in join.wordings:
        if not sources.issuperset(wording.sources):
            continue
        try:
            return wording._replace(text=wording.text.format_map(values))
        except (KeyError, ValueError, TypeError):
            continue  # a value that the row names is not known: a later row says it without
    return None


def _cause(join: Join, wording: Wording, signs: Sequence[Sign], values: dict[str, Json]) -> Cause:
    findings = [sign.finding for sign in signs if sign.finding is not None]
    gravest = max((f.severity for f in findings), key=SEVERITIES.index, default=join.severity)
    told = next((sign.action for sign in signs if sign.action), None)
    grounds = (*join.evidence, *(item for finding in findings for item in finding.evidence))
    return Cause(
        id=join.id,
        severity=wording.severity or gravest,
        message=wording.text,
        action=told or wording.action or join.action,
        rationale=join.rationale,
        confidence=join.confidence,
        scope=join.scope,
        verify=join.verify,
        evidence=_unique(grounds),
        values=values,
        joined=True,
        pieces=[_piece(sign) for sign in signs],
    )


def _piece(sign: Sign) -> Piece:
    return Piece(
        source=sign.source,
        id=sign.id,
        severity=sign.finding.severity if sign.finding else None,
        says=sign.says,
    )


def _unique(items: Iterable[Evidence]) -> list[Evidence]:
    kept: list[Evidence] = []
    for item in items:
        if item not in kept:
            kept.append(item)
    return kept

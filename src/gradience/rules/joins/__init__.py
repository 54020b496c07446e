"""Correlations: rules that explain findings of several sources (config, log, weights) by one cause.

This file defines what a correlation needs from each source, and how the needs are matched. A correlation describes
itself like any other rule. It holds if all the sources of one of its messages show a symptom that it needs. A symptom
belongs to at most one cause, that of the first correlation that takes it. So the order of the table matters: gravest
first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from gradience.rules import Description, Observation, finding
from gradience.schema.diagnose import Cause, Piece, PieceSource, Source
from gradience.schema.document import SEVERITIES, Finding, RuleGroup
from gradience.schema.scalars import Json, Severity

FACTS: Final = {  # symptoms that are not findings of a rule, and the text for them in a condition
    "other_config": "it is not this adapter's",
    "other_log": "it is not this adapter's",
    "other_adapter": "it is not the one configured or recorded",
    "idle_targets": "a target of whose name nothing was adapted",
    "adapted": "modules of other names",
    "no_head": "no full module is in the file",
    "exploded": "entries of the update are large",
    "lowest": "a checkpoint from around the lowest loss",
    "best_reward": "a checkpoint from around the best reward",
    "best_checkpoint": "a checkpoint to keep",
    "no_checkpoint": "no checkpoint",
    "before_nan": "a checkpoint from before it",
    "tiny": "entries of the update are tiny",
    "few_layers": "under half of the layers are adapted",
    "mid_run": "the weights are those of a checkpoint from mid-run",
    "short_of_the_end": "the newest checkpoint is older than the log's end",
}

Silent: TypeAlias = frozenset[tuple[PieceSource, str]]
"""Pairs of a source and the id of a rule that was judged on it and found nothing."""


class Symptom(NamedTuple):
    """A finding on one source, or a fact about the source that matters only together with other symptoms.

    `tags` distinguish findings of the same id: by severity, names of values, or the verdict on the weights.
    """

    source: PieceSource
    id: str
    seen: Observation
    finding: Finding | None = None
    tags: frozenset[str] = frozenset()


class Needs(NamedTuple):
    """A condition on one source: it shows any of `ids`, or every rule in `silent` was judged and found nothing."""

    source: PieceSource
    ids: tuple[str, ...] = ()
    tags: frozenset[str] = frozenset()  # the symptom needs any of them; if empty, its tags do not matter
    silent: tuple[str, ...] = ()
    says: str = ""  # the text for the silence of the ids in `silent`


class Message(NamedTuple):
    """The sentence of a finding on these sources. If no symptom has a value `{name}`, the next message is tried."""

    sources: tuple[PieceSource, ...]
    text: str
    action: str | None = None
    severity: Severity | None = None  # None: the severity of the gravest piece


@dataclass(frozen=True, kw_only=True)
class Correlation(Description):
    """A rule over the symptoms of several sources.

    Attributes:
        needs: the conditions, by source.
        hints: conditions whose symptoms are added if the correlation holds.
        messages: the finding has the first message whose sources all show a symptom and whose values are known.
        least: the smallest number of pieces, hints included, for which the correlation holds.
    """

    needs: tuple[Needs, ...]
    hints: tuple[Needs, ...] = ()
    messages: tuple[Message, ...]
    least: int = 2
    groups: tuple[RuleGroup, ...] = ("joins",)
    condition: str = field(init=False, default="")  # `speaks_when` derives it

    @property
    def speaks_when(self) -> str:
        """A sentence that names the findings and facts of each source that the correlation joins."""
        parts: dict[str, list[str]] = {}
        for needs in self.needs:
            parts.setdefault(needs.source, []).extend(_named(needs))
        shown = "; ".join(f"{source}: {' or '.join(names)}" for source, names in parts.items())
        ways = dict.fromkeys(" and ".join(message.sources) for message in self.messages)
        return f"{shown}. It takes {', or '.join(ways)}"

    def missing(self, read: frozenset[Source]) -> str | None:
        """The sources that are missing, for the report, or None if the correlation can be judged."""
        sources = (set(message.sources) - {"disk"} or {"log"} for message in self.messages)  # the log finds the files
        lacking = [sorted(each - read) for each in sources]
        fewest = min(lacking, key=len)
        return f"needs {' and '.join(fewest)}" if fewest else None

    def observe(self, symptoms: Sequence[Symptom], silent: Silent) -> Observed | None:
        """The observation, with the symptoms that it explains; None if the correlation does not hold."""
        core = _fitting(self.needs, symptoms, silent)
        taken = [*core, *_fitting(self.hints, _without(symptoms, core), silent)]
        values = _values(taken)
        message = self._message({symptom.source for symptom in core}, values)
        if message is None or len(taken) < self.least:
            return None
        findings = [symptom.finding for symptom in taken if symptom.finding is not None]
        seen = Observation(
            message.text,
            values,
            severity=message.severity or max((f.severity for f in findings), key=SEVERITIES.index, default=None),
            action=next((symptom.seen.action for symptom in taken if symptom.seen.action), message.action),
            evidence=tuple(dict.fromkeys([*self.evidence, *(item for found in findings for item in found.evidence)])),
        )
        return Observed(seen, taken)

    def _message(self, sources: set[PieceSource], values: Mapping[str, Any]) -> Message | None:
        for message in self.messages:
            if not sources.issuperset(message.sources):
                continue
            try:
                return message._replace(text=message.text.format_map(values))
            except (KeyError, ValueError, TypeError):
                continue  # a value in the message is not known: a later message does not need it
        return None


class Observed(NamedTuple):
    """The observation of a correlation, and the symptoms that it explains."""

    seen: Observation
    taken: list[Symptom]


class Correlated(NamedTuple):
    """The causes, and the symptoms that belong to no cause."""

    causes: list[Cause]
    left: list[Symptom]


def correlate(correlations: Iterable[Correlation], symptoms: Iterable[Symptom], silent: Silent) -> Correlated:
    """Join the symptoms into causes by the correlations, in the given order, gravest first."""
    left, causes = list(symptoms), []
    for correlation in correlations:
        observed = correlation.observe(left, silent)
        if observed is not None:
            pieces = [_piece(symptom) for symptom in observed.taken]
            found = msgspec.structs.asdict(finding(correlation, observed.seen))
            causes.append(Cause(**found, joined=True, pieces=pieces))
            left = _without(left, observed.taken)
    return Correlated(causes, left)


def _fitting(needed: Iterable[Needs], symptoms: Sequence[Symptom], silent: Silent) -> list[Symptom]:
    found: list[Symptom] = []
    for needs in needed:
        if needs.silent and silent.issuperset((needs.source, rule) for rule in needs.silent):
            found.append(Symptom(needs.source, " ".join(needs.silent), Observation(needs.says)))
        found += [symptom for symptom in _without(symptoms, found) if _fits(needs, symptom)]
    return found


def _fits(needs: Needs, symptom: Symptom) -> bool:
    if symptom.source != needs.source or symptom.id not in needs.ids:
        return False
    return not needs.tags or not needs.tags.isdisjoint(symptom.tags)


def _without(symptoms: Iterable[Symptom], taken: Sequence[Symptom]) -> list[Symptom]:
    gone = {id(symptom) for symptom in taken}  # by identity, because two modules may show equal symptoms
    return [symptom for symptom in symptoms if id(symptom) not in gone]


def _values(symptoms: Iterable[Symptom]) -> dict[str, Json]:
    """The known values of all symptoms. Of two values with the same name, the first is kept."""
    merged: dict[str, Json] = {}
    for symptom in symptoms:
        merged = {**{name: value for name, value in symptom.seen.values.items() if value is not None}, **merged}
    return merged


def _piece(symptom: Symptom) -> Piece:
    severity = symptom.finding.severity if symptom.finding else None
    return Piece(source=symptom.source, id=symptom.id, severity=severity, says=symptom.seen.message)


def _named(needs: Needs) -> Iterator[str]:
    if needs.silent:
        yield f"neither {' nor '.join(needs.silent)}" if len(needs.silent) > 1 else f"no {needs.silent[0]}"
    tags = f" ({' or '.join(sorted(needs.tags)).replace('_', ' ')})" if needs.tags else ""
    for name in needs.ids:
        yield FACTS.get(name, f"{name}{tags}")

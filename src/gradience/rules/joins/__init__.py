"""Rules that need a config, a log and weights at once: findings of several sources that have one cause.

Here is what a correlation asks of each source, and how they are matched. A correlation describes itself like every
other rule. What it observes comes from its table: it holds where the sources of one of its messages all show something
that it needs. A symptom is in one cause at most, that of the first correlation that takes it, so the order of the table
matters: gravest first.
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

FACTS: Final = {  # symptoms that are no finding of a rule, and how a condition names them
    "other_config": "it is not this adapter's",
    "other_log": "it is not this adapter's",
    "other_adapter": "it is not the adapter configured or recorded",
    "idle_targets": "a target that matched no adapted module",
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
"""Rules, with their source, that were judged and found nothing."""


class Symptom(NamedTuple):
    """One thing that a source shows: a finding of its own, or a fact that means something beside others only.

    `tags` distinguish findings of one id: the severity, the names of the values, the verdict on the weights.
    """

    source: PieceSource
    id: str
    seen: Observation
    finding: Finding | None = None
    tags: frozenset[str] = frozenset()


class Needs(NamedTuple):
    """The condition on one source: any of these ids, or that every id of `silent` was judged and found nothing."""

    source: PieceSource
    ids: tuple[str, ...] = ()
    tags: frozenset[str] = frozenset()  # any of them; empty: whatever its tags
    silent: tuple[str, ...] = ()
    says: str = ""  # of silent ids


class Message(NamedTuple):
    """The sentence for these sources. `{name}` is a value of a symptom; without it the next message is tried."""

    sources: tuple[PieceSource, ...]
    text: str
    action: str | None = None
    severity: Severity | None = None  # else that of the gravest piece


@dataclass(frozen=True, kw_only=True)
class Correlation(Description):
    """A rule over the symptoms of several sources.

    Attributes:
        needs: what makes it hold.
        hints: what is taken along where it holds.
        messages: the first whose sources all show something, and whose values are known, is the finding's.
        least: pieces, hints counted, below which the finding stands better alone.
    """

    needs: tuple[Needs, ...]
    hints: tuple[Needs, ...] = ()
    messages: tuple[Message, ...]
    least: int = 2
    groups: tuple[RuleGroup, ...] = ("joins",)
    condition: str = field(init=False, default="")  # `speaks_when` derives it

    @property
    def speaks_when(self) -> str:
        """Which findings and facts of which sources it puts together."""
        parts: dict[str, list[str]] = {}
        for needs in self.needs:
            parts.setdefault(needs.source, []).extend(_named(needs))
        shown = "; ".join(f"{source}: {' or '.join(names)}" for source, names in parts.items())
        ways = dict.fromkeys(" and ".join(message.sources) for message in self.messages)
        return f"{shown}. It takes {', or '.join(ways)}"

    def missing(self, read: frozenset[Source]) -> str | None:
        """Which sources it lacks, or None where it can be judged."""
        sources = (set(message.sources) - {"disk"} or {"log"} for message in self.messages)  # the log finds the files
        lacking = [sorted(each - read) for each in sources]
        fewest = min(lacking, key=len)
        return f"needs {' and '.join(fewest)}" if fewest else None

    def observe(self, symptoms: Sequence[Symptom], silent: Silent) -> Observed | None:
        """The observation on these symptoms, and those it explains; None where the correlation does not hold."""
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
                continue  # a value that it names is not known: a later message does without
        return None


class Observed(NamedTuple):
    """The observation of a correlation, and the symptoms that it explains."""

    seen: Observation
    taken: list[Symptom]


class Correlated(NamedTuple):
    """The causes, and the symptoms that are in none."""

    causes: list[Cause]
    left: list[Symptom]


def correlate(correlations: Iterable[Correlation], symptoms: Iterable[Symptom], silent: Silent) -> Correlated:
    """The causes that the correlations, gravest first, make of the symptoms."""
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
    gone = {id(symptom) for symptom in taken}  # by identity: equal ones of two modules are apart
    return [symptom for symptom in symptoms if id(symptom) not in gone]


def _values(symptoms: Iterable[Symptom]) -> dict[str, Json]:
    """The known values of all symptoms; of two of one name the first."""
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

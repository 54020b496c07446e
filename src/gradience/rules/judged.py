"""The one place where a run is judged: each part by its own rules, and by the rules on what several parts say together.

A verb judges the parts that its input has: `check` settings, `monitor` a log and its settings, `audit` weights with the
settings and the log that lie there, `diagnose` all of them. So a finding has the same id and words in each.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from gradience.configs.document import CONFIG_NAME
from gradience.configs.settings import with_ratio
from gradience.configs.training import completed
from gradience.folder import Documents
from gradience.rules import Description, Verdict, judge
from gradience.rules.between.prompts import PROMPT_RULES
from gradience.rules.between.rules import BETWEEN_RULES
from gradience.rules.config import RULES, judge_config
from gradience.rules.config.facts import CheckContext, ConfigRule
from gradience.rules.joins import Symptom, correlate, shown
from gradience.rules.joins.run import JOINS
from gradience.rules.joins.symptoms import (
    Stated,
    damage,
    disagreements,
    idle_targets,
    learnt_by,
    log_symptoms,
    outgrown,
    recorded_disagreements,
    shows_learning,
    symptoms_of,
    weights_symptoms,
)
from gradience.rules.log import DETECTED, DETECTORS, detect
from gradience.rules.log.account import account
from gradience.rules.log.facts import DEFAULT_GAP, RunFacts
from gradience.rules.log.learning import learning
from gradience.rules.weights.rules import ADAPTER_RULES, WEIGHTS_RULES, too_large
from gradience.schema.audit import AuditReport
from gradience.schema.diagnose import Cause, Piece, PieceSource, SourceKind
from gradience.schema.document import SEVERITIES, Finding, by_severity
from gradience.schema.events import ConfigSnapshot
from gradience.telemetry.series import RunSeries

if TYPE_CHECKING:
    from gradience.base.weights import BaseWeights

IDS: Final[dict[SourceKind, tuple[str, ...]]] = {
    "config": tuple(rule.id for rule in RULES),
    "log": tuple(detector.id for detector in DETECTORS),
    "weights": tuple(rule.id for rule in ADAPTER_RULES),
}
"""The rules on each part."""
OF_PROMPT: Final = frozenset(rule.id for rule in PROMPT_RULES)
"""The rules on the prompt that several files beside the weights state."""
ALL: Final = [
    *dict.fromkeys((*(rule for ids in IDS.values() for rule in ids), *(rule.id for rule in PROMPT_RULES))),
    *(join.id for join in JOINS),
]
_JUDGED: Final[tuple[Description, ...]] = (*RULES, *DETECTORS, *ADAPTER_RULES)
_READINGS: Final = frozenset(rule.id for rule in _JUDGED if rule.reading)
LOOK: Final = frozenset(rule.id for rule in DETECTORS if rule.look)
OF_RUNS: Final = frozenset(rule.id for rule in RULES if "log" in rule.groups)
"""The rules on settings that are asked of a run's log, too."""

_PREDICTIONS: Final = frozenset(rule.id for rule in RULES if isinstance(rule, ConfigRule) and rule.predicts)
_OF_RECORD: Final = frozenset(join.id for join in JOINS if join.recording)
_NEAREST: Final[tuple[PieceSource, ...]] = ("weights", "log", "disk", "config")
_TWO_ENDS: Final = 2  # what was trained, and what is served
NOT_BORNE_OUT: Final = "what it predicts of a run is told by this run's log, which shows nothing of it"


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The verdicts on the parts of one run; None of a part that is absent, or that the verb does not judge.

    Attributes:
        documents: the run.
        config: the settings as they were judged.
        settings: the verdict on them.
        facts: the log.
        log: the verdict on it.
        weights: the audit of the weights.
        damaged: why the weights cannot be read, if their file ends too early.
        disk: what the checkpoints on disk add.
        parts: the parts that the verb judges wherever they are there.
    """

    documents: Documents
    config: ConfigSnapshot | None = None
    settings: Verdict | None = None
    facts: RunFacts | None = None
    log: Verdict | None = None
    weights: AuditReport | None = None
    damaged: str = ""
    disk: Sequence[Symptom] = ()
    parts: Collection[PieceSource] = _NEAREST

    def verdicts(self) -> Iterator[tuple[SourceKind, Verdict]]:
        """The verdict on each part."""
        audit = self.weights
        weights = None if audit is None else Verdict(audit.findings, audit.not_run, audit.readings)
        parts: tuple[tuple[SourceKind, Verdict | None], ...]
        parts = (("config", self.settings), ("log", self.log), ("weights", weights))
        yield from ((source, verdict) for source, verdict in parts if verdict is not None)

    def together(self, left_out: Mapping[str, str]) -> Together:
        """What the parts say together, and each finding that stands alone; the most severe first."""
        asked = (join.among(self.parts) for join in JOINS if join.id not in left_out)
        joins = [join for join in asked if join is not None]
        silent = {(source, rule) for source, verdict in self.verdicts() for rule in verdict.silent_of(IDS[source])}
        symptoms = [*self._symptoms(), *self._of_prompt(left_out)]
        joined = correlate(joins, symptoms, frozenset(silent))
        told = ((one.source, one.finding) for one in joined.left if not any(_foretells(one, x) for x in joined.left))
        single = (_alone(source, one) for source, one in told if one and one.id not in _READINGS)
        causes = self._eased(sorted([*joined.causes, *single], key=_place))
        first: dict[tuple[str, str], Cause] = {}
        for cause in causes:  # the log repeats what the weights show
            first.setdefault((cause.id, cause.message), cause)
        return self._borne_out(list(first.values()))

    def _symptoms(self) -> Iterator[Symptom]:
        """What each part shows, and what two of them disagree about."""
        if self.settings is not None:
            yield from symptoms_of("config", self.settings.told)
        if self.facts is not None and self.log is not None:
            silent = not self.facts.run.losses  # nothing was logged at all
            evaluated = bool(self.facts.evals or account(self.facts).evaluations)
            yield from log_symptoms(self.log.told, evaluated=evaluated or silent)
            if learning(self.facts).shown and all(finding.severity == "info" for finding in self.log.told):
                yield from learnt_by(self.facts.config.optimizer.name)
        yield from self.disk
        yield from damage(self.damaged)
        if self.weights is None:
            return
        yield from weights_symptoms(self.weights)
        yield from disagreements(self._stated(), self.weights)
        if self.config is not None and self.documents.found.config.path is None:  # the adapter's own config
            yield from idle_targets(Stated(CONFIG_NAME, self.config.lora), self.weights)
        if self.facts is not None:
            yield from recorded_disagreements(self.facts.run, self.weights)
            stated = self.facts.config if self.config is None else self.config
            yield from outgrown(self.facts.run, stated, self.weights)

    def _of_prompt(self, left_out: Mapping[str, str]) -> list[Symptom]:
        """What the files beside the weights say of the prompt, where two of them do."""
        if "weights" not in self.parts or len(self.documents.prompts) < _TWO_ENDS:
            return []
        unwanted = {rule: why for rule, why in left_out.items() if rule in OF_PROMPT}
        return symptoms_of("disk", judge(PROMPT_RULES, self.documents.prompts).without(unwanted).findings)

    def _stated(self) -> Iterator[Stated]:
        """The adapter's settings as stated outside its own folder."""
        log, named = self.documents.log.place.path, self.documents.found.config.path
        if self.facts is not None and log is not None and log.is_file():  # a folder is imported with its config
            yield Stated("the log's settings", self.facts.config.lora)
        if self.settings is not None and named is not None:
            yield Stated(named.name, with_ratio(self.documents.config.need().config.lora))

    def _eased(self, causes: list[Cause]) -> list[Cause]:
        """The causes; the size of an update is no error by itself where the held-out loss was lower at its end."""
        if self.facts is None or not _fell(self.facts.run):
            return causes
        eased = [msgspec.structs.replace(one, severity="warning") if _is_of_size(one) else one for one in causes]
        return sorted(eased, key=_place)

    def _borne_out(self, causes: list[Cause]) -> Together:
        """The causes without predictions of the settings that the log does not bear out."""
        seen = 0 if self.facts is None else account(self.facts).evaluations
        if self.log is None or not shows_learning(self.log.not_run, seen):
            return Together(causes, [])
        gone = [cause for cause in causes if not cause.joined and cause.id in _PREDICTIONS]
        return Together([cause for cause in causes if cause not in gone], list(dict.fromkeys(c.id for c in gone)))


class Together(NamedTuple):
    """What the parts of a run say together, and the predictions of its settings that its log does not bear out."""

    causes: list[Cause]
    foregone: list[str]


def judge_weights(documents: Documents, report: AuditReport, *, base: BaseWeights | None) -> Verdict:
    """Judge an adapter: its numbers, and its files beside each other; factors in memory have no files.

    Args:
        documents: the run.
        report: the audit of its adapter, without findings.
        base: the base that was given, open.
    """
    own = judge(WEIGHTS_RULES, report)
    if not report.weights_path:
        return own
    from gradience.rules.between.gathered import gather  # numpy, where weights lie

    between = judge(BETWEEN_RULES, gather(documents, weights=base, modules=report.modules))
    findings = by_severity([*own.findings, *between.findings])
    return Verdict(findings, [*own.not_run, *between.not_run], own.readings)


def judge_parts(
    documents: Documents,
    *,
    facts: RunFacts | None = None,
    log: Verdict | None = None,
    weights: AuditReport | None = None,
    left_out: Mapping[str, str],
    parts: Collection[PieceSource],
) -> Judged:
    """Judge the settings and the log of a run beside what is judged already.

    Args:
        documents: the run.
        facts: the log's facts.
        log: the verdict on the log.
        weights: the audit of the weights.
        left_out: the rules that are not applied, each with the reason.
        parts: the parts that the verb judges wherever they are there.
    """
    reading, whole = documents.log.held, documents.settings.held
    if reading is not None and facts is None:
        facts = RunFacts(reading.run, reading.log.issues, reading.log.issues_total, DEFAULT_GAP)
    if facts is not None and log is None:
        log = detect(facts).without({rule: why for rule, why in left_out.items() if rule in DETECTED})
    config = None if whole is None else completed(whole)
    moment = CheckContext(moment="begun", begun="its weights")
    if reading is not None:
        begun = f"the log in {reading.path.name}"
        moment = CheckContext(moment="weighed", begun=begun, epochs_seen=reading.run.last_epoch)
    unwanted = {rule: why for rule, why in left_out.items() if rule in IDS["config"]}
    settings = None
    if config is not None:
        settings = judge_config(config, around=moment, left_out=unwanted)
    return Judged(
        documents=documents, config=config, settings=settings, facts=facts, log=log, weights=weights, parts=parts
    )


def of_part(causes: Iterable[Cause], source: SourceKind, also: Collection[str] = ()) -> list[Finding]:
    """The findings on one part, those that join it with another among them, and those of the ids in `also`."""
    wanted = (c for c in causes if c.id in also or any(piece.source == source for piece in c.pieces))
    return [Finding(**{name: getattr(cause, name) for name in Finding.__struct_fields__}) for cause in wanted]


def _foretells(one: Symptom, other: Symptom) -> bool:
    """Whether the settings let expect what the log shows: what came is told, with its numbers."""
    expected, came = ({sign.name for sign in shown(each.source, each.id, each.tags)} for each in (one, other))
    return (one.source, other.source) == ("config", "log") and not expected.isdisjoint(came)


def _alone(source: PieceSource, finding: Finding) -> Cause:
    piece = Piece(source=source, id=finding.id, severity=finding.severity, says=finding.message)
    return Cause(**msgspec.structs.asdict(finding), pieces=[piece])


def _place(cause: Cause) -> tuple[int, bool, bool, int]:
    """The place of a cause: by severity; faults of the run before those of its record; worth a look; joined; by source.

    What the weights and the log show goes before what a configuration lets expect.
    """
    of_source = -1 if cause.joined else _NEAREST.index(cause.pieces[0].source)
    look = any(piece.id in LOOK for piece in cause.pieces)
    return -SEVERITIES.index(cause.severity), cause.id in _OF_RECORD, not look, of_source


def _is_of_size(cause: Cause) -> bool:
    """Whether a cause is an error by the size of the update beside its base, and by nothing else."""
    grave = {piece.id for piece in cause.pieces if piece.severity in {"error", "critical"}}
    of_weights = all(piece.source == "weights" for piece in cause.pieces)
    return cause.severity == "error" and of_weights and grave == {too_large.id}


def _fell(run: RunSeries) -> bool:
    """Whether the last loss of every held-out split is under its first."""
    curves = [curve for split, curve in run.loss_curves().items() if split != "train" and len(curve) > 1]
    return bool(curves) and all(curve[max(curve)] < curve[min(curve)] for curve in curves)

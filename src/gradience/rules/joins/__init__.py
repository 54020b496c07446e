"""Correlations: rules that explain findings of several sources (config, log, weights) by one cause.

This file defines what a correlation needs from each source, and how the needs are matched. A correlation describes
itself like any other rule. It holds if all the sources of one of its messages show a symptom that it needs. A symptom
belongs to at most one cause, that of the first correlation that takes it. So the order of the table matters: gravest
first.

The file also has the correlations on a run's files: whether they are complete and of one run, what was not recorded,
and what is wasted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Final, NamedTuple, Self, TypeAlias

import msgspec

from gradience.rules import (
    CLASSIFIER_DOCS,
    LOGGING_DEFAULT,
    NEMOTRON,
    NO_TRAIN_LOSS,
    SAVE_FLOW,
    UNMATCHED,
    Description,
    Observation,
    Sign,
    cite,
    finding,
)
from gradience.rules.config import RULES as CONFIG_RULES
from gradience.rules.log import RULE_OF
from gradience.rules.weights.rules import ADAPTER_RULES
from gradience.schema import Json, Severity
from gradience.schema.diagnose import Cause, Piece, PieceSource, SourceKind
from gradience.schema.document import SEVERITIES, Finding, RuleGroup

FACTS: Final = {  # symptoms that are not findings of a rule, and the text for them in a condition
    "other_config": "a configuration of another adapter",
    "other_log": "a log of another adapter",
    "other_adapter": "an adapter other than the one configured or recorded",
    "idle_targets": "a target that matched no adapted module",
    "adapted": "modules of other names",
    "no_head": "no full module is in the file",
    "exploded": "entries of the update are large",
    "lowest": "a checkpoint from around the lowest loss",
    "best_reward": "a checkpoint from around the best reward",
    "best_checkpoint": "a checkpoint to keep",
    "no_checkpoint": "no checkpoint",
    "restored": "the best checkpoint, loaded at the end",
    "learnt_by": "a loss that Adam made fall",
    "before_nan": "a checkpoint from before it",
    "tiny": "entries of the update are tiny",
    "summed_rates": "the sum of its learning rates",
    "outgrown": "lora_B moved further than these allow",
    "damaged": "the file ends before its data do",
    "few_layers": "under half of the layers are adapted",
    "mid_run": "the weights are those of a checkpoint from mid-run",
    "short_of_the_end": "the newest checkpoint is older than the log's end",
}

Silent: TypeAlias = frozenset[tuple[PieceSource, str]]
"""Pairs of a source and the id of a rule that was judged on it and found nothing."""


RULES_OF: Final[Mapping[PieceSource, Mapping[str, Description]]] = {
    "config": {rule.id: rule for rule in CONFIG_RULES},
    "log": RULE_OF,
    "weights": {rule.id: rule for rule in ADAPTER_RULES},
}
"""The rules whose findings are joined, by source and id."""


class Symptom(NamedTuple):
    """A finding on one source, or a fact about the source that matters only together with other symptoms.

    `tags` are the marks of a finding: its severity, the names of its values, the verdict on the weights.
    """

    source: PieceSource
    id: str
    seen: Observation
    finding: Finding | None = None
    tags: frozenset[str] = frozenset()


class Needs(NamedTuple):
    """A condition on one source: it shows any of `signs`, or the rules that would show `silent` found nothing."""

    source: PieceSource
    signs: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()  # every rule that shows one of them was judged
    says: str = ""  # the text for that silence

    @property
    def silent_ids(self) -> list[str]:
        """The ids of the rules that have to be silent."""
        return [rule for sign in self.silent for rule in showing(self.source, sign)]


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
        recording: whether it is about what was recorded of the run: it comes after equally severe faults of the run.
    """

    needs: tuple[Needs, ...]
    hints: tuple[Needs, ...] = ()
    messages: tuple[Message, ...]
    least: int = 2
    recording: bool = False
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

    def missing(self, read: frozenset[SourceKind]) -> str | None:
        """The sources that are missing, for the report, or None if the correlation can be judged."""
        sources = (set(message.sources) - {"disk"} or {"log"} for message in self.messages)  # the log finds the files
        lacking = [sorted(each - read) for each in sources]
        fewest = min(lacking, key=len)
        return f"needs {' and '.join(fewest)}" if fewest else None

    def among(self, parts: Collection[PieceSource]) -> Self | None:
        """The correlation with the messages that hold where only these parts are judged; None if none does.

        A message on one part says, or leaves open, what the others show: it takes all that the correlation looks at.
        """
        looked_at = {needs.source for needs in self.needs}
        holding = [
            m for m in self.messages if set(m.sources) <= set(parts) and (m.sources[1:] or looked_at <= set(parts))
        ]
        return replace(self, messages=tuple(holding)) if holding else None

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
                action = None if message.action is None else message.action.format_map(values)
                return message._replace(text=message.text.format_map(values), action=action)
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
            fields = msgspec.structs.asdict(finding(correlation, observed.seen))
            causes.append(Cause(**fields, joined=True, pieces=pieces))
            left = _without(left, observed.taken)
    return Correlated(causes, left)


def _fitting(needed: Iterable[Needs], symptoms: Sequence[Symptom], silent: Silent) -> list[Symptom]:
    fitting: list[Symptom] = []
    for needs in needed:
        if needs.silent and silent.issuperset((needs.source, rule) for rule in needs.silent_ids):
            fitting.append(Symptom(needs.source, " ".join(needs.silent_ids), Observation(needs.says)))
        fitting += [symptom for symptom in _without(symptoms, fitting) if _fits(needs, symptom)]
    return fitting


def _fits(needs: Needs, symptom: Symptom) -> bool:
    if symptom.source != needs.source:
        return False
    names = (sign.name for sign in shown(symptom.source, symptom.id, symptom.tags))
    return not set(needs.signs).isdisjoint(names)


def shown(source: PieceSource, symptom: str, marks: frozenset[str]) -> list[Sign]:
    """The signs that a symptom with these marks shows."""
    return [sign for sign in _signs(source, symptom) if sign.is_shown_by(marks)]


@cache  # a fleet asks for the signs of the same rules at every adapter
def _signs(source: PieceSource, symptom: str) -> list[Sign]:
    """The signs of a rule; a symptom that is no finding is a sign of itself."""
    rule = RULES_OF.get(source, {}).get(symptom)
    return [Sign(symptom)] if rule is None else [each if isinstance(each, Sign) else Sign(each) for each in rule.signs]


def showing(source: PieceSource, name: str) -> dict[str, Sign]:
    """The rules of a source that show a fact, by id, and how."""
    rules = RULES_OF.get(source, {})
    return {rule: sign for rule in rules for sign in _signs(source, rule) if sign.name == name}


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
    if quiet := needs.silent_ids:
        yield f"neither {' nor '.join(quiet)}" if len(quiet) > 1 else f"no {quiet[0]}"
    for name in needs.signs:
        if name in FACTS:
            yield FACTS[name]
        for rule, sign in showing(needs.source, name).items():
            yield f"{rule} ({' or '.join(sorted(sign.among)).replace('_', ' ')})" if sign.among else rule


JOINS: Final[tuple[Correlation, ...]] = (
    Correlation(
        "CFG306",
        severity="warning",
        title="configuration and adapter of different runs",
        needs=(Needs("config", ("other_config",)), Needs("log", ("other_log",)), Needs("weights", ("other_adapter",))),
        hints=(Needs("weights", ("unlike_ranks",)),),
        messages=(
            Message(("config", "weights"), "The configuration is not that of this adapter: {differs}."),
            Message(("log", "weights"), "The log is not of this adapter: {differs}."),
        ),
        seen=(
            cite("https://github.com/NVIDIA-NeMo/Automodel/pull/3834", "the file has rank 4 where the config says 8"),
        ),
        confidence=0.85,
        evidence=(cite("the weights file", "rank and names of the modules are those of the factors stored"),),
        rationale="Findings that join files of two runs explain neither.",
        action="Give the sources of one run with --run, --adapter and --config; else see what was saved over what.",
        scope="plain LoRA; ranks that a conversion doubles (PiSSA and its kin) are left out",
        verify="Load the adapter with PEFT and print its config.",
    ),
    Correlation(
        "FIL319",
        severity="error",
        title="a damaged adapter file",
        needs=(Needs("weights", ("damaged",)),),
        hints=(Needs("log", ("cut_off",)),),
        messages=(Message(("weights",), "The adapter's file is damaged: {damaged}."),),
        confidence=0.97,
        evidence=(
            cite("arithmetic", "a file shorter than its header says has lost tensors"),
            cite("the safetensors format", "the header states the length of the data: a shorter file lost some"),
        ),
        rationale="Nothing can load it: the copy or the save was interrupted.",
        action="Copy or download the file again; if that is how it was saved, take the last whole checkpoint.",
        scope="weights in safetensors",
        verify="The size of the file beside that at its source.",
        least=1,
    ),
    Correlation(
        "HED308",
        severity="warning",
        title="a classifier head that is not in the file",
        needs=(Needs("config", ("head_left_out",)), Needs("weights", ("no_head",))),
        hints=(Needs("log", ("at_chance",)),),
        messages=(
            Message(
                ("config", "weights"),
                "The classifier head was not saved: the config leaves it out, and so does the file.",
            ),
        ),
        seen=(
            cite("https://github.com/OpenRLHF/OpenRLHF/pull/1342", "a reward model loaded again has a new random head"),
        ),
        confidence=0.9,
        evidence=(CLASSIFIER_DOCS,),
        rationale="The reloaded model gets a fresh random head and predicts at chance.",
        action="Set task_type='SEQ_CLS' (or TOKEN_CLS), or name the head in modules_to_save, and train again.",
        scope="classification with PEFT",
        verify="Reload the adapter on the base model and evaluate it.",
    ),
    Correlation(
        "RND309",
        severity="warning",
        title="weights that look like an initialisation",
        needs=(
            Needs("weights", ("random_like",)),
            Needs("log", ("no_learning", "vanished_gradient")),
            Needs("log", silent=("no_learning",), says="the loss falls"),
        ),
        hints=(Needs("log", ("random_like", "learnt_by")),),
        messages=(
            Message(
                ("log", "weights"),
                "The weights look like random factors, though {optimizer} made the loss fall: a trained update without "
                "a leading direction, or another file.",
                severity="info",
            ),
            Message(("log", "weights"), "The weights look like random factors; compare that with what this log shows."),
        ),
        seen=(cite("https://github.com/johntnanney/gradience", "an adapter of random weights"),),
        confidence=0.6,
        rationale="The spectrum of a trained update is seldom as flat as that of random factors: if the loss "
        "fell, this may be another file; if not, an initialisation.",
        action="Check that this is the trained adapter of this run.",
        scope="LoRA of rank 4 and more",
        verify="Load the adapter and compare its held-out loss with that of the log.",
    ),
    Correlation(
        "TGT307",
        severity="warning",
        title="targets without a module",
        needs=(Needs("config", ("idle_targets",)), Needs("weights", ("adapted",))),
        hints=(Needs("config", ("foreign_targets", "missed_targets")),),
        messages=(
            Message(
                ("config", "weights"),
                "target_modules names {idle}, and no module of that name was adapted: only {adapted}.",
                severity="warning",
            ),
        ),
        seen=(
            cite(
                "https://github.com/unslothai/unsloth/issues/4193",
                "gate, up and down are targets, and the experts are fused parameters: nothing is trained",
            ),
        ),
        confidence=0.7,
        evidence=(UNMATCHED, NEMOTRON),
        rationale="PEFT passes over a name that matches no module, as long as another matches one.",
        action="Name modules that the model has (see model.named_modules()), and train again.",
        scope="target_modules as a list of names; LoRA",
        verify="model.print_trainable_parameters(), and the list of adapted modules.",
    ),
    Correlation(
        "END312",
        severity="warning",
        title="a run that was cut off",
        needs=(
            Needs("log", ("cut_off",)),
            Needs("weights", ("incomplete_file",)),
            Needs("config", ("saved_once",)),
            Needs("disk", ("short_of_the_end",)),
        ),
        hints=(Needs("log", ("torn_lines",)),),
        messages=(
            Message(("log", "weights"), "The run was cut off, and the adapter's file is incomplete."),
            Message(("log", "disk"), "The log stops without run_end; these weights are from step {weights_step}."),
            Message(
                ("log", "config"), "The log stops without run_end, and no checkpoint was to be written before that."
            ),
            Message(("log",), "The log stops without run_end, and lines of it are damaged: a crash or a kill."),
        ),
        seen=(cite("https://github.com/johntnanney/gradience", "a log that stops at step 100 of 400"),),
        confidence=0.8,
        evidence=(SAVE_FLOW,),
        rationale="What is on disk is then older than the last row, or was written in part.",
        action="Resume from the last whole checkpoint, and save a few times a run.",
        scope="logs of our recorder; a run that still goes on looks the same",
        verify="See whether the process still runs.",
    ),
    Correlation(
        "REC310",
        severity="info",
        title="nothing was logged, as configured",
        needs=(Needs("config", ("no_rows",)), Needs("log", ("few_rows",))),
        hints=(Needs("config", ("nothing_held_out",)),),
        messages=(
            Message(
                ("config", "log"),
                "The log holds {rows} training rows: logging_steps is {logging_steps:g}, and the run had {steps}.",
                action="Set logging_steps to {every} next time.",
            ),
            Message(("config", "log"), "The log holds {rows} training rows, as configured: logging is off."),
        ),
        recording=True,
        seen=(cite("public repositories", "runs without a single row of training loss"),),
        confidence=0.95,
        evidence=(NO_TRAIN_LOSS, LOGGING_DEFAULT),
        rationale="Without rows no curve can be judged: what is not found below was not looked for.",
        action="Set logging_steps to a fiftieth of the steps.",
        scope="the Hugging Face Trainer",
        verify="The next log has 50 rows.",
    ),
)

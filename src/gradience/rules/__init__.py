"""Rules: pure functions from schema Structs to findings. Every threshold carries its source.

`Rule` is the one record of a rule, whether it judges a configuration, a run's log, an adapter's weights or a merge. It
decorates one pure function, `observe`, from the facts it judges to observations, and takes what the rule says of itself
(title, condition, why, scope, what to do, how to verify) from that function's docstring. Everything else derives from
the record. A finding takes from the rule whatever the observation does not override. The card in `gradience rules` is
the record without its functions. The condition takes its numbers from the thresholds, so no number is written twice.

A rule without its input never passes in silence. Either `needs` names what the facts lack, or `observe` raises
`Unknown`; the report then lists the rule as not judged, with that reason. A rule that is not selected, or is ignored,
by its id or the beginning of one, is listed in the same way.

Sources that rules of several files cite are in this file, with their numbers. A source that one file cites is in that
file, beside its rules.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from inspect import getdoc, getsource
from os import PathLike
from pathlib import Path
from textwrap import dedent
from typing import Any, Final, Generic, NamedTuple, Self, TypeAlias, TypeVar, get_args

from gradience.configs import Preferences, read_preferences
from gradience.errors import ConfigError, Unknown as Unknown
from gradience.rules.passports import passport
from gradience.schema import Json, Severity, real
from gradience.schema.document import (
    RULES_SCHEMA_ID,
    Evidence,
    Excluded,
    Finding,
    NotRun,
    Passport,
    RuleCard,
    RuleGroup,
    RulesReport,
    RuleThreshold,
    by_severity,
)

F = TypeVar("F")
G = TypeVar("G")

Need: TypeAlias = Callable[[F], str | None]
"""A function that returns the reason why facts cannot be judged, for the report, or None if they can."""

GROUPS: Final[tuple[RuleGroup, ...]] = get_args(RuleGroup)


@dataclass(frozen=True, slots=True)
class Premise(Generic[F]):
    """A need that a rule's card states.

    Attributes:
        says: what has to hold, such as "the run trains an adapter".
        lacking: returns the reason why it does not hold for the facts, or None if it does.
    """

    says: str
    lacking: Need[F]

    def __call__(self, facts: F) -> str | None:
        """The reason why the premise does not hold, or None if it does."""
        return self.lacking(facts)


def premise(says: str) -> Callable[[Need[F]], Premise[F]]:
    """Make a premise of a function that returns the reason why facts cannot be judged, or None."""
    return partial(Premise, says)


class Threshold(NamedTuple):
    """A number that a rule compares with: its name, value, unit and source. The source says so if it is a judgement."""

    name: str
    value: float
    unit: str
    source: str


@dataclass(frozen=True, slots=True)
class Observation:
    """One case that a rule found. A field that is None or empty is taken from the rule.

    Attributes:
        message: one sentence with the numbers of this case.
        values: the numbers the rule looked at, by name.
        severity: set if this case is milder or graver than the rule's usual one.
        confidence: set if it differs from the rule's confidence, in 0..1.
        action: what to do in this case.
        rationale: why this case matters.
        evidence: evidence from the input, which is put before the rule's own evidence.
    """

    message: str
    values: Mapping[str, Json] = field(default_factory=dict)
    severity: Severity | None = None
    confidence: float | None = None
    action: str | None = None
    rationale: str | None = None
    evidence: tuple[Evidence, ...] = ()


Observe: TypeAlias = Callable[[F], Iterable[Observation] | Observation | None]
"""A function that returns the observations in facts: one, several, or None. It raises `Unknown` if it cannot decide."""


class Sign(NamedTuple):
    """A fact of a run that a rule's finding shows. Joins ask for facts by name, so that they know no rule by its id.

    Attributes:
        name: the fact, such as "high_rate"; several rules may show the same one.
        among: the finding shows it if one of its marks is among these (its severity, the name of one of its values, the
            verdict on the weights); always if empty.
        unless: marks with which it does not show it.
        values: further values for the sentence of a join.
    """

    name: str
    among: frozenset[str] = frozenset()
    unless: frozenset[str] = frozenset()
    values: Callable[[Finding], Mapping[str, Json]] = lambda _: {}

    def is_shown_by(self, marks: Collection[str]) -> bool:
        """Whether a finding with these marks shows the fact."""
        return (not self.among or not self.among.isdisjoint(marks)) and self.unless.isdisjoint(marks)


@dataclass(frozen=True, kw_only=True)
class Description:
    """The description of a rule, as its card shows it.

    Attributes:
        id: a stable id, such as `LR001`.
        groups: the commands that apply the rule.
        severity: the usual severity; an observation may be milder or graver.
        condition: a sentence that says when the rule reports; `{name}` stands for the value of that threshold.
        confidence: a judgement, in 0..1.
        scope: where the rule applies, and where it does not.
        rationale: why the finding matters.
        action: what to consider doing, if that is right in every case that the rule reports; else empty.
        verify: what would confirm or refute the finding.
        thresholds: every number that the rule compares with.
        evidence: the rule's sources, with their numbers.
        seen: public runs and complaints on which the rule was right.
        signs: what a finding is a sign of, for the rules that join findings; a text is a sign without conditions.
        reading: whether what the rule reports is a line of a report and no finding: it counts nowhere.
    """

    id: str = field(kw_only=False)
    title: str = ""
    groups: tuple[RuleGroup, ...]
    severity: Severity
    condition: str = ""
    confidence: float
    scope: str = ""
    rationale: str = ""
    action: str = ""
    verify: str = ""
    thresholds: tuple[Threshold, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    seen: tuple[Evidence, ...] = ()
    signs: tuple[Sign | str, ...] = ()
    reading: bool = False

    @property
    def speaks_when(self) -> str:
        """The condition, with the thresholds' values filled in."""
        return self.condition.format_map({item.name: f"{item.value:g}" for item in self.thresholds})

    @property
    def premises(self) -> list[str]:
        """What has to hold before the rule is asked, in words."""
        return []

    @property
    def passports(self) -> list[Passport]:
        """What shows that the fault is real: where it was seen, then the sources that have a passport's form."""
        seen = [passport(ground, seen=True) for ground in self.seen]
        cited = [passport(ground, seen=False) for ground in self.evidence]
        return [each for each in (*seen, *cited) if each is not None]


def _nothing(_: object) -> None:
    """What a record observes that decorates no function yet."""


@dataclass(frozen=True, kw_only=True)
class Rule(Description, Generic[F]):
    """A rule over facts of type F: the decorator of its `observe`, whose docstring is the rule's prose.

    The docstring is the title, the condition, and the sections Why, Scope, Action and Verify, of which Why and Action
    may be left out; then where it was Seen and what each Source says, after ` -- `, if no other rule cites it. One of
    them is its passport (`rules.passports`). A section that the family gives to all its rules need not be repeated.

    Attributes:
        observe: returns the observations in the facts: one, several, or None. Raises `Unknown` if it cannot decide.
        needs: what the facts must have, asked in order before `observe`; the first reason makes the rule "not judged".
        meant_for: facts without it give the rule no meaning: it is neither judged nor listed as not judged.
        settings: the configuration fields that a finding is about, the nearest first; or a function of its values.
    """

    observe: Observe[F] = _nothing
    needs: tuple[Premise[F], ...] = ()
    meant_for: Premise[F] | None = None
    settings: tuple[str, ...] | Callable[[Mapping[str, Json]], Iterable[str]] = ()

    def __call__(self, observe: Observe[F]) -> Self:
        """The rule of this record and of a function with its docstring.

        Raises:
            ValueError: the docstring has an unknown section, lacks one, or was seen in a place that nobody can look up.
        """
        try:
            texts, grounds = _prose(observe)
        except ValueError as error:
            raise ValueError(f"{self.id}: {error}") from None
        seen, sources = (*grounds["Seen"], *self.seen), (*grounds["Source"], *self.evidence)
        made = replace(self, observe=observe, seen=seen, evidence=sources, **texts)
        unclear = [ground.source for ground in seen if passport(ground, seen=True) is None]
        if unclear:
            raise ValueError(f"{self.id}: Seen: {unclear[0]}: expected a public run or a complaint")
        lacking = [name for name, field in _NEEDED.items() if not getattr(made, field)]
        if lacking:
            raise ValueError(f"{self.id}: the docstring of its function has no {lacking[0]}")
        return made

    def observations(self, facts: F) -> Iterable[Observation]:
        """What the rule observes in the facts, as many as there are."""
        observation = self.observe(facts)
        if observation is None:
            return ()
        return (observation,) if isinstance(observation, Observation) else observation

    @property
    def premises(self) -> list[str]:
        """What has to hold before the rule is asked, in words."""
        return [need.says for need in ((self.meant_for, *self.needs) if self.meant_for else self.needs)]


_SECTIONS: Final = {"Why": "rationale", "Scope": "scope", "Action": "action", "Verify": "verify"}
_NEEDED: Final = {"title": "title", "condition": "condition", "Scope": "scope", "Verify": "verify"}


def _prose(observe: Observe[F]) -> tuple[dict[str, Any], dict[str, list[Evidence]]]:
    """The texts of a rule by the names of their fields, and what it cites by section, from its function's docstring."""
    title, _, body = (getdoc(observe) or _unoptimised(observe)).partition("\n")
    # What goes on within a section is indented, so no line of the condition may begin as `Word:` does
    condition, *rest = re.split(r"^([A-Z]\w*):\s", body, flags=re.MULTILINE)
    texts = {"title": title, "condition": " ".join(condition.split())}
    grounds: dict[str, list[Evidence]] = {"Seen": [], "Source": []}
    for name, lines in zip(rest[::2], rest[1::2], strict=True):
        text = " ".join(lines.split())
        if name in grounds:
            source, dash, says = text.partition(" -- ")
            if not dash:
                raise ValueError(f"{name}: {text}: expected a source, ' -- ' and what it says")
            grounds[name].append(cite(source, says))
        elif name not in _SECTIONS:
            known = ", ".join((*_SECTIONS, *grounds))
            raise ValueError(f"unknown section {name} in its docstring; known: {known}")
        # By identity: a second section of the same words is refused, too
        elif texts.setdefault(_SECTIONS[name], text) is not text:
            raise ValueError(f"two sections {name} in its docstring")
    return texts, grounds


def _unoptimised(observe: Observe[F]) -> str:
    """The docstring that `python -OO` left out, from the source."""
    function = ast.parse(dedent(getsource(observe))).body[0]
    return (isinstance(function, ast.FunctionDef) and ast.get_docstring(function)) or ""


class Verdict(NamedTuple):
    """Findings, most severe first, the rules that could not be judged, each with its reason, and mere readings."""

    findings: list[Finding]
    not_run: list[NotRun]
    readings: Sequence[Finding] = ()

    @property
    def told(self) -> list[Finding]:
        """The findings, then the readings."""
        return [*self.findings, *self.readings]

    def without(self, reasons: Mapping[str, str]) -> Verdict:
        """The verdict without the left-out rules, which are then among those not run, with their reasons."""
        return Verdict(
            *without(self.findings, self.not_run, reasons), [one for one in self.readings if one.id not in reasons]
        )

    def silent_of(self, ids: Iterable[str]) -> list[str]:
        """Those of the rules that were judged and found nothing."""
        told = {*(finding.id for finding in self.told), *(item.id for item in self.not_run)}
        return [rule for rule in ids if rule not in told]


def judge(rules: Iterable[Rule[F]], facts: F) -> Verdict:
    """Judge the facts by the rules. A rule that observed something before it raised `Unknown` is in both lists."""
    findings: list[Finding] = []
    readings: list[Finding] = []
    not_run: list[NotRun] = []
    for rule in rules:
        if rule.meant_for and rule.meant_for(facts) is not None:
            continue
        lacking = next((reason for need in rule.needs if (reason := need(facts)) is not None), None)
        if lacking is not None:
            not_run.append(NotRun(id=rule.id, reason=lacking))
            continue
        try:
            for observation in rule.observations(facts):  # one by one: those before an Unknown are kept
                (readings if rule.reading else findings).append(finding(rule, observation))
        except Unknown as unknown:
            not_run.append(NotRun(id=rule.id, reason=str(unknown)))
    return Verdict(by_severity(findings), not_run, readings)


def finding(rule: Description, seen: Observation) -> Finding:
    """The finding for an observation. Fields that the observation leaves open come from the rule."""
    return Finding(
        id=rule.id,
        severity=seen.severity or rule.severity,
        message=seen.message,
        action=seen.action or rule.action or None,
        rationale=seen.rationale or rule.rationale or None,
        confidence=rule.confidence if seen.confidence is None else seen.confidence,
        scope=rule.scope,
        verify=rule.verify,
        evidence=list(dict.fromkeys((*seen.evidence, *rule.evidence))),
        # JSON has no number that is not finite
        values={name: real(value) if isinstance(value, float) else value for name, value in seen.values.items()},
    )


def cite(source: str, says: str) -> Evidence:
    """An entry of evidence: a paper, document or experiment, and what it says, with its numbers."""
    return Evidence(source=source, says=says)


def card(rule: Description) -> RuleCard:
    """The rule as `gradience rules`, the docs and SARIF show it."""
    return RuleCard(
        id=rule.id,
        title=rule.title,
        groups=list(rule.groups),
        severity=rule.severity,
        reading=rule.reading,
        condition=rule.speaks_when,
        premises=rule.premises,
        confidence=rule.confidence,
        scope=rule.scope,
        rationale=rule.rationale,
        action=rule.action,
        verify=rule.verify,
        thresholds=[RuleThreshold(**item._asdict()) for item in rule.thresholds],
        passports=rule.passports,
        evidence=list(rule.evidence),
    )


SWEEP = "tinker-cookbook, recipes/chat_sl/results/sft_sweep.md (35 models, one chat data set, Adam, batch 128)"
LWR = "LoRA Without Regret, Schulman et al. 2025 (through tinker-docs and TRL's lora_without_regret.md)"

SWEEP_HIGH = cite(
    SWEEP,
    "by its models' notes 110 runs diverged, 101 of them at 3e-3; 1e-3 costs +0.5 % in the median, up to 6.9 %",
)
TRL_RL = cite("TRL docs, peft_integration.md", "with LoRA: DPO 5e-6, GRPO 1e-5")
TINKER_STEPS = cite(
    "tinker-cookbook, skills/research/references/hyperparams.md",
    "at least 100 steps; the best results come with 1000 and more",
)
RECIPES = cite(
    "shipped recipes, counted",
    "SFT medians 2e-4 (Axolotl, n = 163), 3e-4 (torchtune, n = 99); RL 1e-5 (Axolotl, n = 15)",
)
UNMATCHED = cite("PEFT, tuners_utils (0.21)", "target_modules that match nothing raise only where none of them matches")
NEMOTRON = cite("huggingface/peft#3554", "default targets hit 4 of 56 layers; loss stayed at ln 2 for all of DPO")
CLASSIFIER_DOCS = cite(
    "PEFT docs, troubleshooting",
    "a new head is trained and saved only if task_type or modules_to_save says so; else it is random",
)
SAVE_FLOW = cite(
    "transformers, DefaultFlowCallback (5.24)",
    "save_strategy 'steps': a checkpoint every save_steps and one at the end; 'no': none",
)
NO_TRAIN_LOSS = cite(
    "experiment, transformers 5.24", "with logging_steps above the number of steps no loss row is written"
)
EVAL_DEFAULT = cite("transformers TrainingArguments", "eval_strategy is 'no' unless it is set")
INSTRUCT_GPT = cite(
    "InstructGPT, arXiv 2203.02155 (quoted)",
    "loss overfits after 1 epoch, yet more epochs raised human preference: counter-evidence",
)


TRIAL = cite("benchmarks/detectors.py", "recall and false findings on synthetic curves: docs/evidence/detectors.md")
MASKED = cite("transformers 5.24, observed", "a NaN step is logged as loss 0.0, grad_norm nan")
ALL_MASKED = cite("huggingface/trl#6668", "SFTTrainer logs loss 0.0 when every label is masked, and trains on")
NAN_TRL = cite("huggingface/trl#6702", "a corrupted run reports a clean loss curve")
DIVERGENCE = cite(
    "llm-foundry KillLossSpike; Axolotl LossWatchDogCallback",
    "half a window above the first one; above twice the initial loss three times",
)
KARPATHY = cite("Karpathy, A Recipe for Training Neural Networks", "check the loss against -ln(1/K)")
PRECHELT = cite(
    "Prechelt, Early Stopping - But When?", "GL = 100 (E / E_opt - 1) over 2; UP: worse in s successive strips"
)
LOGGING_DEFAULT = cite("transformers 5.24", "the default logging_steps=500 logs nothing in a short run")


def left_out(known: Sequence[str], wanted: Collection[str], unwanted: Collection[str]) -> dict[str, str]:
    """Return the known ids that will not be applied, each with its reason for the report.

    >>> left_out(["LR001", "LR003", "TGT001"], ["LR001", "LR003"], ["LR003"])
    {'LR003': 'ignored on request', 'TGT001': 'not selected'}
    """
    reasons = dict.fromkeys(unwanted, Excluded.IGNORED.value)
    reasons |= dict.fromkeys(frozenset(known).difference(wanted), Excluded.NOT_SELECTED.value)
    return {rule_id: reasons[rule_id] for rule_id in known if rule_id in reasons}


def matching(known: Sequence[str], entries: Iterable[str], option: str) -> list[str]:
    """Return the known ids that begin with one of the entries. Case does not matter; `ALL` is every id.

    Raises:
        ConfigError: no id begins with an entry.
    """
    beginnings = [entry.strip().upper() for text in entries for entry in text.split(",")]
    hits = {entry: _hits(known, entry) for entry in beginnings}
    if strange := [entry for entry in beginnings if not hits[entry]]:
        names = ", ".join(entry or "an empty text" for entry in strange)
        raise ConfigError(f"--{option}: no rule is called {names}", advice=f"rules: {' '.join(known)}")
    chosen = frozenset().union(*hits.values())
    return [rule_id for rule_id in known if rule_id in chosen]


def _hits(known: Sequence[str], entry: str) -> list[str]:
    if entry == "ALL":
        return list(known)
    return [rule_id for rule_id in known if entry and rule_id.startswith(entry)]


def without(
    findings: Iterable[Finding], not_run: Iterable[NotRun], reasons: Mapping[str, str]
) -> tuple[list[Finding], list[NotRun]]:
    """Remove the left-out rules from both lists, and add them to the rules not run, with their reasons."""
    kept = [finding for finding in findings if finding.id not in reasons]
    others = [item for item in not_run if item.id not in reasons]
    return kept, others + [NotRun(id=rule_id, reason=reason) for rule_id, reason in reasons.items()]


def excluded_rules(
    ids: Sequence[str],
    *,
    select: Iterable[str] = (),
    ignore: Iterable[str] = (),
    settings: str | PathLike[str] | None = None,
) -> dict[str, str]:
    """Return the rules that a verb will not apply, each with its reason for the report.

    Args:
        ids: the ids of the verb's rules.
        select: ids, or beginnings of ids, to apply; all by default.
        ignore: ids, or beginnings of ids, to leave out.
        settings: a settings file. Its `select` and `ignore` apply if the arguments of that name are empty. The file may
            also name the rules of other verbs.

    Raises:
        ConfigError: the file cannot be read, or no id begins with an entry.
    """
    arguments = {"select": list(select), "ignore": list(ignore)}
    filed = Preferences() if settings is None else read_preferences(Path(settings))
    wanted = _matching(ids, arguments["select"], filed.select, "select") if arguments["select"] or filed.select else ids
    return left_out(ids, wanted, _matching(ids, arguments["ignore"], filed.ignore, "ignore"))


def _matching(ids: Sequence[str], given: list[str], filed: list[str], option: str) -> list[str]:
    if given or not filed:
        return matching(ids, given, option)

    return matching(all_ids(), filed, option)


@cache
def rule_cards() -> tuple[RuleCard, ...]:
    """A card for every rule, each id once, in the order of the groups."""
    from gradience.rules.between.prompts import PROMPT_RULES  # the same
    from gradience.rules.between.rules import BETWEEN_RULES  # these modules import this one
    from gradience.rules.config import RULES  # the same
    from gradience.rules.data import DATA_RULES  # the same
    from gradience.rules.joins.run import JOINS  # the same
    from gradience.rules.log import DETECTORS  # the same
    from gradience.rules.merge import MERGE_RULES  # the same
    from gradience.rules.merged import MERGED_RULES  # the same
    from gradience.rules.served import SERVED_RULES  # the same
    from gradience.rules.weights.rules import WEIGHTS_RULES  # the same

    own: tuple[Description, ...] = (
        *RULES,
        *DATA_RULES,
        *WEIGHTS_RULES,
        *BETWEEN_RULES,
        *PROMPT_RULES,
        *JOINS,
        *MERGE_RULES,
        *MERGED_RULES,
        *SERVED_RULES,
    )
    # Some rules on data and on weights judge logs, too, with other premises: their own card is the one that stays
    cards: dict[str, RuleCard] = {}
    for rule in (*own, *DETECTORS):
        cards.setdefault(rule.id, card(rule))
    return tuple(sorted(cards.values(), key=lambda each: GROUPS.index(each.groups[0])))


def cards_of(*groups: RuleGroup) -> list[RuleCard]:
    """The cards of the rules that apply in any of the groups."""
    return [each for each in rule_cards() if not set(groups).isdisjoint(each.groups)]


def all_ids() -> Sequence[str]:
    """The ids of all rules, which are the ids that a project's settings may name."""
    return [each.id for each in rule_cards()]


def rules_named(name: str) -> list[RuleCard]:
    """The card of the rule with this id, else of those whose ids begin with it. Case does not matter; "" has none."""
    wanted = name.strip().upper()
    begun = [each for each in rule_cards() if wanted and each.id.startswith(wanted)]
    return [each for each in begun if each.id == wanted] or begun


def list_rules(prefix: str | None = None) -> RulesReport:
    """Return every rule, those whose id begins with a text such as `LR`, or those of a group such as `log`.

    Case does not matter in an id.

    Raises:
        ConfigError: no id begins with it, and no group is called so.
    """
    in_group = [card for card in rule_cards() if prefix in card.groups]
    cards = in_group or (rule_cards() if prefix is None else rules_named(prefix))
    if not cards:
        raise ConfigError(f"unknown rule {prefix!r}", advice="'gradience rules' lists them")
    return RulesReport(schema=RULES_SCHEMA_ID, rules=list(cards))

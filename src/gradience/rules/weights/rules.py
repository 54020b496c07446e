"""Rules on an adapter's weights, for `gradience audit` on a report and `gradience monitor` on an audit in a log.

They judge the numbers of a finished `AuditReport` and the config's alpha and rank, and open no file. Rules that need
the base model are in `health`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from gradience.errors import few
from gradience.rules import Observation, Rule, Sign, Threshold, Unknown, Verdict, cite, judge, premise
from gradience.rules.weights import (
    BASE_RULES,
    HARDLY_TRAINED,
    LARGE_SIZE,
    NEAR_UNTRAINED,
    OVERSIZED,
    RANDOM_MODULES,
    RANDOM_PART,
    RANDOM_RANK,
    RANDOM_SHARE,
    THE_FILE,
    AdapterFacts,
    Standing,
    Verdicts,
    WeightsRule,
    is_flattening,
    modules_analysed,
    observe_verdict,
)
from gradience.rules.weights.utilization import UNDER_USED
from gradience.schema.audit import AuditReport, LeftoverReason

MOSTLY_OTHER = Threshold("mostly_other", 0.5, "share of the file's bytes", "definition: more than half")
ALPHA_DEFAULT = Threshold("alpha_default", 8, "lora_alpha", "PEFT's LoraConfig")

_SHOWN: Final = 3  # grounds of a finding
_KEPT: Final = 20  # names among the values


def observe_size(size: float | None) -> Observation | None:
    """An update far larger than usual, judged without its base by the size of freshly initialised weights."""
    if size is None or size <= LARGE_SIZE.value:
        return None
    return Observation(
        f"The update is {size:.3g} times as large as freshly initialised weights of these shapes; ordinary updates are "
        "under 1.",
        {"update_size": size},
        severity="warning",
        confidence=0.6,
        action="Compare it with its base (gradience audit --base MODEL), and its outputs with the base model's.",
        evidence=(cite(THE_FILE, f"norm of all updates over that of such weights: {size:.3g}"),),
    )


def _size(facts: AdapterFacts) -> Observation | None:
    base = facts.report.base
    if base is None or base.relative_frobenius is None:
        return observe_size(facts.report.summary.update_size)
    seen = _of_health(_OVERSIZED, facts)
    if seen is None or not base.intruder_total:
        return seen
    says = f"{base.intruder_total} intruder dimensions in {base.intruder_modules} modules"
    witness = cite("against the base", says)
    return replace(seen, confidence=0.97, evidence=(*seen.evidence, witness))


_BROKEN: Final[Verdicts] = {"broken": Standing()}
_ZERO: Final[Verdicts] = {
    "untrained": Standing(),
    "near_untrained": Standing("warning", 0.7, "Check the learning rate, the number of steps and the scaling."),
    "partial": Standing("warning", 0.9, "Check target_modules and which parameters require gradients."),
}
_RANDOM: Final[Verdicts] = {"random_like": Standing()}
_OVERSIZED: Final[Verdicts] = {"oversized": Standing()}


def _of_health(verdicts: Verdicts, facts: AdapterFacts) -> Observation | None:
    return observe_verdict(verdicts, facts.report.health.verdict, facts.report.health.reason)


def _not_finite(facts: AdapterFacts) -> Observation | None:
    seen = _of_health(_BROKEN, facts)
    if seen is None and (lacking := modules_analysed(facts)) is not None:
        raise Unknown(lacking)  # a file without any adapter tensor was already found broken above
    return seen


def _lone_factor(facts: AdapterFacts) -> Observation | None:
    lone = [item for item in facts.report.not_analysed if item.cause is LeftoverReason.FACTOR_MISSING]
    if not lone:
        return None
    return Observation(
        f"{len(lone)} modules have one factor only (first: {lone[0].name}): the file is incomplete.",
        {"modules": len(lone)},
        evidence=tuple(cite(item.name, item.reason) for item in lone[:_SHOWN]),
    )


def _rank_mismatch(facts: AdapterFacts) -> Observation | None:
    modules = facts.report.modules
    wrong = [m for m in modules if m.config_r is not None]
    if not wrong:
        return None
    first = wrong[0]
    return Observation(
        f"{len(wrong)} of {len(modules)} modules have another rank in the file than in the config "
        f"(first: {first.name}, r={first.r} on disk, {first.config_r} by the config).",
        {"modules": len(wrong)},
        evidence=(cite(THE_FILE, f"{first.name}: factors of rank {first.r}"),),
    )


def _unmatched(facts: AdapterFacts) -> Observation | None:
    patterns = facts.report.unmatched_patterns
    if not patterns:
        if (lacking := _peft_lora(facts)) is not None:
            raise Unknown(lacking)
        return None
    return Observation(
        f"{len(patterns)} keys of rank_pattern or alpha_pattern match no module: {few([*map(repr, patterns)])}.",
        {"patterns": patterns[:_KEPT]},
    )


def _default_alpha(facts: AdapterFacts) -> Observation | None:
    default = ALPHA_DEFAULT.value
    at_default = [m for m in facts.report.modules if m.alpha == default and m.alpha_pattern is None]
    if facts.alpha != default or facts.r is None or facts.r <= default or not at_default:
        return None
    size = at_default[0].scaling
    return Observation(
        f"lora_alpha is at PEFT's default of {default:g} with r={facts.r}: the update is scaled by s={float(size):g}.",
        {"lora_alpha": default, "r": facts.r, "scaling": size},
    )


def _mostly_other(facts: AdapterFacts) -> Observation | None:
    meant = {"lora_pair", "other_kind", "magnitude", "scale", *(["full_module"] if facts.modules_to_save else [])}
    other = [entry for entry in facts.report.ledger if entry.role not in meant]
    share = sum(entry.share for entry in other)
    if share < MOSTLY_OTHER.value or not facts.report.modules:
        return None
    names = " and ".join(entry.role.replace("_", " ") for entry in sorted(other, key=lambda e: -e.bytes)[:2])
    size = sum(entry.bytes for entry in other)
    return Observation(
        f"{share:.0%} of this file is {names}, not LoRA.",
        {"share": share},
        evidence=(cite(THE_FILE, f"{size} bytes are no LoRA factor"),),
    )


@premise("tensors were read")
def _tensors(facts: AdapterFacts) -> str | None:
    return None if facts.report.ledger else "no tensor was read"


@premise("enough measured modules of the rank that the condition names")
def _many_modules(facts: AdapterFacts) -> str | None:
    able = sum(m.r >= RANDOM_RANK.value and m.stable_rank is not None for m in facts.report.modules)
    if able >= RANDOM_MODULES.value:
        return None
    return f"needs {RANDOM_MODULES.value:g} measured modules of rank {RANDOM_RANK.value:g} or more; there are {able}"


@premise("an optimizer that leaves flat spectra was not used")
def _flatness_tells(facts: AdapterFacts) -> str | None:
    name = facts.report.optimizer
    return f"{name} orthogonalises its steps: lora_B is flat whatever it learnt" if is_flattening(name) else None


@premise("PEFT's LoraConfig describes the adapter")
def _peft_lora(facts: AdapterFacts) -> str | None:
    report = facts.report
    if (lacking := modules_analysed(facts)) is not None:
        return lacking
    if report.format == "peft" and report.peft_type in {None, "LORA"}:
        return None
    return f"PEFT's LoraConfig does not describe it ({report.format}, {report.peft_type or 'no type'})"


_COMPARE: Final = "Load the adapter and compare its outputs with the base model's."

NON_FINITE = WeightsRule(
    id="NUM201",
    severity="error",
    title="weights that are not finite",
    groups=("weights", "log"),
    condition="a module's factors hold NaN or infinity, or the file holds no adapter tensor",
    observe=_not_finite,
    verdicts=_BROKEN,
    confidence=1.0,
    signs=("not_finite", Sign("lost_weights", frozenset({"broken"}))),
    action="Do not use this adapter; go back to the last good checkpoint.",
    scope="any adapter; a file without an adapter tensor is called broken too",
    verify=_COMPARE,
    rationale="One NaN in a factor makes every output of its module NaN.",
)
ZERO_UPDATE = WeightsRule(
    id="TRN202",
    severity="error",
    title="an update of zero",
    groups=("weights", "log"),
    condition="the update of all modules is exactly zero; of some of them it is zero, or its norm under "
    "{hardly_trained} times the 90th percentile of the modules' (a warning); or, with a base, the norm of all is under "
    "{near_untrained} times that of the weights (a warning)",
    observe=partial(_of_health, _ZERO),
    verdicts=_ZERO,
    confidence=0.95,
    signs=(
        "zero_update",
        Sign("no_update", frozenset({"untrained", "near_untrained"})),
        Sign("untrained", frozenset({"untrained"})),
    ),
    evidence=(cite("LoRA, arXiv 2106.09685", "B starts at zero, so an update of zero means that no step was taken"),),
    action="Check that the adapter's parameters were trained and saved.",
    scope="LoRA that starts at B = 0; warning where some modules only are zero, or where it is tiny beside its base",
    verify=_COMPARE,
    rationale="Such an adapter leaves the base model as it was.",
    thresholds=(NEAR_UNTRAINED, HARDLY_TRAINED),
    needs=(modules_analysed,),
)
RANDOM_LIKE = WeightsRule(
    id="RND203",
    severity="warning",
    title="spectra like random factors'",
    groups=("weights", "log"),
    condition="the ratio of the stable rank of the update, or of lora_B alone, to that of a random matrix of the same "
    "shape is at least {random_share} in {random_modules} or more modules of rank {random_rank} or more, which are "
    "{random_part} of them, or in their median if there are as many",
    observe=partial(_of_health, _RANDOM),
    verdicts=_RANDOM,
    confidence=0.6,
    signs=("random_like",),
    action="Check that this is the trained adapter, not an initialisation; where Muon or the like trained it, say so "
    "with --optimizer.",
    scope="LoRA of rank 4 and more, in four modules or more; lora_B alone only where it started at zero; not VeRA, "
    "whose projections are random by design. Shuffled labels leave no such trace: weights cannot show them",
    verify=_COMPARE,
    rationale="lora_B starts at zero and takes its directions from few gradients, of which a few dominate. An "
    "optimizer that orthogonalises its steps gives all directions the same size: what it trained is not judged.",
    thresholds=(RANDOM_SHARE, RANDOM_RANK, RANDOM_MODULES, RANDOM_PART),
    needs=(_many_modules, _flatness_tells),
)
TOO_LARGE = WeightsRule(
    id="SIZ215",
    severity="error",
    title="an update as large as the weights",
    groups=("weights", "log"),
    condition="with a base, the norm of all updates is over {oversized} times that of the weights; without a base, "
    "over {large_size} times that of freshly initialised weights of these shapes (a warning)",
    observe=_size,
    verdicts=_OVERSIZED,
    confidence=0.9,
    signs=("oversized",),
    evidence=(
        cite(
            "measured, 12 adapters of MiniLM-L6 and 2 of SmolLM2-135M",
            "ordinary updates have .012 to .044 of the base's norm, one whose training diverged 29 times",
        ),
    ),
    action="Look at its held-out loss or its outputs before using it; if they are bad, train again with a lower "
    "learning rate or scaling.",
    scope="any adapter; intruder dimensions (--intruders) are independent evidence; sizes without a base are a "
    "heuristic",
    verify=_COMPARE,
    rationale="Such an update may replace what the base model knows. It is no proof: 7 of 39 small models had one and "
    "a lower held-out loss.",
    thresholds=(OVERSIZED, LARGE_SIZE),
    needs=(modules_analysed,),
)
WEIGHTS_RULES: Final[tuple[Rule[AdapterFacts], ...]] = (
    NON_FINITE,
    ZERO_UPDATE,
    RANDOM_LIKE,
    TOO_LARGE,
    UNDER_USED,
    WeightsRule(
        id="LED205",
        severity="info",
        title="mostly tensors other than LoRA factors",
        condition="at least {mostly_other} of the file's bytes are neither LoRA factors nor DoRA magnitudes, "
        "nor modules that the config names in modules_to_save",
        observe=_mostly_other,
        confidence=1.0,
        signs=("mostly_other",),
        action="If that is not intended, look at bias, modules_to_save and save_embedding_layers.",
        scope="any adapter's file; a new head can be larger than a small adapter, as intended",
        verify="The table of what is in the file, at the end of the audit.",
        rationale="An embedding or a head that was saved along makes a small adapter a large file.",
        thresholds=(MOSTLY_OTHER,),
        needs=(_tensors,),
    ),
    WeightsRule(
        id="SCL206",
        severity="warning",
        title="another rank on disk than in the config",
        condition="a module's factors have another rank than the config gives it",
        observe=_rank_mismatch,
        confidence=0.9,
        signs=("unlike_ranks",),
        action="Loaders that believe the config will refuse the file or scale it wrongly: correct r or rank_pattern.",
        scope="adapters with a config",
        verify="Load it with PEFT: a shape mismatch says the same.",
        rationale="The rank on disk is the true one; s is computed from it here.",
        needs=(modules_analysed,),
    ),
    WeightsRule(
        id="SCL207",
        severity="warning",
        title="patterns that match no module",
        condition="a key of rank_pattern or alpha_pattern matches no module in the file",
        observe=_unmatched,
        confidence=0.9,
        evidence=(cite("peft/utils/other.py, get_pattern_key", r're.match(rf"(.*\.)?({key})$", path)'),),
        action="A key must match the end of a module's path, beginning at a dot, without base_model.model.",
        scope="PEFT's rank_pattern and alpha_pattern",
        verify="model.named_modules(): no name ends with the key.",
        rationale="PEFT ignores such a key in silence: its modules train at the global rank and alpha.",
    ),
    WeightsRule(
        id="SCL208",
        severity="info",
        title="lora_alpha at its default",
        condition="lora_alpha is {alpha_default} and r is above it",
        observe=_default_alpha,
        confidence=0.5,
        signs=("small_scaling",),
        evidence=(
            cite(
                "huggingface/lerobot#3551",
                "r=64 with the default alpha gave s=0.125, and a policy that hardly moved until alpha was 64",
            ),
        ),
        action="If alpha was never set on purpose, this adapter is weaker than its rank suggests.",
        scope="LoRA with PEFT's defaults",
        verify="See the training script; evaluate with lora_alpha set to what was meant.",
        rationale="s = alpha / r shrinks as r grows: a rank above 8 at the default alpha scales the update down.",
        thresholds=(ALPHA_DEFAULT,),
        needs=(_peft_lora,),
    ),
    WeightsRule(
        id="NUM209",
        severity="error",
        title="one factor without the other",
        condition="a module has lora_A without lora_B, or the reverse",
        observe=_lone_factor,
        confidence=0.95,
        signs=("incomplete_file",),
        action="Save or download the adapter again.",
        scope="LoRA factors in any format",
        verify="Load it with PEFT, which names the keys that are missing.",
        rationale="One factor without the other makes no update: loaders skip the module or initialise the missing "
        "factor.",
        needs=(_tensors,),
    ),
    *BASE_RULES,
)


def judge_adapter(
    report: AuditReport, *, alpha: float | None = None, r: int | None = None, modules_to_save: Sequence[str] = ()
) -> Verdict:
    """Judge an audit by all rules on weights; the other arguments are the config's own values, before any pattern."""
    return judge(WEIGHTS_RULES, AdapterFacts(report, alpha, r, tuple(modules_to_save)))

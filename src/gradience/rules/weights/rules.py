"""Rules on an adapter's weights, for `gradience audit` on a report and `gradience monitor` on an audit in a log.

They judge the numbers of a finished `AuditReport` and the config's alpha and rank, and open no file. Rules that need
the base model are in `health`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from gradience.errors import few
from gradience.rules import Observation, Rule, Sign, Unknown, cite, premise
from gradience.rules.between.rules import BETWEEN_RULES
from gradience.rules.weights import (
    BASE_RULES,
    HARDLY_MOVED,
    HARDLY_TRAINED,
    LARGE_SIZE,
    NEAR_UNTRAINED,
    OVERSIZED,
    RANDOM_MODULES,
    RANDOM_PART,
    RANDOM_RANK,
    RANDOM_SHARE,
    THE_FILE,
    USUAL_SIZE,
    FindingOverride,
    Verdicts,
    WeightsRule,
    is_flattening,
    modules_analysed,
    observe_verdict,
)
from gradience.rules.weights.utilization import under_used
from gradience.schema.audit import AuditReport, LeftoverReason

_SHOWN: Final = 3  # grounds of a finding
_KEPT: Final = 20  # names among the values
_BROKEN: Final[Verdicts] = {"broken": FindingOverride()}
_ZERO: Final[Verdicts] = {
    "untrained": FindingOverride(),
    "near_untrained": FindingOverride("warning", 0.7, "Check the learning rate, the number of steps and the scaling."),
    "partial": FindingOverride("warning", 0.9, "Check target_modules and which parameters require gradients."),
}
_RANDOM: Final[Verdicts] = {"random_like": FindingOverride()}
_OVERSIZED: Final[Verdicts] = {"oversized": FindingOverride()}


def observe_size(size: float | None) -> Observation | None:
    """An update far larger than usual, judged without its base by the size of freshly initialised weights."""
    if size is None or size <= USUAL_SIZE.value:
        return None
    large = size > LARGE_SIZE.value
    return Observation(
        f"The update is {size:.3g} times as large as freshly initialised weights of these shapes; ordinary updates are "
        "under 1.",
        {"update_size": size},
        severity="warning" if large else "info",
        confidence=0.6 if large else 0.5,
        action="Compare it with its base (gradience audit ADAPTER --base MODEL), and its outputs with the base's.",
        evidence=(cite(THE_FILE, f"norm of all updates over that of such weights: {size:.3g}"),),
    )


@WeightsRule(
    "SIZ215",
    severity="error",
    confidence=0.9,
    groups=("weights", "log"),
    verdicts=_OVERSIZED,
    signs=("oversized",),
    needs=(modules_analysed,),
    thresholds=(OVERSIZED, LARGE_SIZE, USUAL_SIZE),
)
def too_large(report: AuditReport) -> Observation | None:
    """an update as large as the weights

    with a base, the norm of all updates is over {oversized} times that of the weights; without a base, over
    {large_size} times that of freshly initialised weights of these shapes (a warning), or {usual_size} (info)

    Why: Such an update may replace what the base model knows. It is no proof: 7 of 39 small models had one and a
        lower held-out loss.
    Scope: any adapter; intruder dimensions (--intruders) are independent evidence; sizes without a base are a
        heuristic
    Action: Look at its held-out loss or its outputs before using it; if they are bad, train again with a lower
        learning rate or scaling.
    Verify: Load the adapter and compare its outputs with the base model's.
    Source: measured, 12 adapters of MiniLM-L6 and 2 of SmolLM2-135M -- ordinary updates have .012 to .044 of the
        base's norm, one whose training diverged 29 times
    Seen: https://github.com/Blaizzy/mlx-vlm/issues/841 -- updates scaled by alpha in place of alpha / r: the adapters
        cannot be used
    """
    base = report.base
    if base is None or base.relative_frobenius is None:
        return observe_size(report.summary.update_size)
    observation = _of_health(_OVERSIZED, report)
    if observation is None or not base.intruder_total:
        return observation
    says = f"{base.intruder_total} intruder dimensions in {base.intruder_modules} modules"
    witness = cite("against the base", says)
    return replace(observation, confidence=0.97, evidence=(*observation.evidence, witness))


def _of_health(verdicts: Verdicts, report: AuditReport) -> Observation | None:
    return observe_verdict(verdicts, report.health.verdict, report.health.reason)


@WeightsRule(
    "NUM201",
    severity="error",
    confidence=1.0,
    groups=("weights", "log"),
    verdicts=_BROKEN,
    signs=("not_finite", Sign("lost_weights", frozenset({"broken"}))),
)
def non_finite(report: AuditReport) -> Observation | None:
    """weights that are not finite

    a module's factors hold NaN or infinity, or the file holds no adapter tensor

    Why: One NaN in a factor makes every output of its module NaN.
    Scope: any adapter; a file without an adapter tensor is called broken too
    Action: Do not use this adapter; go back to the last good checkpoint.
    Verify: Load the adapter and compare its outputs with the base model's.
    Seen: https://github.com/kohya-ss/musubi-tuner/issues/26 -- all weights are NaN; trained in fp16
    """
    observation = _of_health(_BROKEN, report)
    if observation is None and (lacking := modules_analysed(report)) is not None:
        raise Unknown(lacking)  # a file without any adapter tensor was already found broken above
    return observation


@premise("tensors were read")
def _tensors(report: AuditReport) -> str | None:
    return None if report.ledger else "no tensor was read"


@WeightsRule("NUM209", severity="error", confidence=0.95, signs=("incomplete_file",), needs=(_tensors,))
def _lone_factor(report: AuditReport) -> Observation | None:
    """one factor without the other

    a module has lora_A without lora_B, or the reverse

    Why: One factor without the other makes no update: loaders skip the module or initialise the missing factor.
    Scope: LoRA factors in any format
    Action: Save or download the adapter again.
    Verify: Load it with PEFT, which names the keys that are missing.
    Source: arithmetic -- B A needs both factors
    """
    lone = [item for item in report.not_analysed if item.cause is LeftoverReason.FACTOR_MISSING]
    if not lone:
        return None
    return Observation(
        f"{len(lone)} modules have one factor only (first: {lone[0].name}): the file is incomplete.",
        {"modules": len(lone)},
        evidence=tuple(cite(item.name, item.reason) for item in lone[:_SHOWN]),
    )


@WeightsRule("SCL206", severity="warning", confidence=0.9, signs=("unlike_ranks",), needs=(modules_analysed,))
def _rank_mismatch(report: AuditReport) -> Observation | None:
    """another rank on disk than in the config

    a module's factors have another rank than the config gives it

    Why: The rank on disk is the true one; s is computed from it here.
    Scope: adapters with a config
    Action: Loaders that believe the config will refuse the file or scale it wrongly: correct r or rank_pattern.
    Verify: Load it with PEFT: a shape mismatch says the same.
    Seen: https://github.com/ymcui/Chinese-LLaMA-Alpaca/issues/302 -- lora_A of rank 8, and r is 64: a size mismatch
    """
    modules = report.modules
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


@WeightsRule(
    "SCL207",
    severity="warning",
    confidence=0.9,
)
def _unmatched(report: AuditReport) -> Observation | None:
    r"""patterns that match no module

    a key of rank_pattern or alpha_pattern matches no module in the file

    Why: PEFT ignores such a key in silence: its modules train at the global rank and alpha.
    Scope: PEFT's rank_pattern and alpha_pattern
    Action: A key must match the end of a module's path, beginning at a dot, without base_model.model.
    Verify: model.named_modules(): no name ends with the key.
    Source: peft/utils/other.py:get_pattern_key@0.21.2 -- re.match(rf"(.*\.)?({key})$", path)
    """
    patterns = report.unmatched_patterns
    if not patterns:
        # Asked only here and not a need: a pattern without a module is a fault also where no module was analysed
        if (lacking := _peft_lora(report)) is not None:
            raise Unknown(lacking)
        return None
    return Observation(
        f"{len(patterns)} keys of rank_pattern or alpha_pattern match no module: {few([*map(repr, patterns)])}.",
        {"patterns": patterns[:_KEPT]},
    )


@premise("PEFT's LoraConfig describes the adapter")
def _peft_lora(report: AuditReport) -> str | None:
    if (lacking := modules_analysed(report)) is not None:
        return lacking
    if report.format == "peft" and report.peft_type in {None, "LORA"}:
        return None
    return f"PEFT's LoraConfig does not describe it ({report.format}, {report.peft_type or 'no type'})"


@premise("enough measured modules of the rank that the condition names")
def _many_modules(report: AuditReport) -> str | None:
    able = sum(m.r >= RANDOM_RANK.value and m.stable_rank is not None for m in report.modules)
    if able >= RANDOM_MODULES.value:
        return None
    return f"needs {RANDOM_MODULES.value:g} measured modules of rank {RANDOM_RANK.value:g} or more; there are {able}"


@premise("an optimizer that leaves flat spectra was not used")
def _flatness_tells(report: AuditReport) -> str | None:
    name = report.optimizer
    return f"{name} orthogonalises its steps: lora_B is flat whatever it learnt" if is_flattening(name) else None


@WeightsRule(
    "TRN202",
    severity="error",
    confidence=0.95,
    groups=("weights", "log"),
    verdicts=_ZERO,
    signs=(
        "zero_update",
        Sign("no_update", frozenset({"untrained", "near_untrained"})),
        Sign("untrained", frozenset({"untrained"})),
    ),
    needs=(modules_analysed,),
    thresholds=(NEAR_UNTRAINED, HARDLY_TRAINED, HARDLY_MOVED),
)
def zero_update(report: AuditReport) -> Observation | None:
    """an update of zero

    the update of all modules is exactly zero; of some of them it is zero, or its norm under {hardly_trained} times
    the 90th percentile of the modules' (a warning); or, with a base, the norm of all is under {near_untrained}
    times that of the weights, without one at most {hardly_moved} times that of fresh weights of these shapes (a
    warning)

    Why: Such an adapter leaves the base model as it was.
    Scope: LoRA that starts at B = 0; warning where some modules only are zero, or where it is tiny beside its base
    Action: Check that the adapter's parameters were trained and saved.
    Verify: Load the adapter and compare its outputs with the base model's.
    Seen: public repositories -- adapters whose B is 0
    Source: LoRA, arXiv 2106.09685 -- B starts at zero, so an update of zero means that no step was taken
    """
    return _of_health(_ZERO, report)


@WeightsRule(
    "RND203",
    severity="warning",
    confidence=0.6,
    groups=("weights", "log"),
    verdicts=_RANDOM,
    signs=("random_like",),
    needs=(_many_modules, _flatness_tells),
    thresholds=(RANDOM_SHARE, RANDOM_RANK, RANDOM_MODULES, RANDOM_PART),
)
def random_like(report: AuditReport) -> Observation | None:
    """spectra like random factors'

    the ratio of the stable rank of the update, or of lora_B alone, to that of a random matrix of the same shape is
    at least {random_share} in {random_modules} or more modules of rank {random_rank} or more, which are
    {random_part} of them, or in their median if there are as many

    Why: lora_B starts at zero and takes its directions from few gradients, of which a few dominate. An optimizer
        that orthogonalises its steps gives all directions the same size: what it trained is not judged.
    Scope: LoRA of rank 4 and more, in four modules or more; lora_B alone only where it started at zero; not VeRA,
        whose projections are random by design. Shuffled labels leave no such trace: weights cannot show them
    Action: Check that this is the trained adapter, not an initialisation; where Muon or the like trained it, say so
        with --optimizer.
    Verify: Load the adapter and compare its outputs with the base model's.
    Seen: https://github.com/johntnanney/gradience -- an adapter of random weights
    """
    return _of_health(_RANDOM, report)


WEIGHTS_RULES: Final[tuple[Rule[AuditReport], ...]] = (
    non_finite,
    zero_update,
    random_like,
    too_large,
    under_used,
    _rank_mismatch,
    _unmatched,
    _lone_factor,
    *BASE_RULES,
)

ADAPTER_RULES: Final[tuple[Rule[Any], ...]] = (*WEIGHTS_RULES, *BETWEEN_RULES)
"""The rules that an audit applies: to the numbers, and to the files beside each other."""

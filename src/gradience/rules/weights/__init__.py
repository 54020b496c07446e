"""The verdict on an adapter as a whole, before any number about it, and the rules on an adapter beside its base.

The verdicts are: trained, untrained, broken, larger than its base, or like random numbers. The verdict is part of the
audit's report, and NUM201, TRN202, RND203 and SIZ215 turn it into findings.

The rules beside a base (a 16-bit merge that rounds the update away, a wrong base, intruder dimensions) need an audit
with `--base`. Without one they are listed as not judged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

from msgspec.structs import replace

from gradience.errors import few
from gradience.rules import Observation, Rule, Threshold, cite, premise
from gradience.rules.weights.ranks import percentile
from gradience.rules.weights.zeros import place_of
from gradience.schema import Severity, as_float
from gradience.schema.audit import AuditReport, Health, LeftoverReason, MergeSurvival, ModuleAudit, NotAnalysed
from gradience.schema.document import RuleGroup

RANDOM_SHARE = Threshold(
    "random_share",
    0.9,
    "stable rank over that of random numbers, of a module",
    "measured: no module above 0.80 in 14 trained adapters of others, of 444 modules; random numbers are at 0.9 to 1.1",
)
RANDOM_RANK = Threshold("random_rank", 4, "rank", "a judgement: below it the null leaves no room to tell")
RANDOM_MODULES = Threshold("random_modules", 4, "modules of that rank", "a judgement: one flat spectrum may be chance")
RANDOM_PART = Threshold("random_part", 0.4, "of these modules", "measured: 4 of 14 flat in a short training")
HARDLY_TRAINED = Threshold(
    "hardly_trained",
    1e-4,
    "norm of a module's update over the 90th percentile of the modules'",
    "measured: at least 0.12 in 14 trained adapters of others",
)
JUDGED_SHARE = Threshold("judged_share", 0.5, "share of the modules", "a judgement: fewer are not the adapter")
NEAR_UNTRAINED = Threshold(
    "near_untrained",
    1e-4,
    "norm of all updates over that of the base weights",
    "measured: ordinary adapters have 0.012 on",
)
HARDLY_MOVED = Threshold(
    "hardly_moved",
    1.5e-4,
    "norm of all updates over that of fresh weights of these shapes, at most",
    "measured: 36 trained adapters had 2e-4 to 0.72",
)
OVERSIZED = Threshold(
    "oversized",
    1.0,
    "norm of all updates over that of the base weights",
    "ordinary ones .012 to .044, a diverged one 29",
)
LARGE_SIZE = Threshold(
    "large_size",
    3.0,
    "norm of all updates over that of freshly initialised weights of these shapes",
    "36 trained adapters 2e-4 to 0.72, a random one 2, four diverged ones 6 to 31",
)
USUAL_SIZE = Threshold(
    "usual_size",
    1.2,
    "norm of all updates over that of fresh weights of these shapes, beyond which it is said",
    "measured: 36 trained adapters had at most 0.72",
)
TINY_RMS = Threshold(
    "tiny_rms",
    6e-5,
    "root mean square of an update's entries, largest module",
    "measured: trained adapters have 1e-4 to 3e-3; ten steps at 1e-4 give about 5e-5",
)
SURVIVAL_BFLOAT16 = Threshold(
    "survival_bfloat16", 3e-3, "norm(dW) / norm(W)", "measured on Gaussian W: 53 % of entries change, cosine .887"
)
SURVIVAL_FLOAT16 = Threshold(
    "survival_float16", 3e-4, "norm(dW) / norm(W)", "eight times finer mantissa: about ten times lower"
)
SURVIVAL_COSINE = Threshold(
    "survival_cosine", 0.9, "cosine of what a merge adds with dW", "about what survival_bfloat16 gives"
)
HELD_NEAR = Threshold(
    "held_near",
    0.25,
    "distance of <W, dW> / norm(dW)^2 from 1 or 2",
    "measured beside the own base: -0.03 to 0.11 in 19 adapters of 5 models",
)
HELD_ERRORS = Threshold(
    "held_errors", 3, "standard errors within that distance", "arithmetic: noise has it once in 370"
)
HELD_MODULES = Threshold("held_modules", 4, "modules of plain LoRA", "a judgement: fewer give no error to trust")
CODES_LOST = Threshold(
    "codes_lost",
    0.5,
    "share of the codes that the merge leaves as they are, median of the modules",
    "definition: most; a code changes if dW moves its weight by more than half a step",
)
_TIMES: Final = {1: "once", 2: "twice"}
_SURVIVAL: Final = {"bfloat16": SURVIVAL_BFLOAT16, "float16": SURVIVAL_FLOAT16}
_SHOWN: Final = 5  # modules in a message
_FLATTENING: Final = ("muon", "shampoo", "soap", "dion", "scion")
"""Parts of the names of optimizers whose steps are near orthogonal matrices, so that lora_B becomes flat."""
# Kinds whose projections are random numbers that training only scales
_RANDOM_BY_DESIGN: Final = frozenset({"vera"})
_OF_MODULES: Final = frozenset(LeftoverReason) - {
    *(LeftoverReason.TRAINING_ONLY, LeftoverReason.WHOLE_WEIGHTS, LeftoverReason.UNKNOWN),
    LeftoverReason.TYPE_NOT_ANALYSED,
}
"""The causes by which a module of the adapter, and not another tensor of its file, is left out."""
_HALF: Final = frozenset({"BF16", "F16"})  # dtypes as safetensors names them


class FindingOverride(NamedTuple):
    """What differs from the rule's usual severity, confidence or action in the finding that reports one verdict."""

    severity: Severity | None = None
    confidence: float | None = None
    action: str | None = None


Verdicts: TypeAlias = Mapping[str, FindingOverride]
"""The verdicts of `health` that a rule reports, each with what differs there from the rule's usual finding."""


@dataclass(frozen=True, kw_only=True)
class WeightsRule(Rule[AuditReport]):
    """A rule that `gradience audit` applies to an adapter's weights.

    Attributes:
        verdicts: the verdicts on the adapter as a whole that it reports, in the file or in a log's audit.
    """

    groups: tuple[RuleGroup, ...] = ("weights",)
    verdicts: Verdicts = field(default_factory=dict)


@premise("modules were analysed")
def modules_analysed(report: AuditReport) -> str | None:
    """Need of a rule on modules: the reason why no module was analysed, or None."""
    return None if report.modules else f"no module was analysed: {report.health.reason}"


def health(
    modules: Sequence[ModuleAudit],
    *,
    peft_type: str | None = None,
    not_analysed: Sequence[NotAnalysed] = (),
    relative_frobenius: float | None = None,
    update_size: float | None = None,
    optimizer: str | None = None,
) -> Health:
    """The verdict on the adapter as a whole, with its reason, which names the modules that the verdict rests on.

    Args:
        modules: the analysed modules.
        peft_type: the config's peft_type; used if no module was analysed.
        not_analysed: what was not analysed.
        relative_frobenius: norm of the whole update over that of the base weights, if they were compared.
        update_size: the same over freshly initialised weights of these shapes, used if no base was compared.
        optimizer: the name of the optimizer that trained it, if it is known.
    """
    if not modules:
        return _without_modules(peft_type, not_analysed)
    unknown = [m for m in modules if m.state == "not_known"]
    if len(unknown) == len(modules):
        return Health(verdict="not_analysed", reason=unknown[0].note or "no update is known")
    known = [m for m in modules if m.state != "not_known"]
    left = sorted({m.name for m in unknown} | {item.name for item in not_analysed if item.cause in _OF_MODULES})
    # Asked before the share: one module that is not finite is enough, however few could be analysed
    if (broken := _broken(known)) is not None:
        return broken
    n, total = len(known), len(known) + len(left)
    if n < JUDGED_SHARE.value * total:
        reasons = [*(m.note for m in unknown if m.note), *(item.reason for item in not_analysed), "no update is known"]
        return Health(verdict="not_analysed", reason=f"only {n} of {total} modules could be analysed: {reasons[0]}")
    verdict = (
        _of_states(known)
        or _of_size(relative_frobenius)
        or _of_spectra(known, optimizer)
        or (None if relative_frobenius is not None else _of_fresh_size(update_size))
        or Health(verdict="trained", reason=f"{_all(n)} {'carries' if n == 1 else 'carry'} a finite, non-zero update")
    )
    return replace(verdict, reason=f"{verdict.reason} ({len(left)} more are not known)") if left else verdict


def _of_size(relative_frobenius: float | None) -> Health | None:
    if relative_frobenius is not None and relative_frobenius < NEAR_UNTRAINED.value:
        return Health(
            verdict="near_untrained",
            reason=f"the update is {relative_frobenius:.1e} of the base weights' norm, under {NEAR_UNTRAINED.value:g}",
        )
    if relative_frobenius is not None and relative_frobenius > OVERSIZED.value:
        return Health(
            verdict="oversized",
            reason=f"the update has {relative_frobenius:.3g} times the norm of the weights of these modules",
        )
    return None


def _of_fresh_size(size: float | None) -> Health | None:
    if size is None or size > HARDLY_MOVED.value:
        return None
    return Health(
        verdict="near_untrained",
        reason=f"the update is {size:.1e} of freshly initialised weights' norm, at most {HARDLY_MOVED.value:g}",
    )


def is_flattening(optimizer: str | None) -> bool:
    """Whether an optimizer of this name leaves flat spectra whatever was learnt."""
    return optimizer is not None and any(part in optimizer.lower() for part in _FLATTENING)


def _of_spectra(modules: Sequence[ModuleAudit], optimizer: str | None) -> Health | None:
    if is_flattening(optimizer):
        return None
    for share_of, what in ((_of_product, "the update"), (_of_second_factor, "lora_B")):
        shares = {m.name: share for m in modules if m.r >= RANDOM_RANK.value and (share := share_of(m)) is not None}
        flat = [name for name, share in shares.items() if share >= RANDOM_SHARE.value]
        some = len(flat) >= max(RANDOM_MODULES.value, RANDOM_PART.value * len(shares))
        # In small modules the spectrum of random numbers varies: the median tells what not every one of them shows.
        most = len(shares) >= RANDOM_MODULES.value and percentile([*shares.values()], 0.5) >= RANDOM_SHARE.value
        if some or most:
            return Health(
                verdict="random_like",
                reason=f"{what} is as flat as random numbers of its shape in {len(flat)} of {len(shares)} modules "
                f"(first: {flat[0]}): random, or trained with Muon or another orthogonalising optimizer",
            )
    return None


def _broken(modules: Sequence[ModuleAudit]) -> Health | None:
    broken = [m.name for m in modules if m.state == "non_finite"]
    if not broken:
        return None
    return Health(
        verdict="broken",
        reason=f"{len(broken)} of {len(modules)} modules hold NaN or infinite weights (first: {broken[0]})",
    )


def _of_states(modules: Sequence[ModuleAudit]) -> Health | None:
    n = len(modules)
    zero = [m.name for m in modules if m.state == "zero"]
    if len(zero) == n:
        return Health(verdict="untrained", reason=f"the update of {_all(n)} is exactly zero")
    if zero:
        where = place_of(zero, [m.name for m in modules]) or f"first: {zero[0]}"
        return Health(verdict="partial", reason=f"{len(zero)} of {n} modules have a zero update ({where})")
    norms = [as_float(m.frobenius_norm or 0.0) for m in modules]
    bar = HARDLY_TRAINED.value * percentile(norms, 0.9)
    small = [m.name for m, norm in zip(modules, norms, strict=True) if norm < bar]
    if not small:
        return None
    return Health(
        verdict="partial",
        reason=f"the update of {len(small)} of {n} modules is under {HARDLY_TRAINED.value:g} of the larger ones' "
        f"({place_of(small, [m.name for m in modules]) or f'first: {small[0]}'})",
    )


def _all(n: int) -> str:
    return "the only module" if n == 1 else f"all {n} modules"


def _without_modules(peft_type: str | None, not_analysed: Sequence[NotAnalysed]) -> Health:
    if not_analysed:
        first = not_analysed[0]
        more = f" and {len(not_analysed) - 1} more" if len(not_analysed) > 1 else ""
        where = "" if first.name == "*" else f" ({first.name}{more})"
        return Health(verdict="not_analysed", reason=f"{first.reason}{where}")
    if peft_type not in {None, "LORA"}:
        return Health(verdict="not_analysed", reason=f"peft_type {peft_type} is recognised, not analysed")
    return Health(verdict="broken", reason="the file holds no adapter tensor")


def typical_entry(module: ModuleAudit) -> float:
    """Root mean square of an update's entries; 0 if its norm is not a number."""
    entries = math.prod(module.shape)
    norm = module.frobenius_norm
    return norm / math.sqrt(entries) if isinstance(norm, float) and entries > 0 else 0.0


def suggests_ranks(verdict: str) -> bool:
    """Whether an adapter with this verdict may get a suggested rank: it must hold what training learnt."""
    return verdict in {"trained", "partial"}


def _of_product(module: ModuleAudit) -> float | None:
    if module.stable_rank is None or not module.null_stable_rank or module.kind in _RANDOM_BY_DESIGN:
        return None
    return module.stable_rank / module.null_stable_rank


def _of_second_factor(module: ModuleAudit) -> float | None:
    """lora_B's stable rank over that of random numbers; 0 if far flatter, since it is orthonormal then, not random."""
    own, null = module.b_stable_rank, module.b_null_stable_rank
    if own is None or not null:
        return None
    return own / null if own < (null + module.r) / 2 else 0.0


def words_of(verdict: str) -> str:
    """A verdict in words that say no more than weights can show."""
    return "as large as the weights" if verdict == "oversized" else verdict.replace("_", "-")


THE_FILE: Final = "the weights file"  # as the source of an observation


def observe_verdict(verdicts: Verdicts, verdict: str, reason: str, *, source: str = THE_FILE) -> Observation | None:
    """The observation that a rule of these verdicts makes of one; None if it is good or another rule's."""
    if verdict not in verdicts:
        return None
    return Observation(
        f"{words_of(verdict).capitalize()}: {reason}.",
        **verdicts[verdict]._asdict(),
        evidence=(cite(source, reason),),
    )


def at_risk(module: ModuleAudit) -> bool:
    """Whether a 16-bit merge would lose much of this update, by the update's size or by the cosine of what is added."""
    return _loss(module) is not None


class _Loss(NamedTuple):
    cosine: float
    survival: MergeSurvival


def _loss(module: ModuleAudit) -> _Loss | None:
    survival = module.base.survival if module.base is not None else None
    size = module.relative_frobenius
    if survival is None or survival.cosine is None or not isinstance(size, float):
        return None  # no cosine: the update is zero, and nothing can be lost
    small = 0.0 < size < _SURVIVAL[survival.dtype].value
    return _Loss(survival.cosine, survival) if small or survival.cosine < SURVIVAL_COSINE.value else None


@premise("a base model was given")
def _base(report: AuditReport) -> str | None:
    return None if report.base is not None else "no base model was given (--base)"


@WeightsRule(
    "MRG210",
    severity="warning",
    confidence=0.9,
    groups=("weights_and_base",),
    needs=(_base,),
    thresholds=(SURVIVAL_BFLOAT16, SURVIVAL_FLOAT16, SURVIVAL_COSINE),
)
def _merge_loss(report: AuditReport) -> Observation | None:
    """a 16-bit merge that loses the update

    norm(dW) / norm(W) under {survival_bfloat16} for bfloat16 ({survival_float16} for float16), or what the merge
    adds has a cosine under {survival_cosine} with dW

    Why: An update smaller than half a unit in the last place of a weight is rounded away.
    Scope: merges into 16-bit weights; info where the base is stored in float32
    Action: Serve the adapter unmerged, or merge in float32 and keep float32.
    Verify: Compare the outputs of the merged and the unmerged model.
    Seen: https://github.com/ml-explore/mlx-examples/issues/832 -- after fusing in 16 bit the model is the base
        again
    Source: measured on gaussian weights -- in bfloat16 norm(dW)/norm(W) of 3e-3 keeps cosine .89, 1e-3 keeps .63,
        1e-4 keeps .21
    Source: this adapter and base -- computed entry by entry, rounding as the merge does
    """
    modules = report.modules
    risky = [(loss, module) for module in modules if (loss := _loss(module)) is not None]
    if not risky:
        return None
    (cosine, survival), worst = min(risky, key=lambda pair: pair[0].cosine)
    bases = [module.base for _, module in risky if module.base is not None]
    served = any(base.dtype in _HALF or base.codes is not None for base in bases)
    return Observation(
        f"Merging into {survival.dtype} would lose part of the update in {len(risky)} of {len(modules)} modules: in "
        f"{worst.name} it changes {survival.changed:.0%} of its entries, and what the merge adds has cosine "
        f"{cosine:.2f} with the update.",
        {"modules": len(risky), "worst": worst.name},
        severity=None if served else "info",  # a float32 base may be merged, and kept, in float32
    )


@WeightsRule("BAS211", severity="error", confidence=0.95, groups=("weights_and_base",), needs=(_base,))
def _not_compared(report: AuditReport) -> Observation | None:
    """a base that does not fit

    modules have no weight of their name and shape in the base; an error where none has

    Why: A module without its weight has no UDR; the numbers of the other modules are valid.
    Scope: audits with --base; warning where some modules could be compared
    Action: Give the base model this adapter was trained on; see base_model in the config.
    Verify: Load the adapter on that base with PEFT.
    Source: arithmetic -- B A of another shape cannot be added to W
    """
    base = report.base
    missed = [] if base is None else [item for item in base.not_compared if item.cause != "unread_codes"]
    if base is None or not missed:
        return None
    by_reason = {item.reason: [m.name for m in missed if m.reason == item.reason] for item in missed}
    named = few([f"{few(names, 1)}: {reason}" for reason, names in by_reason.items()], _SHOWN, "; ")
    damaged = any(item.cause == "damaged_codes" for item in missed)
    nothing, known = base.compared == 0, {m.name for m in report.modules}
    total = len(known | {item.name for item in missed})
    return Observation(
        f"{'None' if nothing else f'Only {base.compared}'} of {total} modules could be compared "
        f"with the base: {named}.",
        {"compared": base.compared, "not_compared": len(missed)},
        severity=None if nothing else "warning",
        action="Get the base's files again, whole: what is stored beside its codes does not fit them."
        if damaged
        else None
        if nothing
        else "See why each of these has no weight in the base; the numbers of the other modules are valid.",
        evidence=tuple(cite(item.name, item.reason) for item in missed[:_SHOWN]),
    )


@WeightsRule("BAS217", severity="info", confidence=0.95, groups=("weights_and_base",), needs=(_base,))
def _unread(report: AuditReport) -> Observation | None:
    """a base in codes of an unknown format

    a module's weight is no float, and its tensors are those of no format that is read here

    Why: Codes say nothing without the rule that made them. The other numbers of the audit are valid.
    Scope: audits with --base
    Action: Compare with the same model in 16 bits, or in a format that docs/audit.md lists.
    Verify: Look at quantization_config in the base's config.json.
    Source: arithmetic -- a base that cannot be read cannot be compared
    """
    base = report.base
    unread = [] if base is None else [item for item in base.not_compared if item.cause == "unread_codes"]
    if not unread:
        return None
    reasons = few(list(dict.fromkeys(item.reason for item in unread)), _SHOWN, "; ")
    return Observation(
        f"{few([item.name for item in unread], 1)} not compared with the base, whose weights are {reasons}.",
        {"modules": len(unread)},
        evidence=tuple(cite(item.name, item.reason) for item in unread[:_SHOWN]),
    )


@premise("the base's weights are in codes that are read here")
def _in_codes(report: AuditReport) -> str | None:
    if report.base is not None and report.base.in_codes_cosine_median is not None:
        return None
    return "no weight of the base is in codes"


@WeightsRule(
    "BAS218",
    severity="info",
    confidence=0.85,
    groups=("weights_and_base",),
    needs=(_base, _in_codes),
    thresholds=(CODES_LOST,),
)
def _lost_in_codes(report: AuditReport) -> Observation | None:
    """a merge back into the base's codes that loses the update

    more than {codes_lost} of the codes stay as they are if W + dW is rounded to them

    Why: A code changes only if the update moves its weight by more than half a step of the grid.
    Scope: audits with --base on a base in codes. New scales move all weights a little, and restore no lost change
    Action: Serve the adapter unmerged on this base, or merge it into 16-bit weights and serve these.
    Verify: Compare the outputs of the merged and the unmerged model.
    Source: this adapter and base -- computed code by code, with the base's scales and zero points
    Source: peft/tuners/lora/bnb.py:Linear4bit.merge@0.21.2 -- warns that a merge into 4 bits rounds
    """
    base = report.base
    if base is None or base.in_codes_changed_median is None or base.in_codes_cosine_median is None:
        return None
    lost = 1.0 - base.in_codes_changed_median
    if lost <= CODES_LOST.value:
        return None
    return Observation(
        f"Merged back into the base's codes ({few(list(base.codes), _SHOWN)}) this update would leave {lost:.0%} of "
        f"them as they are: what is added has cosine {base.in_codes_cosine_median:.2f} with it (medians).",
        {"lost": lost, "cosine": base.in_codes_cosine_median},
    )


@premise("enough modules of plain LoRA were compared with the base")
def _enough_plain(report: AuditReport) -> str | None:
    able = sum(m.base is not None and m.base.held is not None for m in report.modules)
    if able >= HELD_MODULES.value:
        return None
    return f"needs {HELD_MODULES.value:g} modules of plain LoRA beside their base's weights; there are {able}"


@WeightsRule(
    "BAS216",
    severity="warning",
    confidence=0.85,
    groups=("weights_and_base",),
    needs=(_base, _enough_plain),
    thresholds=(HELD_NEAR, HELD_ERRORS, HELD_MODULES),
)
def _held(report: AuditReport) -> Observation | None:
    """a base that holds the adapter already

    sum <W, dW> / sum norm(dW)^2 is within {held_near} of 1 or 2, and {held_errors} of its standard errors are no
    more than that; it takes {held_modules} modules of plain LoRA

    Why: A trained update hardly resembles the weights it was trained beside. Weights that have as much of it as the
        update itself got it by a merge.
    Scope: audits with --base. A base with an earlier state of the adapter, or one much like it, looks the same
    Action: Give the base that the adapter was trained on; do not merge or load the adapter on this one again.
    Verify: gradience verify with the original base: it says how often the model holds the update.
    Seen: https://github.com/huggingface/peft/pull/1355 -- merging twice adds the update twice
    Source: measured, 19 adapters of 5 models -- beside the base that they were trained on it is -.03 to .11; merged
        into it once more 1 is added
    """
    base = report.base
    if base is None or base.held is None or base.held_error is None:
        return None
    near, times = HELD_NEAR.value, round(base.held)
    sure = HELD_ERRORS.value * base.held_error <= near
    if not (sure and times in _TIMES and abs(base.held - times) <= near):
        return None
    return Observation(
        f"The base's weights hold this update {_TIMES[times]} already (<W, dW> / norm(dW)^2 is {base.held:.2f}): "
        "merged or applied to them it counts once more.",
        {"held": base.held},
        evidence=(cite("against the base", f"{base.held:.3f}, standard error {base.held_error:.3f}"),),
    )


BASE_RULES: Final[tuple[Rule[AuditReport], ...]] = (
    _merge_loss,
    _not_compared,
    _unread,
    _lost_in_codes,
    _held,
)

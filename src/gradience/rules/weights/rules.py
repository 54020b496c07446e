"""Which of the checks on an adapter's weights an audit could not run, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from gradience.rules.thresholds import (
    ALPHA_DEFAULT,
    LOW_UTILIZATION,
    MOSTLY_OTHER,
    NEAR_UNTRAINED,
    RANDOM_MODULES,
    RANDOM_RANK,
    RANDOM_SHARE,
    SURVIVAL_BFLOAT16,
    SURVIVAL_COSINE,
    SURVIVAL_FLOAT16,
)
from gradience.rules.weights import table
from gradience.rules.weights.ranks import percentile
from gradience.rules.weights.table import ADAPTER_CHECKS, INTRUDER, MERGE_LOSS, NOT_COMPARED, AdapterCheck
from gradience.schema.audit import AuditReport, BaseReport, Health, LedgerEntry, ModuleAudit, NotAnalysed
from gradience.schema.findings import Evidence, Finding, NotRun
from gradience.schema.scalars import Severity


def _modules(report: AuditReport) -> str | None:
    return None if report.modules else f"no module was analysed: {report.health.reason}"


def _tensors(report: AuditReport) -> str | None:
    return None if report.ledger else "no tensor was read"


def _measured(report: AuditReport) -> str | None:
    if report.summary.utilization_mean is None:
        return "no finite, non-zero update to measure"
    return None


def _many(report: AuditReport) -> str | None:
    able = sum(1 for m in report.modules if m.r >= RANDOM_RANK.value and m.stable_rank is not None)
    if able >= RANDOM_MODULES.value:
        return None
    return f"needs {RANDOM_MODULES.value:g} measured modules of rank {RANDOM_RANK.value:g} or more; there are {able}"


def _peft(report: AuditReport) -> str | None:
    if (lacking := _modules(report)) is not None:
        return lacking
    fits = report.format == "peft" and report.peft_type in {None, "LORA"}
    return (
        None if fits else f"PEFT's LoraConfig does not describe it ({report.format}, {report.peft_type or 'no type'})"
    )


def _base(report: AuditReport) -> str | None:
    return None if report.base is not None else "no base model was given (--base)"


def _intruders(report: AuditReport) -> str | None:
    if report.base is not None and report.base.intruder_total is not None:
        return None
    return "intruder dimensions were not counted ('gradience audit --base BASE --intruders')"


_LACKS: Final[dict[str, Callable[[AuditReport], str | None]]] = {
    "NUM201": _modules,
    "TRN202": _modules,
    "RND203": _many,
    "UTL204": _measured,
    "LED205": _tensors,
    "SCL206": _modules,
    "SCL207": _peft,
    "SCL208": _peft,
    "NUM209": _tensors,
    "MRG210": _base,
    "BAS211": _base,
    "INT212": _intruders,
}


def adapter_checks_not_run(report: AuditReport) -> Iterator[NotRun]:
    """Yield the checks that the audit could not run and did not report, each with its reason."""
    found = {finding.id for finding in report.findings}
    for check in ADAPTER_CHECKS:
        reason = _LACKS[check.id](report)
        if reason is not None and check.id not in found:
            yield NotRun(id=check.id, reason=reason)


def health(
    modules: Sequence[ModuleAudit],
    *,
    peft_type: str | None = None,
    not_analysed: Sequence[NotAnalysed] = (),
    relative_frobenius: float | None = None,
) -> Health:
    """Return the verdict on the adapter as a whole, with its reason.

    `relative_frobenius` is that of the whole adapter against its base, where it was compared.
    """
    n = len(modules)
    if not modules:
        return _without_modules(peft_type, not_analysed)
    if (unwell := _of_states(modules)) is not None:
        return unwell
    if relative_frobenius is not None and relative_frobenius < NEAR_UNTRAINED.value:
        return Health(
            verdict="near_untrained",
            reason=f"the update is {relative_frobenius:.1e} of the base weights' norm, under {NEAR_UNTRAINED.value:g}",
        )
    if _random_like(modules):
        return Health(
            verdict="random_like", reason="the spectra are as flat as those of random factors of the same shapes"
        )
    return Health(verdict="trained", reason=f"{_all(n)} {'carries' if n == 1 else 'carry'} a finite, non-zero update")


def _of_states(modules: Sequence[ModuleAudit]) -> Health | None:
    n = len(modules)
    broken = [m.name for m in modules if m.state == "non_finite"]
    if broken:
        return Health(
            verdict="broken", reason=f"{len(broken)} of {n} modules hold NaN or infinite weights (first: {broken[0]})"
        )
    zero = [m.name for m in modules if m.state == "zero"]
    if len(zero) == n:
        return Health(verdict="untrained", reason=f"the update of {_all(n)} is exactly zero")
    if zero:
        return Health(verdict="partial", reason=f"{len(zero)} of {n} modules have a zero update (first: {zero[0]})")
    return None


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


def _random_like(modules: Sequence[ModuleAudit]) -> bool:
    shares = [
        m.stable_rank / m.null_stable_rank
        for m in modules
        if m.stable_rank is not None and m.null_stable_rank and m.r >= RANDOM_RANK.value
    ]
    return len(shares) >= RANDOM_MODULES.value and percentile(shares, 0.5) >= RANDOM_SHARE.value


def adapter_findings(report: AuditReport, *, alpha: float | None = None, r: int | None = None) -> list[Finding]:
    """Return everything worth knowing about the weights, most severe first.

    `alpha` and `r` are the config's own, before any pattern.
    """
    candidates = (
        finding_of_health(report.health.verdict, report.health.reason),
        _lonely(report.not_analysed),
        low_utilization(report.summary.utilization_mean),
        _rank_mismatch(report.modules),
        _unmatched(report.unmatched_patterns),
        _default_alpha(report.modules, alpha, r),
        _mostly_other(report.ledger) if report.modules else None,
    )
    return [finding for finding in candidates if finding is not None]


class _Verdict(NamedTuple):
    check: AdapterCheck
    severity: Severity | None = None
    confidence: float | None = None
    action: str | None = None


_OF_HEALTH: Final = {
    "broken": _Verdict(table.NON_FINITE),
    "untrained": _Verdict(table.ZERO_UPDATE),
    "near_untrained": _Verdict(
        table.ZERO_UPDATE, "warning", 0.7, "Check the learning rate, the number of steps and the scaling."
    ),
    "partial": _Verdict(
        table.ZERO_UPDATE, "warning", 0.9, "Check target_modules and which parameters require gradients."
    ),
    "random_like": _Verdict(table.RANDOM_LIKE),
}


def finding_of_health(verdict: str, reason: str) -> Finding | None:
    """Return the finding on a verdict of `health`, or None where it is no cause for one."""
    if verdict not in _OF_HEALTH:
        return None
    check, severity, confidence, action = _OF_HEALTH[verdict]
    return check.finding(
        f"{verdict.replace('_', '-').capitalize()}: {reason}.",
        seen=(Evidence(source="the weights file", says=reason),),
        severity=severity,
        confidence=confidence,
        action=action,
    )


def _lonely(not_analysed: Iterable[NotAnalysed]) -> Finding | None:
    lonely = [item for item in not_analysed if "without its partner" in item.reason]
    if not lonely:
        return None
    return table.ONE_FACTOR.finding(
        f"{len(lonely)} modules have one factor only (first: {lonely[0].name}): the file is incomplete.",
        seen=tuple(Evidence(source=item.name, says=item.reason) for item in lonely[:3]),
    )


def low_utilization(mean: float | None) -> Finding | None:
    """Return the finding on a mean utilization under the convention, or None."""
    bar = LOW_UTILIZATION.value
    if mean is None or mean >= bar:
        return None
    return table.LOW_RANK.finding(
        f"Mean utilization is {mean:.1%}, under {bar:.0%}: the update is low-dimensional.",
        {"utilization_mean": mean, "threshold": bar},
    )


def _rank_mismatch(modules: Sequence[ModuleAudit]) -> Finding | None:
    wrong = [m for m in modules if m.config_r is not None]
    if not wrong:
        return None
    first = wrong[0]
    return table.OTHER_RANK.finding(
        f"{len(wrong)} of {len(modules)} modules have another rank in the file than in the config "
        f"(first: {first.name}, r={first.r} on disk, {first.config_r} by the config).",
        {"modules": len(wrong)},
        seen=(Evidence(source="the weights file", says=f"{first.name}: factors of rank {first.r}"),),
    )


def _unmatched(patterns: Sequence[str]) -> Finding | None:
    if not patterns:
        return None
    named = ", ".join(repr(p) for p in patterns[:3]) + (", ..." if len(patterns) > 3 else "")
    return table.UNMATCHED.finding(
        f"{len(patterns)} keys of rank_pattern or alpha_pattern match no module: {named}.",
        {"patterns": list(patterns[:20])},
    )


def _default_alpha(modules: Sequence[ModuleAudit], alpha: float | None, r: int | None) -> Finding | None:
    default = ALPHA_DEFAULT.value
    at_default = [m for m in modules if m.alpha == default and m.alpha_pattern is None]
    if alpha != default or r is None or r <= default or not at_default:
        return None
    size = at_default[0].scaling
    return table.DEFAULT_ALPHA.finding(
        f"lora_alpha is at PEFT's default of 8 with r={r}: the update is scaled by s={float(size):g}.",
        {"lora_alpha": 8, "r": r, "scaling": size},
    )


def _mostly_other(ledger: Sequence[LedgerEntry]) -> Finding | None:
    other = [entry for entry in ledger if entry.role not in {"lora_pair", "magnitude", "scale"}]
    share = sum(entry.share for entry in other)
    if share < MOSTLY_OTHER.value:
        return None
    names = " and ".join(entry.role.replace("_", " ") for entry in sorted(other, key=lambda e: -e.bytes)[:2])
    size = sum(entry.bytes for entry in other)
    return table.MOSTLY_OTHER.finding(
        f"{share:.0%} of this file is {names}, not LoRA.",
        seen=(Evidence(source="the weights file", says=f"{size} bytes are no LoRA factor"),),
    )


_SURVIVAL: Final = {"bfloat16": SURVIVAL_BFLOAT16, "float16": SURVIVAL_FLOAT16}
_NAMED: Final = 5
_HALF: Final = frozenset({"BF16", "F16"})


def at_risk(module: ModuleAudit) -> bool:
    """Return whether a 16-bit merge would lose a good part of this update."""
    survival = module.base.survival if module.base is not None else None
    if survival is None or not isinstance(module.relative_frobenius, float):
        return False
    small = 0.0 < module.relative_frobenius < _SURVIVAL[survival.dtype].value
    return small or (survival.cosine is not None and survival.cosine < SURVIVAL_COSINE.value)


def base_findings(report: AuditReport) -> list[Finding]:
    """Return the findings on an adapter that was compared with its base; none where it was not."""
    if report.base is None:
        return []
    candidates = (
        _not_compared(report.base, len(report.modules)),
        _merge_loss(report.modules),
        _base_rules_intruders(report.modules, report.base),
    )
    return [finding for finding in candidates if finding is not None]


def _not_compared(base: BaseReport, n: int) -> Finding | None:
    if not base.not_compared:
        return None
    named = "; ".join(f"{item.name}: {item.reason}" for item in base.not_compared[:_NAMED])
    more = f"; and {len(base.not_compared) - _NAMED} more" if len(base.not_compared) > _NAMED else ""
    nothing = base.compared == 0
    return NOT_COMPARED.finding(
        f"{'None' if nothing else f'Only {base.compared}'} of {n} modules could be compared with the base: "
        f"{named}{more}.",
        {"compared": base.compared, "not_compared": len(base.not_compared)},
        seen=tuple(Evidence(source=item.name, says=item.reason) for item in base.not_compared[:_NAMED]),
        severity=None if nothing else "warning",
        action=None if nothing else "See why each of these has no weight in the base; the others' numbers stand.",
    )


def _merge_loss(modules: Sequence[ModuleAudit]) -> Finding | None:
    risky = [m for m in modules if at_risk(m)]
    if not risky:
        return None
    worst = min(risky, key=_cosine)
    survival = worst.base.survival if worst.base is not None else None
    if survival is None:
        return None
    served = any(m.base is not None and m.base.dtype in _HALF for m in risky)
    return MERGE_LOSS.finding(
        f"Merging into {survival.dtype} would lose part of the update in {len(risky)} of {len(modules)} "
        f"modules: in {worst.name} it changes {survival.changed:.0%} of the entries, and what it adds has cosine "
        f"{_cosine(worst):.2f} with the update.",
        {"modules": len(risky), "worst": worst.name},
        severity=None if served else "info",  # a float32 base may be merged, and kept, in float32
    )


def _cosine(module: ModuleAudit) -> float:
    survival = module.base.survival if module.base is not None else None
    return 1.0 if survival is None or survival.cosine is None else survival.cosine


def _base_rules_intruders(modules: Sequence[ModuleAudit], base: BaseReport) -> Finding | None:
    if not base.intruder_total:
        return None
    first = max(modules, key=_intruder_count)
    found = first.base.intruders if first.base is not None else None
    if found is None:
        return None
    return INTRUDER.finding(
        f"{base.intruder_total} intruder dimensions in {base.intruder_modules} modules "
        f"(k={found.k}, eps={found.eps:g}); most in {first.name}: {found.count}.",
        {"total": base.intruder_total, "k": found.k, "eps": found.eps},
    )


def _intruder_count(module: ModuleAudit) -> int:
    found = module.base.intruders if module.base is not None else None
    return found.count if found is not None else -1

"""What the weights say about the adapter: its health, and findings with their grounds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from gradience.policy.ranks import percentile
from gradience.schema.audit import AuditReport, Health, LedgerEntry, ModuleAudit, NotAnalysed
from gradience.schema.findings import Evidence, Finding

__all__ = ["LOW_UTILIZATION", "NEAR_UNTRAINED", "adapter_findings", "finding_of_health", "health", "low_utilization"]

LOW_UTILIZATION: Final = 0.25  # stable rank / r; a convention of the project's first document
RANDOM_SHARE: Final = 0.9  # of the null's stable rank; a judgement, from random factors measured at d = 4096
RANDOM_LEAST_RANK: Final = 4  # below it the null leaves no room to tell
RANDOM_LEAST_MODULES: Final = 4  # one flat spectrum may be chance
NEAR_UNTRAINED: Final = 1e-4  # Frobenius norm of all updates over that of all base weights; a judgement
MOSTLY_OTHER: Final = 0.5  # of the file's bytes
_ALPHA_DEFAULT: Final = 8.0  # PEFT's LoraConfig


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
    if relative_frobenius is not None and relative_frobenius < NEAR_UNTRAINED:
        return Health(
            verdict="near_untrained",
            reason=f"the update is {relative_frobenius:.1e} of the base weights' norm, under {NEAR_UNTRAINED:g}",
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
        if m.stable_rank is not None and m.null_stable_rank and m.r >= RANDOM_LEAST_RANK
    ]
    return len(shares) >= RANDOM_LEAST_MODULES and percentile(shares, 0.5) >= RANDOM_SHARE


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


_OF_HEALTH: Final = {
    "broken": ("NUM201", "error", 1.0, "Do not use this adapter; go back to the last good checkpoint."),
    "untrained": ("TRN202", "error", 0.95, "Check that the adapter's parameters were trained and saved."),
    "near_untrained": ("TRN202", "warning", 0.7, "Check the learning rate, the number of steps and the scaling."),
    "partial": ("TRN202", "warning", 0.9, "Check target_modules and which parameters require gradients."),
    "random_like": ("RND203", "warning", 0.6, "Check that this is the trained adapter, not an initialisation."),
}


def finding_of_health(verdict: str, reason: str) -> Finding | None:
    """Return the finding on a verdict of `health`, or None where it is no cause for one."""
    if verdict not in _OF_HEALTH:
        return None
    rule, severity, confidence, action = _OF_HEALTH[verdict]
    return Finding(
        id=rule,
        severity=severity,  # type: ignore[arg-type]  # the table's strings are severities
        message=f"{verdict.replace('_', '-').capitalize()}: {reason}.",
        action=action,
        confidence=confidence,
        verify="Load the adapter and compare its outputs with the base model's.",
        evidence=[Evidence(source="the weights file", says=reason)],
    )


def _lonely(not_analysed: Iterable[NotAnalysed]) -> Finding | None:
    lonely = [item for item in not_analysed if "without its partner" in item.reason]
    if not lonely:
        return None
    return Finding(
        id="NUM209",
        severity="error",
        message=f"{len(lonely)} modules have one factor only (first: {lonely[0].name}): the file is incomplete.",
        action="Save or download the adapter again.",
        confidence=0.95,
        evidence=[Evidence(source=item.name, says=item.reason) for item in lonely[:3]],
    )


def low_utilization(mean: float | None) -> Finding | None:
    """Return the finding on a mean utilization under the convention, or None."""
    if mean is None or mean >= LOW_UTILIZATION:
        return None
    return Finding(
        id="UTL204",
        severity="info",
        message=f"Mean utilization is {mean:.1%}, under {LOW_UTILIZATION:.0%}: the update is low-dimensional.",
        action="Consider compressing the rank after training; see the suggested ranks and their error.",
        rationale="Stable rank grows far slower than r, so a low value is normal at r >= 16; "
        "it speaks of this update's weights, not of the rank to train with.",
        confidence=0.4,
        scope="trained LoRA adapters",
        verify="Evaluate the compressed adapter on held-out data.",
        evidence=[
            Evidence(source="project convention", says="utilization under 25 %: likely over-provisioned"),
            Evidence(source="SSRN 6580122 (abstract)", says="stable rank grows as about r^0.23 to r^0.30"),
        ],
        values={"utilization_mean": mean, "threshold": LOW_UTILIZATION},
    )


def _rank_mismatch(modules: Sequence[ModuleAudit]) -> Finding | None:
    wrong = [m for m in modules if m.config_r is not None]
    if not wrong:
        return None
    first = wrong[0]
    return Finding(
        id="SCL206",
        severity="warning",
        message=f"{len(wrong)} of {len(modules)} modules have another rank in the file than in the config "
        f"(first: {first.name}, r={first.r} on disk, {first.config_r} by the config).",
        action="Loaders that believe the config will refuse the file or scale it wrongly: correct r or rank_pattern.",
        rationale="The rank on disk is the truth, and s follows it here.",
        confidence=0.9,
        verify="Load it with PEFT: a shape mismatch says the same.",
        evidence=[Evidence(source="the weights file", says=f"{first.name}: factors of rank {first.r}")],
        values={"modules": len(wrong)},
    )


def _unmatched(patterns: Sequence[str]) -> Finding | None:
    if not patterns:
        return None
    named = ", ".join(repr(p) for p in patterns[:3]) + (", ..." if len(patterns) > 3 else "")  # noqa: PLR2004
    return Finding(
        id="SCL207",
        severity="warning",
        message=f"{len(patterns)} keys of rank_pattern or alpha_pattern match no module: {named}.",
        action="A key must match the end of a module's path, beginning at a dot, without base_model.model.",
        rationale="PEFT ignores such a key in silence: its modules train at the global rank and alpha.",
        confidence=0.9,
        evidence=[Evidence(source="peft/utils/other.py, get_pattern_key", says=r're.match(rf"(.*\.)?({key})$", path)')],
        values={"patterns": list(patterns[:20])},
    )


def _default_alpha(modules: Sequence[ModuleAudit], alpha: float | None, r: int | None) -> Finding | None:
    at_default = [m for m in modules if m.alpha == _ALPHA_DEFAULT and m.alpha_pattern is None]
    if alpha != _ALPHA_DEFAULT or r is None or r <= _ALPHA_DEFAULT or not at_default:
        return None
    size = at_default[0].scaling
    return Finding(
        id="SCL208",
        severity="info",
        message=f"lora_alpha is at PEFT's default of 8 with r={r}: the update is scaled by s={float(size):g}.",
        action="If alpha was never set on purpose, this adapter is weaker than its rank suggests.",
        confidence=0.5,
        scope="LoRA with PEFT's defaults",
        verify="See the training script; evaluate with lora_alpha set to what was meant.",
        evidence=[
            Evidence(
                source="github.com/huggingface/lerobot/issues/3551",
                says="r=64 with the default alpha gave s=0.125, and a policy that hardly moved until alpha was 64",
            )
        ],
        values={"lora_alpha": 8, "r": r, "scaling": size},
    )


def _mostly_other(ledger: Sequence[LedgerEntry]) -> Finding | None:
    other = [entry for entry in ledger if entry.role not in {"lora_pair", "magnitude", "scale"}]
    share = sum(entry.share for entry in other)
    if share < MOSTLY_OTHER:
        return None
    names = " and ".join(entry.role.replace("_", " ") for entry in sorted(other, key=lambda e: -e.bytes)[:2])
    return Finding(
        id="LED205",
        severity="info",
        message=f"{share:.0%} of this file is {names}, not LoRA.",
        action="If that is not meant, look at bias, modules_to_save and save_embedding_layers.",
        confidence=1.0,
        evidence=[Evidence(source="the weights file", says=f"{sum(e.bytes for e in other)} bytes are no LoRA factor")],
    )

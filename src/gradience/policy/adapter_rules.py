"""What the weights say about the adapter: its health, and findings with their grounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gradience.policy.ranks import percentile
from gradience.schema.audit import AuditSummary, Health, LedgerEntry, ModuleAudit
from gradience.schema.findings import Evidence, Finding

__all__ = ["LOW_UTILIZATION", "adapter_findings", "health", "low_utilization"]

LOW_UTILIZATION: Final = 0.25  # stable rank / r; a convention of the project's first document
RANDOM_SHARE: Final = 0.9  # of the null's stable rank; a judgement, from random factors measured at d = 4096
RANDOM_LEAST_RANK: Final = 4  # below it the null leaves no room to tell
MOSTLY_OTHER: Final = 0.5  # of the file's bytes


def health(modules: Sequence[ModuleAudit], peft_type: str | None) -> Health:
    """Return the verdict on the adapter as a whole, with its reason."""
    n = len(modules)
    if peft_type not in {None, "LORA"} and not modules:
        return Health(verdict="not_analysed", reason=f"peft_type {peft_type} is recognised, not analysed")
    if not modules:
        return Health(verdict="broken", reason="the file holds no LoRA pair")
    broken = [m.name for m in modules if m.state == "non_finite"]
    if broken:
        return Health(
            verdict="broken", reason=f"{len(broken)} of {n} modules hold NaN or infinite weights (first: {broken[0]})"
        )
    zero = [m.name for m in modules if m.state == "zero"]
    if len(zero) == n:
        return Health(verdict="untrained", reason=f"the update of all {n} modules is exactly zero: B was never trained")
    if zero:
        return Health(
            verdict="partial", reason=f"{len(zero)} of {n} modules have a zero update (first: {zero[0]})"
        )
    if _random_like(modules):
        return Health(
            verdict="random_like",
            reason="the spectra are as flat as those of random factors of the same shapes",
        )
    return Health(verdict="trained", reason=f"all {n} modules carry a finite, non-zero update with structure")


def _random_like(modules: Sequence[ModuleAudit]) -> bool:
    shares = [
        m.stable_rank / m.null_stable_rank
        for m in modules
        if m.stable_rank is not None and m.null_stable_rank and m.r >= RANDOM_LEAST_RANK
    ]
    return bool(shares) and percentile(shares, 0.5) >= RANDOM_SHARE


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


def adapter_findings(
    modules: Sequence[ModuleAudit], summary: AuditSummary, verdict: Health, ledger: Sequence[LedgerEntry]
) -> list[Finding]:
    """Return everything worth knowing about the weights, most severe first."""
    candidates = (
        _of_health(verdict),
        low_utilization(summary.utilization_mean),
        _mostly_other(ledger) if modules else None,
    )
    return [finding for finding in candidates if finding is not None]


_OF_HEALTH: Final = {
    "broken": ("NUM201", "error", 1.0, "Do not use this adapter; go back to the last good checkpoint."),
    "untrained": ("TRN202", "error", 0.95, "Check that the adapter's parameters were trained and saved."),
    "partial": ("TRN202", "warning", 0.9, "Check target_modules and which parameters require gradients."),
    "random_like": ("RND203", "warning", 0.6, "Check that this is the trained adapter, not an initialisation."),
}


def _of_health(verdict: Health) -> Finding | None:
    if verdict.verdict not in _OF_HEALTH:
        return None
    rule, severity, confidence, action = _OF_HEALTH[verdict.verdict]
    return Finding(
        id=rule,
        severity=severity,  # type: ignore[arg-type]  # the table's strings are severities
        message=f"{verdict.verdict.replace('_', '-').capitalize()}: {verdict.reason}.",
        action=action,
        confidence=confidence,
        verify="Load the adapter and compare its outputs with the base model's.",
        evidence=[Evidence(source="the weights file", says=verdict.reason)],
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

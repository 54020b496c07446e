"""Whether an adapter is in order as a whole, before any number about it: trained, untrained, broken, random-like.

The verdict is part of the audit's report; the rules NUM201, TRN202 and RND203 turn it into findings. `AdapterFacts` is
what all rules on weights judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gradience.rules.rule import Threshold
from gradience.rules.weights.ranks import percentile
from gradience.schema.audit import AuditReport, Health, ModuleAudit, NotAnalysed

RANDOM_SHARE = Threshold(
    "random_share", 0.9, "stable rank over that of random factors, median", "a judgement: factors measured at d = 4096"
)
RANDOM_RANK = Threshold("random_rank", 4, "rank", "a judgement: below it the null leaves no room to tell")
RANDOM_MODULES = Threshold("random_modules", 4, "modules of that rank", "a judgement: one flat spectrum may be chance")
NEAR_UNTRAINED = Threshold("near_untrained", 1e-4, "norm of all updates over that of the base weights", "a judgement")


class AdapterFacts(NamedTuple):
    """An audit, and what the config says: lora_alpha and r before any pattern, None for another format than PEFT's."""

    report: AuditReport
    alpha: float | None = None
    r: int | None = None
    modules_to_save: tuple[str, ...] = ()
    """Modules that the config names to be saved whole: a head among them is meant."""


def modules_analysed(facts: AdapterFacts) -> str | None:
    """The need of a rule on modules: why there are none, or None."""
    return None if facts.report.modules else f"no module was analysed: {facts.report.health.reason}"


def health(
    modules: Sequence[ModuleAudit],
    *,
    peft_type: str | None = None,
    not_analysed: Sequence[NotAnalysed] = (),
    relative_frobenius: float | None = None,
) -> Health:
    """The verdict on the adapter as a whole, with its reason.

    Args:
        modules: the analysed modules.
        peft_type: the config's, for an adapter without an analysed module.
        not_analysed: what no number speaks of, for an adapter without an analysed module.
        relative_frobenius: norm of the whole update over that of the base weights, where they were compared.
    """
    if not modules:
        return _without_modules(peft_type, not_analysed)
    unknown = [m for m in modules if m.state == "not_known"]
    if len(unknown) == len(modules):
        return Health(verdict="not_analysed", reason=unknown[0].note or "no update is known")
    modules = [m for m in modules if m.state != "not_known"]
    n = len(modules)
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

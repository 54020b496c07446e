"""What an update says beside its base: merges that lose it, directions that are new, bases that do not fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gradience.policy.adapter_table import INTRUDER, MERGE_LOSS, NOT_COMPARED
from gradience.policy.thresholds import SURVIVAL_BFLOAT16, SURVIVAL_COSINE, SURVIVAL_FLOAT16
from gradience.schema.audit import AuditReport, ModuleAudit
from gradience.schema.base import BaseReport
from gradience.schema.findings import Evidence, Finding

__all__ = ["at_risk", "base_findings"]

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
        _intruders(report.modules, report.base),
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


def _intruders(modules: Sequence[ModuleAudit], base: BaseReport) -> Finding | None:
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

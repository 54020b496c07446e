"""What an update says beside its base: merges that lose it, directions that are new, bases that do not fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gradience.schema.audit import AuditReport, ModuleAudit
from gradience.schema.base import BaseReport
from gradience.schema.findings import Evidence, Finding

__all__ = ["SURVIVAL_COSINE", "SURVIVAL_RELATIVE", "at_risk", "base_findings"]

SURVIVAL_RELATIVE: Final = {  # norm(dW) / norm(W) under which a 16-bit merge distorts the update
    "bfloat16": 3e-3,  # measured on gaussian W: 53 % of entries change, cosine .887
    "float16": 3e-4,  # eight more mantissa steps: about ten times lower
}
SURVIVAL_COSINE: Final = 0.9  # realised against intended; about what the relative threshold gives
_NAMED: Final = 5
_HALF: Final = frozenset({"BF16", "F16"})


def at_risk(module: ModuleAudit) -> bool:
    """Return whether a 16-bit merge would lose a good part of this update."""
    survival = module.base.survival if module.base is not None else None
    if survival is None or not isinstance(module.relative_frobenius, float):
        return False
    small = 0.0 < module.relative_frobenius < SURVIVAL_RELATIVE[survival.dtype]
    return small or (survival.cosine is not None and survival.cosine < SURVIVAL_COSINE)


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
    return Finding(
        id="BAS211",
        severity="error" if nothing else "warning",
        message=f"{'None' if nothing else f'Only {base.compared}'} of {n} modules could be compared with the base: "
        f"{named}{more}.",
        action="Give the base model this adapter was trained on; see base_model in the config." if nothing else None,
        rationale="A module without its weight has no UDR; the others' numbers stand.",
        confidence=0.95,
        evidence=[Evidence(source=item.name, says=item.reason) for item in base.not_compared[:_NAMED]],
        values={"compared": base.compared, "not_compared": len(base.not_compared)},
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
    return Finding(
        id="MRG210",
        severity="warning" if served else "info",  # a float32 base may be merged, and kept, in float32
        message=f"Merging into {survival.dtype} would lose part of the update in {len(risky)} of {len(modules)} "
        f"modules: in {worst.name} it changes {survival.changed:.0%} of the entries, and what it adds has cosine "
        f"{_cosine(worst):.2f} with the update.",
        action="Serve the adapter unmerged, or merge in float32 and keep float32.",
        rationale="An update smaller than half a unit in the last place of a weight is rounded away.",
        confidence=0.9,
        scope=f"weights stored in {survival.dtype}",
        verify="Compare the outputs of the merged and the unmerged model.",
        evidence=[
            Evidence(
                source="measured on gaussian weights",
                says="in bfloat16 norm(dW)/norm(W) of 3e-3 keeps cosine .89, 1e-3 keeps .63, 1e-4 keeps .21",
            ),
            Evidence(source="this adapter and base", says="computed entry by entry, rounding as the merge does"),
        ],
        values={"modules": len(risky), "worst": worst.name},
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
    return Finding(
        id="INT212",
        severity="info",
        message=f"{base.intruder_total} intruder dimensions in {base.intruder_modules} modules "
        f"(k={found.k}, eps={found.eps:g}); most in {first.name}: {found.count}.",
        action="If forgetting matters, evaluate on tasks the base was good at.",
        rationale="New leading directions were linked to forgetting, not to the accuracy on the new task.",
        confidence=0.5,
        verify="Compare with the base on a held-out general benchmark.",
        evidence=[
            Evidence(source="arXiv 2410.21228", says="LoRA has intruder dimensions where full fine-tuning has few")
        ],
        values={"total": base.intruder_total, "k": found.k, "eps": found.eps},
    )


def _intruder_count(module: ModuleAudit) -> int:
    found = module.base.intruders if module.base is not None else None
    return found.count if found is not None else -1

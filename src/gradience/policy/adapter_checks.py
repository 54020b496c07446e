"""Which of the checks on an adapter's weights an audit could not run, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from gradience.policy.adapter_table import ADAPTER_CHECKS
from gradience.policy.thresholds import RANDOM_MODULES, RANDOM_RANK
from gradience.schema.audit import AuditReport
from gradience.schema.findings import NotRun

__all__ = ["adapter_checks_not_run"]


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

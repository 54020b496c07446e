"""The checks on an adapter's weights by id, and which of them an audit could not run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from gradience.policy.adapter_rules import RANDOM_LEAST_MODULES, RANDOM_LEAST_RANK
from gradience.schema.audit import AuditReport
from gradience.schema.findings import NotRun

__all__ = ["ADAPTER_CHECKS", "AdapterCheck", "adapter_checks_not_run"]


class AdapterCheck(NamedTuple):
    """One check: what it looks for, and why an audit could not tell (None where it could)."""

    id: str
    title: str
    lacks: Callable[[AuditReport], str | None]


def _modules(report: AuditReport) -> str | None:
    return None if report.modules else f"no module was analysed: {report.health.reason}"


def _tensors(report: AuditReport) -> str | None:
    return None if report.ledger else "no tensor was read"


def _measured(report: AuditReport) -> str | None:
    if report.summary.utilization_mean is None:
        return "no finite, non-zero update to measure"
    return None


def _many(report: AuditReport) -> str | None:
    able = sum(1 for m in report.modules if m.r >= RANDOM_LEAST_RANK and m.stable_rank is not None)
    if able >= RANDOM_LEAST_MODULES:
        return None
    return f"needs {RANDOM_LEAST_MODULES} measured modules of rank {RANDOM_LEAST_RANK} or more; there are {able}"


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


ADAPTER_CHECKS: Final = (
    AdapterCheck("NUM201", "weights that are not finite", _modules),
    AdapterCheck("TRN202", "an update of zero", _modules),
    AdapterCheck("RND203", "spectra like random factors'", _many),
    AdapterCheck("UTL204", "low utilization", _measured),
    AdapterCheck("LED205", "mostly other tensors than LoRA's", _tensors),
    AdapterCheck("SCL206", "another rank on disk than in the config", _modules),
    AdapterCheck("SCL207", "patterns that match no module", _peft),
    AdapterCheck("SCL208", "lora_alpha at its default", _peft),
    AdapterCheck("NUM209", "one factor without the other", _tensors),
    AdapterCheck("MRG210", "a 16-bit merge that loses the update", _base),
    AdapterCheck("BAS211", "a base that does not fit", _base),
    AdapterCheck("INT212", "intruder dimensions", _intruders),
)


def adapter_checks_not_run(report: AuditReport) -> Iterator[NotRun]:
    """Yield the checks that the audit could not run and did not report, each with its reason."""
    found = {finding.id for finding in report.findings}
    for check in ADAPTER_CHECKS:
        reason = check.lacks(report)
        if reason is not None and check.id not in found:
            yield NotRun(id=check.id, reason=reason)

"""What each source shows, as signs: its findings with their marks, and the facts that mean something in a join."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Final

from gradience.rules.joins.joins import Sign
from gradience.rules.log.thresholds import FEW_ROWS
from gradience.rules.thresholds import EXPLODED_RMS
from gradience.schema.audit import AuditReport, ModuleAudit
from gradience.schema.diagnose import Source
from gradience.schema.findings import Finding
from gradience.schema.reports import CheckReport, MonitorReport
from gradience.schema.scalars import Json

_STOPS: Final = ("VAL001", "TGT002")
_OF_HEALTH: Final = ("NUM201", "TRN202", "RND203")


def config_signs(report: CheckReport) -> list[Sign]:
    """Return the findings on the configuration. What can stop a run from learning by itself is the value `stops`."""
    return [_sign("config", f, **({"stops": f.message.rstrip(".")} if f.id in _STOPS else {})) for f in report.findings]


def log_signs(report: MonitorReport) -> list[Sign]:
    """Return the findings on the log; a sparse one is marked with what it lacks."""
    return [_log_sign(finding) for finding in report.findings]


def _log_sign(finding: Finding) -> Sign:
    if finding.id == "GAP118":
        return _sign("log", finding, marks=_sparse(finding))
    if finding.id == "LRS109" and "rows" in finding.values:
        return _sign("log", finding, rate_zero=f"the learning rate was 0 in {finding.values['rows']} rows")
    return _sign("log", finding)


def _sparse(finding: Finding) -> Iterator[str]:
    if finding.values.get("evals") == 0:
        yield "no_evals"
    if finding.values.get("rows", 0) < FEW_ROWS.value:
        yield "few_rows"


def weights_signs(report: AuditReport) -> list[Sign]:
    """Return the findings on the weights, marked with the verdict on them, and plain facts about them."""
    return [*(_weights_sign(report, finding) for finding in report.findings), *_facts(report)]


def _weights_sign(report: AuditReport, finding: Finding) -> Sign:
    if finding.id not in _OF_HEALTH:
        return _sign("weights", finding)
    verdict = report.health.verdict
    key = {"broken": "lost", "untrained": "zero", "near_untrained": "zero"}.get(verdict)
    marks = () if verdict == "broken" and not report.modules else (verdict,)  # an empty file holds no NaN
    return _sign("weights", finding, marks=marks, **({key: report.health.reason} if key else {}))


def _sign(source: Source, finding: Finding, *, marks: Iterable[str] = (), **more: Json) -> Sign:
    """Return the finding as a sign, marked with its severity and the names of its values."""
    marked = frozenset([*marks, *finding.values, finding.severity])
    return Sign(source, finding.id, finding.message, finding, marked, {**finding.values, **more})


def _facts(report: AuditReport) -> Iterator[Sign]:
    exploded = [(size, module) for module in report.modules if (size := _rms(module)) > EXPLODED_RMS.value]
    if exploded:
        size, module = max(exploded, key=lambda item: item[0])
        says = f"entries of the update are {size:.2g} in size in {module.name} (root mean square)"
        yield Sign("weights", "exploded", says, values={"exploded": says, "rms": size})
    if report.modules and not any(entry.role == "full_module" for entry in report.ledger):
        yield Sign("weights", "no_head", "the file holds LoRA factors and no full module")


def _rms(module: ModuleAudit) -> float:
    """Return the root mean square of an update's entries; 0 where that is no number."""
    entries = math.prod(module.shape)
    norm = module.frobenius_norm
    return norm / math.sqrt(entries) if isinstance(norm, float) and entries > 0 else 0.0

"""Turn audit reports into rows of tables. The Arrow schema of a table is generated from the Struct of its rows."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import cache
from typing import Final, NamedTuple

import msgspec

from gradience.schema import as_float
from gradience.schema.audit import AuditReport, AuditSummary, ModuleAudit
from gradience.schema.document import RuleGroup, by_severity
from gradience.schema.fleet import AdapterRow, FindingRow, ModuleRow
from gradience.tables import finding_columns, number_column

_NUMBERS: Final = "5"
"""Version to be raised when the computation of a row's number, or of a rule, changes."""

_COPIED: Final = tuple(name for name in ModuleRow.__struct_fields__ if name in ModuleAudit.__struct_fields__)
_MEANS: Final = tuple(name for name in AdapterRow.__struct_fields__ if name in AuditSummary.__struct_fields__)
_MAY_BE_NON_FINITE: Final = {"alpha", "scaling", "spectral_norm", "frobenius_norm", "udr", "relative_frobenius"}


class Known(NamedTuple):
    """The columns of a row that describe its source."""

    stamp: str = ""
    rules: str = ""
    content_hash: str = ""
    failed: bool = False


@cache
def version_of_rules(*groups: RuleGroup) -> str:
    """The version of the rules of these groups; rows with another version are made again."""
    from gradience.rules import cards_of  # all rules; a query of a store needs none

    stated = msgspec.json.encode(cards_of(*groups))
    return f"{_NUMBERS}-{hashlib.sha256(stated).hexdigest()[:12]}"


class Source(NamedTuple):
    """The columns of an adapter that its audit does not report."""

    path: str
    rules: str
    stamp: str
    content_hash: str
    weights_hash: str
    settings: str | None
    dtypes: str | None
    sketch: Sequence[float]


def rows_of(source: Source, report: AuditReport) -> tuple[AdapterRow, list[ModuleRow], list[FindingRow]]:
    """The rows of one adapter."""
    modules = [_module(source.path, place, module) for place, module in enumerate(report.modules)]
    findings = [
        FindingRow(path=source.path, position=place, **finding_columns(item))
        for place, item in enumerate(report.findings)
    ]
    return _adapter(source, report), modules, findings


def _adapter(source: Source, report: AuditReport) -> AdapterRow:
    ranks, cut = [m.r for m in report.modules], report.suggested.get("p90")
    energies = [as_float(m.frobenius_norm or 0.0) ** 2 for m in report.modules if m.state == "ok"]
    return AdapterRow(
        **source._asdict() | {name: getattr(report.summary, name) for name in _MEANS},
        bytes=sum(entry.bytes for entry in report.ledger),
        format=report.format,
        peft_type=report.peft_type,
        base_model=report.base_model,
        verdict=report.health.verdict,
        reason=report.health.reason,
        modules=len(report.modules),
        not_analysed=len(report.not_analysed),
        r=max(ranks, default=None),
        r_min=min(ranks, default=None),
        module_types=",".join(sorted({m.module_type for m in report.modules})),
        shapes=_hash_of_shapes(report.modules),
        params=report.summary.total_lora_params,
        frobenius_norm=math.sqrt(sum(energies)) if energies else None,
        relative_frobenius=report.base.relative_frobenius if report.base is not None else None,
        suggested_rank=cut.rank if cut is not None else None,
        bytes_saved=cut.bytes_saved if cut is not None else 0,
        findings=len(report.findings),
        worst=next((item.severity for item in by_severity(report.findings)), None),
    )


def _hash_of_shapes(modules: Sequence[ModuleAudit]) -> str:
    shapes = sorted((m.name, *m.shape) for m in modules)
    return hashlib.sha256(repr(shapes).encode("utf-8", "surrogatepass")).hexdigest()[:16] if shapes else ""


def _module(path: str, place: int, module: ModuleAudit) -> ModuleRow:
    rows, columns = module.shape
    values = {name: getattr(module, name) for name in _COPIED}
    values |= {name: number_column(values[name]) for name in _MAY_BE_NON_FINITE}
    return ModuleRow(path=path, position=place, rows=rows, columns=columns, **values)

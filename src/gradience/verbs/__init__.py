"""Verbs, a folder each: options, work (``run``), view (its report as blocks) and command.

A verb's report type is in `gradience.schema`. `schema`, `rules`, `validate` and `import` are a file each.
"""

from pkgutil import resolve_name
from typing import Final

PRINTED: Final = {
    "AuditReport": "verbs.audit.view:audit_text",
    "BenchReport": "verbs.bench.view:bench_text",
    "CheckReport": "verbs.check.view:check_text",
    "CompareAdaptersReport": "verbs.compare.view:compare_adapters_text",
    "ConvertReport": "verbs.convert.view:convert_text",
    "DiagnoseReport": "verbs.diagnose.view:diagnose_text",
    "DriftReport": "verbs.bench.drift_view:drift_text",
    "FleetAuditReport": "verbs.fleet.view:fleet_audit_text",
    "FleetShowReport": "verbs.fleet.view:fleet_show_text",
    "ImportReport": "render.findings:import_text",
    "MergeCheckReport": "verbs.merge.view:merge_check_text",
    "MergeReport": "verbs.merge.view:merge_text",
    "MonitorReport": "verbs.monitor.view:monitor_text",
    "QueryReport": "verbs.fleet.view:query_text",
    "ResizeReport": "verbs.resize.view:resize_text",
    "RulesReport": "render.findings:rules_text",
    "RunsBestReport": "verbs.runs.view:runs_best_text",
    "ValidateLogsReport": "render.findings:validate_logs_text",
    "ValidateReport": "render.findings:validate_text",
    "VerifyMergedReport": "verbs.verify.view:verify_merged_text",
    "VerifyServedReport": "verbs.receipt.view:verify_served_text",
    "WhyReport": "verbs.why.view:why_text",
}


def text_of(report: object) -> str:
    """What the verb's command prints of a report; its summary where that is a page."""
    view = PRINTED.get(type(report).__name__)
    text: str = repr(report) if view is None else resolve_name(f"gradience.{view}")(report)
    return text

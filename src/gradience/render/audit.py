"""The audit report as text."""

from __future__ import annotations

from collections.abc import Iterator

from gradience.render.text import banner, clean, count, finding_lines, number, percent
from gradience.schema.audit import AuditReport, ModuleAudit, SuggestedRank

__all__ = ["audit_text"]

_MOST_SKIPPED = 5


def audit_text(report: AuditReport, *, top_wasteful: int = 5, layers: bool = False, verbose: bool = False) -> str:
    """Return the report for a terminal: verdict, summary, suggested ranks, the least used modules."""
    return "\n".join(_lines(report, top_wasteful=top_wasteful, layers=layers, verbose=verbose))


def _lines(report: AuditReport, *, top_wasteful: int, layers: bool, verbose: bool) -> Iterator[str]:
    yield from banner("GRADIENCE LoRA AUDIT")
    yield f"PEFT dir: {clean(report.peft_dir)}"
    yield f"Config:   {clean(report.config_path or '-')}"
    yield f"Weights:  {clean(report.weights_path)}"
    yield ""
    yield f"Verdict: {report.health.verdict.upper().replace('_', ' ')} ({clean(report.health.reason)})"
    yield ""
    yield from _summary(report)
    yield from _suggested(report)
    if top_wasteful > 0:
        yield from _wasteful(report, top_wasteful)
    if layers:
        yield from _all_modules(report)
    yield from _rest(report, verbose=verbose)


def _summary(report: AuditReport) -> Iterator[str]:
    s = report.summary
    yield "Summary:"
    yield f"  LoRA params: {count(s.total_lora_params)}"
    yield f"  Layers:      {s.n_layers}"
    yield f"  Stable rank (mean):    {number(s.stable_rank_mean)}"
    yield f"  Utilization (mean):    {percent(s.utilization_mean)}"
    yield f"  Energy rank k@90% (p50/p90): {number(s.energy_rank_90_p50, 'g')}/{number(s.energy_rank_90_p90, 'g')}"
    yield f"  Effective rank (mean): {number(s.effective_rank_mean)}"
    for kind, group in s.by_type.items():
        yield (
            f"  {kind + ':':<12} {group.n:>4} modules  sr={number(group.stable_rank_mean)}"
            f"  util={percent(group.utilization_mean)}  energy={percent(group.energy_share)}"
        )
    yield ""


def _suggested(report: AuditReport) -> Iterator[str]:
    if not report.suggested:
        return
    yield "Suggested rank (compress after training; verify with eval):"
    for name, label in (("median", "most modules (median)"), ("p90", "worst-case tail (p90)")):
        if name in report.suggested:
            yield f"  {label}: {_suggestion(report.suggested[name])}"
    yield ""


def _suggestion(s: SuggestedRank) -> str:
    return (
        f"r={s.rank} keeps {s.energy_kept:.1%} of the energy; relative error {s.relative_error:.1%}"
        f" (worst module {s.relative_error_worst:.1%}); saves {count(s.params_saved)} params"
    )


def _wasteful(report: AuditReport, top: int) -> Iterator[str]:
    ranked = sorted((m for m in report.modules if m.utilization is not None), key=lambda m: m.utilization or 0.0)
    if not ranked:
        return
    shown = ranked[:top]
    yield f"Most wasteful layers (lowest utilization, top {len(shown)}):"
    for place, module in enumerate(shown, 1):
        yield f"  {place:02d}. {_row(module)}"
    yield ""


def _row(m: ModuleAudit) -> str:
    if m.state != "ok":
        return f"{m.module_type:<4} r={m.r:<3} {m.state.replace('_', '-')}  {clean(m.name)}"
    return (
        f"{m.module_type:<4} r={m.r:<3} util={percent(m.utilization)}  sr={number(m.stable_rank)}"
        f"  k@90%={m.energy_rank_90}  {clean(m.name)}"
    )


def _all_modules(report: AuditReport) -> Iterator[str]:
    yield "All modules:"
    for module in report.modules:
        yield f"  {_row(module)}  s={number(module.scaling, 'g')} |dW|={number(module.frobenius_norm, '.3g')}"
    yield ""


def _rest(report: AuditReport, *, verbose: bool) -> Iterator[str]:
    yield "In the file:"
    for entry in report.ledger:
        role = entry.role.replace("_", " ")
        yield f"  {role:<13} {entry.tensors:>5} tensors  {entry.bytes / 1e6:>9.2f} MB  {entry.share:>6.1%}"
    yield ""
    if report.not_analysed:
        yield f"Not analysed ({len(report.not_analysed)}):"
        for item in report.not_analysed[: None if verbose else _MOST_SKIPPED]:
            yield f"  {clean(item.name)}: {clean(item.reason)}"
        if not verbose and len(report.not_analysed) > _MOST_SKIPPED:
            yield f"  ... and {len(report.not_analysed) - _MOST_SKIPPED} more (--verbose lists all)"
        yield ""
    if report.findings:
        yield "Findings:"
        yield from finding_lines(report.findings, verbose=verbose)
        yield ""
    for note in report.notes:
        yield f"Note: {clean(note)}."
    yield "Findings and suggestions are hypotheses about these weights: verify on held-out data."

"""The audit report as text: verdict and findings first, then the summary; the rest behind options."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from gradience.render.audit_base import base_lines, base_row
from gradience.render.audit_ranks import per_layer_lines, rank_lines, rule_lines
from gradience.render.heatmap import Quantity, heatmap
from gradience.render.scales import scale_lines
from gradience.render.text import banner, clean, count, finding_lines, number, percent
from gradience.schema.audit import AuditReport, ModuleAudit

__all__ = ["View", "audit_text"]

_MOST_SKIPPED: Final = 5
_NAMED_LAYERS: Final = 6


class View(NamedTuple):
    """What to show beyond verdict, findings, summary and suggested ranks."""

    top_wasteful: int = 5
    layers: bool = False
    scales: bool = False
    rank_rules: bool = False
    heatmap: Quantity | None = None
    unicode: bool = True
    verbose: bool = False


def audit_text(report: AuditReport, view: View | None = None) -> str:
    """Return the report for a terminal."""
    return "\n".join(_lines(report, view or View()))


def _lines(report: AuditReport, view: View) -> Iterator[str]:
    yield from banner("GRADIENCE LoRA AUDIT")
    yield f"PEFT dir: {clean(report.peft_dir)}"
    yield f"Config:   {clean(report.config_path or '-')}"
    yield f"Weights:  {clean(report.weights_path)}"
    yield ""
    yield f"Verdict: {report.health.verdict.upper().replace('_', ' ')} ({clean(report.health.reason)})"
    yield ""
    yield from _findings(report, verbose=view.verbose)
    if report.modules:
        yield from _summary(report)
        yield from base_lines(report)
        yield from rank_lines(report)
        yield from _wasteful(report, view.top_wasteful)
    yield from _on_request(report, view)
    yield from _rest(report, verbose=view.verbose)


def _findings(report: AuditReport, *, verbose: bool) -> Iterator[str]:
    if report.findings:
        yield "Findings:"
        yield from finding_lines(report.findings, verbose=verbose)
        yield ""


def _summary(report: AuditReport) -> Iterator[str]:
    s = report.summary
    yield "Summary:"
    yield f"  LoRA params: {count(s.total_lora_params)}"
    yield f"  Layers:      {s.n_layers}"
    yield f"  Stable rank (mean):    {number(s.stable_rank_mean)}"
    yield f"  Utilization (mean):    {percent(s.utilization_mean)}"
    yield f"  Energy rank k@90% (p50/p90): {number(s.energy_rank_90_p50, '.3g')}/{number(s.energy_rank_90_p90, '.3g')}"
    yield f"  Effective rank (mean): {number(s.effective_rank_mean)}"
    if s.null_stable_rank_mean is not None:
        yield f"  Random factors of these shapes would have stable rank {number(s.null_stable_rank_mean)}"
    yield from _where(report)
    yield ""


def _where(report: AuditReport) -> Iterator[str]:
    """Say in plain words where the update's energy is."""
    s = report.summary
    shares = [f"{kind} {percent(g.energy_share)} ({g.n})" for kind, g in s.by_type.items() if g.energy_share]
    if shares:
        yield f"  Energy by type (modules): {', '.join(shares)}"
    if s.energy_concentration:
        like = f"{1.0 / s.energy_concentration:.0f} equal modules of {s.n_layers} (HHI {s.energy_concentration:.3f})"
        half = _half(report)
        yield f"  Energy is spread as over {like}" + (f"; half of it is in {half}" if half else "")


def _half(report: AuditReport) -> str:
    """Return the fewest layers that hold half of the energy, by name if few."""
    ranked = sorted((x for x in report.layers if x.energy_share), key=lambda x: -(x.energy_share or 0.0))
    held, chosen = 0.0, []
    for layer in ranked:
        if held >= 0.5:  # noqa: PLR2004  # half
            break
        held += layer.energy_share or 0.0
        chosen.append(layer.layer)
    if len(ranked) < 2 or held < 0.5:  # noqa: PLR2004  # one layer says nothing
        return ""
    named = f" ({', '.join(map(str, sorted(chosen)))})" if len(chosen) <= _NAMED_LAYERS else ""
    return f"{len(chosen)} of {len(ranked)} layers{named}"


def _wasteful(report: AuditReport, top: int) -> Iterator[str]:
    ranked = sorted((m for m in report.modules if m.utilization is not None), key=lambda m: m.utilization or 0.0)
    shown = ranked[:top]
    if not shown:
        return
    yield f"Most wasteful layers (lowest utilization, top {len(shown)}):"
    for place, module in enumerate(shown, 1):
        yield f"  {place:02d}. {_row(module)}  {clean(module.name)}"
    yield ""


def _row(m: ModuleAudit) -> str:
    if m.state != "ok":
        return f"{m.module_type:<4} r={m.r:<3} {m.state.replace('_', '-')}"
    return (
        f"{m.module_type:<4} r={m.r:<3} util={percent(m.utilization)}  sr={number(m.stable_rank)}"
        f"  k@90%={number(m.energy_rank_90, 'd')}"
    )


def _on_request(report: AuditReport, view: View) -> Iterator[str]:
    if view.heatmap is not None:
        yield from heatmap(report.modules, view.heatmap, unicode=view.unicode)
        yield ""
    if view.scales:
        yield from scale_lines(report)
    if view.rank_rules or view.verbose:
        yield from rule_lines(report, verbose=view.verbose)
    if report.per_layer is not None:
        yield from per_layer_lines(report.per_layer, verbose=view.verbose)
    if view.layers:
        yield from _by_layer(report)
        yield from _all_modules(report)


def _by_layer(report: AuditReport) -> Iterator[str]:
    if not report.layers:
        return
    yield "By layer:"
    for layer in report.layers:
        yield (
            f"  layer {layer.layer:>3}  {layer.n:>3} modules  sr={number(layer.stable_rank_mean)}"
            f"  energy={percent(layer.energy_share)}"
        )
    yield ""


def _all_modules(report: AuditReport) -> Iterator[str]:
    yield "All modules (null: stable rank of random factors of the shape):"
    for m in report.modules:
        null = f"  null={number(m.null_stable_rank)}" if m.null_stable_rank is not None else ""
        norm = f"s={number(m.scaling, 'g')}  |dW|={number(m.frobenius_norm, '.3g')}"
        yield f"  {_row(m)}{null}  {norm}{base_row(m)}  {clean(m.name)}"
        if m.note:
            yield f"      {clean(m.note)}"
    yield ""


def _rest(report: AuditReport, *, verbose: bool) -> Iterator[str]:
    roles = [
        f"{entry.role.replace('_', ' ')} {percent(entry.share)} ({entry.bytes / 1e6:.2f} MB, {entry.tensors} tensors)"
        for entry in report.ledger
    ]
    yield f"In the file: {', '.join(roles) or 'nothing'}"
    if report.not_analysed:
        yield f"Not analysed ({len(report.not_analysed)}):"
        for item in report.not_analysed[: None if verbose else _MOST_SKIPPED]:
            yield f"  {clean(item.name)}: {clean(item.reason)}"
        if not verbose and len(report.not_analysed) > _MOST_SKIPPED:
            yield f"  ... and {len(report.not_analysed) - _MOST_SKIPPED} more (--verbose lists all)"
    for note in report.notes:
        yield f"Note: {clean(note)}."
    yield "Findings and suggestions are hypotheses about these weights: verify on held-out data."

"""The audit report as text: verdict and findings first, then the summary; the rest behind options."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final, NamedTuple, TypeAlias

import msgspec

from gradience.render.heatmap import Quantity, heatmap
from gradience.render.text import banner, clean, count, finding_lines, number, percent
from gradience.schema.audit import AuditReport, BaseReport, ModuleAudit, RankDisagreement, RankPattern, SuggestedRank
from gradience.schema.scalars import NonFinite


def base_lines(report: AuditReport) -> Iterator[str]:
    """Yield the adapter as a whole against its base; nothing where it was not compared."""
    base = report.base
    if base is None:
        return
    cached = f", {base.norms_cached} norms from the cache" if base.norms_cached else ""
    yield f"Against the base ({clean(base.path)}):"
    yield f"  Compared: {base.compared} of {len(report.modules)} modules{cached}"
    if base.compared:
        yield from _sizes(report.modules, base)
        yield from _survival(base)
        yield from _intruders(report.modules, base)
    yield f"  Method: {clean(base.method)}"
    for note in base.notes:
        yield f"  Note: {clean(note)}."
    yield ""


def _sizes(modules: list[ModuleAudit], base: BaseReport) -> Iterator[str]:
    largest = max(modules, key=_udr)
    yield (
        f"  UDR norm2(dW)/norm2(W): median {number(base.udr_median, '.3g')},"
        f" largest {number(base.udr_max, '.3g')} ({clean(largest.name)})"
    )
    yield f"  SDI log10(UDR):         median {number(base.sdi_median)}"
    yield f"  Relative Frobenius:     {number(base.relative_frobenius, '.3g')} over all modules"
    unsettled = sum(m.base is not None and not m.base.converged for m in modules)
    if unsettled:
        yield f"  {unsettled} norms did not reach their tolerance: read them as lower bounds"


def _udr(module: ModuleAudit) -> float:
    return module.udr if isinstance(module.udr, float) else -1.0


def _survival(base: BaseReport) -> Iterator[str]:
    if base.survival_dtype is None:
        return
    risk = f"; {base.survival_at_risk} modules at risk" if base.survival_at_risk else ""
    yield (
        f"  Merged in {base.survival_dtype}: {percent(base.survival_changed_median)} of entries change, cosine"
        f" with the update {number(base.survival_cosine_median, '.3f')} (medians){risk}"
    )


def _intruders(modules: list[ModuleAudit], base: BaseReport) -> Iterator[str]:
    found = [m.base.intruders for m in modules if m.base is not None and m.base.intruders is not None]
    if not found:
        return
    totals: Counter[str] = Counter()
    for item in found:
        totals.update(item.counts)
    by_eps = ", ".join(f"{totals[eps]} at {eps}" for eps in found[0].counts)
    undecided = sum(item.undecided for item in found)
    left = f"; {undecided} counted that the bounds leave open" if undecided else ""
    yield (
        f"  Intruder dimensions:    {base.intruder_total} in {base.intruder_modules} of {len(found)} modules"
        f" (k={found[0].k}, eps={found[0].eps:g}; {by_eps}){left}"
    )


def base_row(m: ModuleAudit) -> str:
    """Return one module's numbers against the base, for its line."""
    if m.base is None:
        return ""
    text = f"  udr={number(m.udr, '.3g')}  rel={number(m.relative_frobenius, '.3g')}"
    if m.base.survival is not None:
        text += f"  merge-cos={number(m.base.survival.cosine, '.3f')}"
    if m.base.intruders is not None:
        text += f"  intruders={m.base.intruders.count}"
    return text


_MOST_MODULES: Final = 8
_NAMES: Final = {
    "energy_90": "k@90%",
    "effective_rank": "effective rank",
    "stable_rank": "stable rank",
    "knee": "knee",
}
_TRIAL: Final = (  # docs/resize.md, benchmarks/resize_quality.py: 4 tasks, 3 seeds, 95 % intervals
    "  on trial (12 small adapters) the p90 rank cost 1.4 points of accuracy (0.0 to 2.8), the median 3.9 (1.2 to 6.6)"
)
_LABELS: Final = (("median", "most modules (median)"), ("p90", "worst-case tail (p90)"))


def rank_lines(report: AuditReport) -> Iterator[str]:
    """Yield the cost and saving of each rank below the present one, the suggested ones marked."""
    if not report.suggested:
        return
    present = max((m.r for m in report.modules), default=0)
    yield "Suggested rank (compress after training; verify with eval):"
    yield "     r  energy kept  rel. error  worst module  saves"
    for item in report.candidates:
        yield f"  {item.rank:>4}  {percent(item.energy_kept):>11}  {_cost(item)}{_mark(report, item.rank)}"
    if present not in {item.rank for item in report.candidates}:
        yield f"  {present:>4}  {'100.0%':>11}  {'the present rank':>16}{_mark(report, present)}"
    yield from _others(report)
    yield _TRIAL
    yield ""


def _cost(item: SuggestedRank) -> str:
    saves = f"{count(item.params_saved)} params, {_megabytes(item.bytes_saved)}"
    return f"{percent(item.relative_error):>10}  {percent(item.relative_error_worst):>12}  {saves}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"


def _mark(report: AuditReport, rank: int) -> str:
    names = [label for key, label in _LABELS if key in report.suggested and report.suggested[key].rank == rank]
    return f"  <- {', '.join(names)}" if names else ""


def _others(report: AuditReport) -> Iterator[str]:
    others = [rule for rule in report.rank_rules if rule.rule != "energy_90"]
    if not others:
        return
    said = ", ".join(f"{_NAMES[r.rule]} {r.median_bucket}/{r.p90_bucket}" for r in others)
    yield f"  k@90% decides; other rules say (median/p90): {said}"


def rule_lines(report: AuditReport, *, verbose: bool) -> Iterator[str]:
    """Yield what each rule says, and where and why they lie more than a bucket apart."""
    if not report.rank_rules:
        return
    yield "Rules for a rank (median/p90, then as ranks):"
    for rule in report.rank_rules:
        yield (
            f"  {_NAMES[rule.rule]:<15} {number(rule.median, '.3g'):>5}/{number(rule.p90, '.3g'):<5}"
            f" r={rule.median_bucket}/{rule.p90_bucket:<4} {rule.says}"
        )
    yield from _apart(report, verbose=verbose)
    yield ""


def _apart(report: AuditReport, *, verbose: bool) -> Iterator[str]:
    """Yield the modules where rules lie more than a bucket apart, those with the same ranks together."""
    groups: dict[tuple[int, ...], list[RankDisagreement]] = {}
    for item in report.rank_disagreements:
        groups.setdefault(tuple(item.buckets.values()), []).append(item)
    if groups:
        n = len(report.rank_disagreements)
        yield f"  More than a bucket apart on {n} of {len(report.modules)} modules:"
    for items in sorted(groups.values(), key=len, reverse=True):
        first = items[0]
        said = ", ".join(f"{_NAMES[name]} {rank}" for name, rank in first.buckets.items())
        yield f"    {len(items)} x  {said}"
        for item in items[: None if verbose else 1]:
            yield f"      {clean(item.name)}: {clean(item.why)}"
        if not verbose and len(items) > 1:
            yield f"      and {len(items) - 1} more like it (--verbose names them)"


def per_layer_lines(pattern: RankPattern, *, verbose: bool) -> Iterator[str]:
    """Yield the pattern as JSON for LoraConfig, with what it costs and saves."""
    yield "Rank per layer (each module at its k@90%, scaling unchanged; arguments of peft.LoraConfig):"
    fields = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")
    arguments = {name: getattr(pattern, name) for name in fields}
    text = msgspec.json.format(msgspec.json.encode(arguments), indent=2).decode()
    yield from (f"  {line}" for line in text.splitlines())
    yield (
        f"  keeps {percent(pattern.energy_kept)} of the energy; relative error {percent(pattern.relative_error)};"
        f" saves {count(pattern.params_saved)} params, {_megabytes(pattern.bytes_saved)}"
    )
    ranks = Counter(row.rank for row in pattern.modules)
    yield "  modules by rank: " + ", ".join(f"r={rank}: {n}" for rank, n in sorted(ranks.items()))
    costly = sorted(pattern.modules, key=lambda row: -row.relative_error)
    for row in costly[: None if verbose else _MOST_MODULES]:
        yield f"    r={row.r:<3} -> {row.rank:<3} error {percent(row.relative_error):>6}  {clean(row.name)}"
    if not verbose and len(costly) > _MOST_MODULES:
        yield f"    ... and {len(costly) - _MOST_MODULES} more with smaller errors (--verbose lists all)"
    yield ""


_Key: TypeAlias = tuple[int, int | None, float | NonFinite | None, bool, str | None, str | None, float | NonFinite]


def scale_lines(report: AuditReport) -> Iterator[str]:
    """Yield one line per group of modules with equal rank, alpha, patterns and scaling."""
    groups: dict[_Key, list[ModuleAudit]] = {}
    for m in report.modules:
        key = (m.r, m.config_r, m.alpha, m.rslora, m.rank_pattern, m.alpha_pattern, m.scaling)
        groups.setdefault(key, []).append(m)
    yield "Scales (dW = s B A):"
    yield "  modules     r    alpha        s  how"
    for members in sorted(groups.values(), key=len, reverse=True):
        first = members[0]
        yield (
            f"  {len(members):>7}  {first.r:>4}  {number(first.alpha, 'g'):>7}  {number(first.scaling, '.4g'):>7}"
            f"  {_how(first, report.format)}"
        )
        if len(groups) > 1:
            more = f" and {len(members) - 1} more" if len(members) > 1 else ""
            yield f"{'':>35}{clean(first.name)}{more}"
    for pattern in report.unmatched_patterns:
        yield f"  matches nothing: {clean(pattern)!r}"
    yield ""


def _how(m: ModuleAudit, form: str) -> str:
    if form == "mlx":
        return "the config's scale, which MLX-LM does not divide by r"
    parts = ["alpha / sqrt(r), rsLoRA" if m.rslora else "alpha / r"]
    if m.alpha_pattern is not None:
        parts.append(f"alpha by pattern {clean(m.alpha_pattern)!r}")
    if m.rank_pattern is not None:
        parts.append(f"rank by pattern {clean(m.rank_pattern)!r}")
    if m.config_r is not None:
        parts.append(f"the config says r={m.config_r}")
    return "; ".join(parts)


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

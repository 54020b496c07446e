"""The audit of an adapter as text: verdict and findings first, then the summary; other parts on request.

The lines from the banner to the most wasteful layers were printed by earlier versions too, and scripts read them. New
lines may be added between them, but none of them may change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final, NamedTuple, TypeAlias

from gradience.render import (
    Columns,
    as_text,
    banner,
    clean,
    count,
    counted,
    finding_lines,
    megabytes,
    number,
    percent,
    shortened,
    skipped_lines,
    table,
    words,
)
from gradience.render.plots import Quantity, heatmap
from gradience.render.ranks import next_command, rank_pattern, rank_rules, suggested, update_size
from gradience.rules.weights import suggests_ranks, words_of
from gradience.schema import NonFinite
from gradience.schema.audit import AuditReport, BaseReport, ModuleAudit

_NOT_ANALYSED: Final = 3  # tensors listed without --verbose
_NAMED_LAYERS: Final = 6
_HALF: Final = 0.5

_SHARES: Final = frozenset({"utilization", "udr", "relative_frobenius"})


class View(NamedTuple):
    """The optional parts of the report, besides verdict, findings, summary and suggested ranks."""

    top_wasteful: int = 3
    layers: bool = False
    heatmap: Quantity | None = None
    unicode: bool = True
    verbose: bool = False


@as_text
def audit_text(report: AuditReport, view: View | None = None) -> Iterator[str]:
    """The report of an audit for a terminal."""
    view = view or View()
    yield from banner("GRADIENCE LoRA AUDIT")
    yield f"PEFT dir: {clean(report.peft_dir)}"
    yield f"Config:   {clean(report.config_path or '-')}"
    yield f"Weights:  {clean(report.weights_path)}"
    yield ""
    yield f"Verdict: {words_of(report.health.verdict).replace('-', ' ').upper()} ({clean(report.health.reason)})"
    yield from _not_known(report.modules)
    yield from _found(report, verbose=view.verbose)
    yield ""
    if report.modules:
        yield from _summary(report, verbose=view.verbose)
        yield from _against_base(report)
        yield from standing_lines(report)
        yield from suggested(report, verbose=view.verbose)
        if suggests_ranks(report.health.verdict):
            yield from _wasteful(report, view.top_wasteful)
    yield from _on_request(report, view)
    yield from _remarks(report, verbose=view.verbose)
    if report.health.verdict == "trained":
        yield "Weights cannot show a layer dropped, doubled, swapped or negated, or another alpha: evaluate."
    yield from next_command(report)


def _found(report: AuditReport, *, verbose: bool) -> Iterator[str]:
    """The findings, if there are any."""
    if report.findings:
        yield ""
        yield "Findings:"
        yield from finding_lines(report.findings, verbose=verbose)


def standing_lines(report: AuditReport) -> Iterator[str]:
    """The adapter's percentiles in a fleet: a line for each number, module type and rank."""
    found = report.standing
    if found is None:
        return
    yield f"Among the trained adapters of {clean(found.fleet)}, by type of module and rank:"
    for item in found.percentiles:
        value = percent(item.value) if item.measure in _SHARES else number(item.value, ".3g")
        name = f"{words(item.measure)}, {clean(item.module_type)}, r {item.r}"
        yield f"  {name:<36}{value:>8}  above {item.percentile:.0f} % of them (n = {item.n})"
    yield from (f"  {clean(text)}" for text in found.notes)
    yield ""


def _not_known(modules: list[ModuleAudit]) -> Iterator[str]:
    """A line for each reason why modules have no numbers, with the number of these modules."""
    reasons = Counter(m.note for m in modules if m.state == "not_known")
    yield from (
        f"Left out of every number: {n} of {len(modules)} modules ({clean(why or '-')})" for why, n in reasons.items()
    )


def _summary(report: AuditReport, *, verbose: bool) -> Iterator[str]:
    s = report.summary
    yield "Summary:"
    yield f"  LoRA params: {count(s.total_lora_params)}"
    yield f"  Layers:      {s.n_layers}"
    if verbose:
        yield f"  Modules:     {_modules(report)}"
    if (size := update_size(s.update_norm, s.update_size)) is not None:
        beside = report.base.relative_frobenius if report.base is not None else None
        yield f"  Update size: {size}" + ("" if beside is None else f"; {beside:.3g} of the base weights")
    yield f"  Stable rank (mean):    {number(s.stable_rank_mean)}"
    yield f"  Utilization (mean):    {percent(s.utilization_mean)}"
    yield f"  Energy rank k@90% (p50/p90): {number(s.energy_rank_90_p50, '.3g')}/{number(s.energy_rank_90_p90, '.3g')}"
    if verbose:
        yield from _spread(report)
    yield ""


def _spread(report: AuditReport) -> Iterator[str]:
    """Further ranks, and where the energy of the update is."""
    s = report.summary
    yield f"  Effective rank (mean): {number(s.effective_rank_mean)}"
    if s.null_stable_rank_mean is not None:
        yield f"  Random factors of these shapes would have stable rank {number(s.null_stable_rank_mean)}"
    shares = [f"{kind} {percent(g.energy_share)} ({g.n})" for kind, g in s.by_type.items() if g.energy_share]
    if shares:
        yield f"  Energy by type (modules): {', '.join(shares)}"
    if s.energy_concentration:
        like = f"{1.0 / s.energy_concentration:.0f} modules with equal shares (there are {s.n_layers})"
        half = _half(report)
        yield f"  Energy is as concentrated as in {like}" + (f"; half of it is in {half}" if half else "")


def _modules(report: AuditReport) -> str:
    """The number of adapted modules and of network layers. The "Layers" line above counts modules, as other logs do."""
    n = len(report.layers)
    where = f", in {n} layer{'s' if n != 1 else ''} of the network" if n else ""
    return f"{report.summary.n_layers}{where}"


def _half(report: AuditReport) -> str:
    """The fewest layers that hold half of the energy, by name if they are few; empty if there is only one layer."""
    ranked = sorted((x for x in report.layers if x.energy_share), key=lambda x: -(x.energy_share or 0.0))
    held, chosen = 0.0, []
    for layer in ranked:
        if held >= _HALF:
            break
        held += layer.energy_share or 0.0
        chosen.append(layer)
    if len(ranked) < 2 or held < _HALF:
        return ""
    inside = ", ".join(layer.label for layer in sorted(chosen, key=lambda layer: layer.layer))
    named = f" ({inside})" if len(chosen) <= _NAMED_LAYERS else ""
    return f"{len(chosen)} of {len(ranked)} layers{named}"


def _against_base(report: AuditReport) -> Iterator[str]:
    base = report.base
    if base is None:
        return
    cached = f", {base.norms_cached} norms from the cache" if base.norms_cached else ""
    yield f"Against the base ({clean(base.path)}):"
    yield f"  Compared: {base.compared} of {len(report.modules)} modules{cached}"
    if base.compared:
        yield from _sizes(report.modules, base)
        yield from _intruders(report.modules, base)
    unread = Counter(item.reason for item in base.not_compared if item.cause == "unread_codes")
    yield from (f"  Not compared: {n} modules, {clean(reason)}" for reason, n in unread.items())
    yield f"  Method: {clean(base.method)}"
    yield from (f"  Note: {clean(note)}." for note in base.notes)
    yield ""


def _sizes(modules: list[ModuleAudit], base: BaseReport) -> Iterator[str]:
    if base.udr_median is not None:
        largest = max(modules, key=lambda m: m.udr if isinstance(m.udr, float) else -1.0)
        yield (
            f"  UDR norm2(dW)/norm2(W): median {number(base.udr_median, '.3g')},"
            f" largest {number(base.udr_max, '.3g')} ({clean(largest.name)})"
        )
        yield f"  SDI log10(UDR):         median {number(base.sdi_median)}"
    yield f"  Relative Frobenius:     {number(base.relative_frobenius, '.3g')} over all modules"
    bounds = sum(m.base is not None and not m.base.converged for m in modules)
    if bounds:
        yield f"  {bounds} norms did not reach their tolerance: read them as lower bounds"
    if base.survival_dtype is not None:
        risk = f"; {base.survival_at_risk} modules at risk" if base.survival_at_risk else ""
        yield (
            f"  Merged in {base.survival_dtype}: {percent(base.survival_changed_median)} of entries change, cosine"
            f" with the update {number(base.survival_cosine_median, '.3f')} (medians){risk}"
        )
    if base.codes:
        yield from _in_codes(base)


def _in_codes(base: BaseReport) -> Iterator[str]:
    """The formats of the base's codes, and what a merge back into them leaves of the update."""
    of = ", ".join(f"{clean(form)} ({n})" for form, n in base.codes.items())
    yield f"  Codes of the base: {of}; compared with the weights that they stand for"
    if base.in_codes_changed_median is not None:
        yield (
            f"  Merged back into these codes: {percent(base.in_codes_changed_median)} of them change, cosine with the"
            f" update {number(base.in_codes_cosine_median, '.3f')} (medians, scales kept)"
        )


def _intruders(modules: list[ModuleAudit], base: BaseReport) -> Iterator[str]:
    found = [m.base.intruders for m in modules if m.base is not None and m.base.intruders is not None]
    if not found:
        return
    totals = Counter[str]()
    for item in found:
        totals.update(item.counts)
    by_eps = ", ".join(f"{totals[eps]} at {eps}" for eps in found[0].counts)
    undecided = sum(item.undecided for item in found)
    left_open = f"; {undecided} counted that the bounds leave open" if undecided else ""
    yield (
        f"  Intruder dimensions:    {base.intruder_total} in {base.intruder_modules} of {len(found)} modules"
        f" (k={found[0].k}, eps={found[0].eps:g}; {by_eps}){left_open}"
    )


def _wasteful(report: AuditReport, top: int) -> Iterator[str]:
    ranked = sorted((m for m in report.modules if m.utilization is not None), key=lambda m: m.utilization or 0.0)
    shown = ranked[:top]
    if shown:
        yield f"Most wasteful layers (lowest utilization, top {len(shown)}):"
        yield from (f"  {place:02d}. {_module(module)}  {clean(module.name)}" for place, module in enumerate(shown, 1))
        yield ""


def _module(m: ModuleAudit) -> str:
    rank = str(m.r or "-")
    if m.state != "ok":
        return f"{m.module_type:<4} r={rank:<3} {m.state.replace('_', '-')}"
    return (
        f"{m.module_type:<4} r={rank:<3} util={percent(m.utilization)}  sr={number(m.stable_rank)}"
        f"  k@90%={number(m.energy_rank_90, 'd')}"
    )


def _on_request(report: AuditReport, view: View) -> Iterator[str]:
    if view.heatmap is not None:
        yield from heatmap(report.modules, view.heatmap, unicode=view.unicode)
        yield ""
    if view.verbose:
        yield from _scales(report)
    if view.verbose and report.rank_rules:
        yield from rank_rules(report)
    if report.per_layer is not None:
        yield from rank_pattern(report.per_layer, verbose=view.verbose)
    if view.layers:
        yield from _layers(report)


_Scale: TypeAlias = tuple[int, int | None, float | NonFinite | None, bool, str | None, str | None, float | NonFinite]


def _scales(report: AuditReport) -> Iterator[str]:
    """One line for each group of modules with equal rank, alpha, patterns and scaling."""
    groups: dict[_Scale, list[ModuleAudit]] = {}
    for m in report.modules:
        key = (m.r, m.config_r, m.alpha, m.rslora, m.rank_pattern, m.alpha_pattern, m.scaling)
        groups.setdefault(key, []).append(m)
    columns: Columns[list[ModuleAudit]] = (
        ("modules", ">7", lambda members: str(len(members))),
        ("r", ">4", lambda members: str(members[0].r)),
        ("alpha", ">7", lambda members: number(members[0].alpha, "g")),
        ("s", ">7", lambda members: number(members[0].scaling, ".4g")),
        ("how", "", lambda members: _origin(members, report.format, named=len(groups) > 1)),
    )
    yield "Scales (dW = s B A):"
    yield from table(columns, sorted(groups.values(), key=len, reverse=True))
    yield from (f"  matches nothing: {clean(pattern)!r}" for pattern in report.unmatched_patterns)
    yield ""


def _origin(members: list[ModuleAudit], form: str, *, named: bool) -> str:
    """How a group's scale was computed; `named` adds the name of its first module below."""
    m, more = members[0], f" and {len(members) - 1} more" if len(members) > 1 else ""
    parts = ["alpha / sqrt(r), rsLoRA" if m.rslora else "alpha / r"]
    if m.alpha_pattern is not None:
        parts.append(f"alpha by pattern {clean(m.alpha_pattern)!r}")
    if m.rank_pattern is not None:
        parts.append(f"rank by pattern {clean(m.rank_pattern)!r}")
    if m.config_r is not None:
        parts.append(f"the config says r={m.config_r}")
    if form == "mlx":
        parts = ["the config's scale, which MLX-LM does not divide by r"]
    return "; ".join(parts) + (f"\n{'':>35}{clean(m.name)}{more}" if named else "")


def _layers(report: AuditReport) -> Iterator[str]:
    if report.layers:
        yield "By layer:"
        for layer in report.layers:
            yield (
                f"  layer {layer.label:>3}  {layer.n:>3} modules  sr={number(layer.stable_rank_mean)}"
                f"  energy={percent(layer.energy_share)}"
            )
        yield ""
    yield "All modules (null: stable rank of random factors of the shape):"
    for m in report.modules:
        null = f"  null={number(m.null_stable_rank)}" if m.null_stable_rank is not None else ""
        scale = f"s={number(m.scaling, 'g')}  " if m.r else ""
        norm = f"{scale}|dW|={number(m.frobenius_norm, '.3g')}"
        yield f"  {_module(m)}{null}  {norm}{_module_against_base(m)}  {clean(m.name)}"
        if m.note:
            yield f"      {clean(m.note)}"
    yield ""


def _module_against_base(m: ModuleAudit) -> str:
    if m.base is None:
        return ""
    text = f"  udr={number(m.udr, '.3g')}  rel={number(m.relative_frobenius, '.3g')}"
    if m.base.survival is not None:
        text += f"  merge-cos={number(m.base.survival.cosine, '.3f')}"
    if m.base.intruders is not None:
        text += f"  intruders={m.base.intruders.count}"
    return text


def _remarks(report: AuditReport, *, verbose: bool) -> Iterator[str]:
    if report.not_analysed:
        yield f"Not analysed ({len(report.not_analysed)}):"
        lines = [f"  {clean(item.name)}: {clean(item.reason)}" for item in report.not_analysed]
        yield from shortened(lines, None if verbose else _NOT_ANALYSED, indent=2)
    yield from (f"Note: {clean(note)}." for note in report.notes)
    if not verbose:
        yield _left_out(report)
        return
    roles = [
        f"{words(entry.role)} {percent(entry.share)} ({megabytes(entry.bytes)}, {entry.tensors} tensors)"
        for entry in report.ledger
    ]
    yield f"In the file: {', '.join(roles) or 'nothing'}"
    yield from skipped_lines(report.not_run, verbose=True)
    yield "Findings and suggestions are hypotheses about these weights: verify on held-out data."


def _left_out(report: AuditReport) -> str:
    """What --verbose adds: the tables, and the checks that did not run."""
    parts = ["every rank and layer"]
    if report.not_run:
        parts.append(f"why {counted(len(report.not_run), 'check')} did not run")
    return f"--verbose adds: {', '.join(parts)}"

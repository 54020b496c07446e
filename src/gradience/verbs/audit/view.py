"""The audit of an adapter as text: verdict and findings first, then the summary; other parts on request.

The lines from the banner to the most wasteful layers were printed by earlier versions too, and scripts read them. New
lines may be added between them, but none of them may change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple, TypeAlias

from gradience.blocks import (
    Block,
    Columns,
    Figure,
    Fold,
    Heading,
    Section,
    Title,
    VerdictLine,
    count,
    counted,
    facts,
    findings,
    megabytes,
    number,
    part,
    percent,
    set_off,
    short_path,
    skipped,
    table,
    words,
)
from gradience.blocks.text import as_text, shortened
from gradience.render.ranks import next_command, rank_pattern, rank_rules, suggested, update_size, utilization
from gradience.rules.weights import suggests_ranks, words_of
from gradience.rules.weights.utilization import under_used
from gradience.schema import NonFinite
from gradience.schema.audit import AuditReport, BaseReport, LedgerEntry, ModuleAudit
from gradience.verbs.audit.maps import Quantity, grid_of, heatmap

_NOT_ANALYSED: Final = 3  # tensors listed without --verbose
_NAMED_LAYERS: Final = 6
_HALF: Final = 0.5
_USED: Final = 0.995  # a utilization that prints as 100 %, of which nothing is wasted
_OTHERS: Final = frozenset({"full_module", "token_rows", "bias", "not_analysed", "unknown"})

_MAPS: Final[dict[Quantity, str]] = {"norm": "How large the update is", "utilization": "How much of the rank it uses"}

_MODULES: Final[Columns[ModuleAudit]] = (
    ("module", "", lambda m: m.name),
    ("state", "", lambda m: words(m.state)),
    ("r", ">4", lambda m: str(m.r)),
    ("stable rank", ">6", lambda m: number(m.stable_rank)),
    ("utilization", ">6", lambda m: percent(m.utilization)),
    ("k at 90 %", ">4", lambda m: number(m.energy_rank_90, "d")),
    ("norm of dW", ">8", lambda m: number(m.frobenius_norm, ".3g")),
    ("s", ">6", lambda m: number(m.scaling, "g")),
)
_LEDGER: Final[Columns[LedgerEntry]] = (
    ("role", "", lambda e: words(e.role)),
    ("share", ">6", lambda e: percent(e.share)),
    ("tensors", ">6", lambda e: f"{e.tensors:,}"),
    ("parameters", ">8", lambda e: count(e.params)),
    ("bytes", ">9", lambda e: megabytes(e.bytes)),
)


class View(NamedTuple):
    """The optional parts of the report, besides verdict, findings, summary and suggested ranks."""

    top_wasteful: int = 3
    heatmap: Quantity | None = None
    unicode: bool = True
    verbose: bool = False


@as_text
def audit_text(report: AuditReport, view: View | None = None) -> Iterator[Block]:
    """The report of an audit for a terminal."""
    view = view or View()
    yield Title("GRADIENCE LoRA AUDIT")
    read = (("PEFT dir", report.peft_dir), ("Config", report.config_path or "-"), ("Weights", report.weights_path))
    yield from (facts(read, width=10), "")
    yield VerdictLine(words_of(report.health.verdict).replace("-", " "), f" ({report.health.reason})")
    yield from _not_known(report.modules)
    yield from set_off("Findings", [findings(report.findings, verbose=view.verbose)] if report.findings else ())
    yield ""
    if report.modules:
        yield from _numbers(report, verbose=view.verbose)
        if suggests_ranks(report.health.verdict):
            yield from _wasteful(report, view.top_wasteful)
    yield from _on_request(report, view)
    yield from _remarks(report, verbose=view.verbose)
    if report.health.verdict == "trained":
        yield "Weights cannot show a layer dropped, doubled, swapped or negated, or another alpha: evaluate."
    yield from next_command(report)


def weights_section(report: AuditReport | None, figures: Sequence[Figure] = ()) -> list[Section]:
    """The part of a page with the audit of the adapter, and figures of its spectra; nothing without an adapter."""
    if report is None:
        return []
    grids = [(title, grid_of(report.modules, of)) for of, title in _MAPS.items()]
    listed = table(_MODULES, sorted(report.modules, key=_use), caption="Modules, least used first")
    content = (
        VerdictLine(words(report.health.verdict).upper(), f": {report.health.reason}."),
        *_not_known(report.modules),
        *(_numbers(report, verbose=True, name=short_path) if report.modules else ()),
        *figures,
        *(Figure(title, grid, wide=True) for title, grid in grids if grid is not None),
        *([Fold(f"{listed.caption} ({len(report.modules):,})", (listed,))] if report.modules else []),
        table(_LEDGER, report.ledger, caption="What is in the file: tensors by role"),
    )
    return [Section("weights", "Weights", content)]


def ranks_section(report: AuditReport | None) -> list[Section]:
    """The part of a comment with the ranks that an audit suggests, if any."""
    shown = () if report is None else tuple(suggested(report, verbose=True))
    return [Section("ranks", "Weights", shown)] if shown else []


def _not_known(modules: list[ModuleAudit]) -> Iterator[Block]:
    """A line for each reason why modules have no numbers, with the number of these modules."""
    reasons = Counter(m.note for m in modules if m.state == "not_known")
    yield from (f"Left out of every number: {n} of {len(modules)} modules ({why or '-'})" for why, n in reasons.items())


def _beside_the_factors(report: AuditReport) -> str:
    """What else the file holds of the trained model, by its share of all parameters in it; "" if nothing."""
    held = [entry for entry in report.ledger if entry.role in _OTHERS and entry.params]
    every = sum(entry.params for entry in report.ledger)
    parts = [f"{words(e.role)} {percent(e.params / every)} ({counted(e.tensors, 'tensor')})" for e in held]
    return f"; of the file's parameters, in no number here: {', '.join(parts)}" if parts else ""


def _numbers(report: AuditReport, *, verbose: bool, name: Callable[[str], str] = str) -> Iterator[Block]:
    """What the audit measured, with the base it compared with by its name, and suggested ranks."""
    yield from _summary(report, verbose=verbose)
    yield from _against_base(report, name)
    yield from suggested(report, verbose=verbose)


def _summary(report: AuditReport, *, verbose: bool) -> Iterator[Block]:
    s = report.summary
    yield Heading("Summary")
    params = f"{count(s.total_lora_params)}{_beside_the_factors(report)}"
    counts = {"LoRA params": params, "Layers": f"{s.n_layers}"}
    if verbose:
        counts["Modules"] = _modules(report)
    if report.is_scaled and (size := update_size(s.update_norm, s.update_size)) is not None:
        beside = report.base.relative_frobenius if report.base is not None else None
        counts["Update size"] = size + ("" if beside is None else f"; {beside:.3g} of the base weights")
    yield facts(counts.items(), indent=2, width=13)
    means = {
        "Stable rank (mean)": number(s.stable_rank_mean),
        "Utilization (mean)": utilization(s.utilization_mean, report.readings),
        "Energy rank k@90% (p50/p90)": f"{number(s.energy_rank_90_p50, '.3g')}/{number(s.energy_rank_90_p90, '.3g')}",
    }
    if verbose:
        means["Effective rank (mean)"] = number(s.effective_rank_mean)
    yield facts(means.items(), indent=2, width=23)
    yield from (f"  {one.message}" for one in report.readings if one.id != under_used.id)
    if verbose:
        yield from _spread(report)
    yield ""


def _spread(report: AuditReport) -> Iterator[Block]:
    """The stable rank of random factors, and where the energy of the update is."""
    s = report.summary
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
    share, chosen = 0.0, []
    for layer in ranked:
        if share >= _HALF:
            break
        share += layer.energy_share or 0.0
        chosen.append(layer)
    if len(ranked) < 2 or share < _HALF:
        return ""
    inside = ", ".join(layer.label for layer in sorted(chosen, key=lambda layer: layer.layer))
    named = f" ({inside})" if len(chosen) <= _NAMED_LAYERS else ""
    return f"{len(chosen)} of {len(ranked)} layers{named}"


def _against_base(report: AuditReport, name: Callable[[str], str]) -> Iterator[Block]:
    base = report.base
    if base is None:
        return
    cached = f", {base.norms_cached} norms from the cache" if base.norms_cached else ""
    yield Heading(f"Against the base ({name(base.path)})")
    yield f"  Compared: {base.compared} of {len(report.modules)} modules{cached}"
    if base.compared:
        yield from _sizes(report.modules, base)
        yield from _intruders(report.modules, base)
    unread = Counter(item.reason for item in base.not_compared if item.cause == "unread_codes")
    yield from (f"  Not compared: {n} modules, {reason}" for reason, n in unread.items())
    yield f"  Method: {base.method}"
    yield from (f"  Note: {note}." for note in base.notes)
    yield ""


def _sizes(modules: list[ModuleAudit], base: BaseReport) -> Iterator[Block]:
    if base.udr_median is not None:
        largest = max(modules, key=lambda m: m.udr if isinstance(m.udr, float) else -1.0)
        yield (
            f"  UDR norm2(dW)/norm2(W): median {number(base.udr_median, '.3g')},"
            f" largest {number(base.udr_max, '.3g')} ({largest.name})"
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


def _in_codes(base: BaseReport) -> Iterator[Block]:
    """The formats of the base's codes, and what a merge back into them leaves of the update."""
    of = ", ".join(f"{form} ({n})" for form, n in base.codes.items())
    yield f"  Codes of the base: {of}; compared with the weights that they stand for"
    if base.in_codes_changed_median is not None:
        yield (
            f"  Merged back into these codes: {percent(base.in_codes_changed_median)} of them change, cosine with the"
            f" update {number(base.in_codes_cosine_median, '.3f')} (medians, scales kept)"
        )


def _intruders(modules: list[ModuleAudit], base: BaseReport) -> Iterator[Block]:
    counted_in = [m.base.intruders for m in modules if m.base is not None and m.base.intruders is not None]
    if not counted_in:
        return
    totals = Counter[str]()
    for item in counted_in:
        totals.update(item.counts)
    by_eps = ", ".join(f"{totals[eps]} at {eps}" for eps in counted_in[0].counts)
    undecided = sum(item.undecided for item in counted_in)
    left_open = f"; {undecided} counted that the bounds leave open" if undecided else ""
    yield (
        f"  Intruder dimensions:    {base.intruder_total} in {base.intruder_modules} of {len(counted_in)} modules"
        f" (k={counted_in[0].k}, eps={counted_in[0].eps:g}; {by_eps}){left_open}"
    )


def _wasteful(report: AuditReport, top: int) -> Iterator[Block]:
    wasteful = (m for m in report.modules if m.utilization is not None and m.utilization < _USED)
    ranked = sorted(wasteful, key=lambda m: m.utilization or 0.0)
    lines = [f"  {place:02d}. {_module(module)}  {module.name}" for place, module in enumerate(ranked[:top], 1)]
    yield from part(f"Most wasteful layers (lowest utilization, top {len(lines)})", lines)


def _module(m: ModuleAudit) -> str:
    rank = str(m.r or "-")
    if m.state != "ok":
        return f"{m.module_type:<4} r={rank:<3} {m.state.replace('_', '-')}"
    return (
        f"{m.module_type:<4} r={rank:<3} util={percent(m.utilization)}  sr={number(m.stable_rank)}"
        f"  k@90%={number(m.energy_rank_90, 'd')}"
    )


def _on_request(report: AuditReport, view: View) -> Iterator[Block]:
    if view.heatmap is not None:
        yield from (heatmap(report.modules, view.heatmap, unicode=view.unicode), "")
    if view.verbose:
        yield from _scales(report)
    if view.verbose and report.rank_rules:
        yield from rank_rules(report)
    if report.per_layer is not None:
        yield from rank_pattern(report.per_layer, verbose=view.verbose)
    if view.verbose:
        yield from _layers(report)


_Scale: TypeAlias = tuple[int, int | None, float | NonFinite | None, bool, str | None, str | None, float | NonFinite]


def _scales(report: AuditReport) -> Iterator[Block]:
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
        ("how", "", lambda members: _origin(members[0], report.format)),
    )
    ordered = sorted(groups.values(), key=len, reverse=True)
    lines = table(columns, ordered, below=_first if len(groups) > 1 else None)
    idle = (f"  matches nothing: {pattern!r}" for pattern in report.unmatched_patterns)
    yield from part("Scales (dW = s B A)", (lines, *idle))


def _first(members: list[ModuleAudit]) -> str:
    """The line under a group with its first module."""
    return f"{'':>35}{members[0].name}" + (f" and {len(members) - 1} more" if len(members) > 1 else "")


def _origin(m: ModuleAudit, form: str) -> str:
    """How a group's scale was computed."""
    parts = ["alpha / sqrt(r), rsLoRA" if m.rslora else "alpha / r"]
    if m.alpha_pattern is not None:
        parts.append(f"alpha by pattern {m.alpha_pattern!r}")
    if m.rank_pattern is not None:
        parts.append(f"rank by pattern {m.rank_pattern!r}")
    if m.config_r is not None:
        parts.append(f"the config says r={m.config_r}")
    if form == "mlx":
        parts = ["the config's scale, which MLX-LM does not divide by r"]
    return "; ".join(parts)


def _layers(report: AuditReport) -> Iterator[Block]:
    layers = (
        f"  layer {layer.label:>3}  {layer.n:>3} modules  sr={number(layer.stable_rank_mean)}"
        f"  energy={percent(layer.energy_share)}"
        for layer in report.layers
    )
    yield from part("By layer", layers)
    yield "All modules (null: stable rank of random factors of the shape):"
    for m in report.modules:
        null = f"  null={number(m.null_stable_rank)}" if m.null_stable_rank is not None else ""
        scale = f"s={number(m.scaling, 'g')}  " if m.r else ""
        norm = f"{scale}|dW|={number(m.frobenius_norm, '.3g')}"
        yield f"  {_module(m)}{null}  {norm}{_module_against_base(m)}  {m.name}"
        if m.note:
            yield f"      {m.note}"
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


def _remarks(report: AuditReport, *, verbose: bool) -> Iterator[Block]:
    if report.not_analysed:
        yield f"Not analysed ({len(report.not_analysed)}):"
        lines = [f"  {item.name}: {item.reason}" for item in report.not_analysed]
        yield from shortened(lines, None if verbose else _NOT_ANALYSED)
    yield from (f"Note: {note}." for note in report.notes)
    if not verbose:
        yield _left_out(report)
        return
    roles = [
        f"{words(entry.role)} {percent(entry.share)} ({megabytes(entry.bytes)}, {entry.tensors} tensors)"
        for entry in report.ledger
    ]
    yield f"In the file: {', '.join(roles) or 'nothing'}"
    yield from skipped(report.not_run, verbose=True)
    yield "Findings and suggestions are hypotheses about these weights: verify on held-out data."


def _left_out(report: AuditReport) -> str:
    """What --verbose adds: the tables, and the checks that did not run."""
    parts = ["every rank and layer"]
    if report.not_run:
        parts.append(f"why {counted(len(report.not_run), 'check')} did not run")
    return f"--verbose adds: {', '.join(parts)}"


def _use(m: ModuleAudit) -> tuple[bool, float]:
    """A sort key: broken and untrained modules first, then by utilization, and last those without a utilization."""
    return m.state == "ok", 2.0 if m.utilization is None else m.utilization

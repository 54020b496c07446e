"""The sections about weights: the adapter's audit, and its comparison with other adapters or earlier checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, TypeAlias
from xml.etree.ElementTree import Element

import msgspec
import numpy as np

from gradience.render import count, megabytes, number, percent, shorter, words
from gradience.render.compare import cosine_cell, span
from gradience.render.html import Node, Story, tag
from gradience.render.html.figures import STYLES
from gradience.render.html.pieces import Columns, facts, fold, map_figure, note, plot_figure, section, table
from gradience.render.html.plot import Envelope, Floats, Line, Plot, envelope
from gradience.render.plots import Quantity, grid_of, grid_of_cells
from gradience.render.ranks import present_rank, suggested_for, update_size
from gradience.schema.audit import AuditReport, LedgerEntry, ModuleAudit, Percentile, SuggestedRank
from gradience.schema.compare import (
    AdapterPair,
    CheckpointPoint,
    CheckpointSeries,
    CompareAdaptersReport,
    ComparedAdapter,
    ConfigDifference,
)

_MAPS: Final[dict[Quantity, str]] = {"norm": "How large the update is", "utilization": "How much of the rank it uses"}

_PERCENTILES: Final[Columns[Percentile]] = (
    ("number", lambda item: words(item.measure)),
    ("modules", lambda item: item.module_type),
    ("r", lambda item: str(item.r)),
    ("value", lambda item: number(item.value, ".4g")),
    ("percentile", lambda item: f"{item.percentile:.0f}"),
    ("n", lambda item: f"{item.n:,}"),
)
_TINY: Final = 1e-300  # keeps a division by the first singular value finite

_MODULES: Final[Columns[ModuleAudit]] = (
    ("Module", lambda m: m.name),
    ("State", lambda m: words(m.state)),
    ("r", lambda m: str(m.r)),
    ("Stable rank", lambda m: number(m.stable_rank)),
    ("Utilization", lambda m: percent(m.utilization)),
    ("k at 90 %", lambda m: number(m.energy_rank_90, "d")),
    ("Norm of dW", lambda m: number(m.frobenius_norm, ".3g")),
    ("s", lambda m: number(m.scaling, "g")),
)

_PAIRS: Final = 3  # pairs of adapters with maps
_TEXT: Final = 120  # characters of a configuration's value
_CAUTION: Final = "Two runs differ by their seed alone as well; a cosine of weights does not measure behaviour."

_ADAPTERS: Final[Columns[ComparedAdapter]] = (
    ("Adapter", lambda a: a.name),
    ("Type", lambda a: a.peft_type or a.format),
    ("r", lambda a: span(a.rank, " to ")),
    ("s", lambda a: span(a.scaling, " to ")),
    ("Modules", lambda a: f"{a.modules:,}"),
    ("Norm of dW", lambda a: number(a.frobenius_norm, ".4g")),
)
_UPDATES: Final[Columns[AdapterPair]] = (
    ("First", lambda pair: pair.first),
    ("Second", lambda pair: pair.second),
    ("Modules", lambda pair: f"{pair.compared:,}"),
    ("Cosine", lambda pair: number(pair.cosine, ".3f")),
    ("Norm ratio", lambda pair: number(pair.norm_ratio, ".3g")),
    ("Change", lambda pair: percent(pair.relative_change)),
    ("Energy moved", lambda pair: percent(pair.energy_moved)),
)
_UPDATES_CAPTION: Final = (
    "Updates as a whole; energy moved: half the sum over layers of the change in their share of the norm squared"
)


def weights_section(story: Story) -> Element | None:
    """The section with the audit of the adapter, or None without an adapter."""
    report = story.diagnosis.audit
    if report is None:
        return None
    verdict = tag("p", tag("strong", words(report.health.verdict).upper()), f": {report.health.reason}.")
    figures = [*_spectra(report), *_maps(report)]
    return section(
        "weights",
        "Weights",
        verdict,
        facts(_summary(report)),
        _standing(report),
        tag("div", figures, class_="figures"),
        _ranks(report),
        _modules(report),
        _ledger(report),
    )


def _summary(report: AuditReport) -> Iterator[tuple[str, str]]:
    s, base = report.summary, report.base
    yield "LoRA parameters", count(s.total_lora_params)
    yield "Modules", f"{s.n_layers:,}"
    yield "Stable rank, mean", number(s.stable_rank_mean)
    yield "Stable rank of random factors", number(s.null_stable_rank_mean)
    yield "Utilization, mean", percent(s.utilization_mean)
    energy = f"{number(s.energy_rank_90_p50, '.3g')} / {number(s.energy_rank_90_p90, '.3g')}"
    yield "Energy rank at 90 %, median / 90th percentile", energy
    yield "Update size", update_size(s.update_norm, s.update_size) or "-"
    if base is not None:
        yield "Size relative to the base", percent(base.relative_frobenius)
        yield "Modules compared with the base", f"{base.compared:,}"


def _standing(report: AuditReport) -> Element | None:
    """The table of percentiles among the trained adapters of a fleet."""
    if report.standing is None:
        return None
    caption = f"Among the trained adapters of {report.standing.fleet}, per cent of them below this one"
    return table(_PERCENTILES, report.standing.percentiles, caption=caption, numbers=4)


_Spectrum: TypeAlias = Callable[[Floats, ModuleAudit], Floats]  # a curve over k from a module's singular values


def _spectra(report: AuditReport) -> Iterator[Element]:
    kinds = _kinds(report.modules)
    if not kinds:
        return
    shown = sum(map(len, kinds.values()))
    summary = f"{shown} modules of {len(kinds)} kinds: {', '.join(kinds)}."
    band = (
        f"{shown:,} of {len(report.modules):,} modules have a spectrum. "
        "Lines: median of the kind's modules; bands: lowest to highest."
    )
    fall = Plot(_lines(kinds, _relative), "k", "sigma_k / sigma_1")
    text = f"How fast the singular values of dW fall. {band}"
    yield plot_figure("Singular values", fall, summary=summary, caption=text)
    energy = Plot(_lines(kinds, _energy), "rank k", "energy held", log=False)
    text = f"Share of the squared Frobenius norm that the best rank-k update holds. {band}"
    yield plot_figure("Energy by rank", energy, summary=summary, caption=text)


def _kinds(modules: Sequence[ModuleAudit]) -> dict[str, list[ModuleAudit]]:
    """The modules with a spectrum, by the last part of their name, or by type if there are too many names to draw."""
    with_values = [m for m in modules if m.state == "ok" and m.top_singular_values]
    for name in (_last_part, lambda m: m.module_type):
        groups: dict[str, list[ModuleAudit]] = {}
        for module in with_values:
            groups.setdefault(name(module), []).append(module)
        if len(groups) <= STYLES:
            break
    return dict(list(groups.items())[:STYLES])


def _last_part(module: ModuleAudit) -> str:
    parts = [part for part in module.name.partition("[")[0].split(".") if not part.isdigit()]
    return parts[-1] if parts else module.module_type


def _relative(sigma: Floats, _: ModuleAudit) -> Floats:
    return np.asarray(sigma / max(sigma.max(), _TINY))


def _energy(sigma: Floats, module: ModuleAudit) -> Floats:
    norm = float(module.frobenius_norm or 0.0)
    largest = max(sigma.max(), norm * 1e-100, _TINY)  # division by it keeps squares of huge or tiny values in range
    return np.asarray(np.minimum(np.cumsum((sigma / largest) ** 2) / max(norm / largest, 1.0) ** 2, 1.0))


def _lines(kinds: Mapping[str, Sequence[ModuleAudit]], quantity: _Spectrum) -> list[Line]:
    return [Line(f"{kind} ({len(group)})", _spread(group, quantity)) for kind, group in kinds.items()]


def _spread(group: Sequence[ModuleAudit], quantity: _Spectrum) -> Envelope:
    """Lowest, median and highest value over the modules at each k; modules of lower rank end earlier."""
    rows = [quantity(np.asarray(m.top_singular_values, np.float64), m) for m in group]
    steps = np.concatenate([np.arange(1.0, len(row) + 1) for row in rows])
    values = np.concatenate(rows)
    columns = [column for k in np.unique(steps) if len(column := values[(steps == k) & np.isfinite(values)])]
    low, middle, high = (np.array([f(column) for column in columns]) for f in (np.min, np.median, np.max))
    steps = np.arange(1.0, len(columns) + 1)
    return Envelope.of(steps, low, middle, high, apart=False, sampled=len(group) > 1)


def _maps(report: AuditReport) -> Iterator[Element]:
    outside = sum(m.layer is None for m in report.modules)
    for quantity, title in _MAPS.items():
        grid = grid_of(report.modules, quantity)
        if grid is not None:
            yield map_figure(title, grid, legend="0: never trained, !: not finite", outside=outside)


def _ranks(report: AuditReport) -> Node:
    if not report.suggested:
        return None
    columns: Columns[SuggestedRank] = (
        ("Rank", lambda c: str(c.rank)),
        ("Suggested for", lambda c: suggested_for(report, c.rank)),
        ("Energy kept", lambda c: percent(c.energy_kept)),
        ("Relative error", lambda c: percent(c.relative_error)),
        ("Worst module", lambda c: percent(c.relative_error_worst)),
        ("Parameters saved", lambda c: count(c.params_saved)),
        ("Bytes saved", lambda c: megabytes(c.bytes_saved)),
    )
    present = present_rank(report)
    marked = "" if present is None else suggested_for(report, present)
    purpose = f", suggested for {marked}" if marked else ""
    return [
        tag("h3", "Suggested ranks"),
        note("Compress after training, and verify with an evaluation; it does not say which rank to train with."),
        table(columns, report.candidates, caption="What each rank would keep, cost and save", numbers=5),
        None if present is None else note(f"The present rank is {present}{purpose}."),
    ]


def _modules(report: AuditReport) -> Node:
    if not report.modules:
        return None
    title = "Modules, least used first"
    modules = sorted(report.modules, key=_use)
    return fold(f"{title} ({len(modules):,})", table(_MODULES, modules, caption=title, numbers=6))


def _use(m: ModuleAudit) -> tuple[bool, float]:
    """A sort key: broken and untrained modules first, then by utilization, and last those without a utilization."""
    return m.state == "ok", 2.0 if m.utilization is None else m.utilization


_LEDGER: Final[Columns[LedgerEntry]] = (
    ("Role", lambda e: words(e.role)),
    ("Share", lambda e: [_bar(e.share), percent(e.share)]),
    ("Tensors", lambda e: f"{e.tensors:,}"),
    ("Parameters", lambda e: count(e.params)),
    ("Bytes", lambda e: megabytes(e.bytes)),
)


def _ledger(report: AuditReport) -> Node:
    ledger = table(_LEDGER, report.ledger, caption="Tensors by role", numbers=4)
    return None if ledger is None else [tag("h3", "What is in the file"), ledger]


def _bar(share: float) -> Element:
    inside = [
        tag("rect", width=100, height=10, class_="rest"),
        tag("rect", width=round(100 * share, 1), height=10, class_="share"),
    ]
    return tag("svg", inside, viewBox="0 0 100 10", class_="bar", aria_hidden="true")


_Points: TypeAlias = Sequence[tuple[int, float]]


def comparison_section(report: CompareAdaptersReport | None) -> Element | None:
    """The section that compares adapters, or None without a comparison."""
    if report is None:
        return None
    pairs = report.pairs[::-1] if report.series is not None else report.pairs
    series = [] if report.series is None else list(_trajectory(report.series))
    figures = [*series, *(figure for pair in pairs[:_PAIRS] for figure in _pair(pair))]
    left = len(pairs) - _PAIRS
    return section(
        "compare",
        "Compared by weights",
        note(_CAUTION),
        table(_ADAPTERS, report.adapters, caption="Adapters compared", numbers=4),
        table(_UPDATES, report.pairs, caption=_UPDATES_CAPTION, numbers=5),
        None if report.series is None else tag("p", _settled(report.series)),
        tag("div", figures, class_="figures"),
        note(f"Maps of {left:,} further pairs are not drawn.") if left > 0 else None,
        _differences(report),
        list(map(note, _remarks(report))),
    )


def _settled(series: CheckpointSeries) -> str:
    bar = f"a cosine of at least {series.threshold:g} to the final update, a heuristic"
    if series.settled is None:
        return f"The update turns until the last checkpoint: none before it keeps {bar}."
    return f"From {series.settled} on, the update no longer turns: every later checkpoint has {bar}."


def _trajectory(series: CheckpointSeries) -> Iterator[Element]:
    def column(read: Callable[[CheckpointPoint], float | None]) -> _Points:
        return [(p.step, value) for p in series.points if p.step is not None and (value := read(p)) is not None]

    cosines = {
        "to the final update": column(lambda p: p.cosine_to_final),
        "to the one before": column(lambda p: p.cosine_to_previous),
    }
    yield from _curves("Direction of the update", cosines, "step", "cosine", "Each checkpoint's update as one vector.")
    norms = {"norm of dW": column(lambda p: p.frobenius_norm)}
    yield from _curves("Size of the update", norms, "step", "Frobenius norm", "Of all modules together.")
    ranks = {
        "effective rank": column(lambda p: p.effective_rank_mean),
        "stable rank": column(lambda p: p.stable_rank_mean),
        "k at 90 % of the energy": column(lambda p: p.energy_rank_90_mean),
    }
    yield from _curves("Rank in use", ranks, "step", "mean over modules", "Of modules whose update is not zero.")


def _curves(title: str, columns: Mapping[str, _Points], x_label: str, y_label: str, caption: str) -> Iterator[Element]:
    """A figure of lines with a dot at each value; nothing without values."""
    lines = [
        Line(name, envelope([x for x, _ in column], [y for _, y in column]), points=True)
        for name, column in columns.items()
        if column
    ]
    if lines:
        summary = " ".join(f"{x.label}: {x.data.middle[0]:.4g} to {x.data.middle[-1]:.4g}." for x in lines)
        plot = Plot(lines, x_label, y_label, log=False, zero=min(float(np.min(x.data.low)) for x in lines) >= 0.0)
        yield plot_figure(title, plot, summary=summary, caption=caption)


def _pair(pair: AdapterPair) -> Iterator[Element]:
    names = f"{pair.first} and {pair.second}"
    cells = [(row.name, row.layer, cosine_cell(row)) for row in pair.modules if row.layer is not None]
    grid = grid_of_cells(f"cosine of {names}", cells)
    if grid is not None:
        legend = "-: under 0, 0: the update of one is zero, !: not finite"
        outside = len(pair.modules) - len(cells)
        yield map_figure(f"Alike, {names}", grid._replace(top=1.0), legend=legend, outside=outside)
    inside = [(share.layer, share) for share in pair.layers if share.layer is not None]
    energy = {
        pair.first: [(layer, share.first) for layer, share in inside],
        pair.second: [(layer, share.second) for layer, share in inside],
    }
    caption = "Each layer's share of the squared Frobenius norm."
    if len(inside) < len(pair.layers):
        caption += " Modules in no layer hold the rest."
    yield from _curves(f"Energy by layer, {names}", energy, "layer", "share of the energy", caption)


def _differences(report: CompareAdaptersReport) -> Element | None:
    def value(i: int) -> Callable[[ConfigDifference], Node]:
        return lambda item: shorter(msgspec.json.encode(item.values[i]).decode(), _TEXT)

    columns: Columns[ConfigDifference] = (
        ("Field", lambda item: item.key),
        *((adapter.name, value(i)) for i, adapter in enumerate(report.adapters)),
    )
    return table(columns, report.differences, caption="Where their configurations differ")


def _remarks(report: CompareAdaptersReport) -> Iterator[str]:
    if report.only_in:
        yield f"{len(report.only_in):,} modules are not in all of them; of a whole update, they count as zero there."
    if report.different_shapes:
        yield f"{len(report.different_shapes):,} modules differ in shape and are not compared."
    yield from (f"{text}." for text in report.notes)

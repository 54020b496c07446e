"""The section about the adapter's weights: verdict, spectra, map, suggested ranks, modules, tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final
from xml.etree.ElementTree import Element

import msgspec

from gradience.render.heatmap import Cell, Quantity, grid_of, grid_of_cells
from gradience.render.html.content import Story
from gradience.render.html.curves import energy_lines, fall_lines, kinds_of
from gradience.render.html.drawing import Line, Plot, envelope
from gradience.render.html.markup import Node, tag
from gradience.render.html.pieces import fold, map_figure, plot_figure, section, table
from gradience.render.text import count, number, percent
from gradience.schema.audit import AuditReport, ModuleAudit
from gradience.schema.compare import AdapterPair, CheckpointPoint, CheckpointSeries, CompareAdaptersReport, ModulePair

_MAPS: Final[tuple[tuple[Quantity, str], ...]] = (
    ("norm", "How large the update is"),
    ("utilization", "How much of the rank it uses"),
)


def weights_section(story: Story) -> Element | None:
    """Return what the audit says, or None where no adapter was given."""
    report = story.diagnosis.audit
    if report is None:
        return None
    verdict = tag("p", tag("strong", report.health.verdict.replace("_", " ").upper()), f": {report.health.reason}.")
    return section(
        "weights",
        "Weights",
        verdict,
        _summary(report),
        tag("div", list(_figures(report)), class_="figures"),
        _ranks(report),
        _modules(report),
        _ledger(report),
    )


def _summary(report: AuditReport) -> Element:
    s, b = report.summary, report.base
    facts: list[tuple[str, str]] = [
        ("LoRA parameters", count(s.total_lora_params)),
        ("Modules", f"{s.n_layers:,}"),
        ("Stable rank, mean", number(s.stable_rank_mean)),
        ("Stable rank of random factors", number(s.null_stable_rank_mean)),
        ("Utilization, mean", percent(s.utilization_mean)),
        (
            "Energy rank at 90 %, median / 90th percentile",
            f"{number(s.energy_rank_90_p50, '.3g')} / {number(s.energy_rank_90_p90, '.3g')}",
        ),
    ]
    if b is not None:
        facts += [
            ("Size relative to the base", percent(b.relative_frobenius)),
            ("Modules compared with the base", f"{b.compared:,}"),
        ]
    return tag("dl", [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts], class_="facts")


def _figures(report: AuditReport) -> Iterator[Element]:
    kinds = kinds_of(report.modules)
    if kinds:
        shown = sum(map(len, kinds.values()))
        says = f"{shown} modules of {len(kinds)} kinds: {', '.join(kinds)}."
        band = (
            f"{shown:,} of {len(report.modules):,} modules have a spectrum. "
            "Lines: median of the kind's modules; bands: lowest to highest."
        )
        fall = Plot(fall_lines(kinds), "k", "sigma_k / sigma_1")
        yield plot_figure(
            "Singular values", fall, says=says, caption=f"How fast the singular values of dW fall. {band}"
        )
        energy = Plot(energy_lines(kinds), "rank k", "energy held", log=False)
        text = f"Share of the squared Frobenius norm that the best rank-k update holds. {band}"
        yield plot_figure("Energy by rank", energy, says=says, caption=text)
    for of, title in _MAPS:
        yield from _map(report, of, title)


def _map(report: AuditReport, of: Quantity, title: str) -> Iterator[Element]:
    grid = grid_of(report.modules, of)
    if grid is None:
        return
    outside = sum(m.layer is None for m in report.modules)
    yield map_figure(title, grid, legend="0: never trained, !: not finite", outside=outside)


def _ranks(report: AuditReport) -> Node:
    if not report.suggested:
        return None
    marks = {"median": "most modules (median)", "p90": "worst-case tail (90th percentile)"}
    present = max((m.r for m in report.modules), default=0)

    def mark(rank: int) -> str:
        return ", ".join(
            words for key, words in marks.items() if key in report.suggested and report.suggested[key].rank == rank
        )

    rows: list[list[Node]] = [
        [
            str(c.rank),
            mark(c.rank),
            percent(c.energy_kept),
            percent(c.relative_error),
            percent(c.relative_error_worst),
            count(c.params_saved),
            f"{c.bytes_saved / 1e6:.2f} MB",
        ]
        for c in report.candidates
    ]
    if present not in {c.rank for c in report.candidates}:
        rows.append([str(present), mark(present) or "the present rank", "100.0%", "-", "-", "-", "-"])
    head = ("Rank", "Suggested for", "Energy kept", "Relative error", "Worst module", "Parameters saved", "Bytes saved")
    note = "Compress after training, and verify with an evaluation; it does not say which rank to train with."
    return [
        tag("h3", "Suggested ranks"),
        tag("p", note, class_="note"),
        table(head, rows, caption="What each rank would keep, cost and save", numbers=5),
    ]


def _modules(report: AuditReport) -> Node:
    if not report.modules:
        return None
    ranked = sorted(
        report.modules, key=lambda m: (m.state == "ok", m.utilization if m.utilization is not None else 2.0)
    )
    head = ("Module", "State", "r", "Stable rank", "Utilization", "k at 90 %", "Norm of dW", "s")
    title = f"Modules, least used first ({len(ranked):,})"
    rows = [_module(m) for m in ranked]
    return fold(title, table(head, rows, caption="Modules, least used first", numbers=6))


def _module(m: ModuleAudit) -> list[str]:
    return [
        m.name,
        m.state.replace("_", " "),
        str(m.r),
        number(m.stable_rank),
        percent(m.utilization),
        "-" if m.energy_rank_90 is None else str(m.energy_rank_90),
        number(m.frobenius_norm, ".3g"),
        number(m.scaling, "g"),
    ]


def _ledger(report: AuditReport) -> Node:
    if not report.ledger:
        return None
    rows: list[list[Node]] = [
        [
            e.role.replace("_", " "),
            [_bar(e.share), percent(e.share)],
            f"{e.tensors:,}",
            count(e.params),
            f"{e.bytes / 1e6:.2f} MB",
        ]
        for e in report.ledger
    ]
    head = ("Role", "Share", "Tensors", "Parameters", "Bytes")
    return [tag("h3", "What is in the file"), table(head, rows, caption="Tensors by role", numbers=4)]


def _bar(share: float) -> Element:
    inside = [
        tag("rect", width=100, height=10, class_="rest"),
        tag("rect", width=round(100 * share, 1), height=10, class_="share"),
    ]
    return tag("svg", inside, viewBox="0 0 100 10", class_="bar", aria_hidden="true")


_MOST_PAIRS: Final = 3  # with maps
_MOST_TEXT: Final = 120  # characters of a configuration's value
_CAUTION: Final = "Two runs differ by their seed alone as well; a cosine of weights is no measure of behaviour."


def comparison_section(report: CompareAdaptersReport | None) -> Element | None:
    """Return what the comparison says, or None where none was asked for."""
    if report is None:
        return None
    pairs = report.pairs[::-1] if report.series is not None else report.pairs
    figures = [*_trajectory(report.series), *(figure for pair in pairs[:_MOST_PAIRS] for figure in _pair(pair))]
    left = len(pairs) - _MOST_PAIRS
    return section(
        "compare",
        "Compared by weights",
        tag("p", _CAUTION, class_="note"),
        _adapters(report),
        _whole(report.pairs),
        _settled(report.series),
        tag("div", figures, class_="figures"),
        tag("p", f"Maps of {left:,} further pairs are not drawn.", class_="note") if left > 0 else None,
        _differences(report),
        [tag("p", line, class_="note") for line in _rest(report)],
    )


def _adapters(report: CompareAdaptersReport) -> Element:
    rows = [
        [
            a.name,
            a.peft_type or a.format,
            _span(a.rank),
            _span(a.scaling),
            f"{a.modules:,}",
            number(a.frobenius_norm, ".4g"),
        ]
        for a in report.adapters
    ]
    head = ("Adapter", "Type", "r", "s", "Modules", "Norm of dW")
    return table(head, rows, caption="Adapters compared", numbers=4)


def _span(values: Sequence[float]) -> str:
    least, most = values
    return f"{least:.4g}" if least == most else f"{least:.4g} to {most:.4g}"


def _whole(pairs: Sequence[AdapterPair]) -> Element:
    rows = [
        [
            p.first,
            p.second,
            f"{p.compared:,}",
            number(p.cosine, ".3f"),
            number(p.norm_ratio, ".3g"),
            percent(p.relative_change),
            percent(p.energy_moved),
        ]
        for p in pairs
    ]
    head = ("First", "Second", "Modules", "Cosine", "Norm ratio", "Change", "Energy moved")
    caption = (
        "Updates as a whole; energy moved: half the sum over layers of the change in their share of the norm squared"
    )
    return table(head, rows, caption=caption, numbers=5)


def _settled(series: CheckpointSeries | None) -> Element | None:
    if series is None:
        return None
    bar = f"a cosine of at least {series.threshold:g} to the final update, a heuristic"
    if series.settled is None:
        return tag("p", f"The update turns until the last checkpoint: none before it keeps {bar}.")
    return tag("p", f"From {series.settled} on, the update no longer turns: every later checkpoint has {bar}.")


def _trajectory(series: CheckpointSeries | None) -> Iterator[Element]:
    if series is None:
        return
    cosines = {
        "to the final update": _column(series.points, lambda p: p.cosine_to_final),
        "to the one before": _column(series.points, lambda p: p.cosine_to_previous),
    }
    yield from _curves("Direction of the update", cosines, "step", "cosine", "Each checkpoint's update as one vector.")
    norms = {"norm of dW": _column(series.points, lambda p: p.frobenius_norm)}
    yield from _curves("Size of the update", norms, "step", "Frobenius norm", "Of all modules together.")
    ranks = {
        "effective rank": _column(series.points, lambda p: p.effective_rank_mean),
        "stable rank": _column(series.points, lambda p: p.stable_rank_mean),
        "k at 90 % of the energy": _column(series.points, lambda p: p.energy_rank_90_mean),
    }
    yield from _curves("Rank in use", ranks, "step", "mean over modules", "Of modules whose update is not zero.")


def _column(
    points: Sequence[CheckpointPoint], read: Callable[[CheckpointPoint], float | None]
) -> list[tuple[int, float]]:
    return [(p.step, value) for p in points if p.step is not None and (value := read(p)) is not None]


def _curves(
    title: str, columns: dict[str, list[tuple[int, float]]], x_label: str, y_label: str, caption: str
) -> Iterator[Element]:
    """Yield a figure of lines with a dot at each value; none where there is no value."""
    lines = [
        Line(name, envelope([x for x, _ in column], [y for _, y in column]), points=True)
        for name, column in columns.items()
        if column
    ]
    if lines:
        says = " ".join(f"{x.label}: {x.data.middle[0]:.4g} to {x.data.middle[-1]:.4g}." for x in lines)
        plot = Plot(lines, x_label, y_label, log=False, zero=min(float(x.data.low.min()) for x in lines) >= 0.0)
        yield plot_figure(title, plot, says=says, caption=caption)


def _pair(pair: AdapterPair) -> Iterator[Element]:
    names = f"{pair.first} and {pair.second}"
    grid = grid_of_cells(
        f"cosine of {names}", [(row.name, row.layer, _cell(row)) for row in pair.modules if row.layer is not None]
    )
    if grid is not None:
        outside = sum(row.layer is None for row in pair.modules)
        legend = "-: under 0, 0: the update of one is zero, !: not finite"
        yield map_figure(f"Alike, {names}", grid._replace(top=1.0), legend=legend, outside=outside)
    inside = [share for share in pair.layers if share.layer is not None]
    energy = {
        pair.first: [(s.layer, s.first) for s in inside if s.layer is not None],
        pair.second: [(s.layer, s.second) for s in inside if s.layer is not None],
    }
    caption = "Each layer's share of the squared Frobenius norm."
    if len(inside) < len(pair.layers):
        caption += " Modules in no layer hold the rest."
    yield from _curves(f"Energy by layer, {names}", energy, "layer", "share of the energy", caption)


def _cell(row: ModulePair) -> Cell:
    if row.state == "non_finite":
        return "!"
    return "0" if row.cosine is None else row.cosine


def _differences(report: CompareAdaptersReport) -> Element | None:
    if not report.differences:
        return None
    rows = [
        [item.key, *(msgspec.json.encode(value).decode()[:_MOST_TEXT] for value in item.values)]
        for item in report.differences
    ]
    head = ("Field", *(adapter.name for adapter in report.adapters))
    return table(head, rows, caption="Where their configurations differ")


def _rest(report: CompareAdaptersReport) -> Iterator[str]:
    if report.only_in:
        yield f"{len(report.only_in):,} modules are not in all of them; of a whole update, they count as zero there."
    if report.different_shapes:
        yield f"{len(report.different_shapes):,} modules differ in shape and are not compared."
    yield from (f"{note}." for note in report.notes)

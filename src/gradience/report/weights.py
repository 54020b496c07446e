"""The section about the adapter's weights: verdict, spectra, map, suggested ranks, modules, tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from gradience.render.heatmap import Quantity, grid_of
from gradience.render.text import count, number, percent
from gradience.report.gather import Story
from gradience.report.maps import map_figure
from gradience.report.markup import Element, Node, tag
from gradience.report.pieces import fold, plot_figure, section, table
from gradience.report.plot import Plot
from gradience.report.spectra import energy_lines, fall_lines, kinds_of
from gradience.schema.audit import AuditReport, ModuleAudit

__all__ = ["weights_section"]

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

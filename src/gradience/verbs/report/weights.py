"""Figures of a page about weights: spectra of an adapter's modules, and how adapters or checkpoints differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, TypeAlias

import numpy as np

from gradience.blocks import Figure
from gradience.blocks.html.figures import STYLES
from gradience.blocks.html.plot import Envelope, Floats, Plot, PlotLine, envelope
from gradience.schema.audit import ModuleAudit
from gradience.schema.compare import AdapterPair, CheckpointPoint, CheckpointSeries, CompareAdaptersReport
from gradience.verbs.compare.view import MAPS

_TINY: Final = 1e-300  # keeps a division by the first singular value finite

_Spectrum: TypeAlias = Callable[[Floats, ModuleAudit], Floats]  # a curve over k from a module's singular values


def spectra(modules: Sequence[ModuleAudit]) -> Iterator[Figure]:
    """How the singular values fall, and the energy that each rank holds; nothing without a spectrum."""
    kinds = _kinds(modules)
    if not kinds:
        return
    shown = sum(map(len, kinds.values()))
    summary = f"{shown} modules of {len(kinds)} kinds: {', '.join(kinds)}."
    band = (
        f"{shown:,} of {len(modules):,} modules have a spectrum. "
        "Lines: median of the kind's modules; bands: lowest to highest."
    )
    fall = Plot(_lines(kinds, _relative), "k", "sigma_k / sigma_1")
    text = f"How fast the singular values of dW fall. {band}"
    yield Figure("Singular values", fall, summary=summary, caption=text)
    energy = Plot(_lines(kinds, _energy), "rank k", "energy held", log=False)
    text = f"Share of the squared Frobenius norm that the best rank-k update holds. {band}"
    yield Figure("Energy by rank", energy, summary=summary, caption=text)


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


def _lines(kinds: Mapping[str, Sequence[ModuleAudit]], quantity: _Spectrum) -> list[PlotLine]:
    return [PlotLine(f"{kind} ({len(group)})", _spread(group, quantity)) for kind, group in kinds.items()]


def _spread(group: Sequence[ModuleAudit], quantity: _Spectrum) -> Envelope:
    """Lowest, median and highest value over the modules at each k; modules of lower rank end earlier."""
    rows = [quantity(np.asarray(m.top_singular_values, np.float64), m) for m in group]
    steps = np.concatenate([np.arange(1.0, len(row) + 1) for row in rows])
    values = np.concatenate(rows)
    columns = [column for k in np.unique(steps) if len(column := values[(steps == k) & np.isfinite(values)])]
    low, middle, high = (np.array([f(column) for column in columns]) for f in (np.min, np.median, np.max))
    steps = np.arange(1.0, len(columns) + 1)
    return Envelope.of(steps, low, middle, high, apart=False, sampled=len(group) > 1)


def differing(report: CompareAdaptersReport) -> Iterator[Figure]:
    """The series of checkpoints as curves, and the energy by layer of the first pairs."""
    if report.series is not None:
        yield from _trajectory(report.series)
    for pair in (report.pairs[::-1] if report.series is not None else report.pairs)[:MAPS]:
        yield from _energy_by_layer(pair)


_Points: TypeAlias = Sequence[tuple[int, float]]


def _trajectory(series: CheckpointSeries) -> Iterator[Figure]:
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


def _curves(title: str, columns: Mapping[str, _Points], x_label: str, y_label: str, caption: str) -> Iterator[Figure]:
    """A figure of lines with a dot at each value; nothing without values."""
    lines = [
        PlotLine(name, envelope([x for x, _ in column], [y for _, y in column]), points=True)
        for name, column in columns.items()
        if column
    ]
    if lines:
        summary = " ".join(f"{x.label}: {x.data.middle[0]:.4g} to {x.data.middle[-1]:.4g}." for x in lines)
        plot = Plot(lines, x_label, y_label, log=False, zero=min(float(np.min(x.data.low)) for x in lines) >= 0.0)
        yield Figure(title, plot, summary=summary, caption=caption)


def _energy_by_layer(pair: AdapterPair) -> Iterator[Figure]:
    names = f"{pair.first} and {pair.second}"
    inside = [(share.layer, share) for share in pair.layers if share.layer is not None]
    energy = {
        pair.first: [(layer, share.first) for layer, share in inside],
        pair.second: [(layer, share.second) for layer, share in inside],
    }
    caption = "Each layer's share of the squared Frobenius norm."
    if len(inside) < len(pair.layers):
        caption += " Modules in no layer hold the rest."
    yield from _curves(f"Energy by layer, {names}", energy, "layer", "share of the energy", caption)

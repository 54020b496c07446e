"""What each rule of a merge check looks for, with its thresholds."""

from __future__ import annotations

from collections.abc import Iterator

from gradience.policy.rules import Hit
from gradience.policy.thresholds import Threshold
from gradience.schema.merge import CheckedAdapter, CheckedPair, MergeCheckReport

__all__ = [
    "CANCELLED",
    "HALVED",
    "OPPOSED",
    "SCALE",
    "SHARED",
    "TWINS",
    "UNRELATED",
    "bases",
    "cancelled",
    "halved",
    "obstacles",
    "opposed",
    "scales",
    "shared",
    "twins",
]

OPPOSED = Threshold(
    "opposed", -0.1, "cosine", "heuristic: independent updates of real sizes lie within a few 1e-3 of 0"
)
TWINS = Threshold("twins", 0.9, "cosine", "heuristic: nine tenths of either is along the other")
SCALE = Threshold("scale_ratio", 4.0, "larger over smaller weighted norm", "heuristic: 1/17 of the energy of the sum")
HALVED = Threshold("kept_share", 0.5, "coefficient over weight", "heuristic: half of what was asked for is undone")
CANCELLED = Threshold(
    "cancelled",
    0.5,
    "share of magnitude",
    "heuristic: independent Gaussian entries of one size cancel 1 - 1/sqrt(2) = .29 by chance",
)
SHARED = Threshold("shared", 0.5, "phi(k, k)", "heuristic: on average half of the directions in common")
UNRELATED = Threshold("unrelated", 0.3, "absolute cosine", "heuristic")


def opposed(report: MergeCheckReport) -> Iterator[Hit]:
    """Yield pairs whose weighted updates have a clearly negative cosine."""
    for pair in report.pairs:
        if pair.cosine is not None and pair.cosine <= OPPOSED.value:
            yield Hit(
                f"{_both(pair)} point against each other: cosine {pair.cosine:.2f} of their weighted updates.",
                {"first": pair.first, "second": pair.second, "cosine": pair.cosine},
            )


def twins(report: MergeCheckReport) -> Iterator[Hit]:
    """Yield pairs that are nearly one update."""
    for pair in report.pairs:
        if pair.cosine is not None and pair.cosine >= TWINS.value:
            yield Hit(
                f"{_both(pair)} are nearly one update (cosine {pair.cosine:.2f}): their weights add up along it.",
                {"first": pair.first, "second": pair.second, "cosine": pair.cosine},
            )


def scales(report: MergeCheckReport) -> Iterator[Hit]:
    """Yield pairs of very different weighted norms."""
    for pair in report.pairs:
        if pair.scale_ratio is not None and pair.scale_ratio >= SCALE.value:
            yield Hit(
                f"{_both(pair)} differ {pair.scale_ratio:.1f} times in norm after their weights: the larger decides.",
                {"first": pair.first, "second": pair.second, "scale_ratio": pair.scale_ratio},
            )


def halved(report: MergeCheckReport) -> Iterator[Hit]:
    """Yield adapters of which the sum keeps less than half of what their weight asks for."""
    for item in report.adapters:
        share = _share(item)
        if share is not None and share < HALVED.value:
            yield Hit(
                f"Of {item.adapter.name} the sum keeps {item.kept.coefficient:.2f} along its own update, where its "
                f"weight asks for {item.weight:.2f}: the others take away the rest.",
                {"adapter": item.adapter.name, "coefficient": item.kept.coefficient, "weight": item.weight},
            )


def _share(item: CheckedAdapter) -> float | None:
    if item.kept.coefficient is None or item.weight == 0.0:
        return None
    return item.kept.coefficient / item.weight


def cancelled(report: MergeCheckReport) -> Iterator[Hit]:
    """Yield if most of the magnitude cancels, beyond the sample's error."""
    signs = report.signs
    if signs is not None and signs.cancelled - 2.0 * signs.cancelled_error > CANCELLED.value:
        yield Hit(
            f"{signs.cancelled:.0%} of the updates' magnitude cancels in their sum; {signs.conflict:.0%} of the "
            "entries have opposite signs.",
            {"cancelled": signs.cancelled, "conflict": signs.conflict},
        )


def shared(report: MergeCheckReport) -> Iterator[Hit]:
    """Yield pairs that share directions on both sides, beyond chance, with a small cosine."""
    for pair in report.pairs:
        if pair.cosine is None or abs(pair.cosine) >= UNRELATED.value or not pair.output_side or not pair.input_side:
            continue
        out, inner = pair.output_side[-1], pair.input_side[-1]
        if all(side.phi > max(SHARED.value, side.chance + 3.0 * side.chance_sd) for side in (out, inner)):
            yield Hit(
                f"{_both(pair)} work in the same directions (phi({out.i}, {out.i}) {out.phi:.2f} of outputs and "
                f"{inner.phi:.2f} of inputs, by chance {out.chance:.2f} and {inner.chance:.2f}) though their cosine "
                f"is {pair.cosine:.2f}: what each does there, the other changes.",
                {"first": pair.first, "second": pair.second, "output": out.phi, "input": inner.phi},
            )


def bases(report: MergeCheckReport) -> Iterator[Hit]:
    """Yield if the configs name several base models."""
    named = sorted({item.adapter.base_model for item in report.adapters if item.adapter.base_model})
    if len(named) > 1:
        yield Hit(f"The configs name {len(named)} base models: {', '.join(named)}.", {"base_models": named})


def obstacles(report: MergeCheckReport) -> Iterator[Hit]:
    """Yield adapters that are no plain LoRA."""
    for item in report.adapters:
        if item.obstacles:
            yield Hit(
                f"{item.adapter.name} is no plain LoRA: {item.obstacles[0]}.",
                {"adapter": item.adapter.name, "obstacles": list(item.obstacles)},
            )


def _both(pair: CheckedPair) -> str:
    return f"{pair.first} and {pair.second}"

"""Suggested ranks as text: what each would cost and save, what other rules say, and the pattern for PEFT."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

import msgspec

from gradience.render.text import clean, count, number, percent
from gradience.schema.audit import AuditReport
from gradience.schema.ranks import RankDisagreement, RankPattern, SuggestedRank

__all__ = ["per_layer_lines", "rank_lines", "rule_lines"]

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

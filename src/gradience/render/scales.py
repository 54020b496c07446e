"""The effective-scale table: how each module's s comes about, equal modules on one line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from gradience.render.text import clean, number
from gradience.schema.audit import AuditReport, ModuleAudit
from gradience.schema.scalars import NonFinite

__all__ = ["scale_lines"]

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

"""The spectra of an adapter by kind of module: how fast they fall, and how much a rank holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np

from gradience.report.envelope import Envelope, Floats
from gradience.report.plot import STYLES, Line
from gradience.schema.audit import ModuleAudit

__all__ = ["energy_lines", "fall_lines", "kinds_of"]

_TINY: Final = 1e-300  # keeps a division by the first singular value finite


def kinds_of(modules: Sequence[ModuleAudit]) -> dict[str, list[ModuleAudit]]:
    """Return the modules that have a spectrum by the last part of their name; by type where that gives too many."""
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


def fall_lines(kinds: Mapping[str, Sequence[ModuleAudit]]) -> list[Line]:
    """Return sigma_k / sigma_1 by k: the median of each kind's modules within their lowest and highest."""
    return _lines(kinds, lambda sigma, _: sigma / max(sigma[0], _TINY))


def energy_lines(kinds: Mapping[str, Sequence[ModuleAudit]]) -> list[Line]:
    """Return the share of the squared Frobenius norm that the first k directions hold, by k."""
    return _lines(kinds, _energy)


def _energy(sigma: Floats, module: ModuleAudit) -> Floats:
    first = max(sigma[0], _TINY)  # divided by first: squares of huge or tiny values stay in range
    whole = max(float(module.frobenius_norm) / first, 1.0) ** 2
    return np.asarray(np.minimum(np.cumsum((sigma / first) ** 2) / whole, 1.0))


def _lines(kinds: Mapping[str, Sequence[ModuleAudit]], quantity: Callable[[Floats, ModuleAudit], Floats]) -> list[Line]:
    return [Line(_label(kind, group), _spread(group, quantity)) for kind, group in kinds.items()]


def _label(kind: str, group: Sequence[ModuleAudit]) -> str:
    return f"{kind} ({len(group)})"


def _spread(group: Sequence[ModuleAudit], quantity: Callable[[Floats, ModuleAudit], Floats]) -> Envelope:
    """Return lowest, median and highest over modules, direction by direction; modules of lower rank end earlier."""
    longest = max(len(m.top_singular_values) for m in group)
    table = np.full((len(group), longest), np.nan)
    for row, module in zip(table, group, strict=True):
        values = quantity(np.asarray(module.top_singular_values, np.float64), module)
        row[: len(values)] = values
    columns = [column[np.isfinite(column)] for column in table.T]
    keep = [k for k, column in enumerate(columns) if len(column)]
    low, middle, high = (np.array([f(columns[k]) for k in keep]) for f in (np.min, np.median, np.max))
    return Envelope(
        steps=np.array([k + 1.0 for k in keep]),
        low=low,
        middle=middle,
        high=high,
        lost=np.empty(0),
        broken=np.zeros(len(keep), np.bool_),
        rows=len(keep),
        lost_rows=0,
        sampled=len(group) > 1,
    )

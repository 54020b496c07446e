"""What an adapter reaches in its base, in a few lines."""

from __future__ import annotations

from collections.abc import Iterator

from gradience.render.text import clean, count
from gradience.schema.coverage import Coverage

__all__ = ["coverage_rows", "megabytes"]

_MOST_NAMES = 5


def coverage_rows(coverage: Coverage) -> Iterator[tuple[str, str]]:
    """Yield what the rows speak of, and their values in words."""
    types = ", ".join(f"{clean(kind)} {number}" for kind, number in coverage.by_type.items())
    reach = f"{coverage.layers} of {coverage.layers_total} layers"
    yield "Reaches", f"{coverage.modules} modules{f' ({types})' if types else ''} in {reach}"
    if coverage.trainable_params is not None:
        yield "Trains", _trained(coverage)
    if coverage.adapter_bytes is not None:
        yield "Adapter", f"{megabytes(coverage.adapter_bytes)} MB in {coverage.adapter_dtype}"
    if coverage.optimizer_bytes is not None:
        yield "Optimizer", f"{megabytes(coverage.optimizer_bytes)} MB more ({clean(coverage.optimizer_assumption)})"
    if coverage.unmatched_targets:
        yield "No match", ", ".join(clean(name) for name in coverage.unmatched_targets[:_MOST_NAMES])
    for note in coverage.notes:
        yield "Note", clean(note)


def _trained(coverage: Coverage) -> str:
    total, base = coverage.trainable_params or 0, coverage.base_params
    besides = "".join(f", of them {kind} {count(n)}" for kind, n in coverage.trained_besides.items())
    share = f" = {total / base:.2%} of the base's {count(base)}" if base else ""
    return f"{count(total)} parameters{share}{besides}"


def megabytes(size: int) -> str:
    """Return bytes as millions, with two digits that count.

    >>> megabytes(167_772_160), megabytes(81_920)
    ('168', '0.082')
    """
    value = size / 1e6
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"  # noqa: PLR2004  # two digits

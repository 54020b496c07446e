"""An adapter beside its base, as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from gradience.render.text import clean, number, percent
from gradience.schema.audit import AuditReport, ModuleAudit
from gradience.schema.base import BaseReport

__all__ = ["base_lines", "base_row"]


def base_lines(report: AuditReport) -> Iterator[str]:
    """Yield the adapter as a whole against its base; nothing where it was not compared."""
    base = report.base
    if base is None:
        return
    cached = f", {base.norms_cached} norms from the cache" if base.norms_cached else ""
    yield f"Against the base ({clean(base.path)}):"
    yield f"  Compared: {base.compared} of {len(report.modules)} modules{cached}"
    if base.compared:
        yield from _sizes(report.modules, base)
        yield from _survival(base)
        yield from _intruders(report.modules, base)
    yield f"  Method: {clean(base.method)}"
    for note in base.notes:
        yield f"  Note: {clean(note)}."
    yield ""


def _sizes(modules: list[ModuleAudit], base: BaseReport) -> Iterator[str]:
    largest = max(modules, key=_udr)
    yield (
        f"  UDR norm2(dW)/norm2(W): median {number(base.udr_median, '.3g')},"
        f" largest {number(base.udr_max, '.3g')} ({clean(largest.name)})"
    )
    yield f"  SDI log10(UDR):         median {number(base.sdi_median)}"
    yield f"  Relative Frobenius:     {number(base.relative_frobenius, '.3g')} over all modules"
    unsettled = sum(m.base is not None and not m.base.converged for m in modules)
    if unsettled:
        yield f"  {unsettled} norms did not reach their tolerance: read them as lower bounds"


def _udr(module: ModuleAudit) -> float:
    return module.udr if isinstance(module.udr, float) else -1.0


def _survival(base: BaseReport) -> Iterator[str]:
    if base.survival_dtype is None:
        return
    risk = f"; {base.survival_at_risk} modules at risk" if base.survival_at_risk else ""
    yield (
        f"  Merged in {base.survival_dtype}: {percent(base.survival_changed_median)} of entries change, cosine"
        f" with the update {number(base.survival_cosine_median, '.3f')} (medians){risk}"
    )


def _intruders(modules: list[ModuleAudit], base: BaseReport) -> Iterator[str]:
    found = [m.base.intruders for m in modules if m.base is not None and m.base.intruders is not None]
    if not found:
        return
    totals: Counter[str] = Counter()
    for item in found:
        totals.update(item.counts)
    by_eps = ", ".join(f"{totals[eps]} at {eps}" for eps in found[0].counts)
    undecided = sum(item.undecided for item in found)
    left = f"; {undecided} counted that the bounds leave open" if undecided else ""
    yield (
        f"  Intruder dimensions:    {base.intruder_total} in {base.intruder_modules} of {len(found)} modules"
        f" (k={found[0].k}, eps={found[0].eps:g}; {by_eps}){left}"
    )


def base_row(m: ModuleAudit) -> str:
    """Return one module's numbers against the base, for its line."""
    if m.base is None:
        return ""
    text = f"  udr={number(m.udr, '.3g')}  rel={number(m.relative_frobenius, '.3g')}"
    if m.base.survival is not None:
        text += f"  merge-cos={number(m.base.survival.cosine, '.3f')}"
    if m.base.intruders is not None:
        text += f"  intruders={m.base.intruders.count}"
    return text

"""The reports on many runs, and on a fleet of adapters, as text."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import Final

from gradience.render import (
    Columns,
    as_text,
    banner,
    clean,
    counted,
    labelled,
    listed,
    megabytes,
    shortened,
    table,
    words,
)
from gradience.schema import Json
from gradience.schema.fleet import Counted, FleetAuditReport, FleetShowReport, QueryReport, Serving, Similar, Wasteful

_LISTED: Final = 8

_NUMBERS = ("BIGINT", "DOUBLE", "FLOAT", "INTEGER", "HUGEINT", "DECIMAL", "UBIGINT")

_REASONS: Final = 5
_PAIRS: Final = 8
_BASES: Final = 3


def counts_text(items: Sequence[Counted]) -> str:
    """Values with their counts, the most frequent first."""
    return listed([f"{item.value} {item.adapters:,}" for item in items], _LISTED)


@as_text
def fleet_audit_text(report: FleetAuditReport) -> Iterator[str]:
    """The report of an audit of a fleet for a terminal."""
    yield from banner("GRADIENCE FLEET AUDIT")
    yield f"Fleet: {clean(report.out)}"
    rate = f" ({report.audited / report.seconds:.1f} a second)" if report.audited and report.seconds else ""
    without = report.errors + report.crashed
    read = max(report.found - without, 0)
    yield f"{counted(report.found, 'adapter')}: {read} with numbers, {without} that cannot be read"
    yield f"  {report.audited} looked at in {report.seconds:.1f} s{rate}, {report.unchanged} unchanged"
    if report.removed:
        yield f"  {report.removed} no longer there"
    if report.crashed:
        yield f"Workers died on {report.crashed} of those that cannot be read"
    if without:
        yield f"Why: gradience fleet show {shlex.quote(clean(report.out))}"
    yield from (f"Note: {clean(note)}." for note in report.notes)


def query_text(report: QueryReport) -> str:
    """The result of a query as a table: numbers aligned to the right, texts to the left."""
    cells = [[_cell(value) for value in row] for row in report.rows]
    names = [clean(column.name) for column in report.columns]
    widths = [max(len(row[place]) for row in (names, *cells)) for place in range(len(names))]
    right = [column.type.startswith(_NUMBERS) for column in report.columns]

    def line(row: list[str]) -> str:
        padded = zip(row, widths, right, strict=True)
        return "  ".join(
            f"{cell:>{width}}" if number else f"{cell:<{width}}" for cell, width, number in padded
        ).rstrip()

    return "\n".join([line(names), "  ".join("-" * width for width in widths), *map(line, cells)])


def _cell(value: Json) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else clean(str(value))


@as_text
def fleet_show_text(report: FleetShowReport) -> Iterator[str]:
    """The overview of a fleet for a terminal."""
    yield from banner("GRADIENCE FLEET")
    counts = f"{counted(report.adapters, 'adapter')}, {counted(report.modules, 'module')}"
    yield f"{counts}, {size_text(report.bytes)} of tensors"
    lines = (("Verdicts", report.verdicts), ("Bases", report.bases), ("Types", report.types), ("Ranks", report.ranks))
    yield from labelled(((name, counts_text(items)) for name, items in lines))
    if report.findings:
        yield from labelled([("Findings", counts_text(report.findings))])
    yield from _faulty(report)
    yield from _wasteful(report)
    for one in report.serving[:_BASES]:
        yield from _serving(one)
    yield from _similar(report.similar)
    for other in report.other_shapes:
        shape, usual = (" x ".join(map(str, sides)) for sides in (other.shape, other.usual))
        yield (
            f"Other base? {clean(other.path)}: {clean(other.module)} is {shape}, "
            f"{counted(other.usual_adapters, 'adapter')} of {clean(other.base_model)} have {usual}"
        )
    yield from (f"Note: {clean(note)}." for note in report.notes)


def size_text(value: int) -> str:
    """Bytes in megabytes or gigabytes."""
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else megabytes(value)  # noqa: PLR2004  # a gigabyte


def _faulty(report: FleetShowReport) -> Iterator[str]:
    """The adapters to look at, most pressing first; of those that cannot be read, the reasons with their numbers."""
    if not report.faulty_total:
        return
    yield ""
    yield f"Needs a look ({report.faulty_total}):"
    if report.unread:
        yield f"  {counted(sum(reason.adapters for reason in report.unread), 'adapter')} cannot be read:"
        reasons = [f"    {one.adapters:>5} x {clean(one.value)}" for one in report.unread]
        yield from shortened(reasons, _REASONS, indent=4, how="gradience fleet query FLEET --named unreadable")
    yield from (f"  {words(f.verdict)}: {clean(f.path)}: {clean(f.reason)}" for f in report.faulty)
    if report.faulty_total > len(report.faulty):
        yield f"  ... and {report.faulty_total - len(report.faulty)} more (--verbose lists all)"


def _wasteful(report: FleetShowReport) -> Iterator[str]:
    if report.wasteful:
        yield ""
        yield "Most wasteful (a cut to the suggested rank keeps 90 % of the energy of 9 modules in 10; verify):"
        yield from table(_WASTE, report.wasteful)


def _serving(one: Serving) -> Iterator[str]:
    if one.max_lora_rank is None or one.adapters < 2:  # one adapter has the server to itself
        return
    ranks = ", ".join(f"{n:,} of rank {rank}" for rank, n in one.ranks.items())
    yield ""
    yield f"Serving {clean(one.base_model)} ({ranks}):"
    share = one.padding_bytes / (one.padding_bytes + one.used_bytes) if one.used_bytes else 0.0
    padding = f"{size_text(one.padding_bytes)} of slots are padding ({share:.0%})"
    yield f"  max_lora_rank {one.max_lora_rank} holds all; {padding}"
    for split in one.buckets[1:]:
        sizes = " + ".join(f"{size} ({n:,})" for size, n in zip(split.max_lora_ranks, split.adapters, strict=True))
        yield f"  servers of rank {sizes}: {size_text(split.padding_bytes)}"


def _similar(found: Similar) -> Iterator[str]:
    if found.same:
        yield ""
        yield f"Equal content: {counted(len(found.same), 'group')}"
        for alike in found.same[:_PAIRS]:
            more = f" and {len(alike.paths) - 2} more" if len(alike.paths) > 2 else ""  # two are shown
            yield f"  {' = '.join(clean(path) for path in alike.paths[:2])}{more}"
    if found.near:
        yield ""
        yield f"Nearly the same update (cosine >= {found.threshold:g}): {counted(len(found.near), 'pair')}"
        for alike in found.near[:_PAIRS]:
            yield f"  {alike.cosine:.5f}  {' ~ '.join(clean(path) for path in alike.paths)}"
    if found.not_compared:
        yield f"  {counted(found.not_compared, 'likely pair')} not compared (gradience.fleet.show takes most_pairs)"


_WASTE: Final[Columns[Wasteful]] = (
    ("saves", ">10", lambda one: size_text(one.bytes_saved)),
    ("r", ">5", lambda one: str(one.r)),
    ("to", ">5", lambda one: str(one.suggested_rank)),
    ("used", ">6", lambda one: f"{one.utilization_mean:.0%}"),
    ("adapter", "", lambda one: clean(one.path)),
)

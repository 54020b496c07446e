"""The reports on many runs, and on a fleet of adapters, as text."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import Final

from msgspec.structs import replace

from gradience.blocks import (
    Block,
    Columns,
    Page,
    Section,
    Table,
    Title,
    clean,
    counted,
    facts,
    listed,
    megabytes,
    set_off,
    table,
    words,
)
from gradience.blocks.text import as_lines, as_text, more, shortened
from gradience.schema import Json
from gradience.schema.fleet import (
    Alike,
    Counted,
    EnginePlan,
    Faulty,
    FleetAuditReport,
    FleetShowReport,
    Misfit,
    OtherShape,
    QueryReport,
    Serving,
    ServingGroup,
    Similar,
    Unfit,
    Wasteful,
)

_LISTED: Final = 8

_NUMBERS = ("BIGINT", "DOUBLE", "FLOAT", "INTEGER", "HUGEINT", "DECIMAL", "UBIGINT")

_REASONS: Final = 5
_PAIRS: Final = 8
_BASES: Final = 3


def counts_text(items: Sequence[Counted]) -> str:
    """Values with their counts, the most frequent first."""
    return listed([f"{item.value} {item.adapters:,}" for item in items], _LISTED)


@as_text
def fleet_audit_text(report: FleetAuditReport) -> Iterator[Block]:
    """The report of an audit of a fleet for a terminal."""
    yield Title("GRADIENCE FLEET AUDIT")
    yield f"Fleet: {report.out}"
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
        yield f"Why: gradience fleet show {shlex.quote(report.out)}"
    yield from (f"Note: {note}." for note in report.notes)


@as_lines
def query_text(report: QueryReport) -> Iterator[Block]:
    """The result of a query as a table: numbers aligned to the right, texts to the left."""
    cells = [tuple(clean(_cell(value)) for value in row) for row in report.rows]
    names = tuple(clean(column.name) for column in report.columns)
    widths = [max(len(row[place]) for row in (names, *cells)) for place in range(len(names))]
    sides = (">" if column.type.startswith(_NUMBERS) else "<" for column in report.columns)
    columns = tuple((name, f"{side}{width}") for name, side, width in zip(names, sides, widths, strict=True))
    yield Table(columns, (tuple("-" * width for width in widths), *cells), indent=0)


def _cell(value: Json) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value)


@as_text
def fleet_show_text(report: FleetShowReport) -> Iterator[Block]:
    """The overview of a fleet for a terminal."""
    yield Title("GRADIENCE FLEET")
    counts = f"{counted(report.adapters, 'adapter')}, {counted(report.modules, 'module')}"
    yield f"{counts}, {size_text(report.bytes)} of tensors"
    lines = (
        *(("Verdicts", report.verdicts), ("Bases", report.bases), ("Types", report.types)),
        *(("Ranks", report.ranks), ("Findings", report.findings)),
    )
    yield facts(((name, counts_text(items)) for name, items in lines))
    yield from _needs_a_look(report)
    most = "Most wasteful (a cut to the suggested rank keeps 90 % of the energy of 9 modules in 10; verify)"
    yield from set_off(most, [table(_WASTE, report.wasteful)] if report.wasteful else ())
    for one in report.serving[:_BASES]:
        yield from _serving(one)
    yield from _alike(report.similar)
    yield _other_shapes(report)
    yield from (f"Note: {note}." for note in report.notes)


@as_text
def plans_text(report: FleetShowReport, *, top: int) -> Iterator[Block]:
    """The plans to serve a fleet, with at most `top` adapters of each group and reason, for a terminal."""
    yield Title("GRADIENCE FLEET: SERVING")
    yield f"{counted(report.adapters, 'adapter')} in {report.fleet}"
    for plan in report.plans:
        yield from _plan(plan, top)


def _plan(plan: EnginePlan, top: int) -> Iterator[Block]:
    served = sum(len(group.adapters) for group in plan.groups)
    unfit = len({one.path for misfit in plan.misfits for one in misfit.adapters})
    yield ""
    yield f"{plan.title}: {counted(served, 'adapter')} in {counted(len(plan.groups), 'group')}; {unfit} do not fit"
    if plan.says:
        yield f"  {plan.says} [{plan.source}]"
    for number, group in enumerate(plan.groups, 1):
        yield from _group(number, group, top)
    if plan.misfits:
        yield "  Do not fit:"
    for misfit in plan.misfits:
        yield from _misfit(misfit, top)
    if plan.left_out:
        yield f"  Left out: {counts_text(plan.left_out)} (gradience fleet show says which)"
    yield from (f"  Note: {note}" for note in plan.notes)


def _group(number: int, group: ServingGroup, top: int) -> Iterator[Block]:
    ranks = ", ".join(f"{n:,} of rank {rank}" for rank, n in group.ranks.items())
    base = (group.base_model or "no declared base") + (f" at revision {group.revision}" if group.revision else "")
    yield f"  {number}. {base}: {counted(len(group.adapters), 'adapter')} ({ranks})"
    yield from _command(group.command, [one.argument for one in group.adapters], top)
    if "{adapters}" not in group.command:
        yield from (f"       {one.path}" for one in group.adapters[:top])
        yield from _more(len(group.adapters) - top)
    yield from (f"     {line}" for line in _memory(group))
    yield from (f"     Note: {note}" for note in group.notes)


def _command(command: str, arguments: Sequence[str], top: int) -> Iterator[str]:
    """The command's lines, with an adapter on each."""
    before, marker, after = command.partition("{adapters}")
    end = " \\" if "\\\n" in command else ""
    if not marker:
        yield from (f"     {line}" for line in command.splitlines())
        return
    yield from (f"     {line}" for line in (before.rstrip(" \\\n") + end).splitlines())
    shown = arguments[:top]
    yield from (f"       {line}{end if line is not shown[-1] else ''}" for line in shown)
    yield from _more(len(arguments) - top)
    yield from (f"     {line}" for line in after.splitlines())


def _more(n: int) -> Iterator[str]:
    if n > 0:
        yield f"       ... and {n:,} more (--verbose)"


def _memory(group: ServingGroup) -> Iterator[str]:
    if not group.slot_bytes:
        return
    n = sum(group.ranks.values())
    padding = 1 - sum(int(rank) * count for rank, count in group.ranks.items()) / (n * group.rank)
    share = f"; on average {padding:.0%} of a slot is padding" if padding else ""
    size = f"{size_text(group.slots * group.slot_bytes)} or more at 16 bits, {size_text(group.slot_bytes)} each"
    yield f"{counted(group.slots, 'slot')}: {size}{share}"
    if group.without_largest is not None:
        yield (
            f"rank {group.rank} is for {len(group.largest)} of {n}: resized to {group.next_rank}, a slot takes "
            f"{size_text(group.without_largest)}; measure what is lost:"
        )
        path = shlex.quote(group.largest[0])
        yield f"  gradience resize {path} --rank {group.next_rank} --out {path}-served"


def _misfit(misfit: Misfit, top: int) -> Iterator[Block]:
    source = f" [{misfit.source}]" if misfit.source else ""
    yield f"    {misfit.id and misfit.id + ' '}{misfit.reason} ({counted(len(misfit.adapters), 'adapter')}){source}"
    yield from (f"      {one.command or one.path}" for one in misfit.adapters[:top])
    yield from _more(len(misfit.adapters) - top)
    if misfit.action:
        yield f"      -> {misfit.action}"


def size_text(value: int) -> str:
    """Bytes in megabytes or gigabytes."""
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else megabytes(value)  # noqa: PLR2004  # a gigabyte


def fleet_page(report: FleetShowReport) -> Page:
    """The page about a fleet: main numbers, and every table whole."""
    main = [("adapters", f"{report.adapters:,}"), ("modules", f"{report.modules:,}")]
    main += [("tensors", size_text(report.bytes)), *((words(v.value), f"{v.adapters:,}") for v in report.verdicts)]
    groups = {"base": report.bases, "type": report.types, "rank": report.ranks, "finding": report.findings}
    counts = [(kind, item) for kind, items in groups.items() for item in items]
    same, near = _similar(report.similar)
    titles = {
        "faulty": "What needs a look",
        "wasteful": "What could be cut away",
        "serving": "What a server pads",
        "plans": "What one process serves",
        "misfits": "What does not fit",
        "same": "What is equal",
        "near": "What is nearly the same",
        "bases": "What declares another base",
        "counts": "How many of each",
    }
    tables = (
        _faulty(report),
        table(_WASTE, report.wasteful, caption="Most bytes first"),
        table(_SERVING, report.serving, caption="By declared base"),
        table(_PLANS, [(p, group) for p in report.plans for group in p.groups], caption="By engine"),
        table(
            _MISFITS, [(p, m, one) for p in report.plans for m in p.misfits for one in m.adapters], caption="By engine"
        ),
        *(same, near, _other_shapes(report)),
        table(_COUNTS, counts, caption="Adapters by base, type, rank and finding"),
    )
    shown = [
        Section(name, title, (part,)) for (name, title), part in zip(titles.items(), tables, strict=True) if part.rows
    ]
    return Page("fleet", report.fleet, "", (facts(main),), tuple(shown))


def _needs_a_look(report: FleetShowReport) -> Iterator[Block]:
    """The adapters to look at, most pressing first; of those that cannot be read, the reasons with their numbers."""
    if not report.faulty_total:
        return
    yield ""
    yield f"Needs a look ({report.faulty_total}):"
    if report.unread:
        yield f"  {counted(sum(reason.adapters for reason in report.unread), 'adapter')} cannot be read:"
        reasons = [f"    {one.adapters:>5} x {one.value}" for one in report.unread]
        yield from shortened(
            reasons, _REASONS, indent=4, how='gradience fleet query FLEET "select path, error from adapters"'
        )
    yield _faulty(report)
    yield from more(report.faulty_total - len(report.faulty), "--verbose lists all")


def _faulty(report: FleetShowReport) -> Table:
    return table(
        _FAULTY, report.faulty, caption="By fault", told=lambda f: f"  {words(f.verdict)}: {f.path}: {f.reason}"
    )


def _serving(one: Serving) -> Iterator[Block]:
    if one.max_lora_rank is None or one.adapters < 2:  # one adapter has the server to itself
        return
    ranks = ", ".join(f"{n:,} of rank {rank}" for rank, n in one.ranks.items())
    yield ""
    yield f"Serving {one.base_model} ({ranks}):"
    share = one.padding_bytes / (one.padding_bytes + one.used_bytes) if one.used_bytes else 0.0
    padding = f"{size_text(one.padding_bytes)} of slots are padding ({share:.0%})"
    yield f"  max_lora_rank {one.max_lora_rank} holds all; {padding}"
    for split in one.buckets[1:]:
        sizes = " + ".join(f"{size} ({n:,})" for size, n in zip(split.max_lora_ranks, split.adapters, strict=True))
        yield f"  servers of rank {sizes}: {size_text(split.padding_bytes)}"


def _alike(similar: Similar) -> Iterator[Block]:
    same, near = (replace(each, rows=each.rows[:_PAIRS], told=(each.told or ())[:_PAIRS]) for each in _similar(similar))
    if similar.same:
        yield from ("", f"Equal content: {counted(len(similar.same), 'group')}", same)
    if similar.near:
        heading = f"Nearly the same update (cosine >= {similar.threshold:g}): {counted(len(similar.near), 'pair')}"
        yield from ("", heading, near)
    if similar.not_compared:
        yield f"  {counted(similar.not_compared, 'likely pair')} not compared (gradience.fleet.show takes most_pairs)"


def _similar(similar: Similar) -> tuple[Table, Table]:
    close = f"Cosine of the updates at least {similar.threshold:g}"
    same = table(_SAME, similar.same, caption="Equal content", told=_equal)
    return same, table(_NEAR, similar.near, caption=close, told=_nearly)


def _equal(alike: Alike) -> str:
    more = f" and {len(alike.paths) - 2} more" if len(alike.paths) > 2 else ""  # two are shown
    return f"  {' = '.join(alike.paths[:2])}{more}"


def _nearly(alike: Alike) -> str:
    return f"  {alike.cosine or 0.0:.5f}  {' ~ '.join(alike.paths)}"


def _other_shapes(report: FleetShowReport) -> Table:
    return table(_OTHER, report.other_shapes, caption="By shape", told=_other)


def _other(one: OtherShape) -> str:
    shape, usual = (" x ".join(map(str, sides)) for sides in (one.shape, one.usual))
    others = counted(one.usual_adapters, "adapter")
    return f"Other base? {one.path}: {one.module} is {shape}, {others} of {one.base_model} have {usual}"


_COUNTS: Final[Columns[tuple[str, Counted]]] = (
    ("by", "", lambda row: row[0]),
    ("value", "", lambda row: row[1].value),
    ("adapters", ">6", lambda row: f"{row[1].adapters:,}"),
)
_FAULTY: Final[Columns[Faulty]] = (
    ("adapter", "", lambda row: row.path),
    ("verdict", "", lambda row: words(row.verdict)),
    ("reason", "", lambda row: row.reason),
)
_SERVING: Final[Columns[Serving]] = (
    ("base", "", lambda row: row.base_model),
    ("adapters", ">6", lambda row: f"{row.adapters:,}"),
    ("max_lora_rank", ">6", lambda row: str(row.max_lora_rank or "-")),
    ("factors", ">9", lambda row: size_text(row.used_bytes)),
    ("padding", ">9", lambda row: size_text(row.padding_bytes)),
    ("padding of the best split", ">9", lambda row: size_text(row.buckets[-1].padding_bytes) if row.buckets else "-"),
)
_PLANS: Final[Columns[tuple[EnginePlan, ServingGroup]]] = (
    ("engine", "", lambda row: row[0].title),
    ("base", "", lambda row: row[1].base_model or "not declared"),
    ("adapters", ">6", lambda row: f"{len(row[1].adapters):,}"),
    ("rank", ">6", lambda row: str(row[1].rank)),
    ("a slot", ">9", lambda row: "-" if row[1].slot_bytes is None else size_text(row[1].slot_bytes)),
    ("names", "", lambda row: ", ".join(one.name for one in row[1].adapters)),
)
_MISFITS: Final[Columns[tuple[EnginePlan, Misfit, Unfit]]] = (
    ("engine", "", lambda row: row[0].title),
    ("adapter", "", lambda row: row[2].path),
    ("reason", "", lambda row: row[1].reason),
    ("what makes it fit", "", lambda row: row[2].command or row[1].action or ""),
)
_SAME: Final[Columns[Alike]] = (
    ("adapters", "", lambda row: ", ".join(row.paths)),
    ("how many", ">3", lambda row: str(len(row.paths))),
)
_NEAR: Final[Columns[Alike]] = (
    ("adapters", "", lambda row: ", ".join(row.paths)),
    ("cosine", ">7", lambda row: f"{row.cosine or 0.0:.5f}"),
)
_OTHER: Final[Columns[OtherShape]] = (
    ("adapter", "", lambda row: row.path),
    ("declares", "", lambda row: row.base_model),
    ("module", "", lambda row: row.module),
    ("shape", "", lambda row: " x ".join(map(str, row.shape))),
    ("usual", "", lambda row: " x ".join(map(str, row.usual))),
)
_WASTE: Final[Columns[Wasteful]] = (
    ("saves", ">10", lambda one: size_text(one.bytes_saved)),
    ("r", ">5", lambda one: str(one.r)),
    ("to", ">5", lambda one: str(one.suggested_rank)),
    ("used", ">6", lambda one: f"{one.utilization_mean:.0%}"),
    ("adapter", "", lambda one: one.path),
)

"""What a report shows, in blocks, and the words for its values. Printers turn blocks into text, Markdown and HTML.

A view makes blocks of a report; a printer knows no report and no verb, and alone escapes what it prints: `text` for
terminals, `markdown` for comments, `html.pieces` for pages, `programs` for SARIF and GitHub. A string is a block too:
one line of text. A printer leaves out a block that its medium cannot show.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import isfinite
from pathlib import PurePath
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

import msgspec

from gradience.errors import few
from gradience.schema import NonFinite
from gradience.schema.document import SEVERITIES, Estimate, Excluded, Finding, NotRun

if TYPE_CHECKING:  # a terminal needs no numpy
    from gradience.blocks.html.plot import Plot
    from gradience.blocks.plots import Grid

NAMES: Final = 4  # names of a list that a sentence gives
SKIPPED: Final = "Skipped (missing input or not applicable)"
_EXCLUDED: Final = frozenset(item.value for item in Excluded)
_RANGE: Final = 3  # ids of one code that are named singly
_ESCAPES: Final = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\](?:[^\x07\x1b]*(?:\x07|\x1b\\))?|\x1b[@-_]?")
_UNSAFE: Final = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}  # controls, bidi overrides, surrogates, separators

T = TypeVar("T")
Columns: TypeAlias = Sequence[tuple[str, str, Callable[[T], str]]]  # title, format specification, and cell of an item


class Title(msgspec.Struct, frozen=True):
    """The title of a report."""

    text: str


class Heading(msgspec.Struct, frozen=True):
    """The heading of the blocks that follow it."""

    text: str


class VerdictLine(msgspec.Struct, frozen=True):
    """The answer of a verb, in one word or a few, and the rest of the sentence."""

    word: str
    rest: str
    tone: str = ""  # how grave it is, by which a page colours it


class Note(msgspec.Struct, frozen=True):
    """A remark of less weight."""

    text: str


class Next(msgspec.Struct, frozen=True):
    """What to do next, and what else could be done."""

    text: str
    alternative: str | None = None


class FactList(msgspec.Struct, frozen=True):
    """Labels and values. A page shows them in boxes, or as a table if there is a caption."""

    pairs: tuple[tuple[str, str], ...]
    indent: int = 0
    width: int = 12  # characters from a label to its value
    caption: str = ""


class Table(msgspec.Struct, frozen=True):
    """Rows of cells under titles; made by `table`."""

    columns: tuple[tuple[str, str], ...]  # title, and format specification of a terminal
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    most: int | None = None  # rows of a terminal; None for all
    of: str = ""  # a noun phrase for the rows left out
    indent: int = 2
    gap: int = 2
    told: tuple[str, ...] | None = None  # the rows in words, for a terminal, instead of columns
    below: tuple[str, ...] = ()  # under each row, a line with its reasons, or nothing
    named: bool = False  # whether the last column names the row: it comes first where columns may be wide

    @property
    def titles(self) -> tuple[str, ...]:
        """The titles for a page: a symbol or a name stays as it is."""
        return tuple(title if len(title) == 1 or "_" in title else sentence(title) for title, _ in self.columns)

    def by_name(self) -> Table:
        """The table with its rows' names first."""
        if not self.named:
            return self
        rows = tuple((*row[-1:], *row[:-1]) for row in self.rows)
        columns = (*self.columns[-1:], *self.columns[:-1])
        return msgspec.structs.replace(self, columns=columns, rows=rows, named=False)


class ShownFinding(msgspec.Struct, frozen=True):
    """A finding as it is shown: where it was seen, the findings that it joins, and its number in the report."""

    finding: Finding
    where: str = ""
    pieces: tuple[tuple[str, str, str], ...] = ()  # source, id or nothing, and what it says
    number: int = 0


class Findings(msgspec.Struct, frozen=True):
    """Findings, the gravest first."""

    found: tuple[ShownFinding, ...]
    verbose: bool = True  # with their grounds; else only the first of severity info are shown
    actions: bool = True


class Fold(msgspec.Struct, frozen=True):
    """Content that opens on request."""

    summary: str
    content: tuple[Block, ...]
    is_open: bool = True  # on a terminal


class Section(msgspec.Struct, frozen=True):
    """A part of a page under its heading; `name` is its anchor."""

    name: str
    title: str
    content: tuple[Block, ...]


class Figure(msgspec.Struct, frozen=True):
    """A drawing with its title, what it shows in words, and how it was drawn."""

    title: str
    drawing: Drawing
    summary: str = ""  # for readers who cannot see it
    caption: str = ""
    wide: bool = False
    first: bool = False  # whether it stands before any section


class Bars(msgspec.Struct, frozen=True):
    """A histogram from 0, with a limit as a line."""

    bins: tuple[int, ...]
    width: int  # of a bar
    limit: int | None = None


class Intervals(msgspec.Struct, frozen=True):
    """Values with their lower and upper bounds, on one axis with 0 and a tolerance, each at its size."""

    rows: tuple[tuple[str, float, float, float, float], ...]  # name, size, least, value, worst
    tolerance: float
    size_label: str
    value_label: str
    order: str = ""  # what a terminal says of the order of the rows
    unicode: bool = True


class Page(msgspec.Struct, frozen=True):
    """A whole page: the kind of report, the name of its subject, its beginning, and its sections."""

    kind: str
    name: str
    of: str
    header: tuple[Block, ...]
    sections: tuple[Section, ...]
    foot: str = "It instruments, you decide."


Drawing: TypeAlias = "Bars | Intervals | Grid | Plot"
Block: TypeAlias = (
    "str | Title | Heading | VerdictLine | Note | Next | FactList | Table | Findings | Fold | Section | Figure"
)


def table(
    columns: Columns[T],
    items: Iterable[T],
    *,
    caption: str = "",
    most: int | None = None,
    of: str = "",
    indent: int = 2,
    told: Callable[[T], str] | None = None,
    below: Callable[[T], str] | None = None,
) -> Table:
    """The items as rows of a table; its look as for `Table`."""
    listed = list(items)
    return Table(
        tuple((title, spec) for title, spec, _ in columns),
        tuple(tuple(cell(item) for _, _, cell in columns) for item in listed),
        caption=caption,
        most=most,
        of=of,
        indent=indent,
        told=None if told is None else tuple(map(told, listed)),
        below=() if below is None else tuple(map(below, listed)),
        named=bool(columns[0][1].startswith(">") and not columns[-1][1]),
    )


def facts(pairs: Iterable[tuple[str, str | None]], *, indent: int = 0, width: int = 12, caption: str = "") -> FactList:
    """The labels and values as a block; what has no value is left out."""
    return FactList(
        tuple((label, value) for label, value in pairs if value), indent=indent, width=width, caption=caption
    )


def part(heading: str, content: Iterable[Block]) -> list[Block]:
    """Blocks under their heading, set off from what follows; nothing without content."""
    blocks = list(content)
    return [Heading(heading), *blocks, ""] if blocks else []


def set_off(heading: str, content: Iterable[Block]) -> list[Block]:
    """The same, set off from what comes before."""
    blocks = list(content)
    return ["", Heading(heading), *blocks] if blocks else []


def findings(some: Iterable[Finding], *, verbose: bool = True) -> Findings:
    """The findings of one source as a block, numbered from 1."""
    return Findings(tuple(ShownFinding(finding, number=n) for n, finding in enumerate(some, 1)), verbose=verbose)


def skipped(not_run: Sequence[NotRun], *, verbose: bool) -> list[Block]:
    """The number of checks that did not run, and on request each reason with its checks; nothing if all ran."""
    reasons: dict[str, list[str]] = {}
    for item in not_run:
        reasons.setdefault(item.reason, []).append(item.id)
    rows = tuple(f"  {', '.join(ranges(ids))}: {reason}" for reason, ids in reasons.items())
    return [Fold(skipped_line(not_run, verbose=verbose), rows, is_open=verbose)] if not_run else []


def clean(text: str) -> str:
    r"""The text on one line, without escape sequences, controls or bidi overrides (CWE-150).

    >>> clean("a\x1b[31mb\u202ec\nd")
    'abc d'
    """
    # Nearly every text is, and a report cleans each of its cells.
    if text.isprintable():
        return text
    flat = _ESCAPES.sub("", text).replace("\n", " ").replace("\t", " ")
    return "".join(ch for ch in flat if unicodedata.category(ch) not in _UNSAFE)


def listed(names: Sequence[str], most: int = NAMES, *, separator: str = ", ") -> str:
    """The first names, separated by commas, and the number of the remaining ones.

    >>> listed(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    return few(names, most, separator)


def by_severities(some: Iterable[Finding]) -> str:
    """The number of findings of each severity, the gravest first."""
    counts = Counter(finding.severity for finding in some)
    return ", ".join(counted(counts[severity], severity) for severity in reversed(SEVERITIES) if counts[severity])


def counted(n: int, noun: str) -> str:
    """A number with its noun, in the plural if the number is not 1.

    >>> counted(1, "finding"), counted(2, "finding"), counted(2, "info")
    ('1 finding', '2 findings', '2 info')
    """
    return f"{n:,} {noun}" if n == 1 or noun == "info" else f"{n:,} {noun}s"


def number(value: float | NonFinite | None, spec: str = ".2f") -> str:
    """The number in the given format, or `-` for None; a non-finite number by its name."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else format(value, spec)


def brief(value: float | None) -> str:
    """A number with three significant digits, as people write it.

    >>> brief(0.000498333), brief(1.3147), brief(284.873), brief(2e-5), brief(float("nan")), brief(None)
    ('4.98e-4', '1.31', '285', '2e-5', 'nan', '-')
    """
    if value is None:
        return "-"
    if value and isfinite(value) and not 1e-2 <= abs(value) < 1e4:  # noqa: PLR2004  # between them three digits are short
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.3g}"


def percent(value: float | NonFinite | None) -> str:
    """A fraction as a percentage with one decimal, or `-` for None."""
    return number(value, ".1%")


def gib(size: int) -> str:
    """Bytes in GiB, with one decimal, or two significant digits below 1.

    >>> gib(23_085_449_216), gib(41_943_040), gib(5 << 10)
    ('21.5', '0.039', '4.8e-06')
    """
    value = size / 2**30
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def estimated(found: Estimate | None, spec: str) -> str:
    """An estimate with its interval, each number as `spec` formats it; a dash for none."""
    return "-" if found is None else f"{found.value:{spec}} [{found.low:{spec}}, {found.high:{spec}}]"


def count(value: int) -> str:
    """A count in thousands or millions, as people write it.

    >>> count(294_912), count(950), count(41_943_040)
    ('294.9K', '950', '41.9M')
    """
    for size, unit in ((1_000_000_000, "B"), (1_000_000, "M"), (1_000, "K")):
        if value >= size:
            return f"{value / size:.1f}{unit}"
    return str(value)


def megabytes(size: int) -> str:
    """Bytes as megabytes (10**6), with two decimals and the unit."""
    return f"{size / 1e6:.2f} MB"


def words(name: str) -> str:
    """A name from an enumeration, such as a verdict or a role, as words."""
    return name.replace("_", " ")


def shorter(text: str, most: int | None) -> str:
    """The text, cut to at most `most` characters; a cut text ends in an ellipsis."""
    return text if most is None or len(text) <= most else f"{text[: most - 3]}..."


def sentence(text: str) -> str:
    """The text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def short_path(path: str | PurePath) -> str:
    """The last two parts of a path, because a report that is passed on should not disclose the folders of a disk.

    >>> short_path("/home/me/runs/toy/run.jsonl")
    'toy/run.jsonl'
    """
    return "/".join(part for part in PurePath(path).parts[-2:] if part != "/")


def grounds(finding: Finding) -> list[tuple[str, str]]:
    """The labelled grounds of a finding: rationale, confidence, scope, evidence and verification, if present."""
    labelled = [
        ("why", finding.rationale),
        ("confidence", None if finding.confidence is None else f"{finding.confidence:.2f}"),
        ("scope", finding.scope),
        *(("evidence", f"{item.source}: {item.says}") for item in finding.evidence),
        ("verify", finding.verify),
    ]
    return [(label, text) for label, text in labelled if text]


def ranges(ids: Iterable[str]) -> Iterator[str]:
    """The ids, of which those of one letter code stand as its first and last if they are more than three.

    >>> list(ranges(["WIR170", "LR001", "WIR171", "WIR179", "WIR173"]))
    ['4 of WIR170 to WIR179', 'LR001']
    """
    codes: dict[str, list[str]] = {}
    for each in ids:
        codes.setdefault(each.rstrip("0123456789"), []).append(each)
    for members in codes.values():
        ordered = sorted(set(members))
        yield from [f"{len(ordered)} of {ordered[0]} to {ordered[-1]}"] if len(ordered) > _RANGE else ordered


def skipped_line(not_run: Sequence[NotRun], *, verbose: bool) -> str:
    """The number of checks that did not run for lack of input, and of those that the user excluded."""
    excluded = sum(item.reason in _EXCLUDED for item in not_run)
    parts = [f"{SKIPPED}: {len(not_run) - excluded}"] if len(not_run) > excluded else []
    parts += [f"left out by --select or --ignore: {excluded}"] if excluded else []
    return sentence("; ".join(parts)) + ("" if verbose else " (--verbose lists them with their reasons)")


def duration(seconds: float) -> str:
    """A duration in words.

    >>> duration(42.4), duration(3_725.0)
    ('42 s', '1 h 2 min')
    """
    hours, minutes = divmod(int(seconds // 60), 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds % 60:.0f} s" if minutes else f"{seconds:.0f} s"

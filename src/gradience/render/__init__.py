"""Reports as words. Nothing in this package prints, reads a file or judges.

This module turns values into words without knowing any report: text that is safe on a terminal, numbers and sizes,
findings and skipped checks as lines; and the formats of a file. Every string of a log, a config or an adapter passes
`clean` before it is printed.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import wraps
from importlib.util import find_spec
from itertools import chain
from pathlib import Path, PurePath
from textwrap import wrap
from typing import Final, Literal, ParamSpec, TypeAlias, TypeVar

from gradience.errors import GradienceError, OutputError, few
from gradience.schema import NonFinite
from gradience.schema.document import Estimate, Excluded, Finding, NotRun

NAMES: Final = 4  # names of a list that a sentence gives

T = TypeVar("T")
P = ParamSpec("P")
Columns: TypeAlias = Sequence[tuple[str, str, Callable[[T], str]]]  # title, format specification, and cell of an item

WIDTH = 72  # characters of a banner
PAGE: Final = 100  # most characters of a line of prose
INFOS: Final = 5  # findings of severity info that a screen shows
_RANGE: Final = 3  # ids of one code that are named singly
_HANG: Final = 4  # further indent of a folded line
_LABEL: Final = 12  # characters in which a label is followed by blanks; further on, blanks part columns
_COMMAND: Final = "gradience "  # a line with a command is one to copy
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[@-_]?")
_UNSAFE = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}  # controls, bidi overrides, surrogates, separators

SKIPPED = "Skipped (missing input or not applicable)"
ReportFormat: TypeAlias = Literal["html", "md"]
_SUFFIXES: Final[dict[str, ReportFormat]] = {".html": "html", ".htm": "html", ".md": "md", ".markdown": "md"}

_EXCLUDED = frozenset(item.value for item in Excluded)


def as_text(lines: Callable[P, Iterable[str]]) -> Callable[P, str]:
    """Decorate a function that yields a report's lines, so that it returns the whole text."""

    @wraps(lines)
    def text(*args: P.args, **kwargs: P.kwargs) -> str:
        return "\n".join(chain.from_iterable(map(folded, lines(*args, **kwargs))))

    return text


def as_lines(lines: Callable[P, Iterable[str]]) -> Callable[P, str]:
    """As `as_text`, for lines that name places in a file: none is folded."""

    @wraps(lines)
    def text(*args: P.args, **kwargs: P.kwargs) -> str:
        return "\n".join(lines(*args, **kwargs))

    return text


def folded(line: str, width: int = PAGE) -> list[str]:
    """The line in pieces of at most `width` characters, the later ones indented. A command or a table row stays whole.

    >>> folded("  [INFO] it is long", 12)
    ['  [INFO] it', '      is', '      long']
    """
    if len(line) <= width or _COMMAND in line or "/" in line.partition(" ")[0] or "  " in line.strip()[_LABEL:]:
        return [line]
    indent = " " * (len(line) - len(line.lstrip()) + _HANG)
    return wrap(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def labelled(pairs: Iterable[tuple[str, str]], *, width: int = 12, indent: int = 0) -> Iterator[str]:
    """One line for each label and value; the values start `width` characters after the indent."""
    return (f"{'':{indent}}{label + ': ':<{width}}{value}" for label, value in pairs)


def table(
    columns: Columns[T], items: Iterable[T], *, most: int | None = None, of: str = "", indent: int = 2, gap: int = 2
) -> Iterator[str]:
    """A line of titles, and one line for each item; `most` and `of` are passed to `shortened`.

    >>> list(table((("n", ">3", str), ("square", "", lambda n: str(n * n))), [7, 12]))
    ['    n  square', '    7  49', '   12  144']
    """

    def line(cells: Iterable[str]) -> str:
        texts = (f"{cell:{spec}}" for cell, (_, spec, _) in zip(cells, columns, strict=True))
        return " " * indent + (" " * gap).join(texts)

    yield line(title for title, _, _ in columns)
    yield from shortened([line(cell(item) for _, _, cell in columns) for item in items], most, of=of, indent=indent)


def shortened(
    lines: Sequence[str], most: int | None, *, of: str = "", indent: int = 2, how: str = "--verbose lists all"
) -> Iterator[str]:
    """The first lines, and a last line with the number of lines left out.

    Args:
        lines: all lines.
        most: how many lines to keep; None for all.
        of: a noun phrase for the lines left out, after the word "more".
        indent: spaces before the last line.
        how: how the user can see all lines.

    >>> list(shortened(["a", "b", "c"], 1, indent=0))
    ['a', '... and 2 more (--verbose lists all)']
    """
    yield from lines[:most]
    if most is not None and len(lines) > most:
        yield f"{'':{indent}}... and {len(lines) - most} more{f' {of}' if of else ''} ({how})"


def listed(names: Sequence[str], most: int = NAMES, *, separator: str = ", ") -> str:
    """The first names, separated by commas, and the number of the remaining ones.

    >>> listed(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    return clean(few(names, most, separator))


def counted(n: int, noun: str) -> str:
    """A number with its noun, in the plural if the number is not 1.

    >>> counted(1, "finding"), counted(2, "finding"), counted(2, "info")
    ('1 finding', '2 findings', '2 info')
    """
    return f"{n:,} {noun}" if n == 1 or noun == "info" else f"{n:,} {noun}s"


def clean(text: str) -> str:
    r"""The text on one line, without escape sequences, controls or bidi overrides (CWE-150).

    >>> clean("a\x1b[31mb\u202ec\nd")
    'abc d'
    """
    flat = _ESCAPES.sub("", text).replace("\n", " ").replace("\t", " ")
    return "".join(ch for ch in flat if unicodedata.category(ch) not in _UNSAFE)


def banner(title: str) -> list[str]:
    """The title of a report between two horizontal lines."""
    rule = "=" * WIDTH
    return [rule, title, rule]


def number(value: float | NonFinite | None, spec: str = ".2f") -> str:
    """The number in the given format, or `-` for None; a non-finite number by its name."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else format(value, spec)


def percent(value: float | NonFinite | None) -> str:
    """A fraction as a percentage with one decimal, or `-` for None."""
    return number(value, ".1%")


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


def shorter(text: str, most: int) -> str:
    """The text, cut to at most `most` characters; a cut text ends in an ellipsis."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def sentence(text: str) -> str:
    """The text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def short_path(path: str | PurePath) -> str:
    """The last two parts of a path, because a report that is passed on should not disclose the folders of a disk.

    >>> short_path("/home/me/runs/toy/run.jsonl")
    'toy/run.jsonl'
    """
    return "/".join(part for part in PurePath(path).parts[-2:] if part != "/")


def finding_lines(findings: Iterable[Finding], *, verbose: bool) -> Iterator[str]:
    """A line for each finding, and a line with its action if it is no info; `verbose` adds the grounds.

    Of the findings of severity info the first are shown, and the number of the others.
    """
    infos: list[str] = []
    for finding in findings:
        line = f"  [{finding.severity.upper()}] {finding.id}: {clean(finding.message)}"
        if finding.severity == "info" and not verbose:
            infos.append(line)
            continue
        yield line
        yield from action_lines(finding, verbose=verbose)
    yield from shortened(infos, INFOS)


def action_lines(finding: Finding, *, verbose: bool) -> Iterator[str]:
    """The line with the action of a finding, if it has one; `verbose` adds its evidence."""
    if finding.action:
        yield f"      -> {clean(finding.action)}"
    yield from (f"      {label}: {clean(text)}" for label, text in grounds(finding) if verbose)


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


def skipped_lines(not_run: Sequence[NotRun], *, verbose: bool) -> Iterator[str]:
    """A line with the number of checks that did not run; `verbose` adds a line with each reason and its checks."""
    if not_run:
        yield skipped_line(not_run, verbose=verbose)
    reasons: dict[str, list[str]] = {}
    for item in not_run if verbose else ():
        reasons.setdefault(item.reason, []).append(item.id)
    yield from (f"  {', '.join(ranges(ids))}: {clean(reason)}" for reason, ids in reasons.items())


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


def format_of(out: Path) -> ReportFormat:
    """The format of a file, by its suffix.

    Raises:
        OutputError: no format has this suffix.
    """
    found = _SUFFIXES.get(out.suffix.lower())
    if found is None:
        raise OutputError(f"{out.name}: its suffix names no format", advice="name it .html or .md, or give --format")
    return found


def check_format(kind: ReportFormat) -> None:
    """Refuse a format that cannot be written.

    Raises:
        GradienceError: the format is HTML, and matplotlib is not installed.
    """
    if kind == "html" and find_spec("matplotlib") is None:
        raise GradienceError(
            "an HTML report needs matplotlib, which is not installed",
            advice="in the clone: pip install -e '.[report]'; or give --format md",
        )

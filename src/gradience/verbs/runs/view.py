"""The reports on many runs as text: one screen, a line a run; everything else is a question in SQL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from gradience.blocks import Block, Columns, Figure, Page, Section, brief, counted, number, shorter, table
from gradience.blocks.text import as_text, more, shortened
from gradience.schema.fleet import RUN_SETTINGS, ComparableRuns, Curve, RankedRun, RunsBestReport, RunsCurvesReport

_COLUMNS: Final = 100  # of a terminal
_NAME: Final = 26  # characters of a run's name
_ROOM: Final = _COLUMNS - sum(width + 2 for width in (_NAME, 7, 6, 14, 8))  # beside the other columns
CURVE: Final = 12  # characters of a run's curve
_FEW: Final = 4  # runs, at most, whose stories are told in full and whose settings are told with their values
_DOUBTS: Final = {"model": "models", "data": "data sets", "objective": "objectives", "split": "held-out splits"}
_USUAL: Final = "learns"
_UNREMARKABLE: Final = ("ok", "unknown")  # other programs' logs do not say how a run ended
_NOT_READ: Final = 5  # unreadable logs that are listed
_VALUES: Final = ("loss ", "eval loss", "eval accuracy", "no held-out signal")  # clauses that repeat a column


class _Listed(NamedTuple):
    """A row of the list of runs."""

    name: str
    row: Mapping[str, Any]


_LIST: Final[Columns[_Listed]] = (
    ("run", f"<{_NAME}", lambda one: _ending(one.name, _NAME)),
    ("lr", ">7", lambda one: brief(one.row["lr"])),
    ("steps", ">6", lambda one: number(one.row["steps"], "d")),
    ("loss", "<14", lambda one: f"{brief(one.row['first_loss'])} > {brief(one.row['last_loss'])}"),
    ("held out", ">8", lambda one: _held_out(one.row)),
    ("", "", lambda one: _told(one.row)),
)


@as_text
def runs_text(
    rows: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    *,
    most: int | None = None,
    curves: Mapping[tuple[str, str], str] = MappingProxyType({}),
) -> Iterator[Block]:
    """The runs for a terminal: a line each, what their settings differ in, and the logs that could not be read.

    Args:
        rows: values by column, as of `run.BOARD`.
        names: a short unique name for each row.
        most: how many runs to list; None for all.
        curves: by path and id of a run, its training loss as a line of characters.
    """
    listed = [_Listed(name, row) for name, row in zip(names, rows, strict=True)]
    runs, unread = ([one for one in listed if (one.row["error"] is None) == read] for read in (True, False))
    drawn = ("curve", f"<{CURVE}", lambda one: curves.get((one.row["path"], one.row["run"]), ""))
    columns: Columns[_Listed] = (*_LIST[:-2], drawn, *_LIST[-2:]) if curves else _LIST
    yield table(columns, runs[:most], indent=0) if runs else "no such run"
    how = f"--limit {len(runs)}; --columns shows other columns"
    yield from more(len(runs) - len(runs[:most]), how, indent=0)
    yield from _stories(runs)
    yield from _settings(runs)
    if unread:
        yield f"{counted(len(unread), 'log')} not read:"
        errors = [f"  {one.name}: {one.row['error']}" for one in unread]
        yield from shortened(errors, _NOT_READ, how='gradience runs query ROOT "select path, error from runs"')


def _stories(runs: Sequence[_Listed]) -> Iterator[Block]:
    """The whole stories of a few runs, if the table had no room for them."""
    if len(runs) <= _FEW and any(_told(one.row) != _told(one.row, room=None) for one in runs):
        yield "Stories:"
        yield from (f"  {one.name}: {one.row['story']}" for one in runs)


def _settings(runs: Sequence[_Listed]) -> Iterator[Block]:
    """The settings that differ, of a few runs with their values, and whether the losses may not be comparable.

    A setting that a run did not record may be the same.
    """
    columns = {name: [one.row[name] for one in runs] for name in (*RUN_SETTINGS, "split")}
    apart = {name: values for name, values in columns.items() if len({*values} - {None, "unknown"}) > 1}
    differences = [
        f"{name} {' | '.join(_value(x) for x in values)}" if len(runs) <= _FEW else name
        for name, values in apart.items()
        if name in RUN_SETTINGS
    ]
    if differences:
        yield f"Settings that differ: {'; '.join(differences)}"
    elif len(runs) > 1:
        yield "Settings: the same in all runs, as far as recorded"
    if doubt := [words for name, words in _DOUBTS.items() if name in apart]:
        yield f"The runs differ in {' and '.join(doubt)}: their losses may not be comparable."
    elif len(runs) > 1 and not any(columns["data"]):
        yield "No log names its data set: whether the losses are comparable is for you to say."


def _value(x: object) -> str:
    return "-" if x is None else brief(x) if isinstance(x, float) else str(x)


def _ending(text: str, most: int) -> str:
    """The text; if it is longer than `most` characters, an ellipsis and its end."""
    return text if len(text) <= most else f"...{text[3 - most :]}"


def _held_out(row: Mapping[str, Any]) -> str:
    """The newest held-out accuracy, or else the best held-out loss."""
    accuracy = row["eval_accuracy"]
    return brief(row["best_eval_loss"]) if accuracy is None else f"{accuracy:.1%}"


def _told(row: Mapping[str, Any], room: int | None = _ROOM) -> str:
    """What the run's story says beside the numbers that have a column, in so many characters."""
    clauses = [part for part in row["story"].split("; ") if not part.startswith(_VALUES)]
    if len(clauses) > 1 and clauses[0] == _USUAL:
        del clauses[0]
    status = [] if row["status"] in _UNREMARKABLE else [str(row["status"]).replace("_", " ")]
    return shorter("; ".join([*status, *clauses]), room)


def curves_page(report: RunsCurvesReport, figure: Figure) -> Page:
    """The page with the curves of several runs over each other, drawn in `figure`."""
    rows = table(_CURVES, report.curves, caption="First, last and best values")
    choose = f"{counted(report.left_out, 'run')} left out: --where, --sort and --limit choose."
    left = (choose,) if report.left_out else ()
    return Page("runs", report.metric, "", (), (Section("curves", "Curves", (figure, rows, *left)),))


_CURVES: Final[Columns[Curve]] = (
    ("run", "", lambda row: row.name),
    ("rows", ">6", lambda row: f"{len(row.steps):,}"),
    ("first", ">8", lambda row: f"{row.values[0]:.4g}"),
    ("last", ">8", lambda row: f"{row.values[-1]:.4g}"),
    ("lowest", ">8", lambda row: f"{min(row.values):.4g}"),
    ("highest", ">8", lambda row: f"{max(row.values):.4g}"),
)


@as_text
def runs_best_text(report: RunsBestReport) -> Iterator[Block]:
    """The best runs for a terminal: a block for each group of comparable runs."""
    word = "Lowest" if report.goal == "least" else "Highest"
    yield f"{word} {report.metric}{f' by {report.by}' if report.by else ''}"
    single = [group for group in report.groups if group.runs == 1]
    for group in report.groups:
        if group.runs > 1:
            yield ""
            yield from _group(group)
    if single:
        yield ""
        several = len(report.groups) > len(single)
        yield "Comparable with none of these:" if several else "No two runs are comparable:"
        lines = [f"  {brief(one.ranked[0].value):>8}  {_what(one)}: {_path(one)}" for one in single]
        yield from shortened(lines, _SINGLE, how="--json")
    if report.not_ranked:
        yield ""
        yield f"Not ranked, since the run is broken ({counted(len(report.not_ranked), 'run')}):"
        lines = [f"  {_ending(one.name, 48)}: {one.reason}" for one in report.not_ranked]
        yield from shortened(lines, _SINGLE, how="--json")
    if len(report.groups) > 1:
        yield ""
        yield "Runs of other data, objectives, numbers of examples or (for losses) models are not compared."


_SINGLE: Final = 8  # runs listed that can be compared with no other

_RANKED: Final[Columns[RankedRun]] = (
    ("best", ">8", lambda one: brief(one.value)),
    ("step", ">7", lambda one: number(one.step, "d")),
    ("last", ">8", lambda one: brief(one.last)),
    ("lr", ">7", lambda one: brief(one.lr)),
    ("r", ">4", lambda one: number(one.r, "d")),
    ("", "<6", lambda one: {None: "", True: "worse", False: "same"}[one.worse_than_noise]),
    ("run", "", lambda one: _ending(one.name, 48)),
)


def _group(group: ComparableRuns) -> Iterator[Block]:
    yield f"{_what(group)}: {counted(group.runs, 'run')}"
    yield table(_RANKED, group.ranked)
    yield from more(group.runs - len(group.ranked), "--limit")
    yield f"  {_noise(group)}"


def _what(group: ComparableRuns) -> str:
    """What the runs of a group share."""
    parts = [
        group.group,
        "data not recorded" if group.data is None else group.data,
        "" if group.objective in {None, "unknown"} else str(group.objective),
        "" if group.model is None else group.model,
        "" if group.examples is None else f"about {group.examples:,} examples",
    ]
    return ", ".join(part for part in parts if part)


def _path(group: ComparableRuns) -> str:
    return _ending(group.ranked[0].path, 48)


def _noise(group: ComparableRuns) -> str:
    """How far apart two equally good runs of the group may be."""
    noise = group.noise
    if noise is None:
        return "no noise known: the same run with another seed would show how much a difference means"
    groups = f" in {noise.groups} groups" if noise.groups > 1 else ""
    seeds = f"finished runs{groups} that differ in their seed alone"
    of = seeds if noise.source == "seeds" else "examples, taken as independent"
    return f"same: within {brief(noise.difference)} of the best, two standard deviations of {noise.n:,} {of}"

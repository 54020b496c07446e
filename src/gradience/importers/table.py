"""Import a table of rows from any program, as CSV, JSON lines or a JSON list.

Columns are recognised by their names or by the user's map, and are renamed to the Trainer's names (`loss`,
`learning_rate`, `eval_loss`). So one mapping turns rows from any source into events.
"""

from __future__ import annotations

import csv
import io
import re
from codecs import BOM_UTF8
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Final, TextIO, TypeAlias

from gradience.errors import RecorderError, few
from gradience.importers.files import MAX_LINE, LoggedRow, SourceRun, clock_of, json_lines, require_file, whole_json
from gradience.io.reading import open_regular
from gradience.names import NAMES, columns_of
from gradience.schema import Json
from gradience.schema.events import TELLING
from gradience.schema.values import number_of
from gradience.telemetry.rows import HELD_OUT, SPOKEN

Columns: TypeAlias = dict[str, str]  # source column -> our name: step, ts, or a row's key such as eval_loss

_KNOWN: Final = {name: columns_of(name) for name in NAMES.columns}  # the first column that is present counts
_TOLD: Final = TELLING | {"loss"}  # the values of which one is enough for a run
_RATES: Final = "lr_"  # Lightning's LearningRateMonitor: `lr-AdamW`, `lr-AdamW/pg2`, ...
_HELD: Final = {alias: name for name, alias in NAMES.held_out.items()}
_SCHEDULE: Final = "lr_scheduler"  # which is no rate
_SHORT: Final = {alias: name for name, names in NAMES.metrics.items() for alias in names.split()}
_TARGETS: Final = {"lr": "learning_rate", **{name: name for name in _KNOWN}}
_SEPARATOR: Final = re.compile(r"[/.: \-]+")
_GROUP: Final = re.compile(rf"({'|'.join(HELD_OUT)})[/._](.+)", re.IGNORECASE)
_TINKER: Final = "env/all/"  # in `test/env/all/reward/total`
_VERL_HELD: Final = re.compile(r"val-(?:core|aux)/(.+)")  # verl's held-out metrics: val-core/DATA/METRIC/mean@8
_DOCUMENT: Final = {"step", "data"}  # keys of a row in verl's file log, {"step": 1, "data": {"actor/pg_loss": 0.1}}
_ADVICE: Final = "for example --map loss=train/loss,step=_step,eval.loss=val_loss"
_HELD_OUT_LOSS: Final = "val_loss"  # in each row of a history as Keras has it, which counts no passes
_SHOWN: Final = 12
Numbered: TypeAlias = tuple[int, dict[str, Json] | str]  # the row's place, and the row or the reason why it is skipped
_ABSENT: Final = frozenset({"", "none", "null", "n/a", "na", "-"})
_DELIMITERS: Final = ",;\t|"
MAX_COLUMNS: Final = 10_000  # columns of a table; a dashboard shows hundreds
_MAX_DEPTH: Final = 3  # levels of nesting that are flattened into a column such as `train.loss`
_OWN: Final = {"step", "ts"}


def parse_map(texts: Iterable[str]) -> Columns:
    """Return the columns in texts such as `loss=train/loss,step=_step`. `eval.loss` is the loss of the split `eval`.

    Raises:
        RecorderError: a text has another form or an unknown name, or two columns get one name.
    """
    columns: Columns = {}
    for pair in (piece for text in texts for piece in text.split(",") if piece.strip()):
        target, equals, column = (part.strip() for part in pair.partition("="))
        if not (equals and target and column):
            raise RecorderError(f"--map: expected NAME=COLUMN, got {pair.strip()[:60]!r}", advice=_ADVICE)
        columns[column] = _target(target)
    if len(set(columns.values())) < len(columns):
        raise RecorderError("--map gives two columns one name", advice=_ADVICE)
    return columns


def _target(name: str) -> str:
    if name in _TARGETS:
        return _TARGETS[name]
    split, dot, metric = _SEPARATOR.sub(".", name).partition(".")
    if not (dot and split and metric):
        known = ", ".join(sorted(_TARGETS))
        raise RecorderError(f"--map: no value is called {name[:60]!r}", advice=f"{known}, or SPLIT.METRIC; {_ADVICE}")
    return f"{split}_{metric}" if split in HELD_OUT else f"eval_{split}_{metric}"


def find_columns(present: Iterable[str], given: Mapping[str, str] | None = None) -> Columns:
    """Return our names for the columns that are present. The user's map takes precedence.

    Raises:
        RecorderError: there are too many columns, a column of the map is missing, no column is the step, or none is a
            loss or an evaluation.
    """
    names = list(dict.fromkeys(present))
    if len(names) > MAX_COLUMNS:
        raise RecorderError(f"{len(names)} columns, over the limit of {MAX_COLUMNS}", advice="export fewer of them")
    columns = dict(given or {})
    if missing := [column for column in columns if column not in names]:
        raise RecorderError(f"--map: there is no column {missing[0][:60]!r}", advice=f"there are {_names(names)}")
    free = [name for name in names if name not in columns]
    columns |= _by_name(free, set(columns.values()))
    if "step" not in columns.values() and not {"loss", _HELD_OUT_LOSS} <= {*names}:
        raise _no_step(names)
    if not any(_measures(name) for name in columns.values()):
        raise RecorderError(
            "no column is a loss or an evaluation", advice=f"give --map loss=COLUMN; there are {_names(names)}"
        )
    return columns


def _no_step(names: Iterable[str], path: Path | None = None) -> RecorderError:
    said = "no column is the step"
    return RecorderError(
        f"{path}: {said}" if path else said, advice=f"give --map step=COLUMN; there are {_names([*names])}"
    )


def _measures(name: str) -> bool:
    return name in _TOLD or name.startswith(tuple(f"{word}{mark}" for word in HELD_OUT for mark in "_/"))


def _by_name(names: list[str], taken: set[str]) -> Columns:
    plain: dict[str, str] = {}
    for name in names:
        plain.setdefault(_plain(name), name)
    columns: Columns = {}
    for target, known in _KNOWN.items():
        column = next((plain[name] for name in known if name in plain), None)
        if target not in taken and column is not None:
            columns.setdefault(column, target)
    if "learning_rate" not in taken | set(columns.values()):  # one for each parameter group
        columns |= {column: "learning_rate" for name, column in plain.items() if _is_rate(name)}
    columns |= _beside(plain)
    used = taken | set(columns.values())
    for name in names:
        if name in columns:
            continue
        target = _other(name)
        if target in used and name in used:
            target = f"{name}_"  # for example a row counter `step` beside the optimizer's step
        if target not in used:
            columns[name] = target
            used.add(target)
    return columns


def _beside(plain: Mapping[str, str]) -> Columns:
    """Return our names for columns that mean what they do only beside another one."""
    of = {name.removeprefix("train_"): column for name, column in plain.items()}
    tables = [meant for mark, meant in NAMES.beside.items() if mark in of]
    return {of[name]: ours for meant in tables for name, ours in meant.items() if name in of}


def _other(name: str) -> str:
    """Return our name for a column that is not in `_KNOWN`: that of a split's metric, else the column's own name."""
    if held_out := _HELD.get(_plain(name)):
        return held_out
    if verl := _VERL_HELD.fullmatch(name):
        return f"eval_{verl[1]}"
    group = _GROUP.fullmatch(name)
    if group:
        split, metric = group[1].lower(), group[2].removeprefix(_TINKER).replace("/", "_")
        metric = _SHORT.get(metric.lower(), metric)
        spoken = split == "eval" or metric in SPOKEN or name[len(split)] == "_"
        return f"{split}{'_' if spoken else '/'}{metric}"
    return name.removeprefix("train/")


def _names(names: list[str]) -> str:
    return few([name[:40] for name in names], _SHOWN)


def read_table(path: Path, columns: Mapping[str, str] | None = None) -> SourceRun:
    """Return the run in a CSV, JSON-lines or JSON file.

    Raises:
        RecorderError: the file is not a table, or its columns are not recognised.
    """
    require_file(path)
    with open_regular(path) as file:
        head = file.read(4096).removeprefix(BOM_UTF8).lstrip()
    if head.startswith(b"{"):
        rows: Iterable[Numbered] = json_lines(path)
    elif head.startswith(b"["):
        rows = _listed(path)
    else:
        return rows_to_raw(SourceRun(path, files=[path]), _csv_rows(path), columns)
    flat = ((place, flatten(row) if isinstance(row, dict) else row) for place, row in rows)
    return rows_to_raw(SourceRun(path, files=[path]), flat, columns)


def rows_to_raw(raw: SourceRun, numbered: Iterable[Numbered], given: Mapping[str, str] | None) -> SourceRun:
    """Add the rows to the run, with columns renamed to our names, and return the run.

    Raises:
        RecorderError: the columns are not recognised, or there are no rows.
    """
    present: dict[str, None] = {}
    for place, row in numbered:
        if isinstance(row, str):
            raw.skip(place, row)
        else:
            present |= dict.fromkeys(row)
            raw.add(LoggedRow(place, None, row))
    if not raw.rows:
        first = f": {raw.skipped[0].reason}" if raw.skipped else ""
        raise RecorderError(f"{raw.path} holds no row{first}", advice="is it the log of a run?")
    columns = _found(raw.path, present, given)
    step = next((column for column, name in columns.items() if name == "step"), None)
    if step is None and any(row.values.get(name) is None for row in raw.rows for name in ("loss", _HELD_OUT_LOSS)):
        raise _no_step(columns, raw.path)
    unnamed, raw.rows = deque(raw.rows), []
    for number in range(1, len(unnamed) + 1):
        unread = unnamed.popleft()  # frees each row before the next is made
        values = unread.values if step else {**unread.values, "step": number}
        _take(raw, unread.place, values, columns)
    if step is None:
        raw.notes.append("no column is the step: each row is taken for a pass over the data, as Keras counts them")
    if step is None or _plain(step) == "epoch":
        _tell_passes(raw)
    _join_rates(raw)
    own = ", ".join(
        f"{name}={column}"
        for column, name in columns.items()
        if name not in {column, column.removeprefix("train/"), column.removeprefix("eval/"), "ts"}
    )
    if own:
        raw.notes.append(f"columns by their names: {own}" if not given else f"columns: {own}")
    return raw


def _tell_passes(raw: SourceRun) -> None:
    """Give each row its epoch, where the steps of a table are epochs: those done, whether it counts from 0 or 1."""
    steps = [row.step for row in raw.rows if row.step is not None]
    if steps == sorted(set(steps)) and steps[:1] in ([0], [1]):
        done = 1 - steps[0]
        raw.rows = [
            LoggedRow(row.place, row.step, {**row.values, "epoch": (row.step or 0) + done}, row.ts) for row in raw.rows
        ]


def _found(path: Path, present: Iterable[str], given: Mapping[str, str] | None) -> Columns:
    try:
        return find_columns(present, given)
    except RecorderError as error:
        raise RecorderError(f"{path}: {error.message}", advice=error.advice) from error


def _take(raw: SourceRun, place: int, row: dict[str, Json], columns: Columns) -> None:
    named: dict[str, Json] = {}
    for column, value in row.items():
        name = columns.get(column, column)
        if value is not None:
            named[name] = _both(named[name], value) if name in named else value
    values = {name: value for name, value in named.items() if name not in _OWN}
    ts = clock_of(named.get("ts"))
    if ts is None and "ts" in named and values.keys() - {"epoch"}:
        values["ts_"] = named["ts"]  # which is no time
    raw.take(place, named.get("step"), values, ts)


def _both(rates: Json, rate: Json) -> Json:
    """The rates of several parameter groups as a list."""
    return [*(rates if isinstance(rates, list) else [rates]), rate]


def _join_rates(raw: SourceRun) -> None:
    """Merge a learning rate that has a row of its own, as in Lightning's logs, into the training row of its step."""
    trained = {row.step: place for place, row in enumerate(raw.rows) if "loss" in row.values}
    joined: set[int] = set()
    for place, row in enumerate(raw.rows):
        values, at = row.values, trained.get(row.step)
        if at is None or "learning_rate" not in values or not values.keys() <= {"learning_rate", "epoch"}:
            continue
        loss = raw.rows[at]
        if "learning_rate" not in loss.values:
            raw.rows[at] = LoggedRow(loss.place, loss.step, {**values, **loss.values}, loss.ts)
            joined.add(place)
    raw.rows = [row for place, row in enumerate(raw.rows) if place not in joined]


def _is_rate(name: str) -> bool:
    plain = _plain(name)
    return plain.startswith(_RATES) and not plain.startswith(_SCHEDULE)


def _plain(name: str) -> str:
    return _SEPARATOR.sub("_", name).lower()


def flatten(row: Mapping[str, Json], prefix: str = "", depth: int = 1) -> dict[str, Json]:
    """Return a row with nested mappings as columns with dotted names.

    >>> flatten({"step": 1, "train": {"loss": 0.5}})
    {'step': 1, 'train.loss': 0.5}
    >>> flatten({"step": 1, "data": {"actor/pg_loss": 0.5}})  # as verl writes it
    {'step': 1, 'actor/pg_loss': 0.5}
    """
    data = row.get("data")
    if depth == 1 and row.keys() == _DOCUMENT and isinstance(data, dict):
        return {"step": row["step"], **flatten(data, depth=2)}
    flat: dict[str, Json] = {}
    for key, value in row.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value and depth < _MAX_DEPTH:
            flat |= flatten(value, f"{name}.", depth + 1)
        else:
            flat[name] = value
    return flat


def _listed(path: Path) -> Iterator[Numbered]:
    document = whole_json(path)
    rows = document if isinstance(document, list) else [document]
    for place, row in enumerate(rows, 1):
        yield place, row if isinstance(row, dict) else "not a mapping"


def csv_header(line: str) -> tuple[list[str], str]:
    """Return the column names in a header line, and the delimiter that occurs in it most often."""
    delimiter = max(_DELIMITERS, key=line.count)
    try:
        return next(csv.reader([line], delimiter=delimiter), []), delimiter
    except csv.Error:
        return [], delimiter


def _csv_rows(path: Path) -> Iterator[Numbered]:
    with io.TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline="") as text:
        lines = _lines(path, text)
        first = next(lines, "")
        header, delimiter = csv_header(first.rstrip("\r\n"))
        if len(set(header)) < len(header):
            raise RecorderError(f"{path}: a column name appears twice", advice="give every column a name of its own")
        reader = csv.reader(lines, delimiter=delimiter)
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield reader.line_num + 1, str(error)
                continue
            if cells and any(cell.strip() for cell in cells):
                # The header's line was taken before the reader began to count.
                yield reader.line_num + 1, _cells(header, cells)


def _lines(path: Path, text: TextIO) -> Iterator[str]:
    """Yield the lines of a text with their line ends.

    Raises:
        RecorderError: the file is not UTF-8 text, or a line is too long for a row.
    """
    for number in count(1):
        try:
            line = text.readline(MAX_LINE)
        except UnicodeDecodeError:
            raise RecorderError(
                f"{path}: not UTF-8 text (after line {number - 1})", advice="give it as UTF-8"
            ) from None
        if "\0" in line:
            raise RecorderError(f"{path}: a binary file (or UTF-16), not a table", advice="give it as UTF-8 text")
        if len(line) >= MAX_LINE:
            limit = f"more than {MAX_LINE // 1024**2} MiB, the limit for a row"
            raise RecorderError(f"{path}: line {number} has {limit}", advice="is it a table?")
        if not line:
            return
        yield line


def _cells(header: list[str], cells: list[str]) -> dict[str, Json] | str:
    if len(cells) != len(header):
        return f"{len(cells)} cells for {len(header)} columns"
    return {name: cell_value(cell) for name, cell in zip(header, cells, strict=True)}


def cell_value(cell: str) -> Json:
    """Return the cell's value: a number, None if the cell is empty or says so (`n/a`), else its text."""
    if cell.strip().lower() in _ABSENT:
        return None
    number = number_of(cell)
    if isinstance(number, float) and number.is_integer() and cell.strip().lstrip("+-").isdecimal():
        return int(cell) if len(cell) < 18 else cell  # a JSON reader may lose digits of longer numbers
    return cell.strip() if number is None else number

"""Any table of rows: CSV, JSON lines or a JSON list, with columns by their names or by the user's map."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Final, TypeAlias

from gradience.errors import RecorderError
from gradience.importers.events import Columns, find_columns
from gradience.importers.files import Raw, Row, clock_of, json_lines, number_of, require_file, step_of, whole_json
from gradience.schema.scalars import Json

Numbered: TypeAlias = tuple[int, dict[str, Json] | str]  # place, and the row or what is wrong with it

_ABSENT: Final = frozenset({"", "none", "null", "n/a", "na", "-"})
_DELIMITERS: Final = ",;\t|"
_MAX_DEPTH: Final = 3  # levels of nesting that make a column: `train.loss`
_OWN: Final = {"step", "ts"}


def read_table(path: Path, columns: Mapping[str, str] | None = None) -> Raw:
    """Return the rows of a CSV, JSON-lines or JSON file.

    Raises:
        RecorderError: it is no table, or the columns cannot be told.
    """
    require_file(path)
    with path.open("rb") as file:
        head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(b"{"):
        rows: Iterable[Numbered] = json_lines(path)
    elif head.startswith(b"["):
        rows = _listed(path)
    else:
        return rows_to_raw(Raw(path, files=[path]), _csv_rows(path), columns)
    flat = ((place, flatten(row) if isinstance(row, dict) else row) for place, row in rows)
    return rows_to_raw(Raw(path, files=[path]), flat, columns)


def rows_to_raw(raw: Raw, numbered: Iterable[Numbered], given: Mapping[str, str] | None) -> Raw:
    """Add the rows, their columns by the names here.

    Raises:
        RecorderError: the columns cannot be told, or there is no row.
    """
    rows: list[tuple[int, dict[str, Json]]] = []
    for place, row in numbered:
        if isinstance(row, str):
            raw.skip(place, row)
        else:
            rows.append((place, row))
    if not rows:
        first = f": {raw.skipped[0].reason}" if raw.skipped else ""
        raise RecorderError(f"{raw.path} holds no row{first}", advice="is it the log of a run?")
    columns = _found(raw.path, chain.from_iterable(row for _, row in rows), given)
    for place, row in rows:
        _take(raw, place, row, columns)
    own = ", ".join(f"{name}={column}" for column, name in columns.items() if name not in {column, "ts"})
    if own:
        raw.notes.append(f"columns by their names: {own}" if not given else f"columns: {own}")
    return raw


def _found(path: Path, present: Iterable[str], given: Mapping[str, str] | None) -> Columns:
    try:
        return find_columns(present, given)
    except RecorderError as error:
        raise RecorderError(f"{path}: {error}", advice=error.advice) from error


def _take(raw: Raw, place: int, row: dict[str, Json], columns: Columns) -> None:
    said = {columns.get(name, name): value for name, value in row.items() if value is not None}
    step = step_of(said.get("step"))
    values = {name: value for name, value in said.items() if name not in _OWN}
    if step is None:
        raw.skip(place, "no step in it" if said.get("step") is None else "the step is no whole number")
    elif values.keys() <= {"epoch"}:
        raw.skip(place, "nothing was measured")
    else:
        ts = clock_of(said.get("ts"))
        raw.rows.append(Row(place, step, values if ts is not None or "ts" not in said else _kept(values, said), ts))


def _kept(values: dict[str, Json], said: dict[str, Json]) -> dict[str, Json]:
    """Keep what a column of clock readings holds, though it is no clock."""
    return {**values, "ts_": said["ts"]}


def flatten(row: Mapping[str, Json], prefix: str = "", depth: int = 1) -> dict[str, Json]:
    """Return nested mappings as columns with dotted names.

    >>> flatten({"step": 1, "train": {"loss": 0.5}})
    {'step': 1, 'train.loss': 0.5}
    """
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
    """Return the columns a header line names, and the delimiter that parts most of them."""
    delimiter = max(_DELIMITERS, key=line.count)
    try:
        return next(csv.reader([line], delimiter=delimiter), []), delimiter
    except csv.Error:
        return [], delimiter


def _csv_rows(path: Path) -> Iterator[Numbered]:
    text = _text(path)
    header, delimiter = csv_header(text.partition("\n")[0].rstrip("\r"))
    if len(set(header)) < len(header):
        raise RecorderError(f"{path}: a column name appears twice", advice="give every column a name of its own")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    next(reader, None)
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield reader.line_num, str(error)
            continue
        if cells and any(cell.strip() for cell in cells):
            yield reader.line_num, _cells(header, cells)


def _cells(header: list[str], cells: list[str]) -> dict[str, Json] | str:
    if len(cells) != len(header):
        return f"{len(cells)} cells for {len(header)} columns"
    return {name: _cell(cell) for name, cell in zip(header, cells, strict=True)}


def _cell(cell: str) -> Json:
    if cell.strip().lower() in _ABSENT:
        return None
    number = number_of(cell)
    if isinstance(number, float) and number.is_integer() and cell.strip().lstrip("+-").isdecimal():
        return int(cell) if len(cell) < 18 else cell  # digits that a JSON reader keeps
    return cell.strip() if number is None else number


def _text(path: Path) -> str:
    data = path.read_bytes()
    if b"\0" in data:
        raise RecorderError(f"{path}: a binary file (or UTF-16), not a table", advice="give it as UTF-8 text")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecorderError(f"{path}: not UTF-8 text (byte {error.start})", advice="give it as UTF-8") from None

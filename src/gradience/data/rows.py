"""The rows of a data set's files, streamed: JSONL, JSON, CSV, Parquet, Arrow, and folders of `Dataset.save_to_disk`.

A row that cannot be read becomes an `UnusableRow` with its number, and reading continues. A file without a data set is
an error.
"""

from __future__ import annotations

import csv
import io
from codecs import BOM_UTF8
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from gradience.errors import ConfigError
from gradience.io import natural_key
from gradience.io.columnar import count_rows, rows_of
from gradience.io.reading import MAX_VALUES, count_values, decode_json, numbered_lines, open_regular, read_small
from gradience.schema import Json

Row: TypeAlias = dict[str, Json]

MAX_LINE: Final = 64 << 20  # bytes of one row
MAX_JSON: Final = 512 << 20  # bytes of a JSON document, which is decoded whole
_MAX_FIELDS: Final = 1_000_000  # of a CSV's line
_OF_SAVED: Final = frozenset({"dataset_dict.json", "dataset_info.json", "state.json"})  # of save_to_disk: no rows
_MAX_LINES: Final = 1_000_000  # of a CSV's record
_MAX_FILES: Final = 10_000  # files of a folder
_ADVICE: Final = "give a .jsonl, .json, .csv, .tsv, .parquet or .arrow file, or a folder of Dataset.save_to_disk"
_COMMON_TRAIN: Final = "train"
_TOLD: Final = frozenset({"label", "kto_tag"})
_TRUTHS: Final = {spelt: spelt[0] in "Tt" for spelt in ("True", "TRUE", "true", "False", "FALSE", "false")}


class UnusableRow(NamedTuple):
    """A row that cannot be used, and why. Numbers count from 1; in a JSONL file they are line numbers."""

    number: int
    reason: str


Found: TypeAlias = tuple[int, Row] | UnusableRow


class RowSource:
    """The rows of one data set.

    Args:
        path: a file or a folder.

    Raises:
        ConfigError: the path holds no rows in a known format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files = _files_of(path)
        for file in self._files:
            _require_regular(file)
        self._sizes = [_counted(file) for file in self._files]
        self.count = sum(size.rows for size in self._sizes)
        if not self.count:
            raise ConfigError(f"{path}: no row in it", advice=_ADVICE)

    def rows(self, wanted: Collection[int] | None = None) -> Iterator[Found]:
        """Every row, or only the wanted ones, in the order of the files.

        `wanted` counts rows alone; the number of a row of JSON lines counts the blank lines before it, too.

        Raises:
            ConfigError: a file can no longer be read, or has lost rows since they were counted.
        """
        before = lines_before = 0
        for file, size in zip(self._files, self._sizes, strict=True):
            numbers = None if wanted is None else {number - before for number in wanted if before < number}
            left = size.rows if numbers is None else sum(number <= size.rows for number in numbers)
            for row in _read(file, numbers):
                left -= 1
                yield _later(row, lines_before)
            if left > 0:
                raise ConfigError(f"{file}: it changed while it was read", advice="read it again once it is whole")
            before += size.rows
            lines_before += size.lines


def _require_regular(path: Path) -> None:
    try:
        open_regular(path).close()
    except OSError as error:
        raise _unreadable(path, error) from None


def _later(found: Found, before: int) -> Found:
    if isinstance(found, UnusableRow):
        return found._replace(number=found.number + before)
    return (found[0] + before, found[1]) if before else found


class _Size(NamedTuple):
    rows: int
    lines: int
    """By which rows are numbered: the blank ones, too."""


class _Kind(NamedTuple):
    size: Callable[[Path], _Size]
    rows: Callable[[Path, Collection[int] | None], Iterator[Found]]


def _read(path: Path, wanted: Collection[int] | None) -> Iterator[Found]:
    try:
        yield from _kind_of(path).rows(path, wanted)
    except (OSError, ValueError, csv.Error) as error:
        raise _unreadable(path, error) from None


def _counted(path: Path) -> _Size:
    try:
        return _kind_of(path).size(path)
    except (OSError, ValueError, csv.Error) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> ConfigError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).partition("\n")[0]
    return ConfigError(f"{path}: {reason}", advice=_ADVICE)


def _files_of(path: Path) -> list[Path]:
    if path.is_dir():
        return _saved(path) or _shards(path)
    if not path.exists():
        raise ConfigError(f"{path}: no such file or folder", advice=_ADVICE)
    _kind_of(path)
    return [path]


def _saved(folder: Path) -> list[Path]:
    """The Arrow files of a folder that `save_to_disk` wrote; if it has several splits, those of `train`."""
    if (folder / "dataset_dict.json").is_file():
        splits = _json_object(folder / "dataset_dict.json").get("splits")
        names = [name for name in splits if isinstance(name, str)] if isinstance(splits, list) else []
        names = [name for name in names if name == Path(name).name != ".."]  # folders within this one
        chosen = _COMMON_TRAIN if _COMMON_TRAIN in names else names[0] if len(names) == 1 else None
        if chosen is None:
            raise ConfigError(f"{folder}: several splits: {', '.join(names)}", advice=f"give one: {folder}/SPLIT")
        return _saved_files(folder / chosen)
    return _saved_files(folder)


def _saved_files(folder: Path) -> list[Path]:
    if not (folder / "state.json").is_file():
        return []
    listed = _json_object(folder / "state.json").get("_data_files")
    named = [item.get("filename") for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
    # The name alone: a stranger's data set names no file outside of its folder.
    return [*dict.fromkeys(folder / Path(name).name for name in named if isinstance(name, str))]


def _json_object(path: Path) -> dict[str, Json]:
    try:
        return decode_json(read_small(path, most=1 << 20, what="a data set's state"), dict[str, Any])
    except (OSError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise ConfigError(f"{path}: {error}", advice=_ADVICE) from None


def _shards(folder: Path) -> list[Path]:
    """The data files of a folder, all of one kind; only those of the training split if their names have splits."""
    entries = (entry for entry, _ in zip(folder.iterdir(), range(_MAX_FILES), strict=False))
    names = sorted(entries, key=lambda path: natural_key(path.name))
    files = [p for p in names if p.suffix.lower() in _KINDS and p.name not in _OF_SAVED and p.is_file()]
    # So the hub names the files of a split: train-00000-of-00004.parquet.
    train = [path for path in files if path.stem.lower().startswith(_COMMON_TRAIN)]
    chosen = train or files
    if not chosen:
        others = sorted({path.suffix.lower() for path in names if path.suffix and path.is_file()})
        kinds = f" (it holds {', '.join(others[:5])})" if others else ""
        raise ConfigError(f"{folder}: a folder without rows of a known format{kinds}", advice=_ADVICE)
    if len({path.suffix.lower() for path in chosen}) > 1:
        raise ConfigError(f"{folder}: data files of several kinds", advice="name the file")
    return chosen


def _kind_of(path: Path) -> _Kind:
    kind = _KINDS.get(".jsonl" if _is_json_lines(path) else path.suffix.lower())
    if kind is None:
        raise ConfigError(f"{path}: {path.suffix or 'no suffix'}: no data file of a known format", advice=_ADVICE)
    return kind


def _is_json_lines(path: Path) -> bool:
    """Whether a .json file holds one document per line, as `Dataset.to_json` writes it."""
    if path.suffix.lower() != ".json":
        return False
    try:
        with open_regular(path) as file:
            first = file.readline(MAX_LINE)
        return first.lstrip().startswith(b"{") and isinstance(decode_json(first, object), dict)
    except (OSError, RecursionError, msgspec.DecodeError):
        return False


def _size_of_lines(path: Path) -> _Size:
    """The lines that are not blank, and all lines, counted without decoding them."""
    rows = lines = 0
    with open_regular(path) as file:
        for lines, line in numbered_lines(file, MAX_LINE):  # noqa: B007  # the last number is their count
            rows += line is None or bool(line.strip())
    return _Size(rows, lines)


def _json_lines(path: Path, wanted: Collection[int] | None) -> Iterator[Found]:
    decoder = msgspec.json.Decoder()
    nth = 0
    with open_regular(path) as file:
        for number, line in numbered_lines(file, MAX_LINE):
            raw = line.removeprefix(BOM_UTF8) if line is not None and number == 1 else line
            if raw is not None and not raw.strip():
                continue
            nth += 1
            if wanted is None or nth in wanted:
                yield _decoded(number, raw, decoder)


def _sized(count: Callable[[Path], int]) -> Callable[[Path], _Size]:
    """The size of a file of a kind whose rows are numbered one after the other."""

    def size(path: Path) -> _Size:
        rows = count(path)
        return _Size(rows, rows)

    return size


def _decoded(number: int, raw: bytes | None, decoder: msgspec.json.Decoder[Json]) -> Found:
    if raw is None:
        return UnusableRow(number, f"a line of more than {MAX_LINE >> 20} MiB")
    if len(raw) > MAX_VALUES and count_values(raw) > MAX_VALUES:
        return UnusableRow(number, f"a line of more than {MAX_VALUES:,} values")
    try:
        value = decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return UnusableRow(number, f"not JSON: {error}")
    return _row(number, value)


def _row(number: int, value: Json) -> Found:
    return (number, value) if isinstance(value, dict) else UnusableRow(number, "not an object of columns")


def _document(path: Path) -> list[Json]:
    raw = read_small(path, most=MAX_JSON, what="a JSON document of rows; JSONL has none")
    if not raw.strip():
        return []
    if count_values(raw) > MAX_VALUES:
        raise ValueError(f"more than {MAX_VALUES:,} values in one JSON document; give JSONL, which is streamed")
    try:
        value: Json = decode_json(raw, object)
    except RecursionError as error:
        raise ValueError(str(error)) from None
    except msgspec.DecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    if isinstance(value, dict):
        # Rows may stand under one key, as under SQuAD's `data`.
        lists = [item for item in value.values() if isinstance(item, list) and item and isinstance(item[0], dict)]
        value = lists[0] if len(lists) == 1 else value
    if not isinstance(value, list):
        raise ValueError("expected a list of rows")  # noqa: TRY004  # of the text, not of an argument
    return value


def _json_rows(path: Path, wanted: Collection[int] | None) -> Iterator[Found]:
    for number, value in enumerate(_document(path), 1):
        if wanted is None or number in wanted:
            yield _row(number, value)


class _CsvLines:
    """The lines of a CSV file as text, without those over the limits."""

    def __init__(self, file: io.BufferedReader, separator: str) -> None:
        self._lines, self._separator = numbered_lines(file, MAX_LINE), separator.encode()
        self._cut = False
        self._since = 0  # lines of the record that is being read

    def left_out(self) -> bool:
        """Whether a line was left out of the record that was read last."""
        cut, self._cut, self._since = self._cut, False, 0
        return cut

    def __iter__(self) -> Iterator[str]:
        for number, line in self._lines:
            self._since += 1
            if self._since > _MAX_LINES:
                raise ValueError(f"a record of more than {_MAX_LINES:,} lines: is a quote left open?")
            raw = line.removeprefix(BOM_UTF8) if line is not None and number == 1 else line
            if raw is None or (len(raw) > _MAX_FIELDS and raw.count(self._separator) > _MAX_FIELDS):
                self._cut = True
                yield "\n"  # a record without fields, which becomes a fault
            else:
                yield raw.decode("utf-8", "replace")


def _records(path: Path) -> Iterator[tuple[list[str], list[str] | None]]:
    """The header and a record, for each record of a CSV file; None in place of one over the limits."""
    # Python's own limit for a field, 128 KiB, would make an error of a long text.
    csv.field_size_limit(MAX_LINE)
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    with open_regular(path) as file:
        lines = _CsvLines(file, separator)
        reader = csv.reader(lines, delimiter=separator)
        header = next(reader, [])
        if lines.left_out():
            raise ValueError(f"a header of more than {MAX_LINE >> 20} MiB or {_MAX_FIELDS:,} columns")
        for record in reader:
            if lines.left_out():
                yield header, None
            elif record:
                yield header, record


def _csv_rows(path: Path, wanted: Collection[int] | None) -> Iterator[Found]:
    for number, (header, record) in enumerate(_records(path), 1):
        if wanted is not None and number not in wanted:
            continue
        if record is None:
            yield UnusableRow(number, f"a line of more than {MAX_LINE >> 20} MiB or {_MAX_FIELDS:,} fields")
        elif len(record) != len(header):
            yield UnusableRow(number, f"{len(record)} fields, where the header has {len(header)}")
        else:
            yield number, {name: _cell(name, text) for name, text in zip(header, record, strict=True)}


def _cell(name: str, text: str) -> Json:
    """The text of a cell, or the truth that pandas, with which `datasets` reads, takes a label for."""
    return _TRUTHS.get(text, text) if name in _TOLD else text


def _columnar(path: Path, wanted: Collection[int] | None) -> Iterator[Found]:
    for number, row in rows_of(path, wanted):
        yield UnusableRow(number, row) if isinstance(row, str) else (number, row)


_KINDS: Final = {
    ".jsonl": _Kind(_size_of_lines, _json_lines),
    ".ndjson": _Kind(_size_of_lines, _json_lines),
    ".json": _Kind(_sized(lambda path: len(_document(path))), _json_rows),
    ".csv": _Kind(_sized(lambda path: sum(1 for _ in _records(path))), _csv_rows),
    ".tsv": _Kind(_sized(lambda path: sum(1 for _ in _records(path))), _csv_rows),
    ".parquet": _Kind(_sized(count_rows), _columnar),
    ".arrow": _Kind(_sized(count_rows), _columnar),
}

"""W&B's runs: the offline log `run-*.wandb`, and the files beside it, which say how the run ended.

The log holds protobuf records in the blocks of a LevelDB log and is decoded here, because wandb 0.31 has no reader for
Python. The field numbers are those of wandb/proto/wandb_internal.proto, which keeps them so that old logs stay
readable. Where the log itself is missing, `files/wandb-summary.json` has the last value of each metric.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Final

import msgspec

from gradience.configs.files import parse_yaml
from gradience.configs.settings import stack
from gradience.configs.values import Malformed
from gradience.errors import RecorderError, SchemaError
from gradience.importers.files import (
    LoggedRow,
    SourceRun,
    is_pointer,
    log_bytes,
    mapping_layer,
    require_file,
    whole_json,
)
from gradience.importers.protobuf import CutOffError, fields, nested
from gradience.importers.table import Numbered, flatten, rows_to_raw
from gradience.io.reading import MAX_DEPTH, open_regular
from gradience.schema import Json, Status
from gradience.schema.values import number_of
from gradience.telemetry.codec import parse
from gradience.telemetry.rows import split_row

SUMMARY: Final = "wandb-summary.json"
_FILES: Final = "files"  # the folder beside the log
_OUTPUT: Final = "output.log"  # what the program printed
_SETTINGS: Final = "config.yaml"
_MOST_SETTINGS: Final = 1 << 20  # bytes; a model's whole config has some ten KB
_IDENT: Final = b":W&B"
_START: Final = 7  # bytes of the file's header
_BLOCK: Final = 32 * 1024
_HEADER: Final = struct.Struct("<IHB")  # checksum, length, kind of a piece
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_HISTORY, _SUMMARY, _CONFIG, _OUTPUT_RAW, _RUN, _EXIT = 2, 3, 5, 13, 17, 18  # fields of a Record
_ITEM, _KEY, _NESTED, _VALUE = 1, 1, 2, 16  # a field of HistoryRecord and ConfigRecord; the fields of their items
_RUN_ID, _RUN_CONFIG, _RUN_NAME = 1, 4, 8
_LINE: Final = 3  # of an OutputRawRecord
_EXIT_CODE: Final = 1  # of a RunExitRecord, which does not write a code of 0
_TAIL: Final = 64 * 1024  # last bytes of the output that are searched for an exception
_RAISED: Final = re.compile(r"^((?:\w+\.)*\w*(?:Error|Exception|Interrupt|SystemExit))(?::\s*(.*))?$")
_TRACEBACK: Final = "Traceback (most recent call last)"
_LAST_LINES: Final = 20  # of the output, in which an exception ended the program; a message may have several
_MOST_SAID: Final = 160  # characters of an exception's message
_INTERRUPT: Final = "KeyboardInterrupt"
_OF_LOGGER: Final = ("_wandb", "_runtime", "_timestamp")
# What the Trainer logs when training is over, into the summary only. Without this it would be a row's `train_loss`.
_CLOSING: Final = ("total_flos", "train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss")
_EXPORT: Final = (
    "sync it with `wandb sync`, then export: "
    "pandas.DataFrame(wandb.Api().run('ENTITY/PROJECT/RUN').scan_history()).to_csv('run.csv', index=False)"
)


def is_wandb(path: Path, head: bytes) -> bool:
    """Whether the file with these first bytes is an offline log of W&B, or the summary beside one."""
    return head.startswith(_IDENT) or path.name == SUMMARY


def read_wandb(path: Path, columns: Mapping[str, str] | None = None) -> SourceRun:
    """Return the run of the log, or of the summary where no log can be read.

    Raises:
        RecorderError: the file is neither, or damaged; the advice says how to export the run.
    """
    if path.name == SUMMARY:
        logs = [log for log in sorted(path.parent.parent.glob("*.wandb")) if _begins(log)]
        if not logs:
            return _of_summary(path)
        path = logs[0]
    require_file(path)
    data = log_bytes(path)
    if not data.startswith(_IDENT):
        raise RecorderError(f"{path}: no offline log of W&B", advice=_EXPORT)
    raw = SourceRun(path, unit="record", files=[path])
    log = _Log(raw)
    rows = log.rows(data)
    first = next(rows, None)
    if first is not None:
        rows_to_raw(raw, chain([first], rows), columns)
    elif not log.records and len(data) > _START:
        raise RecorderError(f"{path}: no row can be read from this log of W&B", advice=_EXPORT)
    raw.began = True
    raw.layer = stack([raw.layer, mapping_layer(log.settings, raw)])  # reading the rows has filled the settings
    _take_closing(raw, log.summary)
    _take_end(raw, log.exit_code, log.output or _text(path.parent / _FILES / _OUTPUT, _TAIL))
    return raw


def _begins(path: Path) -> bool:
    """Whether a log begins as W&B's do, so that it is neither empty nor a git-lfs pointer."""
    with open_regular(path) as file:
        return file.read(len(_IDENT)) == _IDENT


class _Log:
    """What the records of a log say beside its rows; complete once the rows are read."""

    def __init__(self, raw: SourceRun) -> None:
        self.settings: dict[str, Json] = {}
        self.summary: dict[str, Json] = {}
        self.exit_code: int | None = None
        self.output = ""
        self.records = 0
        self._raw = raw

    def rows(self, data: bytes) -> Iterator[Numbered]:
        for number, record in enumerate(_records(data), 1):
            self.records = number
            try:
                for kind, body in fields(record):
                    if kind == _HISTORY and isinstance(body, bytes):
                        yield number, flatten(_items(body))
                    elif isinstance(body, bytes):
                        self._take(kind, body)
            except CutOffError:
                yield number, "a damaged record"

    def _take(self, kind: int, body: bytes) -> None:
        if kind == _CONFIG:
            self.settings |= _items(body)
        elif kind == _SUMMARY:
            self.summary |= _items(body)
        elif kind == _OUTPUT_RAW:
            self.output = (self.output + "".join(part.decode("utf-8", "replace") for part in nested(body, _LINE)))[
                -_TAIL:
            ]
        elif kind == _EXIT:
            code = dict(fields(body)).get(_EXIT_CODE, 0)
            self.exit_code = code if isinstance(code, int) else None
        elif kind == _RUN:
            _take_run(self._raw, body, self.settings)


def _take_end(raw: SourceRun, code: int | None, output: str) -> None:
    """Take from the exit code and the output how training ended."""
    raised = _exception(output)
    if code == 0:
        raw.ending = ("ok", "W&B recorded exit code 0")
    elif code is not None or raised:
        words = f"W&B recorded exit code {code}" if code is not None else "W&B's output ends with an exception"
        status: Status = "interrupted" if raised.startswith(_INTERRUPT) else "error"
        raw.ending = (status, f"{words}: {raised}" if raised else words)
    elif raw.path.name != SUMMARY:
        raw.ending = ("unknown", "W&B recorded no exit: the program was killed, or still runs")


def _exception(output: str) -> str:
    """The exception that the output ends with: its type and message; none if it went on after the last."""
    _, traceback, after = output[-_TAIL:].rpartition(_TRACEBACK)
    lines = (
        [hit for line in after.splitlines()[-_LAST_LINES:] if (hit := _RAISED.match(line.strip()))] if traceback else []
    )
    if not lines:
        return ""
    kind, message = lines[-1][1].rpartition(".")[2], (lines[-1][2] or "").strip()[:_MOST_SAID]
    return f"{kind}: {message}" if message else kind


def _take_closing(raw: SourceRun, summary: Mapping[str, Json]) -> None:
    """Add the row that the Trainer logs when training is over, if it did."""
    closing = {name: summary[name] for name in _CLOSING if name in summary}
    if "train_runtime" in closing:
        raw.rows.append(LoggedRow(len(raw.rows) + 1, None, {"total_flos": None, **closing}))


def _of_summary(path: Path) -> SourceRun:
    """The run whose log is missing: the last value of each metric, and how it ended."""
    document = whole_json(path)
    if not isinstance(document, dict):
        raise RecorderError(f"{path}: no summary of W&B", advice=_EXPORT)
    folder = path.parent.parent.name
    raw = SourceRun(path, unit="metric", files=[path], run_id=folder.rpartition("-")[2] or None, began=True)
    numbers = {name: value for name, value in flatten(document).items() if number_of(value) is not None}
    last = {name: value for name, value in numbers.items() if not name.startswith(_OF_LOGGER) and name not in _CLOSING}
    if last.keys() - {"_step"}:
        with suppress(RecorderError):  # it has no loss: how the run ended is known all the same
            rows_to_raw(raw, [(1, last)], None)
        raw.rows = [part for row in raw.rows for part in _apart(row)]
        raw.notes.append(f"the log of {folder} (run-*.wandb) is not there: only the last value of each metric is known")
    _take_closing(raw, numbers)
    raw.layer = stack([raw.layer, mapping_layer(_settings(path.parent / _SETTINGS, raw), raw)])
    _take_end(raw, None, _text(path.parent / _OUTPUT, _TAIL))
    return raw


def _apart(row: LoggedRow) -> Iterator[LoggedRow]:
    """The last training row, and the last evaluations without a step: the summary does not say where they were made."""
    parts = split_row(row.values)
    if parts.train.keys() - {"epoch"}:
        yield LoggedRow(1, row.step, parts.train, row.ts)
    held_out = {name: value for name, value in row.values.items() if name not in parts.train}
    if held_out:
        yield LoggedRow(2, None, held_out)


def _settings(path: Path, raw: SourceRun) -> dict[str, Json]:
    """The settings of a config.yaml, where each stands under `value` beside its description."""
    try:
        document = parse_yaml(_text(path, _MOST_SETTINGS))
    except (Malformed, RecursionError) as error:
        why = f"nested more than {MAX_DEPTH} levels deep" if isinstance(error, RecursionError) else error
        raw.notes.append(f"{path.name} was not used: {why}")
        return {}
    pairs = document.items() if isinstance(document, dict) else ()
    return {str(name): item["value"] for name, item in pairs if isinstance(item, dict) and "value" in item}


def _text(path: Path, most: int) -> str:
    """The end of a text, or "" where there is none or only a git-lfs pointer to it."""
    if not path.is_file() or is_pointer(path):
        return ""
    return log_bytes(path)[-most:].decode("utf-8", "replace")


def _records(data: bytes) -> Iterator[bytes]:
    """Yield the log's whole records, without one that is cut off at the end."""
    # The file's header lies within its first block.
    at, record = _START, b""
    while at + _HEADER.size <= len(data):
        if _BLOCK - at % _BLOCK < _HEADER.size:
            at += _BLOCK - at % _BLOCK  # a block's last bytes are padding
            continue
        _, length, kind = _HEADER.unpack_from(data, at)
        at += _HEADER.size
        piece, at = data[at : at + length], at + length
        if len(piece) < length:
            return
        if kind in {_FULL, _FIRST}:
            record = piece
        elif kind in {_MIDDLE, _LAST}:
            record += piece
        if kind in {_FULL, _LAST}:
            yield record
            record = b""


def _items(body: bytes, kind: int = _ITEM) -> dict[str, Json]:
    """Return the values of a history or config record by key; nested keys are joined with dots."""
    items: dict[str, Json] = {}
    for number, item in fields(body):
        if number == kind and isinstance(item, bytes):
            parts: dict[int, list[bytes]] = {}
            for field, part in fields(item):
                if isinstance(part, bytes):
                    parts.setdefault(field, []).append(part)
            key = parts.get(_KEY) or parts.get(_NESTED) or []
            name = b".".join(key).decode("utf-8", "replace")
            items[name] = _json(b"".join(parts.get(_VALUE, [])))
    return items


def _json(data: bytes) -> Json:
    try:
        return parse(b'{"v":%b}' % data)[0].get("v")
    except (SchemaError, msgspec.MsgspecError):
        return data.decode("utf-8", "replace")


def _take_run(raw: SourceRun, body: bytes, settings: dict[str, Json]) -> None:
    for number, value in fields(body):
        if not isinstance(value, bytes):
            continue
        if number == _RUN_CONFIG:
            settings |= _items(value)
        elif number == _RUN_ID:
            raw.run_id = value.decode("utf-8", "replace")
        elif number == _RUN_NAME:
            raw.name = value.decode("utf-8", "replace")

"""Logs as binary records: TensorBoard's event files, and W&B's offline log, `run-*.wandb`.

The tensorboard package reads event files. W&B's log holds protobuf records in the blocks of a LevelDB log and is
decoded here, because wandb 0.31 has no reader for Python. The field numbers are those of
wandb/proto/wandb_internal.proto, which keeps them so that old logs stay readable.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from itertools import chain, groupby, pairwise
from math import isnan, prod
from operator import attrgetter
from pathlib import Path
from struct import calcsize, unpack
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from gradience.configs.settings import stack
from gradience.errors import MissingPackageError, RecorderError, SchemaError
from gradience.importers.files import SourceRun, log_bytes, mapping_layer, require_file
from gradience.importers.table import Numbered, flatten, rows_to_raw
from gradience.schema import Json, real
from gradience.telemetry.codec import parse

_MARK: Final = b"brain.Event:"  # the first record of every event file
_ARGUMENTS: Final = "args/text_summary"  # the tag under which the Trainer writes its arguments
_ADVICE: Final = "pip install tensorboard"
_ALL: Final = {"scalars": 0, "tensors": 0, "images": 1, "audio": 1, "histograms": 1, "compressedHistograms": 1}


_MAX_AXES: Final = 8
# TensorFlow's DataType (types.proto): the struct format of a packed number, and the field that may hold it instead.
_NUMBERS: Final[dict[int, tuple[str, str]]] = {
    1: ("<f", "float_val"),
    2: ("<d", "double_val"),
    3: ("<i", "int_val"),
    4: ("<B", "int_val"),
    5: ("<h", "int_val"),
    6: ("<b", "int_val"),
    9: ("<q", "int64_val"),
    10: ("<?", "bool_val"),
    19: ("<e", ""),
}

_IDENT: Final = b":W&B"
_START: Final = 7  # bytes of the file's header
_BLOCK: Final = 32 * 1024
_HEADER: Final = struct.Struct("<IHB")  # checksum, length, kind of a piece
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_HISTORY, _CONFIG, _RUN, _EXIT = 2, 5, 17, 18  # fields of a Record
_ITEM, _KEY, _NESTED, _VALUE = 1, 1, 2, 16  # a field of HistoryRecord and ConfigRecord; the fields of their items
_RUN_ID, _RUN_CONFIG, _RUN_NAME = 1, 4, 8
_VARINT, _LONG, _BYTES, _SHORT = 0, 1, 2, 5  # protobuf's wire types
_MOST_BITS: Final = 64
_EXPORT: Final = (
    "sync it with `wandb sync`, then export: "
    "pandas.DataFrame(wandb.Api().run('ENTITY/PROJECT/RUN').scan_history()).to_csv('run.csv', index=False)"
)


class Scalar(NamedTuple):
    """One number logged under one tag at one step; `ts` is in Unix seconds."""

    ts: float
    step: int
    tag: str
    value: float


def is_event_file(head: bytes) -> bool:
    """Whether these first bytes are those of an event file."""
    return _MARK in head[:64]


def read_tensorboard(paths: list[Path], columns: Mapping[str, str] | None = None) -> SourceRun:
    """Return one run from the event files of one folder, ordered by their first clock readings.

    Raises:
        RecorderError: the tensorboard package is missing, or the files hold no scalar.
    """
    raw = SourceRun(paths[0], unit="scalar group", files=list(paths))
    files = sorted((read for path in sorted(paths) if (read := _read(raw, path))), key=lambda read: read[0].ts)
    scalars = [scalar for read in files for scalar in read]
    if not scalars:
        raise RecorderError(f"{paths[0]} holds no scalar", advice="give the event file that training wrote")
    return rows_to_raw(raw, scalar_rows(scalars), columns)


def _read(raw: SourceRun, path: Path) -> list[Scalar]:
    require_file(path)
    accumulator, decode_error = _package()
    reader = accumulator(str(path), size_guidance=_ALL, purge_orphaned_data=False)
    try:
        with _without_words():
            reader.Reload()
    except (decode_error, ValueError, OSError) as error:
        raise RecorderError(f"{path}: not an event file: {error}", advice="is the file whole?") from error
    _take_arguments(raw, reader)
    return sorted(_scalars(reader), key=lambda scalar: scalar.ts)


@contextmanager
def _without_words() -> Iterator[None]:
    """A context in which tensorboard logs nothing: its errors are raised, and said on one line."""
    logger = logging.getLogger("tensorboard")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _package() -> tuple[Any, type[Exception]]:
    try:
        accumulator = import_module("tensorboard.backend.event_processing.event_accumulator")
        message = import_module("google.protobuf.message")
    except ModuleNotFoundError as error:
        raise MissingPackageError(f"reading event files needs {error.name}", advice=_ADVICE) from error
    error_class: type[Exception] = message.DecodeError
    return accumulator.EventAccumulator, error_class


def _scalars(reader: Any) -> Iterator[Scalar]:
    tags = reader.Tags()
    for tag in tags["scalars"]:
        for event in reader.Scalars(tag):
            yield Scalar(float(event.wall_time), int(event.step), str(tag), float(event.value))
    for tag in tags["tensors"]:
        if reader.SummaryMetadata(tag).plugin_data.plugin_name == "scalars":
            for event in reader.Tensors(tag):
                yield from _of_tensor(str(tag), event)


def _of_tensor(tag: str, event: Any) -> Iterator[Scalar]:
    """Yield the tensor's number if it has just one. It is read by hand, because a tensor may claim any shape."""
    proto = event.tensor_proto
    if prod(axis.size for axis in proto.tensor_shape.dim) != 1 or len(proto.tensor_shape.dim) > _MAX_AXES:
        return
    code, field = _NUMBERS.get(proto.dtype, ("", ""))
    held: Sequence[float] = getattr(proto, field) if field else ()
    value: float | None = held[0] if len(held) == 1 else None
    if value is None and code and len(proto.tensor_content) == calcsize(code):
        value = unpack(code, proto.tensor_content)[0]
    if value is not None:
        yield Scalar(float(event.wall_time), int(event.step), tag, float(value))


def _take_arguments(raw: SourceRun, reader: Any) -> None:
    """Take the settings from the Trainer's arguments, which TensorBoardCallback writes as text."""
    if _ARGUMENTS not in reader.Tags()["tensors"]:
        return
    texts = reader.Tensors(_ARGUMENTS)[-1].tensor_proto.string_val
    try:
        document, _ = parse(texts[0])
    except (SchemaError, IndexError):
        return
    raw.layer = stack([raw.layer, mapping_layer(document, raw)])


def scalar_rows(scalars: Iterable[Scalar]) -> Iterator[Numbered]:
    """Yield rows of scalars that were logged together, from scalars ordered by their clocks.

    Successive scalars of one step are one row, even where a tag is logged again with the same value, as the Trainer
    logs `train/epoch` with the loss and with each evaluation. If a tag has another value, the step was logged twice:
    the row is divided where the clock shows the longest pause.
    """
    place = 0
    for _, of_step in groupby(scalars, key=attrgetter("step")):
        for group in _divided(list(of_step)):
            place += 1
            values = {scalar.tag: real(scalar.value) for scalar in group}
            yield place, {"step": group[0].step, "ts": group[0].ts, **values}


def _divided(scalars: list[Scalar]) -> Iterator[list[Scalar]]:
    """Yield the scalars of one step in groups in which no tag has two values."""
    pending = [scalars]
    while pending:
        group = pending.pop()
        repeat = _repeated(group)
        if repeat is None:
            yield group
            continue
        pauses = [after.ts - before.ts for before, after in pairwise(group)]
        longest = max(pauses)
        at = pauses.index(longest) + 1 if longest > 0.0 else repeat
        pending += [group[at:], group[:at]]


def _repeated(scalars: list[Scalar]) -> int | None:
    """The place of the first scalar whose tag had another value before, or None."""
    values: dict[str, float] = {}
    for place, scalar in enumerate(scalars):
        before = values.setdefault(scalar.tag, scalar.value)
        if before != scalar.value and not (isnan(before) and isnan(scalar.value)):
            return place
    return None


_Field: TypeAlias = tuple[int, bytes | int]


class _CutOffError(Exception):
    """A record ends before its fields do."""


def is_wandb(head: bytes) -> bool:
    """Whether these first bytes are those of an offline W&B log."""
    return head.startswith(_IDENT)


def read_wandb(path: Path, columns: Mapping[str, str] | None = None) -> SourceRun:
    """Return the run of the log.

    Raises:
        RecorderError: the file is no such log, or has no row; the advice says how to export the run.
    """
    require_file(path)
    data = log_bytes(path)
    if not is_wandb(data):
        raise RecorderError(f"{path}: no offline log of W&B", advice=_EXPORT)
    raw = SourceRun(path, unit="record", files=[path])
    settings: dict[str, Json] = {}
    rows = _rows(raw, data, settings)
    first = next(rows, None)
    if first is None:
        raise _no_rows(path, data)
    rows_to_raw(raw, chain([first], rows), columns)
    raw.layer = stack([raw.layer, mapping_layer(settings, raw)])  # reading the rows has filled the settings
    return raw


def _no_rows(path: Path, data: bytes) -> RecorderError:
    """The error on a log without a row: of a run that logged nothing, or of one that cannot be read."""
    if records := sum(1 for _ in _records(data)):
        return RecorderError(
            f"{path}: this run of W&B logged no row: its {records} records hold settings, a summary or system metrics",
            advice="give a run whose training called wandb.log",
        )
    return RecorderError(f"{path}: no row can be read from this log of W&B", advice=_EXPORT)


def _rows(raw: SourceRun, data: bytes, settings: dict[str, Json]) -> Iterator[Numbered]:
    for number, record in enumerate(_records(data), 1):
        try:
            for kind, body in _fields(record):
                if not isinstance(body, bytes):
                    continue
                if kind == _HISTORY:
                    yield number, flatten(_items(body))
                elif kind == _CONFIG:
                    settings |= _items(body)
                elif kind == _RUN:
                    _take_run(raw, body, settings)
                elif kind == _EXIT:
                    raw.finished = not any(code for field, code in _fields(body) if field == 1)
        except _CutOffError:
            yield number, "a damaged record"


def _records(data: bytes) -> Iterator[bytes]:
    """Yield the log's whole records, without one that is cut off at the end."""
    at, held = _START, b""
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
            held = piece
        elif kind in {_MIDDLE, _LAST}:
            held += piece
        if kind in {_FULL, _LAST}:
            yield held
            held = b""


def _fields(data: bytes) -> Iterator[_Field]:
    """Yield the fields of a protobuf message: each one's number, and its bytes or integer."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == _BYTES:
            size, at = _varint(data, at)
        elif wire in {_LONG, _SHORT}:
            size = 8 if wire == _LONG else 4
        else:
            raise _CutOffError
        if at + size > len(data):
            raise _CutOffError
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return an integer encoded in groups of seven bits, and the index after it."""
    value = 0
    for shift in range(0, _MOST_BITS + 6, 7):
        if at >= len(data):
            break
        byte, at = data[at], at + 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # a set high bit means that more bytes follow
            return value, at
    raise _CutOffError


def _items(body: bytes) -> dict[str, Json]:
    """Return the values of a history or config record by key; nested keys are joined with dots."""
    found: dict[str, Json] = {}
    for number, item in _fields(body):
        if number == _ITEM and isinstance(item, bytes):
            parts: dict[int, list[bytes]] = {}
            for field, part in _fields(item):
                if isinstance(part, bytes):
                    parts.setdefault(field, []).append(part)
            key = parts.get(_KEY) or parts.get(_NESTED) or []
            name = b".".join(key).decode("utf-8", "replace")
            found[name] = _json(b"".join(parts.get(_VALUE, [])))
    return found


def _json(data: bytes) -> Json:
    try:
        return parse(b'{"v":%b}' % data)[0].get("v")
    except (SchemaError, msgspec.MsgspecError):
        return data.decode("utf-8", "replace")


def _take_run(raw: SourceRun, body: bytes, settings: dict[str, Json]) -> None:
    for number, value in _fields(body):
        if not isinstance(value, bytes):
            continue
        if number == _RUN_CONFIG:
            settings |= _items(value)
        elif number == _RUN_ID:
            raw.run_id = value.decode("utf-8", "replace")
        elif number == _RUN_NAME:
            raw.name = value.decode("utf-8", "replace")

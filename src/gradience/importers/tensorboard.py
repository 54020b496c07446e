"""TensorBoard's event files: records of a length, its checksum, and a protobuf message.

They are decoded here: the format is TensorFlow's public one, its field numbers never change, and the tensorboard
package with what it needs takes some 60 MB. Field numbers are those of event.proto, summary.proto, tensor.proto and of
the plugins text and hparams.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby, pairwise
from math import isnan, prod
from operator import attrgetter
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from gradience.configs.settings import stack
from gradience.errors import RecorderError, SchemaError
from gradience.importers.files import SourceRun, log_bytes, mapping_layer, require_file
from gradience.importers.protobuf import CutOffError, fields, nested
from gradience.importers.table import Numbered, rows_to_raw
from gradience.schema import MAX_INT, Json, real
from gradience.telemetry.codec import parse

_LARGEST: Final = 1 << 30  # bytes of a record
_LENGTH: Final = struct.Struct("<QI")  # bytes of a record, and their checksum
_SUM: Final = 4  # bytes of the record's own checksum, behind it
_CLOCK, _STEP, _SUMMARY = 1, 2, 5  # of an Event
_VALUE: Final = 1  # of a Summary
_TAG, _SIMPLE, _TENSOR, _METADATA = 1, 2, 8, 9  # of a Summary.Value
_DTYPE, _SHAPE, _CONTENT, _STRINGS = 1, 2, 4, 8  # of a TensorProto
_PLUGIN, _NAME, _OF_PLUGIN = 1, 1, 2  # of SummaryMetadata and its PluginData
_SESSION: Final = 3  # of HParamsPluginData: the settings of one run
# TensorFlow's DataType: the struct format of a packed number, and the field that may hold it unpacked
_NUMBERS: Final[dict[bytes | int, tuple[str, int]]] = {
    1: ("<f", 5),
    2: ("<d", 6),
    3: ("<i", 7),
    9: ("<q", 10),
    # A float16 that is not packed is a whole number, of its bits, and is not read.
    19: ("<e", 0),
}
_DOUBLE, _TEXT, _TRUTH = 2, 3, 4  # of a google.protobuf.Value
_SETTINGS: Final = ("args/text_summary", "model_config/text_summary")  # the Trainer's texts
_MASK: Final = 0xA282EAD8
_POLYNOMIAL: Final = 0x82F63B78  # of CRC-32C, bits reversed


class Scalar(NamedTuple):
    """One number logged under one tag at one step; `ts` is in Unix seconds."""

    ts: float
    step: int
    tag: str
    value: float


def is_event_file(head: bytes) -> bool:
    """Whether these first bytes are those of an event file: a record's length with the right checksum."""
    if len(head) < _LENGTH.size:
        return False
    size, checksum = _LENGTH.unpack_from(head)
    return bool(0 < size <= _LARGEST and _masked(head[:8]) == checksum)


def read_tensorboard(paths: list[Path], columns: Mapping[str, str] | None = None) -> SourceRun:
    """Return one run from the event files of one folder, ordered by their first clock readings.

    Files without a scalar are those of a run that logged nothing, or hold its settings only.

    Raises:
        RecorderError: no file is an event file.
    """
    raw = SourceRun(paths[0], unit="scalar group", files=list(paths), began=True)
    files = sorted((read for path in sorted(paths) if (read := _read(raw, path))), key=lambda read: read[0].ts)
    scalars = [scalar for read in files for scalar in read]
    return rows_to_raw(raw, scalar_rows(scalars), columns) if scalars else raw


def _read(raw: SourceRun, path: Path) -> list[Scalar]:
    require_file(path)
    scalars: list[Scalar] = []
    settings: dict[str, Json] = {}
    try:
        for record in _records(path, log_bytes(path)):
            scalars += _of_event(record, settings)
    except (CutOffError, struct.error):
        raw.notes.append(f"{path.name} is damaged after {len(scalars)} values, and was read to there")
    if settings:
        raw.layer = stack([raw.layer, mapping_layer(settings, raw)])
    return sorted(scalars, key=attrgetter("ts"))


def _records(path: Path, data: bytes) -> Iterator[bytes]:
    """Yield the whole records. The last may be cut off: the program was killed, or still writes."""
    at = 0
    while at + _LENGTH.size <= len(data):
        size, checksum = _LENGTH.unpack_from(data, at)
        if _masked(data[at : at + 8]) != checksum:
            if at == 0:
                raise RecorderError(f"{path}: not an event file: its first record is damaged", advice="is it whole?")
            raise CutOffError
        at += _LENGTH.size
        if at + size > len(data):
            return
        yield data[at : at + size]
        # The record's own checksum is not looked at: in Python it would take a second for each MB.
        at += size + _SUM


def _masked(data: bytes) -> int:
    """The checksum of a record's length: CRC-32C, rotated so that a checksum of checksums is none."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (_POLYNOMIAL if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF


def _of_event(record: bytes, settings: dict[str, Json]) -> Iterator[Scalar]:
    """Yield the numbers of one event, and add what its texts say of the settings."""
    event = dict(fields(record))
    step = event.get(_STEP, 0)
    for part in nested(_part(event, _SUMMARY), _VALUE):
        value = dict(fields(part))
        tag = _part(value, _TAG).decode("utf-8", "replace")
        number = _number(value)
        if number is not None and isinstance(step, int):
            yield Scalar(struct.unpack("<d", _part(event, _CLOCK))[0], step, tag, number)
        elif number is None:
            settings |= _said(tag, value)


def _part(message: Mapping[int, bytes | int], number: int) -> bytes:
    """The bytes of one field: a message, a text or a packed number; b"" if it has none."""
    value = message.get(number)
    return value if isinstance(value, bytes) else b""


def _number(value: Mapping[int, bytes | int]) -> float | None:
    if simple := _part(value, _SIMPLE):
        return float(struct.unpack("<f", simple)[0])
    if _TENSOR not in value or (_METADATA in value and _plugin(value)[0] != b"scalars"):
        return None
    return _of_tensor(_part(value, _TENSOR))


def _of_tensor(proto: bytes) -> float | None:
    """The tensor's number if it has just one."""
    tensor = dict(fields(proto))
    sizes = [dict(fields(axis)).get(1, 0) for axis in nested(_part(tensor, _SHAPE), 2)]
    packing, field = _NUMBERS.get(tensor.get(_DTYPE, 0), ("", 0))
    if not packing or prod(size for size in sizes if isinstance(size, int)) != 1:
        return None
    content = tensor.get(_CONTENT) or tensor.get(field, b"")
    if isinstance(content, int):  # unpacked; a negative number has 64 bits
        return float(content - (1 << 64) if content >> 63 else content)
    return float(struct.unpack(packing, content)[0]) if len(content) == struct.calcsize(packing) else None


def _plugin(value: Mapping[int, bytes | int]) -> tuple[bytes, bytes]:
    """The name of the plugin that a value is for, and what it tells the plugin."""
    plugin = dict(fields(next(nested(_part(value, _METADATA), _PLUGIN), b"")))
    return _part(plugin, _NAME), _part(plugin, _OF_PLUGIN)


def _said(tag: str, value: Mapping[int, bytes | int]) -> dict[str, Json]:
    """What a text of the Trainer, or the plugin for hyperparameters, says of the settings."""
    name, content = _plugin(value)
    if name == b"hparams":
        return dict(filter(None, (_setting(item) for start in nested(content, _SESSION) for item in nested(start, 1))))
    if tag not in _SETTINGS:
        return {}
    try:
        document, _ = parse(next(nested(_part(value, _TENSOR), _STRINGS), b""))
    except (SchemaError, msgspec.MsgspecError):
        return {}
    if tag == _SETTINGS[0]:
        return document
    return {"model_name_or_path": document.get("_name_or_path") or None}  # newer models' configs do not name them


def _setting(item: bytes) -> tuple[str, Json] | None:
    """A name and its value: a google.protobuf.Value, which holds a double, a text or a truth value."""
    pair = dict(fields(item))
    value = dict(fields(_part(pair, 2)))
    name = _part(pair, 1).decode("utf-8", "replace")
    if _DOUBLE in value:
        number = struct.unpack("<d", _part(value, _DOUBLE))[0]
        return name, int(number) if number.is_integer() and abs(number) <= MAX_INT else real(number)
    if _TEXT in value:
        return name, _part(value, _TEXT).decode("utf-8", "replace")
    return (name, bool(value[_TRUTH])) if _TRUTH in value else None


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
        # The earlier part lies on top of the stack, and comes first.
        pending += [group[at:], group[:at]]


def _repeated(scalars: list[Scalar]) -> int | None:
    """The place of the first scalar whose tag had another value before, or None."""
    values: dict[str, float] = {}
    for place, scalar in enumerate(scalars):
        before = values.setdefault(scalar.tag, scalar.value)
        if before != scalar.value and not (isnan(before) and isnan(scalar.value)):
            return place
    return None

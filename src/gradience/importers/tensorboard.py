"""TensorBoard event files, through the tensorboard package's own reader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from math import prod
from pathlib import Path
from struct import calcsize, unpack
from typing import Any, Final, NamedTuple

from gradience.configs.settings import stack
from gradience.errors import RecorderError, SchemaError
from gradience.importers.files import SourceRun, require_file
from gradience.importers.settings import mapping_layer
from gradience.importers.table import Numbered, rows_to_raw
from gradience.schema.scalars import real
from gradience.telemetry.codec import parse

_MARK: Final = b"brain.Event:"  # the first record of every event file
_ARGUMENTS: Final = "args/text_summary"  # where the Trainer puts its arguments
_ADVICE: Final = "pip install tensorboard"
_ALL: Final = {"scalars": 0, "tensors": 0, "images": 1, "audio": 1, "histograms": 1, "compressedHistograms": 1}


_MAX_AXES: Final = 8
# Of TensorFlow's DataType (types.proto): how a number of it is packed, and the field that may hold it instead.
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


class Scalar(NamedTuple):
    """One number of one tag at one step; `ts` in Unix seconds."""

    ts: float
    step: int
    tag: str
    value: float


def is_event_file(head: bytes) -> bool:
    """Whether a file that begins so is an event file."""
    return _MARK in head[:64]


def read_tensorboard(paths: list[Path], columns: Mapping[str, str] | None = None) -> SourceRun:
    """Return one run: the event files of one folder, in the order of their first clock readings.

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
        reader.Reload()
    except (decode_error, ValueError, OSError) as error:
        raise RecorderError(f"{path}: not an event file: {error}", advice="is the file whole?") from error
    _take_arguments(raw, reader)
    return sorted(_scalars(reader), key=lambda scalar: scalar.ts)


def _package() -> tuple[Any, type[Exception]]:
    try:
        accumulator = import_module("tensorboard.backend.event_processing.event_accumulator")
        message = import_module("google.protobuf.message")
    except ModuleNotFoundError as error:
        raise RecorderError(f"reading event files needs {error.name}", advice=_ADVICE) from error
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
    """Yield the tensor's number, if it is one: read by hand, since a tensor may claim any shape for what it holds."""
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
    """Take the settings from the Trainer's arguments, which its callback writes as text."""
    if _ARGUMENTS not in reader.Tags()["tensors"]:
        return
    texts = reader.Tensors(_ARGUMENTS)[-1].tensor_proto.string_val
    try:
        document, _ = parse(texts[0])
    except (SchemaError, IndexError):
        return
    raw.layer = stack([raw.layer, mapping_layer(document, raw)])


def scalar_rows(scalars: Iterable[Scalar]) -> Iterator[Numbered]:
    """Yield what was logged together: scalars of one step, until a tag comes again."""
    place = 0
    row: dict[str, Any] = {}
    for scalar in scalars:
        if row and (scalar.step != row["step"] or scalar.tag in row):
            place += 1
            yield place, row
            row = {}
        row.setdefault("step", scalar.step)
        row.setdefault("ts", scalar.ts)
        row[scalar.tag] = real(scalar.value)
    if row:
        yield place + 1, row

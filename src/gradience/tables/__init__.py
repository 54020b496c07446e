"""Tables of many adapters or runs, in open files: their schemas, how rows reach them, and how they are read.

The Arrow schema of a table is generated from the Struct of its rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec
from msgspec import inspect

from gradience.errors import GradienceError
from gradience.schema import NonFinite, as_float
from gradience.schema.document import Finding, writable
from gradience.schema.fleet import AdapterRow, RunRow
from gradience.telemetry.redact import hide_in

if TYPE_CHECKING:
    import pyarrow as pa

_BEYOND: Final = 1 << 63

_SCALARS: Final[dict[type[inspect.Type], str]] = {
    inspect.StrType: "string",
    inspect.IntType: "int64",
    inspect.FloatType: "float64",
    inspect.BoolType: "bool_",
    inspect.LiteralType: "string",
}

Row: TypeAlias = type[msgspec.Struct]


class WorkerResult(msgspec.Struct, frozen=True, array_like=True):
    """A worker's result for one source: the rows of each table in order, as lines of JSON."""

    failed: bool
    """Whether a row of the first table has an error instead of numbers."""
    tables: tuple[bytes, ...]


def arrow_schema(row: Row) -> pa.Schema:
    """The Arrow schema of a table: one column per field of the Struct, nullable if the field may be None."""
    import pyarrow as pa  # extra [fleet]

    kind = inspect.type_info(row)
    assert isinstance(kind, inspect.StructType)  # noqa: S101  # the argument's type
    fields = [pa.field(field.encode_name, *_arrow(pa, field.type)) for field in kind.fields]
    return pa.schema(fields)


def _arrow(pa: Any, kind: inspect.Type) -> tuple[Any, bool]:
    """An Arrow type, and whether it is nullable."""
    if isinstance(kind, inspect.Metadata):
        return _arrow(pa, kind.type)
    if isinstance(kind, inspect.UnionType):
        (inner,) = (one for one in kind.types if not isinstance(one, inspect.NoneType))
        return _arrow(pa, inner)[0], True
    if isinstance(kind, inspect.ListType):
        item = _arrow(pa, kind.item_type)[0]
        # A sketch of 128 numbers is most of an adapter's row, and half the bytes are enough for a cosine.
        return pa.list_(pa.float32() if item == pa.float64() else item), False
    if isinstance(kind, inspect.StructType):
        return pa.struct([pa.field(f.encode_name, *_arrow(pa, f.type)) for f in kind.fields]), False
    return getattr(pa, _SCALARS[type(kind)])(), False


def number_column(value: float | NonFinite | None) -> float | None:
    """A number for a column; NaN and infinities become null, and the column `state` says why."""
    number = None if value is None else as_float(value)
    return number if number is not None and math.isfinite(number) else None


def finding_columns(finding: Finding) -> dict[str, Any]:
    """The columns of a finding, without those that name its source."""
    return {name: getattr(finding, name) for name in ("id", "severity", "message", "action", "confidence")}


def encoded(heads: Sequence[AdapterRow | RunRow], *others: Sequence[msgspec.Struct]) -> bytes:
    """Encode rows as bytes, in the form in which every engine passes them between processes.

    Raises:
        GradienceError: a whole number has more bits than its column, which has no null.
    """
    failed = any(head.error is not None for head in heads)
    heads, others = hide_in(heads), hide_in(others)  # a config may hold a token, in a model's name or an error
    return msgspec.msgpack.encode(WorkerResult(failed, tuple(_lines(rows) for rows in (heads, *others))))


def _lines(rows: Sequence[msgspec.Struct]) -> bytes:
    rows, encoder = [_narrow(row) for row in rows], msgspec.json.Encoder()
    try:
        return encoder.encode_lines(rows)
    except UnicodeEncodeError:  # a message quotes a name that is not UTF-8
        return encoder.encode_lines(writable(msgspec.to_builtins(rows)))


def _narrow(row: msgspec.Struct) -> msgspec.Struct:
    """The row with null for whole numbers that no column holds, such as a seed or a rank of 2^64 in a config."""
    fields = zip(row.__struct_fields__, msgspec.structs.astuple(row), strict=True)
    wide = [name for name, value in fields if isinstance(value, int) and not -_BEYOND <= value < _BEYOND]
    if not wide:
        return row
    optional = {field.name for field in msgspec.structs.fields(row) if field.default is None}
    if needed := [name for name in wide if name not in optional]:
        raise GradienceError(f"{needed[0]} is {getattr(row, needed[0])}, which no column of a table holds")
    return msgspec.structs.replace(row, **dict.fromkeys(wide))

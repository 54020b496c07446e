"""A report's document has every key of its schema, whatever the report found."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from jsonschema import Draft202012Validator
from msgspec import inspect
from tables import every

from gradience.schema import SCHEMA_ID, SCHEMA_PATTERN
from gradience.schema.document import Report
from gradience.schema.export import REPORTS, json_schema
from gradience.schema.reports import DataReport, Lengths, TokenCounts, announced_by


def tag_of(kind: inspect.StructType) -> dict[str, Any]:
    return {} if kind.tag_field is None else {kind.tag_field: kind.tag}


def least(kind: inspect.Type) -> Any:  # noqa: C901, PLR0911  # one case for each kind of type
    """The smallest JSON value of a type: only required fields, empty containers."""
    match kind:
        case inspect.Metadata(type=inner):
            return least(inner)
        case inspect.StructType(fields=fields):
            return tag_of(kind) | {field.encode_name: least(field.type) for field in fields if field.required}
        case inspect.ListType() | inspect.VarTupleType():
            return []
        case inspect.DictType():
            return {}
        case inspect.LiteralType(values=values):
            return values[0]
        case inspect.StrType(pattern=pattern):
            return SCHEMA_ID if pattern == SCHEMA_PATTERN else "x"
        case inspect.BoolType():
            return False
        case inspect.IntType(ge=ge, gt=gt):
            return (gt + 1) if gt is not None else (ge or 0)
        case inspect.FloatType(ge=ge):
            return float(ge or 0.5)
        case inspect.UnionType(types=types):
            return None if any(isinstance(one, inspect.NoneType) for one in types) else least(types[0])
        case inspect.TupleType(item_types=items):
            return [least(item) for item in items]
        case _:
            return None


def fullest(kind: inspect.Type, depth: int = 6) -> Any:
    """The same with one item in each container and each optional Struct given: nested defaults are written too."""
    match kind:
        case inspect.Metadata(type=inner):
            return fullest(inner, depth)
        case inspect.StructType(fields=fields):
            wanted = [field for field in fields if field.required or (depth > 0 and _holds_struct(field.type))]
            return tag_of(kind) | {field.encode_name: fullest(field.type, depth - 1) for field in wanted}
        case inspect.ListType(item_type=item):
            return [fullest(item, depth)] if depth > 0 and _holds_struct(item) else []
        case inspect.UnionType(types=types) if depth > 0:
            structs = [one for one in types if _holds_struct(one)]
            return fullest(structs[0], depth) if structs else least(kind)
        case _:
            return least(kind)


def _holds_struct(kind: inspect.Type) -> bool:
    match kind:
        case inspect.StructType():
            return True
        case inspect.ListType(item_type=inner) | inspect.Metadata(type=inner):
            return _holds_struct(inner)
        case inspect.UnionType(types=types):
            return any(map(_holds_struct, types))
    return False


@every("build", [least, fullest])
@every("name", sorted(REPORTS))
def test_a_report_has_every_key_at_every_level(name: str, build: Any) -> None:
    cls = REPORTS[name]
    report = msgspec.convert(build(inspect.type_info(cls)), cls)
    assert isinstance(report, Report)
    document = json.loads(report.to_json())
    Draft202012Validator(json_schema(name)).validate(document)
    assert list(document) == list(cls.__struct_encode_fields__)
    assert msgspec.convert(document, cls) == report


@every("name", sorted(REPORTS))
def test_a_report_schema_refuses_a_document_that_lacks_any_key(name: str) -> None:
    cls = REPORTS[name]
    document = msgspec.convert(least(inspect.type_info(cls)), cls).to_dict()
    validator = Draft202012Validator(json_schema(name))
    for key in document:
        assert not validator.is_valid({k: v for k, v in document.items() if k != key}), key


@every(
    ("loss", "kept", "sequences", "share", "length"),
    [
        ("answers", 12, 5, 0.25, 2.4),
        ("none", 12, 5, None, 2.4),
        ("answers", 0, 5, None, 0.0),
        ("all", 12, 0, 0.25, None),
    ],
)
def test_a_check_announces_what_a_recorder_compares(
    loss: Any, kept: int, sequences: int, share: float | None, length: float | None
) -> None:
    report = DataReport(
        path="data/train.jsonl", format="messages", trainer="sft", loss=loss, sequences=sequences, rows_read=7,
        max_length=64, template="the tokenizer", template_digest="ab12",
        tokens=TokenCounts(total=20, kept=kept, supervised=3), lengths=Lengths(bin_width=16, bins=[1, 4]),
    )  # fmt: skip
    assert announced_by(report) == {
        "supervised_share": share, "tokens_per_sequence": length, "rows_read": 7, "max_length": 64,
        "data": "train.jsonl", "template": "the tokenizer", "template_digest": "ab12", "bin_width": 16, "bins": [1, 4],
    }  # fmt: skip

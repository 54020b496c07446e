"""A report's document has every key of its schema, whatever the report found."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from drawn_reports import report_of
from jsonschema import Draft202012Validator
from tables import every

from gradience.schema.document import Report
from gradience.schema.export import REPORTS, json_schema
from gradience.schema.reports import DataReport, Lengths, TokenCounts, announced_by


@every("seed", "ab")
@every("name", sorted(REPORTS))
def test_a_report_has_every_key_at_every_level_and_its_schema_wants_each(name: str, seed: str) -> None:
    cls = REPORTS[name]
    report = report_of(cls, seed)
    assert isinstance(report, Report)
    document, validator = json.loads(report.to_json()), Draft202012Validator(json_schema(name))
    validator.validate(document)
    assert list(document) == list(cls.__struct_encode_fields__)
    assert json.loads(msgspec.convert(document, cls).to_json()) == document
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

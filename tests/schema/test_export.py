from __future__ import annotations

import json
from pathlib import Path

import pytest
from golden_logs import BAD, EXPECTED, GOOD, documents, lines
from jsonschema import Draft202012Validator
from tables import every

from gradience.cli.main import main
from gradience.schema import EVENT_TYPES
from gradience.schema.export import SCHEMAS, json_schema, schema_text, write_schemas

NAMES = sorted(SCHEMAS)


def test_committed_schemas_are_what_the_structs_say(root: Path, tmp_path: Path) -> None:
    for path in write_schemas(tmp_path):
        committed = root / "schemas" / path.name
        assert committed.read_text() == path.read_text(), "run: python -m gradience.schema.export schemas"


def test_no_file_lies_in_schemas_that_is_not_generated(root: Path) -> None:
    assert {p.name for p in (root / "schemas").iterdir()} == {f"{stem}.schema.json" for stem in SCHEMAS.values()}


def test_schema_command_prints_the_telemetry_schema_unless_asked_otherwise(capsys) -> None:
    assert main(["schema"]) == 0
    assert capsys.readouterr().out == schema_text("telemetry")
    assert main(["schema", "receipt"]) == 0
    assert json.loads(capsys.readouterr().out) == json_schema("receipt")


def test_schema_command_refuses_an_unknown_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "nonsense"]) == 2
    assert capsys.readouterr().out == ""


@every("name", NAMES)
def test_schema_is_valid_draft_2020_12_with_an_id_of_its_own(name: str) -> None:
    schema = json_schema(name)
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$id"] == f"urn:gradience:schema:{SCHEMAS[name]}"


@every("name", NAMES)
def test_every_reference_leads_somewhere_and_every_definition_is_used(name: str) -> None:
    text = schema_text(name)
    used = {ref for title in json_schema(name)["$defs"] if (ref := f'"#/$defs/{title}"') in text}
    assert len(used) == len(json_schema(name)["$defs"])
    assert text.count('"$ref"') == sum(text.count(f'"$ref": {ref}') for ref in used)


def test_every_event_requires_the_envelope() -> None:
    defs = json_schema("telemetry")["$defs"]
    for title in [*(cls.__name__ for cls in EVENT_TYPES.values()), "UnknownEvent"]:
        assert defs[title]["required"][:5] == ["schema", "ts", "run_id", "event", "step"]


def test_extras_that_stand_beside_the_known_keys_are_no_property() -> None:
    defs = json_schema("telemetry")["$defs"]
    flat = {title for title, schema in defs.items() if "extras" not in schema.get("properties", ["extras"])}
    assert flat == {
        *(cls.__name__ for cls in EVENT_TYPES.values()),
        "EvalMetrics",
        "RecommendationItem",
        "UnknownEvent",
    }


@every("path", GOOD, ids=lambda path: path.stem)
def test_python_jsonschema_accepts_a_good_log(path: Path) -> None:
    found = documents(path)
    assert len(found) == len(lines(path))
    validator = Draft202012Validator(json_schema("telemetry"))
    for document in found.values():
        validator.validate(document)


@every("path", BAD, ids=lambda path: path.stem)
def test_python_jsonschema_rejects_exactly_the_bad_lines(path: Path) -> None:
    validator = Draft202012Validator(json_schema("telemetry"))
    found = documents(path)
    rejected = {n for n, _ in lines(path) if n not in found or not validator.is_valid(found[n])}
    assert rejected == {n for n, _ in EXPECTED[path.stem]}

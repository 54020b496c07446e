"""Laws: what is written is what is read, and what a foreign validator would accept."""

from __future__ import annotations

import copy
import json
from functools import cache
from typing import Any

import pytest
from hypothesis import assume, given, strategies as st
from jsonschema import Draft202012Validator
from strategies import altered_documents, documents, events, json_values, texts

from gradience.errors import SchemaError
from gradience.schema import EVENT_TYPES, SCHEMA_ID, Event, UnknownEvent
from gradience.schema.export import json_schema
from gradience.telemetry import decode, encode
from gradience.telemetry.codec import convert, soften, to_document
from gradience.telemetry.lines import MOST_FAULTS, find_faults


@cache
def telemetry() -> Draft202012Validator:
    return Draft202012Validator(json_schema("telemetry"))


@given(events)
def test_decoding_an_encoded_event_gives_the_event(event: Event) -> None:
    assert decode(encode(event)) == event


@given(events)
def test_an_encoded_event_validates_under_the_exported_schema(event: Event) -> None:
    telemetry().validate(json.loads(encode(event)))


@given(events)
def test_an_encoded_event_is_one_line_to_every_program(event: Event) -> None:
    assert len(encode(event).decode().splitlines()) == 1


@given(documents)
def test_encoding_a_decoded_document_keeps_every_key_and_value(document: dict[str, Any]) -> None:
    assert to_document(convert(dict(document))) | {"event": document["event"]} == document


@given(
    documents,
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda name: name not in EVENT_TYPES),
)
def test_an_event_of_an_unknown_name_survives_reading_and_writing(document: dict[str, Any], name: str) -> None:
    line = json.dumps(document | {"event": name}).encode()
    event = decode(line)
    assert isinstance(event, UnknownEvent)
    assert json.loads(encode(event)) == json.loads(line)


@given(altered_documents())
def test_the_reader_accepts_a_document_exactly_if_the_exported_schema_does(document: dict[str, Any]) -> None:
    if str(document.get("schema")) != SCHEMA_ID:
        document["schema"] = SCHEMA_ID
    assume(not soften(copy.deepcopy(document)))  # the reader takes a choice that it does not know, as `unknown`
    try:
        decode(json.dumps(document).encode())
    except SchemaError:
        accepted = False
    else:
        accepted = True
    assert accepted == telemetry().is_valid(document)


@given(altered_documents())
def test_a_refused_document_has_faults_and_an_accepted_one_has_none(document: dict[str, Any]) -> None:
    valid = telemetry().is_valid(document)
    found = find_faults(json.loads(json.dumps(document)))
    assert (found == []) == valid
    assert len(found) < MOST_FAULTS
    assert len({(fault.path, fault.reason) for fault in found}) == len(found)


@given(texts, json_values)
def test_an_extra_of_any_name_but_a_known_one_is_kept(key: str, value: Any) -> None:
    document = {"schema": SCHEMA_ID, "ts": None, "run_id": "r", "event": "run_end", "step": None, "status": "ok"}
    if key not in {*document, "seq", "session", "reason"}:
        assert json.loads(encode(decode(json.dumps(document | {key: value}).encode())))[key] == value


@pytest.mark.parametrize("name", sorted(EVENT_TYPES))
def test_every_known_event_is_refused_without_its_envelope(name: str) -> None:
    paths = {fault.path for fault in find_faults({"event": name})}
    assert {"$.schema", "$.ts", "$.run_id", "$.step"} <= paths

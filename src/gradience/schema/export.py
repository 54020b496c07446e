"""The JSON Schemas (draft 2020-12) of logs, reports and provenance: the contract for other programs.

``python -m gradience.schema.export FOLDER`` writes the files of ``schemas/``; never edit those by hand.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from inspect import cleandoc
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import msgspec

from gradience.errors import SchemaError
from gradience.schema import SCHEMA_ID
from gradience.schema.audit import AuditReport
from gradience.schema.compare import BenchReport, CompareAdaptersReport
from gradience.schema.diagnose import DiagnoseReport
from gradience.schema.document import RulesReport
from gradience.schema.drift import DriftReport
from gradience.schema.events import EVENT_TYPES, EvalMetrics, Event, RecommendationItem
from gradience.schema.flat import Flat
from gradience.schema.fleet import FleetAuditReport, FleetShowReport, QueryReport, RunsBestReport, RunsCurvesReport
from gradience.schema.merge import MergeCheckReport, MergeReport, VerifyMergedReport
from gradience.schema.preflight import PreflightReport
from gradience.schema.receipt import Receipt, VerifyServedReport
from gradience.schema.reports import CheckReport, ImportReport, MonitorReport, ValidateLogsReport, ValidateReport
from gradience.schema.why import WhyReport
from gradience.schema.writing import ConvertReport, Provenance, ResizeReport

Json: TypeAlias = Any
SchemaName: TypeAlias = Literal[
    "telemetry",
    "audit",
    "check",
    "monitor",
    "diagnose",
    "compare-adapters",
    "resize",
    "drift",
    "convert",
    "merge",
    "merge-check",
    "bench",
    "verify-merged",
    "import",
    "validate",
    "validate-logs",
    "rules",
    "fleet-audit",
    "fleet-show",
    "query",
    "runs-best",
    "runs-curves",
    "why",
    "verify-served",
    "preflight",
    "receipt",
    "provenance",
]

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_REF: Final = "#/$defs/{name}"
_REAL_REF: Final = {"$ref": _REF.format(name="Real")}
_NON_FINITE: Final = ["-Infinity", "Infinity", "NaN"]
_OR_NULL: Final = {"$ref": _REF.format(name="RealOrNull")}
_REALS: Final[dict[str, Json]] = {
    "Real": {
        "title": "Real",
        "description": 'A number, or "NaN", "Infinity", "-Infinity": JSON has no non-finite numbers.',
        "if": {"enum": _NON_FINITE},
        "else": {"type": "number"},
    },
    "RealOrNull": {
        "title": "RealOrNull",
        "description": "A number, a name of one that is not finite, or null.",
        "if": {"enum": _NON_FINITE},
        "else": {"type": ["number", "null"]},
    },
}
_NULL: Final = {"type": "null"}
_ENVELOPE: Final = ("schema", "ts", "run_id", "event", "step")
_FLAT: Final[tuple[type[Flat], ...]] = (*EVENT_TYPES.values(), EvalMetrics, RecommendationItem)
# The choices that a later minor version may add to: by event, the definition that has it, and its place in the line
_OPEN: Final = {
    "run_start": ("ConfigSnapshot", ("config", "task_profile")),
    "alert": ("Alert", ("severity",)),
    "recommendation": ("RecommendationItem", ("recommendations", "*", "severity")),
    "run_end": ("RunEnd", ("status",)),
}

REPORTS: Final[dict[SchemaName, type[msgspec.Struct]]] = {
    "audit": AuditReport,
    "check": CheckReport,
    "monitor": MonitorReport,
    "compare-adapters": CompareAdaptersReport,
    "resize": ResizeReport,
    "convert": ConvertReport,
    "merge": MergeReport,
    "merge-check": MergeCheckReport,
    "verify-merged": VerifyMergedReport,
    "bench": BenchReport,
    "drift": DriftReport,
    "diagnose": DiagnoseReport,
    "import": ImportReport,
    "validate": ValidateReport,
    "validate-logs": ValidateLogsReport,
    "rules": RulesReport,
    "fleet-audit": FleetAuditReport,
    "fleet-show": FleetShowReport,
    "query": QueryReport,
    "runs-best": RunsBestReport,
    "runs-curves": RunsCurvesReport,
    "why": WhyReport,
    "verify-served": VerifyServedReport,
    "preflight": PreflightReport,
}
_VERSIONS: Final[dict[SchemaName, int]] = {  # the others are at 2
    **dict.fromkeys(
        ("audit", "bench", "check", "diagnose", "drift", "fleet-audit", "merge-check", "preflight", "verify-served"), 3
    )
}
SCHEMAS: Final[dict[SchemaName, str]] = {
    "telemetry": "telemetry-v1",
    **{name: f"{name}-report-v{_VERSIONS.get(name, 2)}" for name in REPORTS},
    "receipt": "receipt-v1",
    "provenance": "provenance-v1",
}


def json_schema(name: SchemaName = "telemetry") -> dict[str, Json]:
    """Return the JSON Schema of one line of a log (`telemetry`), of a report, or of an adapter's provenance.

    Raises:
        SchemaError: no schema has that name.
    """
    if name not in SCHEMAS:
        raise SchemaError(f"no schema is called {name!r}", advice=f"schemas: {', '.join(sorted(SCHEMAS))}")
    if name == "telemetry":
        return _telemetry()
    if name in REPORTS:
        return _report(name, REPORTS[name])
    if name == "receipt":
        return _document(name, Receipt, "Receipt v1")
    return _document(name, Provenance, "Provenance report v1")


def schema_text(name: SchemaName) -> str:
    """Return the JSON Schema as the text of its file."""
    return json.dumps(json_schema(name), indent=2, ensure_ascii=True) + "\n"


def write_schemas(folder: Path) -> list[Path]:
    """Write every schema to its file in the folder, and return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, stem in SCHEMAS.items():
        path = folder / f"{stem}.schema.json"
        # The files are committed, and have the same newline on every system.
        path.write_text(schema_text(name), encoding="utf-8", newline="\n")
        paths.append(path)
    return paths


def _head(name: SchemaName, title: str, description: str) -> dict[str, Json]:
    return {
        "$schema": _DIALECT,
        "$id": f"urn:gradience:schema:{SCHEMAS[name]}",
        "title": title,
        "description": description,
    }


def _telemetry() -> dict[str, Json]:
    _, components = msgspec.json.schema_components((Event,), ref_template=_REF)
    defs = {title: _tidy(schema) for title, schema in components.items()}
    for flat in _FLAT:
        del defs[flat.__name__]["properties"]["extras"]  # which stand beside the known keys
    for cls in EVENT_TYPES.values():
        defs[cls.__name__] = _envelope_first(defs[cls.__name__])
    choices = [_opened(event, path, defs[definition]["properties"]) for event, (definition, path) in _OPEN.items()]
    defs = _parts_inlined(defs)
    defs["UnknownEvent"] = _unknown(defs["RunEnd"])
    defs |= _REALS
    head = _head(
        "telemetry",
        "Telemetry v1",
        "One line of a run.jsonl: one event. Keys that no property names are allowed everywhere, and kept by "
        "readers; so are event names that are not known here, as long as they carry the envelope.",
    )
    return {**head, "type": "object", "allOf": [*_by_event(), *choices], "$defs": defs}


def _by_event() -> list[Json]:
    """Return one condition per event and one for any other name: of `oneOf`, a validator reports every branch."""
    known = [_if_event({"const": name}, cls.__name__, required=["event"]) for name, cls in EVENT_TYPES.items()]
    return [*known, _if_event({"not": {"enum": list(EVENT_TYPES)}}, "UnknownEvent")]


def _if_event(name: Json, definition: str, **needs: Json) -> dict[str, Json]:
    when = {"type": "object", "properties": {"event": name}, **needs}
    return {"if": when, "then": {"$ref": _REF.format(name=definition)}}


def _parts_inlined(defs: dict[str, Json]) -> dict[str, Json]:
    """Return the definitions with parts that may be null in their place: of `anyOf`, some name the part alone."""
    parts = set()

    def inlined(schema: Json) -> Json:
        match schema:
            case {"anyOf": [{"$ref": ref}, {"type": "null"}], **rest}:
                part = ref.rpartition("/")[2]
                parts.add(part)
                return {**defs[part], "type": ["object", "null"], **rest}
        return schema

    placed = {
        title: {**schema, "properties": {key: inlined(held) for key, held in schema["properties"].items()}}
        for title, schema in defs.items()
    }
    return {title: schema for title, schema in placed.items() if title not in parts}


def _opened(event: str, path: Sequence[str], held: dict[str, Json]) -> dict[str, Json]:
    """Return the condition that holds lines of v1 to the values of a choice; lines of v1.1 may have any text.

    Modifies `held`, the properties of the object that has the choice.
    """
    values = held[path[-1]].pop("enum")
    held[path[-1]] |= {"type": "string", "examples": list(values)}
    when = _at(path, {"type": "string"})  # of another type, the definition of the event says it
    when["properties"] |= {"schema": {"const": SCHEMA_ID}, "event": {"const": event}}
    return {"if": {**when, "required": ["schema", "event"]}, "then": _at(path, {"enum": values})}


def _at(path: Sequence[str], schema: dict[str, Json]) -> dict[str, Json]:
    """Return the schema of an object that has the given one at the path; `*` stands for each of a list."""
    if not path:
        return schema
    inner = _at(path[1:], schema)
    if path[0] == "*":
        return {"type": "array", "items": inner}
    return {"type": "object", "properties": {path[0]: inner}}


def _report(name: SchemaName, cls: type[msgspec.Struct]) -> dict[str, Json]:
    """Return the schema of a report, which requires every key at every level."""
    schema = _document(name, cls, f"{name.title()} report v{_VERSIONS.get(name, 2)}")
    return _all_required(schema)


def _document(name: SchemaName, cls: type[msgspec.Struct], title: str) -> dict[str, Json]:
    _, components = msgspec.json.schema_components((cls,), ref_template=_REF)
    defs = {key: _tidy(schema) for key, schema in components.items()}
    body = defs.pop(cls.__name__)
    text = json.dumps([body, defs])
    defs |= {title: schema for title, schema in _REALS.items() if f'"{_REF.format(name=title)}"' in text}
    head = _head(name, title, body.pop("description"))
    body.pop("title")
    return {**head, **body, "$defs": defs}


def _all_required(schema: dict[str, Json]) -> dict[str, Json]:
    """Return the schema with all properties of every Struct required."""
    defs = {key: _required(definition) for key, definition in schema["$defs"].items()}
    return {**_required(schema), "$defs": defs}


def _required(definition: dict[str, Json]) -> dict[str, Json]:
    if "properties" not in definition:
        return definition
    return {**definition, "required": list(definition["properties"])}


def _unknown(known: dict[str, Json]) -> dict[str, Json]:
    """Return the schema of an event with an unknown name, from that of a known event: only the envelope is fixed."""
    properties = {key: known["properties"][key] for key in _ENVELOPE}
    properties["event"] = {"description": "A name that is none of the known ones.", "type": "string"}
    return {
        "title": "UnknownEvent",
        "description": "An event of a later release or of another program: legal, kept, counted.",
        "type": "object",
        "properties": properties,
        "required": list(_ENVELOPE),
    }


def _envelope_first(schema: dict[str, Json]) -> dict[str, Json]:
    properties = schema["properties"]
    order = [*_ENVELOPE, *(key for key in properties if key not in _ENVELOPE)]
    required = [*_ENVELOPE, *(key for key in schema["required"] if key not in _ENVELOPE)]
    return {**schema, "properties": {key: properties[key] for key in order}, "required": required}


def _tidy(node: Json) -> Json:
    """Return the schema with `Real` as a reference, `const` for an enum of one value, and no key of OpenAPI's."""
    if isinstance(node, list):
        return [_tidy(item) for item in node]
    if not isinstance(node, dict):
        return node
    # A default is a value: what looks like a keyword in it is none.
    tidy = {k: v if k == "default" else _tidy(v) for k, v in node.items() if k != "discriminator"}
    if isinstance(text := tidy.get("description"), str):
        tidy["description"] = cleandoc(text)  # which msgspec did until 0.22
    match tidy:
        case {"enum": [only]}:
            tidy = {("const" if k == "enum" else k): (only if k == "enum" else v) for k, v in tidy.items()}
        case {"anyOf": [{"type": "number"}, {"enum": names}]} if names == _NON_FINITE:
            own = {k: v for k, v in tidy.items() if k != "anyOf" and v != _REALS["Real"]["description"]}
            tidy = {**own, **_REAL_REF}
        case {"anyOf": options} if (one := _joined(options)) is not None:
            tidy = {**one, **{k: v for k, v in tidy.items() if k != "anyOf"}}
    return {k: v for k, v in tidy.items() if not (k == "required" and v == [])}


def _joined(options: list[Json]) -> dict[str, Json] | None:
    """Return alternatives of different types as one schema, if they are: of `anyOf`, some name the part alone."""
    some = [option for option in options if option != _NULL]
    one = some[0] if len(some) == 1 else _picked(some)
    return _or_null(one) if one and _NULL in options else one


def _picked(options: list[Json]) -> dict[str, Json] | None:
    """Return alternatives as conditions on the value's type: a list of types is refused by strict validators."""
    types = ["number" if option == _REAL_REF else option.get("type") for option in options]
    if not all(isinstance(name, str) for name in types) or len({*types}) < len(types):
        return None
    if {"integer", "number"} <= {*types}:  # an integer is a number too: the bounds of one would hold for the other
        return None
    *others, last = sorted(options, key=lambda option: (option == _REAL_REF, len(option)))
    one: dict[str, Json] = last
    for other in others:
        only = {"then": other} if len(other) > 1 else {}
        one = {"if": {"type": other["type"]}, **only, "else": one}
    return one


def _or_null(schema: dict[str, Json]) -> dict[str, Json] | None:
    if schema.get("$ref") == _REAL_REF["$ref"]:
        return {**schema, **_OR_NULL}
    if isinstance(schema.get("type"), str):
        return {"type": [schema["type"], "null"], **{k: v for k, v in schema.items() if k != "type"}}
    last = _or_null(schema["else"]) if "else" in schema else None
    return {**schema, "else": last} if last else None


def main(argv: Sequence[str]) -> int:
    """Write the schemas to a folder: the one argument, else `schemas`."""
    if len(argv) > 1 or (argv and argv[0].startswith("-")):
        sys.stderr.write("usage: python -m gradience.schema.export [FOLDER]\n")
        return 2
    write_schemas(Path(argv[0] if argv else "schemas"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

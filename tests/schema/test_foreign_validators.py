"""The contract, held against validators that are not ours: two in Python, one in Rust, three in JavaScript."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import fastjsonschema
import jsonschema_rs
import pytest
from golden_logs import BAD, GOOD, documents, lines
from jsonschema import Draft202012Validator
from tables import every

from gradience.schema import SCHEMA_ID
from gradience.schema.export import SCHEMAS, json_schema
from gradience.telemetry import TelemetryWriter

PACKAGES = {"ajv": "8.20.0", "@cfworker/json-schema": "4.1.6", "@hyperjump/json-schema": "1.18.0"}
SCRIPT = """
import { readFileSync } from "node:fs";
import Ajv from "ajv/dist/2020.js";
import { Validator } from "@cfworker/json-schema";
import { registerSchema, validate } from "@hyperjump/json-schema/draft-2020-12";
const read = (path) => JSON.parse(readFileSync(path, "utf8"));
const [lines, ...schemas] = process.argv.slice(2);
const ajv = new Ajv.default({ strict: true, allErrors: true });
const [telemetry] = schemas.map((path) => ajv.compile(read(path)));
const worker = new Validator(read(schemas[0]), "2020-12", false);
registerSchema(read(schemas[0]));
const hyperjump = await validate(read(schemas[0]).$id);
const told = (line) => ({
  ajv: telemetry(line) ? [] : telemetry.errors.map((error) => [error.keyword, ajv.errorsText([error])]),
  others: [worker.validate(line).valid, hyperjump(line).valid],
});
const documents = readFileSync(lines, "utf8").split("\\n").slice(0, -1).map((line) => JSON.parse(line));
console.log(JSON.stringify(documents.map(told)));
"""


TELEMETRY = json_schema("telemetry")
NAMES = ["NaN", "Infinity", "-Infinity"]
ENVELOPE = {"schema": SCHEMA_ID, "ts": 1.0, "run_id": "a", "step": 1}
LINES = {
    "run_start": {"config": {"lora": {"r": 8}, "training": {"seed": 1}}},
    "train_step": {"loss": 1.0, "lr": [1e-4]},
    "eval": {"split": "test", "metrics": {"loss": 1.0}},
    "alert": {"severity": "error", "code": "c", "message": "m"},
    "recommendation": {"recommendations": [{"severity": "info", "action": "a", "message": "m", "confidence": 0.5}]},
    "run_end": {"status": "ok"},
    "wiring": {"phase": "start", "adapter": {"names": ["default"]}},
    "of_another_program": {},
}


class Fault(NamedTuple):
    """A line of an event with one key set to another value, or removed if that is None: the field at fault."""

    event: str
    path: str
    value: Any

    @property
    def field(self) -> str:
        return self.path.rpartition(".")[2]

    def named_in(self, *words: Any) -> bool:
        """Whether the field is a word of an error's path or message, and no other of the envelope is."""
        text = " ".join(map(str, words))
        others = {*ENVELOPE, "event"} - {self.field}
        return bool(re.search(rf"\b{self.field}\b", text)) and not any(f"'{other}'" in text for other in others)

    def __str__(self) -> str:
        return f"{self.event}-{self.path}-{self.value}"


FAULTS = [
    Fault("train_step", "ts", None),
    Fault("train_step", "schema", "gradience.vnext.telemetry/v2"),
    Fault("train_step", "run_id", ""),
    Fault("train_step", "step", -1),
    Fault("train_step", "loss", "0.5"),
    Fault("train_step", "event", 5),
    Fault("train_step", "event", None),
    Fault("eval", "metrics", None),
    Fault("eval", "metrics.n", 1.5),
    Fault("run_start", "config.lora.r", "8"),
    Fault("run_start", "config.task_profile", "poetry"),
    Fault("alert", "severity", "fatal"),
    Fault("recommendation", "recommendations.0.confidence", 1.5),
    Fault("run_end", "status", None),
    Fault("wiring", "adapter.names", "default"),
    Fault("of_another_program", "step", "1"),
    Fault("of_another_program", "run_id", None),
]


def faulty(fault: Fault) -> dict[str, Any]:
    """The line with its fault."""
    line: dict[str, Any] = deepcopy({**ENVELOPE, "event": fault.event, **LINES[fault.event]})
    *above, key = fault.path.split(".")
    place: Any = line
    for step in above:
        place = place[int(step) if step.isdigit() else step]
    if fault.value is None:
        del place[key]
    else:
        place[key] = fault.value
    return line


@cache
def fast() -> Callable[[Any], Any]:
    """The function that fastjsonschema makes of the schema; it has no dialect after draft 7."""
    return fastjsonschema.compile(TELEMETRY)


def line_of(document: object) -> str:
    return json.dumps(document, allow_nan=False)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> list[object]:
    """What our writer really writes."""
    log = tmp_path_factory.mktemp("written") / "run.jsonl"
    with TelemetryWriter(log) as writer:
        writer.run_start(meta={"nested": {"inf": float("inf")}})
        writer.train_step(1, loss=float("nan"), lr=[1e-3, 1e-4], grad_norm=1, kl=0.5, tokens=2**60)
        writer.eval(1, split="test", metrics={"loss": 0.5, "n": 3, "f1": 0.1})
        writer.metrics(1, kind="lora_audit", metrics={"a": [1, None, "x"]})
        writer.alert(severity="error", code="c", message="m" * 1000)
    return [json.loads(line) for line in log.read_bytes().splitlines()]


@pytest.fixture(scope="module")
def good(written) -> list[object]:
    return [document for path in GOOD for document in documents(path).values()] + written


@pytest.fixture(scope="module")
def bad() -> list[object]:
    validator = Draft202012Validator(json_schema("telemetry"))
    found = [document for path in BAD for document in documents(path).values() if not validator.is_valid(document)]
    assert len(found) >= 30
    return found


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> Path:
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("the validators in JavaScript need node and npm, which are not installed")
    folder = Path(os.environ.get("GRADIENCE_AJV") or tmp_path_factory.getbasetemp().parent / "validators")
    if not all((folder / "node_modules" / name).is_dir() for name in PACKAGES):
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--fetch-retries=0"]
        command += [f"{name}@{version}" for name, version in PACKAGES.items()]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
        except subprocess.TimeoutExpired:
            pytest.skip("the npm registry did not answer within 20 seconds")
        if done.returncode:
            pytest.skip(f"npm could not install them: {done.stderr.strip()[-200:]}")
    (folder / "check.mjs").write_text(SCRIPT)
    return folder


@pytest.fixture(scope="module")
def javascript(packages, tmp_path_factory, root, good, bad) -> list[dict[str, Any]]:
    """What is told of every good line, every bad one and every typical one, by schemas that are compiled once."""
    file = tmp_path_factory.mktemp("lines") / "documents.jsonl"
    file.write_text("".join(line_of(document) + "\n" for document in [*good, *bad, *(faulty(f) for f in FAULTS)]))
    schemas = [str(root / "schemas" / f"{stem}.schema.json") for stem in SCHEMAS.values()]
    command = ["node", str(packages / "check.mjs"), str(file), *schemas]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.stderr == ""  # ajv's strict mode has nothing to say about any schema
    return json.loads(done.stdout)


def test_javascript_accepts_every_good_line_and_no_bad_one(javascript, good, bad) -> None:
    assert javascript[: len(good)] == [{"ajv": [], "others": [True, True]}] * len(good)
    assert [told["others"] for told in javascript[len(good) :]] == [[False, False]] * (len(bad) + len(FAULTS))
    assert all(told["ajv"] for told in javascript[len(good) :])


def test_ajv_names_the_field_of_one_fault_and_then_only_the_conditions_around_it(javascript) -> None:
    for fault, told in zip(FAULTS, javascript[-len(FAULTS) :], strict=True):
        (_, first), *rest = told["ajv"]
        assert fault.named_in(first), (fault, first)
        assert {keyword for keyword, _ in rest} <= {"if"}, fault


@every("fault", FAULTS, ids=str)
def test_validators_find_one_error_in_one_fault_and_name_its_field(fault) -> None:
    document = faulty(fault)
    errors = list(Draft202012Validator(TELEMETRY).iter_errors(document))
    assert [fault.named_in(error.json_path, error.message) for error in errors] == [True]
    found = list(jsonschema_rs.Draft202012Validator(TELEMETRY).iter_errors(document))
    assert [fault.named_in(error.instance_path, error.message) for error in found] == [True]
    with pytest.raises(fastjsonschema.JsonSchemaException, match=rf"\b{fault.field}\b"):
        fast()(document)


def test_a_text_where_a_number_belongs_is_told_as_no_number_and_the_names_stay_valid() -> None:
    python, rust = Draft202012Validator(TELEMETRY), jsonschema_rs.Draft202012Validator(TELEMETRY)
    for path, expected in [("loss", "number"), ("lr", "number"), ("lr.1", "number"), ("ts", "number")]:
        key, _, nth = path.partition(".")
        for value in ["nan", "0.5", "inf", ""]:
            line = {**ENVELOPE, "event": "train_step", key: [1e-4, value] if nth else value}
            (error,) = python.iter_errors(line)
            (same,) = rust.iter_errors(line)
            assert error.message.startswith(f"{value!r} is not of type '{expected}'"), path
            assert f'"{value}" is not of type' in same.message
            assert f'"{expected}"' in same.message
        for value in [*NAMES, None] if not nth else NAMES:
            line = {**ENVELOPE, "event": "train_step", key: [1e-4, value] if nth else value}
            assert python.is_valid(line)
            assert rust.is_valid(line)


def test_fastjsonschema_and_rust_agree_on_every_line(good, bad) -> None:
    rust = jsonschema_rs.Draft202012Validator(TELEMETRY)
    assert [rust.is_valid(document) for document in [*good, *bad]] == [True] * len(good) + [False] * len(bad)
    for document in good:
        fast()(document)
    for document in bad:
        with pytest.raises(fastjsonschema.JsonSchemaException):
            fast()(document)


def test_no_golden_log_is_without_lines() -> None:
    assert all(lines(path) for path in [*GOOD, *BAD])

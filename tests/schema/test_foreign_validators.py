"""The contract, held against validators that are not ours: check-jsonschema and ajv."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from golden_logs import BAD, GOOD, documents, lines
from jsonschema import Draft202012Validator

from gradience.schema.export import SCHEMAS, json_schema
from gradience.telemetry import TelemetryWriter

AJV = "8.20.0"
SCRIPT = """
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
const require = createRequire(process.argv[2] + "/");
const Ajv = require("ajv/dist/2020").default;
const ajv = new Ajv({ strict: true, strictTypes: false, allErrors: true });
const read = (path) => JSON.parse(readFileSync(path, "utf8"));
const validators = Object.fromEntries(process.argv.slice(4).map((path) => [path, ajv.compile(read(path))]));
const telemetry = validators[process.argv[4]];
const lines = readFileSync(process.argv[3], "utf8").split("\\n").slice(0, -1);
console.log(JSON.stringify(lines.map((line) => telemetry(JSON.parse(line)))));
"""


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
def ajv(tmp_path_factory) -> Path:
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("ajv needs node and npm, which are not installed")
    folder = Path(os.environ.get("GRADIENCE_AJV") or tmp_path_factory.getbasetemp().parent / f"ajv-{AJV}")
    if not (folder / "node_modules" / "ajv").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--fetch-retries=0"]
        command += [f"ajv@{AJV}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
        except subprocess.TimeoutExpired:
            pytest.skip("the npm registry did not answer within 20 seconds")
        if done.returncode:
            pytest.skip(f"npm could not install ajv: {done.stderr.strip()[-200:]}")
    (folder / "check.mjs").write_text(SCRIPT)
    return folder


@pytest.fixture(scope="module")
def ajv_says(ajv, tmp_path_factory, root, good, bad) -> list[bool]:
    """ajv's verdict on every good line and then on every bad one; it compiles the schemas once."""
    file = tmp_path_factory.mktemp("lines") / "documents.jsonl"
    file.write_text("".join(line_of(document) + "\n" for document in [*good, *bad]))
    schemas = [str(root / "schemas" / f"{stem}.schema.json") for stem in SCHEMAS.values()]
    command = ["node", str(ajv / "check.mjs"), str(ajv), str(file), *schemas]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.stderr == ""  # strict mode has nothing to say about any schema
    return json.loads(done.stdout)


def test_ajv_compiles_every_schema_and_accepts_every_good_line(ajv_says, good) -> None:
    assert ajv_says[: len(good)] == [True] * len(good)


def test_ajv_rejects_every_bad_line(ajv_says, good, bad) -> None:
    assert ajv_says[len(good) :] == [False] * len(bad)


def run_check_jsonschema(*words: str) -> tuple[int, str]:
    """Run its command in this process: its import takes ten times as long as a check."""
    from check_jsonschema import main
    from click.testing import CliRunner

    done = CliRunner().invoke(main, words)
    return done.exit_code, done.stdout


def check_jsonschema(schema: Path, files: list[Path]) -> tuple[int, dict[str, object]]:
    code, told = run_check_jsonschema("--output-format", "json", "--schemafile", str(schema), *map(str, files))
    return code, json.loads(told)


def files_of(documents: list[object], folder: Path) -> list[Path]:
    paths = [folder / f"{i}.json" for i in range(len(documents))]
    for path, document in zip(paths, documents, strict=True):
        path.write_text(line_of(document))
    return paths


def test_check_jsonschema_accepts_every_good_line(tmp_path, root, good) -> None:
    files = files_of(good, tmp_path)
    code, report = check_jsonschema(root / "schemas/telemetry-v1.schema.json", files)
    assert (code, report["status"]) == (0, "ok")


def test_check_jsonschema_rejects_every_bad_line(tmp_path, root, bad) -> None:
    files = files_of(bad, tmp_path)
    code, report = check_jsonschema(root / "schemas/telemetry-v1.schema.json", files)
    assert code == 1
    assert {error["filename"] for error in report["errors"]} == {str(file) for file in files}


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_check_jsonschema_finds_the_schema_itself_in_order(root: Path, name: str) -> None:
    path = root / "schemas" / f"{SCHEMAS[name]}.schema.json"
    assert run_check_jsonschema("--check-metaschema", str(path)) == (0, "ok -- validation done\n")


def test_check_jsonschema_is_asked_what_a_schema_is(tmp_path: Path) -> None:
    path = tmp_path / "no.schema.json"
    path.write_text('{"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "nothing"}')
    assert run_check_jsonschema("--check-metaschema", str(path))[0] == 1


def test_no_golden_log_is_without_lines() -> None:
    assert all(lines(path) for path in [*GOOD, *BAD])

"""A limit in docs/limits.md is the one in the code: users meet them, and the page gives their reasons."""

from __future__ import annotations

import math
import re
from importlib import import_module
from pathlib import Path

from tables import every

LIMITS = [  # what the page calls it, and where the code holds each number of its row
    ("values in lists and mappings of one event", "schema.values.MAX_VALUES"),
    ("elements of one array or tensor in an event", "schema.values.MAX_ELEMENTS"),
    ("levels of nesting in an event", "schema.values._MAX_LEVELS"),
    ("text that is scanned for secrets", "telemetry.secrets.MAX_SCANNED"),
    ("an error's line", "cli.main._MAX_ERROR"),
    ("time for trackio to read a project", "importers.databases._SECONDS"),
    ("files of one run in MLflow's folder", "importers.databases._MOST_FILES"),
    ("a table's header", "importers.sources.MAX_HEADER"),
    ("a row of a data set", "data.rows.MAX_LINE io.reading.MAX_VALUES data.rows._MAX_FIELDS data.rows._MAX_LINES"),
    ("a line of a data set without an end", "io.reading.MAX_SKIPPED"),
    ("a data set in one JSON document", "data.rows.MAX_JSON io.reading.MAX_VALUES"),
    ("rows of a Parquet or Arrow file", "io.columnar.MAX_ROWS"),
    ("memory of the process that reads a tokenizer", "io.confined.MEMORY"),
    ("its processor time", "io.confined.SECONDS"),
    ("a training step that is followed for its memory", "verbs.check.memory.MEMORY verbs.check.memory.SECONDS"),
    ("a token id or label", "data.formats._LONGEST_LABEL"),
    ("a model's or tokenizer's JSON", "io.pretrained._MOST_JSON io.pretrained._MOST_FILES"),
    ("a file of a command of `bench` that is hashed", "verbs.bench.evaluators._LARGEST_SCRIPT"),
    ("files of a data set's folder", "data.rows._MAX_FILES"),
    ("a chat template", "data.encoder._MAX_TEMPLATE"),
    ("a ref of the hub's cache", "base.weights._LARGEST_REF"),
    ("`adapter_config.json`", "adapters.config.LARGEST_CONFIG"),
    ("a config of a run", "configs.files.MAX_JSON_BYTES configs.files.MAX_YAML_BYTES"),
    ("a model's `config.json`", "base.peft_emulation._LARGEST"),
    ("the index of a sharded checkpoint", "io.safetensors._LARGEST_INDEX io.safetensors._MOST_SHARDS"),
    ("`gradience.toml`", "configs._LARGEST configs._MOST_PARTS"),
    ("a source to import", "importers.files.MAX_BYTES importers.files.MAX_LINE importers.table.MAX_COLUMNS"),
    ("a line of a `run.jsonl`", "telemetry.lines._LONGEST_LINE"),
    ("nesting of JSON and YAML", "io.reading.MAX_DEPTH"),
    ("inputs to calibrate on", "models.inputs._LARGEST_ROW models.inputs.LONGEST verbs.resize.subject.LEAST"),
    ("a receipt", "verbs.receipt.run._LARGEST_READ"),
    ("an answer of a server", "verbs.receipt.endpoint._LARGEST"),
    ("layers in a base's `config.json`", "io.pretrained._MOST_LAYERS io.pretrained.FEW_LAYERS"),
    ("labels in a base's `config.json`", "io.pretrained._MOST_LABELS"),
    ("turns of an initial value", "models.named._MOST_TURNS"),
    ("a number in YAML", "configs.values.MAX_DIGITS"),
    ("a tensor's name", "io.reading.MAX_NAME io.reading.MAX_PARTS"),
    ("alpha, in size", "adapters.config.LARGEST_ALPHA"),
    ("an entry of an update that is rewritten", "adapters.layout.LARGEST_ENTRY"),
]


def written(value: float) -> set[str]:
    """The ways in which the page writes a number: with its unit of bytes, its thousands apart, or its exponent."""
    forms = {f"{value:g}".replace("e+0", "e").replace("e+", "e"), f"{value:.0f}", f"{value:,.0f}".replace(",", " ")}
    forms |= {f"{value / 1024**n:g} {unit}" for n, unit in ((1, "KiB"), (2, "MiB"), (3, "GiB"))}
    return {form for form in forms if math.isfinite(value) and not form.startswith("0.")}


@every(("row", "names"), LIMITS, ids=[row for row, _ in LIMITS])
def test_a_limit_in_the_docs_is_that_of_the_code(row: str, names: str, root: Path) -> None:
    page = (root / "docs" / "limits.md").read_text(encoding="utf-8")
    [line] = [line for line in page.splitlines() if line.startswith(f"| {row}")]
    limit = line.split("|")[2]
    for place in names.split():
        module, _, name = place.rpartition(".")
        value = getattr(import_module(f"gradience.{module}"), name)
        whole = [rf"(?<![\d.]){re.escape(form)}(?![\d.]| \d)" for form in written(value)]
        assert any(re.search(form, limit) for form in whole), (place, value, limit)

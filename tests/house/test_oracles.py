"""A test that needs an oracle says so by its mark, and `nox -s oracles` installs what the marks name."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

TESTS = Path(__file__).parents[1]
OF_MODULE = {
    "lycoris": "lycoris-lora",
    "mlflow": "mlflow-skinny",
    "mlx_lm": "mlx-lm",
    "orbax": "flax",
}  # Flax brings Orbax


def test_each_oracle_is_in_its_group_and_no_test_skips_where_it_is_absent():
    texts = {file: file.read_text(encoding="utf-8") for file in TESTS.rglob("*.py")}
    named = {name for text in texts.values() for name in re.findall(r"mark\.oracle\(\"(\w+)\"\)", text)}
    groups = tomllib.loads((TESTS.parent / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
    held = {re.match(r"[\w-]+", one)[0] for one in groups["oracles"]}
    assert {OF_MODULE.get(name, name) for name in named} <= held
    skips = re.compile(rf"(importorskip|find_spec)\(f?[\"']({'|'.join(sorted(named))})\\b")
    assert [file.name for file, text in texts.items() if skips.search(text)] == []

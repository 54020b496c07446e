"""What holds of every command, whatever it was given."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from isolated import Outcome

__all__ = ["ended", "raw_controls"]

ALLOWED = {"\n", "\t", "\u200d", "\u200b", "\ufeff"}


def raw_controls(text: str) -> set[str]:
    """The characters that steer a terminal or turn the order of letters, and stand there as themselves."""
    if text.isascii() and text.isprintable():
        return set()
    return {ascii(c) for c in set(text) - ALLOWED if unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"}}


def ended(told: Outcome, line: str, at: Path, *, codes: set[int] | None = None, memory_mb: int = 300) -> None:
    """Assert that a command ended in a report or in one line of error; that what it wrote below `at / o` opens."""
    from safetensors import safe_open

    assert told.code in (codes or {0, 1, 2, 3}), told.err
    assert len(told.errors) <= (told.code == 2), told.err
    assert len(told.err) < 1000
    assert told.memory_mb < memory_mb
    if told.out and ("--json" in line or "sarif" in line):
        json.loads(told.out, parse_constant=pytest.fail)
    assert raw_controls(told.out.replace("\r\n", "\n") if "--csv" in line else told.out) == set()
    assert raw_controls(told.err) == set()
    for path in at.glob("o/*.safetensors"):
        with safe_open(path, framework="numpy") as file:
            assert set(file.keys())
    if told.code and line.startswith(("resize", "convert", "merge ")):
        assert not (at / "o").exists()

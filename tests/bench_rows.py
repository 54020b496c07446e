"""Labelled rows of text for tiny models: words of three classes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any


def text_of(label: int, draw: random.Random) -> str:
    """A text whose words are mostly those of its class: w0-w9, w10-w19 or w20-w29."""
    own = [f"w{10 * label + draw.randrange(10)}" for _ in range(5)]
    other = [f"w{draw.randrange(50)}" for _ in range(3)]
    words = own + other
    draw.shuffle(words)
    return " ".join(words)


def rows_of(n: int, seed: int) -> list[dict[str, Any]]:
    draw = random.Random(seed)  # noqa: S311  # rows of a test
    return [{"text": text_of(i % 3, draw), "label": i % 3} for i in range(n)]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path

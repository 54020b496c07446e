"""Puts the modules beside these tests within reach, and makes one tokenizer for all."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def tok(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer in the style of Qwen, which no test changes."""
    from made import saved  # beside this file

    return saved(tmp_path_factory.mktemp("tok"))

"""Real PEFT adapters of every layer, made on the spot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft_models import Case, made


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Case]:
    """A function that saves an adapter of a PEFT config, with factors whose spectrum falls."""
    return lambda config, model=None, *, name="adapter", **more: made(tmp_path / name, config, model, fall=0.6, **more)


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """An adapter of r = 8 on two kinds of layers, for tests that write elsewhere."""
    from peft import LoraConfig

    config: Any = LoraConfig(r=8, lora_alpha=12, target_modules=["q_proj", "up_proj"])
    return made(tmp_path_factory.mktemp("pair") / "adapter", config, fall=0.6)

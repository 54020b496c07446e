"""Real adapters on one small model, saved by PEFT, and what PEFT's merge of each adds to the weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from peft_models import made


class Saved(NamedTuple):
    """An adapter's folder, and the dense update of each weight that it changes."""

    folder: Path
    update: dict[str, Any]


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Saved]:
    """A function that saves an adapter of a config, with values drawn from a seed or set by `edit`."""

    def build(name: str, *, seed: int = 0, edit: Callable[[Any], None] | None = None, **config: Any) -> Saved:
        from peft import LoraConfig

        lora = LoraConfig(**{"r": 4, "target_modules": ["q_proj", "up_proj"], **config})
        case = made(tmp_path / name, lora, seed=seed, edit=edit)
        return Saved(case.folder, {name: value for name, value in case.update().items() if value.any()})

    return build

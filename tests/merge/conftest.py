"""Real adapters on one small model, saved by PEFT, and what PEFT's merge of each adds to the weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hand_made import config_of
from peft_models import made


class Saved(NamedTuple):
    """An adapter's folder, the model, and the dense update of each weight."""

    folder: Path
    model: Any
    update: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        return config_of(self.folder)


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Saved]:
    """A function that saves an adapter of a config, with values drawn from a seed."""

    def build(name: str, *, model: Any = None, **config: Any) -> Saved:
        from peft import LoraConfig

        more = {key: config.pop(key) for key in ("seed", "dtype") if key in config}
        lora = LoraConfig(**{"r": 4, "target_modules": ["q_proj", "up_proj"], **config})
        case = made(tmp_path / "saved" / name, lora, model, **more)
        return Saved(case.folder, case.model, case.update())

    (tmp_path / "saved").mkdir()
    return build

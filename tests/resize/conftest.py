"""Real PEFT adapters of every layer, made on the spot."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft_models import save_base

_HERE = str(Path(__file__).parent)
if _HERE not in sys.path:  # tests are no package: this puts `resize_nets` within reach
    sys.path.insert(0, _HERE)

from resize_nets import Case, randomise  # noqa: E402  # after the path


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Case]:
    """Return a function that wraps a model with a PEFT config, trains nothing, and saves adapter and base."""

    def build(model: Any, config: Any, *, edit: Callable[[Any], None] | None = None, name: str = "adapter") -> Case:
        from peft import get_peft_model

        base = tmp_path / "base"
        save_base(model, base)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped = get_peft_model(copy.deepcopy(model), config)
            randomise(wrapped)
            if edit is not None:
                edit(wrapped)
            wrapped.save_pretrained(tmp_path / name)
        return Case(tmp_path / name, base, model)

    return build

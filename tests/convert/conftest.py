"""Real adapters saved by PEFT, and the truth about them: what PEFT merges, before and after a conversion."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hand_made import config_of
from peft_models import furthest, made, merged_update


class Case(NamedTuple):
    """A saved adapter, its base on disk, the model in memory, and what PEFT's merge of it adds to each weight."""

    folder: Path
    base: Path
    model: Any
    update: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        return config_of(self.folder)

    def error(self, folder: Path) -> float:
        """The largest error of a weight's update by another adapter, relative to the largest entry of this one's."""
        return furthest(merged_update(self.model, folder), [(1.0, self.update)])


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Case]:
    """A function that wraps a model with a PEFT config, gives the adapter values, and saves it."""

    def build(config: Any, model: Any = None, *, name: str = "old", **more: Any) -> Case:
        case = made(tmp_path / name, config, model, **more)
        return Case(*case, case.update())

    return build


@pytest.fixture
def outputs() -> Callable[[Any, Path, Any], Any]:
    """A function that gives the logits of a model with an adapter that PEFT loads."""

    def compute(model: Any, folder: Path, tokens: Any) -> Any:
        from peft import PeftModel

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted = PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()
        with torch.no_grad():
            return adapted(input_ids=torch.tensor(tokens)).logits.numpy()

    return compute

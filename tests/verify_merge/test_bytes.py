"""Tensors are the same if every byte is: those that are compared eight at a time, and those behind."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from gradience.base.weights import BaseWeights, find_shards
from gradience.prove.verify_merge import _difference
from gradience.prove.verify_merge.rows import base_copies


def found(folder: Any, values: np.ndarray) -> Any:
    folder.mkdir()
    save_file({"t": values}, folder / "model.safetensors")
    return BaseWeights(find_shards(folder)).find("t")


@pytest.mark.parametrize("size", [7, 8, 19])
@pytest.mark.parametrize("at", [None, 0, 5, -1])
def test_one_other_byte_anywhere_is_another_tensor(tmp_path, size, at):
    one = np.arange(size, dtype=np.int8)
    two = one.copy()
    if at is not None:
        two[at] += 1
    change = _difference(found(tmp_path / "one", one), found(tmp_path / "two", two))
    assert change == (None if at is None else pytest.approx(1.0 / np.linalg.norm(one)))


def test_copies_of_the_base_are_of_its_weights():
    roles = {
        "base_model.model.m.q.base_layer.weight": "base_copy",
        "base_model.model.m.q.base_layer.bias": "base_copy",
        "base_model.model.m.v.base_layer.weight": "full_module",
        "base_model.model.m.k.lora_A.weight": "lora_pair",
    }
    adapter: Any = SimpleNamespace(roles=roles)
    assert base_copies(adapter) == {"m.q": "base_model.model.m.q.base_layer.weight"}

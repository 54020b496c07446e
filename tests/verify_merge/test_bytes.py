"""Tensors are the same if every byte is: those that are compared eight at a time, and those behind."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from gradience.prove.verify_merge.rows import base_copies


def test_copies_of_the_base_are_of_its_weights():
    roles = {
        "base_model.model.m.q.base_layer.weight": "base_copy",
        "base_model.model.m.q.base_layer.bias": "base_copy",
        "base_model.model.m.v.base_layer.weight": "full_module",
        "base_model.model.m.k.lora_A.weight": "lora_pair",
    }
    adapter: Any = SimpleNamespace(roles=roles)
    assert base_copies(adapter) == {"m.q": "base_model.model.m.q.base_layer.weight"}

"""What each format keeps where, by value: the flags decide what verbs write."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from gradience.adapters.formats import FORMATS
from gradience.adapters.kinds.lora import _pooled
from gradience.adapters.layout import MOST_ELEMENTS, UnsuitableError
from gradience.adapters.open import open_adapter


def test_the_table_of_formats_is_this():
    flags = {
        (one.name, place): {
            name for name in ("is_peft", "module_paths", "component_prefix", "embeds_by_name") if getattr(one, name)
        }
        for place, one in enumerate(FORMATS)
    }
    assert flags == {
        ("mlx", 0): {"module_paths", "embeds_by_name"},
        ("torchtune", 1): {"module_paths"},
        ("kohya", 2): set(),
        ("peft", 3): {"module_paths", "is_peft"},
        ("diffusers", 4): {"module_paths", "component_prefix"},
        ("mlx", 5): {"module_paths", "embeds_by_name"},
    }


def test_a_long_kronecker_factor_is_analysed_and_one_that_is_long_and_wide_is_not(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LOKR", "r": 2}))
    for shape, found in (((1500, 2), 1), ((1024, 1025), 1), ((1025, 1025), 0)):
        key = "base_model.model.q.lokr_w"
        tensors = {f"{key}1": np.zeros(shape, np.float32), f"{key}2": np.zeros((1, 1), np.float32)}
        save_file(tensors, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
        assert len(open_adapter(tmp_path)[1].modules) == found


def test_the_largest_array_that_pooling_may_make_is_the_limit_itself():
    assert MOST_ELEMENTS == 1 << 27
    shapes = (1, MOST_ELEMENTS // 2), (6, 1)
    pair = _pooled(2, *shapes, lambda: np.zeros(0), lambda: np.zeros(0))
    assert (pair.out, pair.inner, pair.r) == (6, MOST_ELEMENTS, 1)
    for size in (3, 0):
        with pytest.raises(UnsuitableError, match=f"a QALoRA group size of {size} does not fit A of shape"):
            _pooled(size, *shapes, lambda: np.zeros(0), lambda: np.zeros(0))

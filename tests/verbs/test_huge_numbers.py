"""Adapters in float64 whose squares are near the end of its range, or beyond it: numbers or words, no traceback."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from gradience import AdapterError, audit_adapter, compare_adapters, merge_check, resize_adapter
from gradience.verbs.merge.check import cosine_of, kept_of

FACTS = {1e60: True, 1e80: False}  # of each factor's entries, and whether the square of their update is in range


def adapter(folder: Path, size: float) -> Path:
    """A huge module q of rank 1, and v of twice its norm."""
    folder.mkdir()
    tensors = {}
    for name, by in (("q", 1.0), ("v", 2.0)):
        tensors[f"base_model.model.{name}.lora_A.weight"] = np.full((1, 4), size)
        tensors[f"base_model.model.{name}.lora_B.weight"] = np.full((9, 1), by * size)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q", "v"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@pytest.mark.parametrize("size", FACTS)
def test_norms_shares_and_cosines_of_huge_updates(size, tmp_path):
    one = adapter(tmp_path / "one", size)
    report = audit_adapter(one)
    norms = [size * size * math.sqrt(4 * 9) * by for by in (1.0, 2.0)]
    assert [row.frobenius_norm for row in report.modules] == pytest.approx(norms)
    assert [row.energy_share for row in report.modules] == pytest.approx([0.2, 0.8])
    assert report.candidates == []
    pair = compare_adapters(one, one).pairs[0]
    assert pair.cosine == (pytest.approx(1.0) if FACTS[size] else None)
    if FACTS[size]:
        checked = merge_check(one, one)
        assert checked.pairs[0].cosine == pytest.approx(1.0)
        assert [(side.kept.coefficient, side.kept.other) for side in checked.adapters] == [
            (pytest.approx(1.0), pytest.approx(0.0, abs=1e-9))
        ] * 2
        assert resize_adapter(one, rank=1).relative_error == 0.0
        return
    for out in (None, tmp_path / "out"):
        with pytest.raises(AdapterError) as error:
            resize_adapter(one, out, rank=1)
        assert error.value.message == "q: the square of its norm is over the range of float64"
        assert error.value.advice == "lower its alpha"
        assert not (tmp_path / "out").exists()


def test_ratios_of_inner_products_that_have_no_product():
    table = np.array([[4.0, -2.0], [-2.0, 9.0]]) * 1e250
    assert cosine_of(table, [1.0, 2.0], (0, 1)) == pytest.approx(-1 / 3)
    kept = kept_of(table, [1.0, 2.0], 1)  # along 16, whole 4 - 8 + 36
    assert (kept.coefficient, kept.other) == (pytest.approx(16 / 9), pytest.approx(1 - 256 / (9 * 32)))

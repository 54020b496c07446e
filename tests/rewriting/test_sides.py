"""A config, or weights with their own config beside them, are read where they lie by each verb that rewrites."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from adapter_files import lora, saved
from safetensors.numpy import load_file

from gradience import convert_adapter, resize_adapter


@pytest.mark.parametrize("elsewhere", ["adapter_config", "weights"])
def test_what_lies_elsewhere_is_read_from_there(elsewhere: str, tmp_path: Path) -> None:
    path = "model.layers.0.self_attn.q_proj"
    here = saved(tmp_path / "here", lora(path), lora_alpha=4)
    there = saved(tmp_path / "there", lora(path, d_out=7), lora_alpha=6)
    name = {"adapter_config": "adapter_config.json", "weights": "adapter_model.safetensors"}[elsewhere]
    resize_adapter(here, tmp_path / "cut", rank=1, **{elsewhere: there / name})
    convert_adapter(here, tmp_path / "mlx", to="mlx", **{elsewhere: there / name})
    width = 5 if elsewhere == "adapter_config" else 7
    cut = json.loads((tmp_path / "cut" / "adapter_config.json").read_text())
    assert cut["lora_alpha"] / cut["r"] == 3.0
    assert json.loads((tmp_path / "mlx" / "adapter_config.json").read_text())["lora_parameters"]["scale"] == 3.0
    assert [x.shape for x in load_file(tmp_path / "cut" / "adapter_model.safetensors").values()] == [(1, 3), (width, 1)]
    assert {x.shape for x in load_file(tmp_path / "mlx" / "adapters.safetensors").values()} == {(3, 2), (2, width)}

"""A save under DeepSpeed ZeRO-3 without gathering: its tensors of shape [0] are named as that, by every verb."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from gradience.adapters.open import open_adapter
from gradience.cli.main import main
from gradience.errors import AdapterError


def ungathered(folder: Path, *, kind: str = "LORA", part: str = "lora_A.weight", whole: int = 0) -> Path:
    """An adapter of six tensors, of which only the first `whole` have their numbers."""
    folder.mkdir(parents=True)
    names = [f"base_model.model.model.layers.{i}.self_attn.q_proj.{part}" for i in range(6)]
    tensors = {name: np.ones((2, 3) if i < whole else 0, np.float32) for i, name in enumerate(names)}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": kind, "r": 2, "target_modules": ["q_proj"]}))
    return folder


@pytest.mark.parametrize(
    ("kind", "part", "whole", "said"),
    [
        ("LORA", "lora_A.weight", 0, "6 of 6 tensors have shape [0] (first: base_model.model.model.layers.0."),
        ("LORA", "lora_A.weight", 2, "4 of 6 tensors have shape [0] (first: base_model.model.model.layers.2."),
        ("OFT", "oft_R.weight", 5, "1 of 6 tensors have shape [0] (first: base_model.model.model.layers.5."),
    ],
)
def test_it_is_named_with_the_cure(kind, part, whole, said, tmp_path):
    folder = ungathered(tmp_path / "adapter", kind=kind, part=part, whole=whole)
    with pytest.raises(AdapterError) as raised:
        open_adapter(folder)
    assert said in str(raised.value)
    assert "DeepSpeed ZeRO-3 saved them without gathering" in str(raised.value)
    assert "stage3_gather_16bit_weights_on_model_save" in str(raised.value)
    assert "run the checkpoint's zero_to_fp32.py" in str(raised.value)


def test_a_rank_of_zero_is_none(tmp_path):
    folder = ungathered(tmp_path / "adapter", whole=6)
    save_file({"base_model.model.q.lora_A.weight": np.ones((0, 3), np.float32)}, folder / "adapter_model.safetensors")
    assert open_adapter(folder)[1].skipped[0].reason == "lora_B is missing beside lora_A"


@pytest.mark.parametrize(
    "words",
    [
        ["audit", "{}"],
        ["check", "--peft-dir", "{}"],
        ["resize", "{}", "--rank", "1", "--out", "{}-out"],
        ["convert", "{}", "--out", "{}-out"],
        ["compare", "{}", "{}"],
        ["merge", "{}", "{}", "--out", "{}-out"],
    ],
    ids=lambda words: words[0],
)
def test_every_verb_that_opens_one_ends_with_one_line(words, tmp_path, capsys):
    folder = ungathered(tmp_path / "adapter")
    assert main([word.replace("{}", str(folder)) for word in words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert "tensors have shape [0]" in line
    assert "zero_to_fp32.py" in line


def test_a_config_is_checked_where_the_weights_are_damaged(tmp_path, capsys):
    folder = ungathered(tmp_path / "adapter", whole=6)
    (folder / "adapter_model.safetensors").write_bytes(b"{")
    assert main(["check", "--peft-dir", str(folder)]) == 0
    assert "GRADIENCE" in capsys.readouterr().out

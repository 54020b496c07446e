"""What PEFT loads of an adapter whose names are wrong, beside what the audit says of it: PEFT itself is the oracle."""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from tables import every
from tiny_models import causal, mixtral

from gradience import audit_adapter

PREFIX = "base_model.model."
WEIGHTS = "adapter_model.safetensors"


class Trained(NamedTuple):
    """A base in its folder, and a folder with an adapter on it whose lora_B are all filled."""

    model: Any
    base: Path
    adapter: Path


def trained(model: Any, folder: Path, **config: Any) -> Trained:
    from peft import LoraConfig, get_peft_model

    base, adapter = folder / "base", folder / "adapter"
    model.save_pretrained(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(copy.deepcopy(model), LoraConfig(**{"r": 2, "task_type": "CAUSAL_LM", **config}))
        adapted.save_pretrained(adapter)
    tensors = load_file(adapter / WEIGHTS)
    filled = {name: torch.full_like(t, 0.1) if "lora_B" in name else t for name, t in tensors.items()}
    save_file(filled, adapter / WEIGHTS)
    return Trained(model, base, adapter)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained(causal(), tmp_path_factory.mktemp("llama"), target_modules=["q_proj", "up_proj"])


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    stacks = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    folder = tmp_path_factory.mktemp("experts")
    return trained(mixtral(), folder, target_modules=["q_proj"], target_parameters=stacks)


def changed(of: Trained, folder: Path, rename: Callable[[str], str | None], **config: Any) -> Path:
    """A copy of the adapter with other names, and with other settings."""
    shutil.copytree(of.adapter, folder)
    tensors = load_file(folder / WEIGHTS)
    save_file({new: t for name, t in tensors.items() if (new := rename(name)) is not None}, folder / WEIGHTS)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def lost(of: Trained, folder: Path) -> int:
    """How many modules PEFT leaves at zero where it loads the adapter."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = PeftModel.from_pretrained(copy.deepcopy(of.model), folder)
    return sum(not bool(p.any()) for name, p in loaded.named_parameters() if "lora_B" in name)


def said(of: Trained, folder: Path) -> dict[str, Any]:
    """What the audit says is not loaded, by rule."""
    report = audit_adapter(folder, base=of.base)
    return {
        finding.id: finding.values.get("lost", finding.values.get("tensors"))
        for finding in report.findings
        if finding.id.startswith("LOD")
    }


def without(part: str, more: str = "") -> Callable[[str], str]:
    return lambda name: name.replace(part, more, 1)


@every(
    ("rename", "config", "gone", "says"),
    [
        (lambda name: name, {}, 0, {}),
        (without(PREFIX), {}, 4, {"LOD401": 8}),
        (without(PREFIX, PREFIX * 2), {}, 4, {"LOD401": 8}),
        (without(".weight", ".default.weight"), {}, 0, {"LOD401": 8}),  # up to 0.18 all four
        (without(".weight", ".mine.weight"), {}, 4, {"LOD401": 8}),
        (without(PREFIX, f"{PREFIX}_orig_mod."), {}, 4, {"LOD401": 8}),
        (without(f"{PREFIX}model.", PREFIX), {}, 4, {"LOD402": 4}),
        (without(f"{PREFIX}model.", f"{PREFIX}model.language_model."), {}, 4, {"LOD402": 4}),
        (without("layers.1.self_attn", "layers.7.self_attn"), {}, 1, {"LOD402": 1}),
        (lambda name: None if "layers.1." in name else name, {}, 2, {"LOD404": 2}),
        (lambda name: name, {"target_modules": ["q_proj"]}, 0, {"LOD405": 2}),  # the others get no adapter at all
        (lambda name: name, {"layers_to_transform": [0]}, 0, {"LOD405": 2}),
        (lambda name: name, {"target_modules": r".*\.(q|up)_proj"}, 0, {}),
    ],
)
def test_what_peft_passes_over_is_told(tmp_path_factory, llama, rename, config, gone, says):
    folder = changed(llama, tmp_path_factory.mktemp("changed") / "adapter", rename, **config)
    assert (lost(llama, folder), said(llama, folder)) == (gone, says)


def test_experts_whose_axes_are_swapped_are_refused_by_peft_and_told(tmp_path, experts):
    assert said(experts, experts.adapter) == {}
    folder = changed(experts, tmp_path / "adapter", lambda name: name)
    tensors = load_file(folder / WEIGHTS)
    stacks = {name.rpartition(".lora_")[0] for name in tensors if ".experts." in name}
    for stem in stacks:
        a, b = (f"{stem}.lora_{side}.weight" for side in "AB")
        tensors[a], tensors[b] = tensors[b].T.contiguous(), tensors[a].T.contiguous()
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(RuntimeError, match="size mismatch"):
        lost(experts, folder)
    found = next(each for each in audit_adapter(folder, base=experts.base).findings if each.id == "LOD403")
    assert found.message.count("(its axes are swapped)") == 2
    assert found.values["modules"] == len(stacks)


def test_without_a_base_the_names_of_the_family_tell(tmp_path, llama):
    bare = changed(
        llama, tmp_path / "bare", without(f"{PREFIX}model.", PREFIX), base_model_name_or_path="Qwen/Qwen3-4B"
    )
    found = next(each for each in audit_adapter(bare).findings if each.id == "LOD402")
    assert found.message == (
        "4 of 4 modules exist only after adding `model.` (layers.0.mlp.up_proj is model.layers.0.mlp.up_proj) in "
        "Qwen/Qwen3-4B, by the names of the family Llama: PEFT loads none of them."
    )
    fitting = changed(llama, tmp_path / "fitting", lambda name: name, base_model_name_or_path="Qwen/Qwen3-4B")
    unknown = changed(llama, tmp_path / "unknown", lambda name: name, base_model_name_or_path="nobody/knows")
    reasons = [
        {each.id: each.reason for each in audit_adapter(folder).not_run}.get("LOD402") for folder in (fitting, unknown)
    ]
    assert reasons == [None, "no config of the base is at hand, and its name is of no family known here (--base)"]

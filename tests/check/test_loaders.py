"""What is said of transformers and PEFT as engines, judged by loading adapters with them."""

from __future__ import annotations

from importlib.metadata import version

import pytest
import torch
from safetensors.torch import load_file, save_file
from tables import every
from tiny_models import causal

from gradience import check_config

OLDER = tuple(map(int, version("transformers").split(".")[:2])) < (5, 24)
IDS = torch.tensor([[3, 1, 5, 9, 7, 8, 11, 20]])


@every(
    ("settings", "renamed", "by_transformers", "rules"),
    [
        ({}, False, "same", []),
        ({"use_rslora": True}, False, "same", []),
        ({"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 3}}, False, "same", []),
        ({"modules_to_save": ["lm_head"]}, False, "same", []),
        ({"trainable_token_indices": [1, 5]}, False, "same", []),
        ({"use_dora": True}, False, "other", ["SRV002"]),
        ({"alora_invocation_tokens": [7, 8]}, False, "base", ["SRV003"]),
        ({}, True, "base", None),  # told beside the base only
    ],
)
@pytest.mark.skipif(OLDER, reason="what is said is of transformers 5.24")
@pytest.mark.filterwarnings("ignore")
def test_transformers_loads_what_is_said_of_it(settings, renamed, by_transformers, rules, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    given = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    base = causal()
    base.save_pretrained(tmp_path / "base")
    model = get_peft_model(base, LoraConfig(**given, **settings))
    draw = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=draw)
    adapter = tmp_path / "adapter"
    model.save_pretrained(adapter)
    if renamed:
        file = adapter / "adapter_model.safetensors"
        save_file({k.replace("model.layers", "language_model.layers"): v for k, v in load_file(file).items()}, file)

    def loaded():
        return AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32).eval()

    mine = loaded()
    mine.load_adapter(str(adapter))
    with torch.no_grad():
        plain, found = loaded()(IDS).logits, mine.eval()(IDS).logits
        truth = PeftModel.from_pretrained(loaded(), adapter).eval()(IDS).logits
    if renamed:
        assert torch.equal(truth, plain)  # PEFT's engine loses it too
    is_base, is_same = torch.allclose(found, plain, atol=1e-4), torch.allclose(found, truth, atol=1e-4)
    assert ("base" if is_base else "same" if is_same else "other") == by_transformers
    if rules is not None:
        report = check_config(document=adapter, serve=["transformers@5.24"], select=["SRV"])
        assert [item.id for item in report.findings] == rules

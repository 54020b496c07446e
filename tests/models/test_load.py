"""A base and its adapters load whole or not at all, and what does not fit is named."""

from __future__ import annotations

import json
import shutil

import peft_models
import pytest
import torch
from tiny_models import bert, causal, saved, write_texts

from gradience.errors import AdapterError
from gradience.models import active, drop_adapter, load_adapter, load_model
from gradience.models.inputs import batches, read_inputs
from gradience.models.outputs import logits_of


def one_batch(loaded, folder):
    inputs = read_inputs(write_texts(folder / "t.txt", 6), loaded, most=6)
    return batches(inputs.examples, tokens=1000, pad=loaded.pad)[0]


def test_a_loaded_model_computes_what_peft_computes_and_asks_for_no_gradient(llama, loaded, tmp_path):
    from transformers import AutoModelForCausalLM

    batch = one_batch(loaded, tmp_path)
    model = peft_models.loaded(AutoModelForCausalLM.from_pretrained(llama.base, dtype=torch.float32), llama.adapter)
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor(batch.ids), attention_mask=torch.tensor(batch.mask)).logits
        assert torch.equal(logits_of(loaded, batch), wanted[torch.tensor(batch.counts)])
    assert loaded.task == "causal-lm"
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert not loaded.model.training


def test_a_head_that_only_the_adapter_has_is_taken_from_it(classifier):
    loaded = load_model(classifier.base, classifier.adapter)
    assert loaded.task == "sequence-classification"
    assert loaded.model.base_model.model.classifier.modules_to_save["default"].weight.shape == (3, 16)


def test_a_head_that_neither_has_is_refused(classifier, tmp_path):
    without = shutil.copytree(classifier.adapter, tmp_path / "a")
    config = json.loads((without / "adapter_config.json").read_text())
    (without / "adapter_config.json").write_text(json.dumps({**config, "modules_to_save": None}))
    from safetensors.torch import load_file, save_file

    weights = load_file(without / "adapter_model.safetensors")
    save_file({k: v for k, v in weights.items() if "lora" in k}, without / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="neither in the base nor in the adapter"):
        load_model(classifier.base, without)


def test_the_task_comes_from_the_bases_architecture_where_the_adapter_names_none(tmp_path):
    made = saved(bert("Token"), tmp_path, r=2, target_modules=["query"])
    assert load_model(made.base, made.adapter).task == "token-classification"


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (
            lambda: causal(width=20),
            "down_proj.weight is of shape [20, 24] in the base, and the adapter's update of [16, 24]",
        ),
        (lambda: causal(layers=1), "the base has no model.layers.1"),
    ],
    ids=["wider", "shallower"],
)
def test_a_base_that_does_not_fit_is_named_by_its_first_weight(llama, tmp_path, model, says):
    other = saved(model(), tmp_path, r=2, target_modules=["q_proj"])
    with pytest.raises(AdapterError) as caught:
        load_model(other.base, llama.adapter)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_base_and_a_task_that_is_not_run_are_refused(llama, tmp_path):
    with pytest.raises(AdapterError, match="no base model at"):
        load_model(tmp_path, llama.adapter)
    other = shutil.copytree(llama.adapter, tmp_path / "a")
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**config, "task_type": "SEQ_2_SEQ_LM"}))
    with pytest.raises(AdapterError, match="SEQ_2_SEQ_LM is not run here"):
        load_model(llama.base, other)


def test_a_base_with_an_adapter_beside_it_is_refused_since_transformers_would_load_both(llama, tmp_path):
    base = shutil.copytree(llama.base, tmp_path / "base")
    shutil.copytree(llama.adapter, base, dirs_exist_ok=True)
    with pytest.raises(AdapterError, match="it holds an adapter too, which would be loaded on top"):
        load_model(base)
    (base / "adapter_config.json").unlink()
    assert not any(".lora_" in name for name, _ in load_model(base).model.named_parameters())


def test_another_adapter_is_active_in_its_block_only_and_none_is_the_base(llama, tmp_path):
    loaded = load_model(llama.base, llama.adapter)
    batch = one_batch(loaded, tmp_path)
    other = saved(causal(), tmp_path, r=2, target_modules=["o_proj"], task_type="CAUSAL_LM")
    load_adapter(loaded, other.adapter, "other")
    alone, plain = load_model(other.base, other.adapter), load_model(llama.base)
    with torch.no_grad():
        before = logits_of(loaded, batch)
        with active(loaded, "other"):
            assert torch.allclose(logits_of(loaded, batch), logits_of(alone, batch), atol=1e-6)
        with active(loaded, None):
            assert torch.allclose(logits_of(loaded, batch), logits_of(plain, batch), atol=1e-6)
        assert torch.equal(logits_of(loaded, batch), before)
    assert not any(p.requires_grad for p in loaded.model.parameters())
    drop_adapter(loaded, "other")
    assert list(loaded.model.peft_config) == ["default"]

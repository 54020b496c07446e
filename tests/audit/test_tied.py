"""Tied embeddings and QALoRA as PEFT really saves and merges them."""

from __future__ import annotations

import shutil

import pytest

from gradience.verbs.audit.run import audit_adapter

pytest.importorskip("peft", reason="needs the hf extra: pip install -e '.[hf]'")
# PEFT warns of tied weights
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    """A function that saves an adapter of a tiny Llama with tied embeddings, and returns base, adapter and |change|."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    place = tmp_path_factory.mktemp("tied")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=64, tie_word_embeddings=True, **shape)).save_pretrained(place / "base")

    def save(name, **config):
        base = LlamaForCausalLM.from_pretrained(place / "base")
        before = base.lm_head.weight.detach().clone()
        model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, **config))
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                torch.nn.init.normal_(parameter, std=0.05)
        model.save_pretrained(place / name)
        change = model.merge_and_unload().get_input_embeddings().weight - before
        return place / "base", place / name, float(change.detach().norm())

    return save


def test_a_head_that_the_base_ties_is_compared_with_the_embedding(tied):
    base, adapter, change = tied("head", target_modules=["q_proj", "lm_head"])
    report = audit_adapter(adapter, base=base)
    assert (report.base.compared, report.base.not_compared) == (3, [])
    head = next(module for module in report.modules if module.name == "lm_head")
    assert head.base.weight == "model.embed_tokens.weight"
    assert head.frobenius_norm == pytest.approx(change, rel=1e-4)
    assert any("the base ties lm_head to model.embed_tokens.weight" in note for note in report.base.notes)


def test_a_shared_update_is_listed_once_and_the_merge_adds_it_twice(tied):
    base, adapter, change = tied("both", target_modules=["q_proj", "embed_tokens"], ensure_weight_tying=True)
    report = audit_adapter(adapter, base=base)
    (embedding,) = [module for module in report.modules if module.module_type == "embedding"]
    assert (embedding.name, report.base.not_compared) == ("model.embed_tokens", [])
    assert change == pytest.approx(2.0 * embedding.frobenius_norm, rel=1e-4)
    assert any("PEFT's merge adds it twice to the one weight" in note for note in report.notes)


def test_copies_of_a_shared_update_that_differ_are_both_listed_and_said(tied, tmp_path):
    from safetensors.torch import load_file, save_file

    _, adapter, _ = tied("both", target_modules=["q_proj", "embed_tokens"], ensure_weight_tying=True)
    shutil.copytree(adapter, tmp_path / "a")
    weights = tmp_path / "a" / "adapter_model.safetensors"
    tensors = load_file(weights)
    (name,) = [name for name in tensors if "lm_head" in name and "_B" in name]
    tensors[name][0, 0] += 1.0
    save_file(tensors, weights)
    report = audit_adapter(tmp_path / "a")
    assert {"lm_head", "model.embed_tokens"} <= {module.name for module in report.modules}
    assert [note.split(": ")[0] for note in report.notes] == [
        "lm_head and model.embed_tokens share one update in training (ensure_weight_tying), but the file holds two"
    ]


def test_qalora_is_plain_lora_on_a_base_that_is_not_quantised(tied):
    from safetensors.torch import load_file

    base, adapter, _ = tied("qalora", target_modules=["q_proj", "v_proj"], use_qalora=True, qalora_group_size=8)
    plain = tied("plain", target_modules=["q_proj", "v_proj"])[1]
    report = audit_adapter(adapter, base=base)
    assert [module.shape for module in report.modules] == [module.shape for module in audit_adapter(plain).modules]
    assert (report.base.compared, report.base.not_compared) == (4, [])
    assert not [finding for finding in report.findings if finding.id == "BAS211"]
    held = load_file(adapter / "adapter_model.safetensors")
    for module in report.modules:
        a, b = (held[f"base_model.model.{module.name}.lora_{side}.weight"] for side in "AB")
        assert module.frobenius_norm == pytest.approx(2.0 * float((b @ a).norm()), rel=1e-5)
    unknown = audit_adapter(adapter).modules[0]  # no file of the adapter says what kind of base it was
    assert (unknown.state, unknown.frobenius_norm) == ("not_known", None)
    assert unknown.note == (
        "use_qalora: PEFT averages the inputs on a base of GPTQ and on no other: "
        "its update follows only with the base (--base)"
    )

"""A configuration's reach in a base of two small layers, counted on paper."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from tables import every

from gradience.base.coverage import Vocabulary, cover, read_vocabulary, stem_of, stem_of_targets
from gradience.base.peft_emulation import Architecture
from gradience.base.peft_emulation.layout import Site, build_layout, sites_of
from gradience.base.peft_emulation.targets import NotFollowedError
from gradience.schema.events import ConfigSnapshot, LoraSnapshot, OptimizerSnapshot

VOCABULARY, WIDTH, INNER = 30, 8, 12
LAYER = {
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.v_proj": (4, WIDTH),
    "mlp.up_proj": (INNER, WIDTH),
    "mlp.down_proj": (WIDTH, INNER),
}


def llama(*, dtype: str = "BF16", head: bool = True, **more: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], str]]:
    """The tensors of a model of two layers: those of `LAYER`, with norms and a bias on v_proj."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, WIDTH),
        "model.norm.weight": (WIDTH,),
    }
    for layer in (0, 1):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in LAYER.items()}
        shapes[f"model.layers.{layer}.self_attn.v_proj.bias"] = (4,)
        shapes[f"model.layers.{layer}.input_layernorm.weight"] = (WIDTH,)
    if head:
        shapes["lm_head.weight"] = (VOCABULARY, WIDTH)
    return {
        name: (shape, dtype) for name, shape in (shapes | {k.replace("__", "."): v for k, v in more.items()}).items()
    }


def covered(
    tensors: dict[str, tuple[tuple[int, ...], str]],
    *,
    model: str = "llama",
    version: str = "5.1",
    optimizer: str | None = None,
    **lora: Any,
) -> Any:
    layout = build_layout(Architecture(model_type=model, architectures=["XForCausalLM"]), tensors, transformers=version)
    config = ConfigSnapshot(lora=LoraSnapshot(**{"r": 2, **lora}), optimizer=OptimizerSnapshot(name=optimizer))
    return cover(config, layout, base="b")


def test_parameters_are_rank_times_both_sides():
    found = covered(llama(), target_modules=["q_proj", "down_proj"])
    assert (found.modules, found.layers, found.layers_total) == (4, 2, 2)
    assert found.by_type == {"attn": 2, "mlp": 2}
    assert found.lora_params == found.trainable_params == 2 * 2 * ((8 + 8) + (8 + 12))
    per_layer = 64 + 32 + 4 + 96 + 96 + 8
    assert found.base_params == 2 * per_layer + 8 + 2 * 240
    assert (found.vocabulary, found.embedding_trained, found.base, found.layout) == (30, False, "b", "transformers 5")


def test_patterns_layers_and_biases_change_what_is_counted():
    assert (
        covered(llama(), target_modules=["q_proj"], rank_pattern={"0.self_attn.q_proj": 5, "q_proj": 3}).lora_params
        == (5 + 3) * 16
    )
    one = covered(llama(), target_modules=["q_proj"], extras={"layers_to_transform": 1})
    assert (one.layers, one.lora_params) == (1, 2 * 16)
    dora = covered(llama(), target_modules=["v_proj"], use_dora=True)
    assert dora.lora_params == 2 * (2 * (4 + 8) + 4)
    both = covered(llama(), target_modules=["v_proj"], use_dora=True, extras={"lora_bias": True})
    assert both.lora_params == 2 * (2 * (4 + 8) + 4 + 4)
    assert covered(llama(), target_modules=["embed_tokens"], use_dora=True).lora_params == 2 * (30 + 8) + 8
    assert covered(llama(), target_modules=["q_proj"], rank_pattern={"q_proj": 0}).lora_params is None
    assert covered(llama(), target_modules=["q_proj"], rank_pattern={"q_proj": 1}).lora_params == 2 * 16


@every(("r", "narrow"), [(4, {}), (8, {"v_proj": 2}), (9, {"v_proj": 2, "up_proj": 2})])
def test_a_rank_above_the_smaller_side_of_a_module_is_told_by_its_name(r, narrow):
    assert covered(llama(), r=r, target_modules=["v_proj", "up_proj"]).narrow == narrow


def test_what_is_trained_besides_is_counted_by_kind():
    assert covered(llama(), target_modules=["q_proj"], bias="all").trained_besides == {"bias": 8}
    assert covered(llama(), target_modules=["q_proj"], bias="lora_only").trained_besides == {}
    assert covered(llama(), target_modules=["v_proj"], bias="lora_only").trained_besides == {"bias": 8}
    head = covered(llama(), target_modules=["q_proj"], modules_to_save=["lm_head"])
    assert head.trained_besides == {"modules_to_save": 240}
    assert head.trainable_params == head.lora_params + 240
    rows = covered(llama(), target_modules=["q_proj"], extras={"trainable_token_indices": [3, 3, 7]})
    assert (rows.trained_besides, rows.embedding_trained) == ({"token_rows": 2 * 8}, True)
    assert covered(llama(), target_modules=["embed_tokens"]).embedding_trained
    assert covered(llama(), target_modules=["q_proj"], modules_to_save=["embed_tokens"]).embedding_trained
    tied = {"embed_tokens": [1, 2], "lm_head": [1, 2, 3]}
    assert covered(
        llama(head=False), target_modules=["q_proj"], extras={"trainable_token_indices": tied}
    ).trained_besides == {"token_rows": 16}
    assert covered(llama(), target_modules=["q_proj"], extras={"trainable_token_indices": tied}).trained_besides == {
        "token_rows": 40
    }


EXPERTS = {
    f"model__layers__0__mlp__experts__{n}__{part}__weight": shape
    for n in range(3)
    for part, shape in (("gate_proj", (6, WIDTH)), ("up_proj", (6, WIDTH)), ("down_proj", (WIDTH, 6)))
}


def test_experts_are_stacked_as_transformers_5_has_them():
    tensors = llama(model__layers__0__mlp__gate__weight=(3, WIDTH), **EXPERTS)
    found = covered(
        tensors, model="qwen3_moe", target_modules=["q_proj"], extras={"target_parameters": ["experts.down_proj"]}
    )
    assert found.lora_params == 2 * 2 * 16 + 2 * 3 * (8 + 6)
    assert found.notes == ["1 stacks of experts are 3-D parameters that no target reaches: target_parameters would"]
    doubled = covered(tensors, model="qwen3_moe", target_modules=["gate_proj", "up_proj"])
    assert doubled.lora_params == 4 * 3 * (12 + 8)  # a name that stands for experts reaches no layer beside them
    assert "PEFT doubles rank and alpha where it fuses two targets (gate_up_proj)" in doubled.notes
    router = covered(
        tensors,
        model="qwen3_moe",
        target_modules=["q_proj"],
        use_dora=True,
        extras={"target_parameters": ["gate.weight"]},
    )
    assert [one.reason for one in router.refused] == ["a parameter (target_parameters): PEFT refuses use_dora there"]
    old = covered(tensors, model="qwen3_moe", version="4.57", target_modules=["down_proj"])
    assert old.lora_params == 2 * (2 * (8 + 12) + 3 * (8 + 6))


def test_convolutions_are_ungrouped_and_depthwise_ones_are_not_counted():
    conv = llama(model__layers__0__conv__weight=(16, 8, 3))
    assert covered(conv, target_modules=["conv"]).lora_params == 2 * (8 * 3 + 16)
    assert covered(conv, target_modules=["conv"]).notes == [
        "convolutions are counted as ungrouped: the headers do not give their groups"
    ]
    assert covered(llama(model__layers__0__conv__weight=(16, 1, 3)), target_modules=["conv"]).lora_params is None
    assert covered(llama(model__layers__0__conv__weight=(1, 1, 3)), target_modules=["conv"]).lora_params == 2 * (3 + 1)


def test_gpt2_stores_its_layers_turned():
    tensors = {"transformer.wte.weight": ((9, 4), "F32"), "transformer.h.0.attn.c_attn.weight": ((4, 12), "F32")}
    layout = build_layout(Architecture(model_type="gpt2", architectures=["GPT2LMHeadModel"]), tensors)
    assert layout.sites["transformer.h.0.attn.c_attn"].shape == (12, 4)
    assert layout.sites["lm_head"] == Site("linear", (9, 4), 36, 0, "F32", tied=True)
    assert (layout.transformers, layout.output, layout.embedding) == (5, "lm_head", "transformer.wte")


# --- bytes -------------------------------------------------------------------------------------------------------


@every(
    ("optimizer", "moments", "each", "says"),
    [
        ("adamw_torch", 2, 4, "Adam family: two moments and a gradient for each trained number"),
        (None, 2, 4, "Adam family: two moments and a gradient for each trained number"),
        ("paged_adamw_8bit", 2, 1, "8-bit Adam: two 1-byte moments (block constants not counted)"),
        ("lion_32bit", 1, 4, "Lion: one moment and a gradient for each trained number"),
        ("lion_8bit", 1, 1, "8-bit Lion: one 1-byte moment (block constants not counted)"),
        ("sgd", None, 0, None),
    ],
)
def test_memory_is_that_of_numbers_gradients_and_moments(optimizer, moments, each, says):
    found = covered(llama(), target_modules=["q_proj"], optimizer=optimizer)
    n = found.lora_params
    assert (found.adapter_dtype, found.adapter_bytes) == ("float32", 4 * n)
    assert found.optimizer_bytes == (None if moments is None else 4 * n + moments * each * n)
    assert found.optimizer_assumption == ("" if says is None else f"{says}, in float32; the base loaded in bfloat16")


@every(("half", "missing"), [("gate_proj", "up_proj"), ("up_proj", "gate_proj")])
def test_one_half_of_what_transformers_5_fuses_is_refused_by_both_names(half, missing):
    tensors = llama(**EXPERTS)
    with pytest.raises(NotFollowedError) as error:
        covered(tensors, model="qwen3_moe", target_modules=["q_proj", half])
    assert str(error.value) == f"PEFT refuses {half} without {missing}: transformers 5 fuses them"
    assert covered(tensors, model="qwen3_moe", version="4.57", target_modules=["q_proj", half]).modules > 2


@every(("shape", "kind"), [((3,), "other"), ((3, 4), "parameter"), ((2, 3, 4), "parameter"), ((), "other")])
def test_what_is_no_weight_of_a_module_is_a_parameter_from_two_axes_on(shape, kind):
    architecture = Architecture(model_type="llama", architectures=["XForCausalLM"])
    site = sites_of(architecture, {"model.scale": (shape, "F32")})["model.scale"]
    assert (site.kind, site.shape, site.entries) == (kind, shape, int(np.prod(shape)))


def test_a_vocabulary_is_what_the_files_of_a_tokenizer_list(tmp_path):
    assert read_vocabulary(tmp_path) is None
    (tmp_path / "added_tokens.json").write_text('{"<a>": 7}')
    assert read_vocabulary(tmp_path) == Vocabulary({"<a>": 7})
    decoder = {"8": {"content": "<b>"}, "0": {"content": "<z>"}, "x": {"content": "<no number>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    assert read_vocabulary(tmp_path) == Vocabulary({"<a>": 7, "<b>": 8, "<z>": 0})
    whole = {"added_tokens": [{"id": 9, "content": "<a>"}], "model": {"vocab": {"x": 0, "y": 1}}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    assert read_vocabulary(tmp_path) == Vocabulary({"<a>": 9, "<b>": 8, "<z>": 0}, frozenset({"x", "y"}))
    (tmp_path / "tokenizer.json").write_text('{"model": {"vocab": [["x", -1.0]]}}')  # a unigram model's
    assert read_vocabulary(tmp_path) == Vocabulary({"<a>": 7, "<b>": 8, "<z>": 0})


VISION = {  # larger than the decoder, and of the same leaves
    f"vision_tower.encoder.layers.0.self_attn.{name}.weight": ((64, 64), "BF16") for name in ("q_proj", "v_proj")
}
INSIDE, PLAIN = "model.language_model", "model"
Q = ".layers.0.self_attn.q_proj"


@every(
    ("stem", "names", "said"),
    [
        (INSIDE, [PLAIN + Q], (PLAIN, INSIDE)),
        (INSIDE, ["language_model.model" + Q], ("language_model.model", INSIDE)),
        (INSIDE, [PLAIN + Q, "lm_head"], (PLAIN, INSIDE)),
        (INSIDE, [INSIDE + Q], None),
        (INSIDE, [PLAIN + Q, "model.layers.0.self_attn.o_proj"], None),  # that would not do for all
        (INSIDE, ["decoder" + Q], None),
        (PLAIN, [INSIDE + Q], (INSIDE, PLAIN)),
        (PLAIN, ["language_model" + Q], ("language_model", PLAIN)),
        (PLAIN, [PLAIN + Q], None),
        ("", [PLAIN + Q], (PLAIN, "")),
    ],
)
def test_names_below_another_stem_are_told_with_both_stems(stem, names, said):
    own = f"{stem}." if stem else ""
    tensors = {own + k.removeprefix("model.") if k.startswith("model.") else k: v for k, v in llama().items()}
    vision = {f"model.{name}": value for name, value in VISION.items()} if stem == INSIDE else {}
    kind = Architecture(model_type="llava", architectures=["XModel" if not stem else "XForConditionalGeneration"])
    layout = build_layout(kind, tensors | vision, transformers="5.1")
    assert stem_of(names, layout) == said
    assert stem_of_targets(LoraSnapshot(r=2, target_modules=names), layout) == said
    if len(names) == 1:
        expression = names[0].replace(".", r"\.").replace("0", r"\d")
        assert stem_of_targets(LoraSnapshot(r=2, target_modules=expression), layout) == said
    renamed = Architecture(model_type="qwen3_5_text", architectures=["XForCausalLM"])
    assert stem_of(names, layout._replace(architecture=renamed)) is None

"""What a module's name says, for the models people fine-tune."""

from __future__ import annotations

from tables import every

from gradience.adapters import layer_index, layer_label, module_type
from gradience.adapters.config import AdapterConfig
from gradience.adapters.formats.assembly import explained, other_role
from gradience.adapters.groups import grouped, on_tied_base
from gradience.adapters.layout import Key, parse_key
from gradience.io import natural_key
from gradience.schema.audit import LeftoverReason

TABLE = [
    # Llama, Mistral, Qwen, Gemma
    ("model.layers.0.self_attn.q_proj", "attn", 0),
    ("model.layers.7.mlp.gate_proj", "mlp", 7),
    ("model.embed_tokens", "embedding", None),
    ("lm_head", "embedding", None),
    ("model.language_model.layers.4.mlp.up_proj", "mlp", 4),
    # Phi, Phi-3
    ("model.layers.2.self_attn.dense", "attn", 2),
    ("model.layers.2.self_attn.qkv_proj", "attn", 2),
    # GPT-2, GPT-J, GPT-NeoX, Falcon, OPT, MPT
    ("transformer.h.5.attn.c_attn", "attn", 5),
    ("transformer.h.5.attn.c_proj", "attn", 5),
    ("transformer.h.5.mlp.c_fc", "mlp", 5),
    ("transformer.wte", "embedding", None),
    ("gpt_neox.layers.3.attention.query_key_value", "attn", 3),
    ("gpt_neox.layers.3.mlp.dense_4h_to_h", "mlp", 3),
    ("gpt_neox.embed_in", "embedding", None),
    ("transformer.h.9.self_attention.dense", "attn", 9),
    ("model.decoder.layers.4.self_attn.out_proj", "attn", 4),
    ("transformer.blocks.8.attn.Wqkv", "attn", 8),
    # DeepSeek, InternLM
    ("model.layers.6.self_attn.kv_a_proj_with_mqa", "attn", 6),
    ("model.layers.6.attention.wo", "attn", 6),
    ("model.layers.6.feed_forward.w1", "mlp", 6),
    # BERT, RoBERTa, DistilBERT
    ("bert.encoder.layer.1.attention.self.query", "attn", 1),
    ("bert.encoder.layer.1.attention.output.dense", "attn", 1),
    ("bert.encoder.layer.1.output.dense", "mlp", 1),
    ("roberta.embeddings.word_embeddings", "embedding", None),
    ("distilbert.transformer.layer.2.attention.q_lin", "attn", 2),
    ("distilbert.transformer.layer.2.ffn.lin1", "mlp", 2),
    # T5, BART, Whisper
    ("encoder.block.3.layer.0.SelfAttention.q", "attn", 3),
    ("encoder.block.3.layer.1.DenseReluDense.wi_0", "mlp", 3),
    ("decoder.block.3.layer.1.EncDecAttention.k", "attn", 103),
    ("decoder.block.3.layer.2.DenseReluDense.wo", "mlp", 103),
    ("shared", "embedding", None),
    # vision: ViT, ConvNeXt of timm and of transformers, Swin, ResNet
    ("stages.1.blocks.2.mlp.fc1", "mlp", 102),
    ("convnext.encoder.stages.2.layers.8.pwconv1", "mlp", 208),
    ("convnext.encoder.stages.2.layers.8.dwconv", "conv", 208),
    ("layers.2.blocks.17.attn.proj", "attn", 217),
    ("layer3.5.conv2", "conv", 305),
    # experts
    ("model.layers.4.block_sparse_moe.experts.6.w1", "mlp", 4),
    ("model.layers.4.block_sparse_moe.gate", "mlp", 4),
    ("model.layers.4.mlp.experts.down_proj:default[6]", "mlp", 4),
    ("model.layers.4.mlp.switch_mlp.gate_proj[2]", "mlp", 4),
    # Mamba, Jamba, linear attention
    ("backbone.layers.12.mixer.in_proj", "ssm", 12),
    ("model.layers.3.mamba.dt_proj", "ssm", 3),
    ("model.layers.3.linear_attn.in_proj_qkvz", "attn", 3),
    # kohya and diffusers
    ("lora_te_text_model_encoder_layers_3_self_attn_q_proj", "attn", 3),
    ("lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj", "mlp", 100),
    ("lora_unet_up_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k", "attn", 201),
    ("lora_unet_down_blocks_1_resnets_0_conv1", "conv", 1),
    ("unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.processor.to_k", "attn", 201),
    ("transformer.transformer_blocks.5.attn.to_q", "attn", 5),
    ("transformer.single_transformer_blocks.5.attn.to_q", "attn", 105),
    # Other
    ("mha", "attn", None),
    ("blocks.0.MLP.x", "mlp", 0),
    ("LM_Head", "embedding", None),
    ("blocks.0.Lora_MLP.x", "mlp", 0),
    ("blocks.0.my_mlp.to_q_lora", "attn", 0),  # the part nearest the leaf, of parts in words too
    ("blocks.0.to_q_lora.my_mlp", "mlp", 0),
    ("layers.0.mamba.conv1d", "conv", 0),  # as of parts that are words
    ("layers.0.moe.attn.x", "attn", 0),
    ("x.q.output", "mlp", None),  # of words that say little too
    ("x.output.q", "attn", None),
    ("layers.0.q_proj:other", "attn", 0),
    ("embed_tokens:other", "embedding", None),
    ("layers.0.w[3]:x.1", "other", 0),
    ("classifier", "other", None),
    ("", "other", None),
    ("layers.99999999999999999999.q_proj", "attn", None),
]


@every(("name", "kind", "layer"), TABLE)
def test_a_name_says_its_type_and_layer(name, kind, layer):
    assert (module_type(name), layer_index(name)) == (kind, layer)


P = "base_model.model."
OTHER_TYPES = (
    "adamss beft boft c3a deft delora fourierft frod glora gralora hada hira hra ia3 lily ln_tuning lokr lora miss oft "
    "osf peanut poly_lora poly psoft pvera randlora road shira supertuning tinylora unilora vblora vera waveft "
    "internal_xlora"
)
ROLES = [
    (f"{P}model.embed_tokens.token_adapter.trainable_tokens_delta", {}, "token_rows"),
    ("base_model.vera_A", {}, "lora_pair"),
    ("base_model.vera_B", {}, "lora_pair"),
    ("base_model.vera_C", {}, "not_analysed"),
    (f"{P}layers.0.q_proj.base_layer.bias", {"bias": "all"}, "bias"),
    (f"{P}layers.0.q_proj.base_layer.bias", {}, "base_copy"),
    (f"{P}layers.0.q_proj.bias", {"bias": "lora_only"}, "bias"),
    (f"{P}layers.0.q_proj.bias", {}, "unknown"),
    (f"{P}lm_head.base_layer.weight", {}, "base_copy"),
    (f"{P}classifier.original_module.weight", {}, "base_copy"),
    (f"{P}model.embed_tokens.token_adapter.base_layer.weight", {}, "base_copy"),
    (f"{P}classifier.modules_to_save.default.weight", {}, "full_module"),
    (f"{P}classifier.weight", {"modules_to_save": ["classifier"]}, "full_module"),
    (f"{P}my_classifier.weight", {"modules_to_save": ["classifier"]}, "full_module"),
    (f"{P}classifier.weight", {"modules_to_save": ["score"]}, "full_module"),  # a task's head, named or not
    (f"{P}model.score.proj.weight", {}, "full_module"),
    (f"{P}layers.0.scorer.weight", {}, "unknown"),
    (f"{P}lm_head.weight", {}, "full_module"),
    (f"{P}model.norm.weight", {}, "unknown"),
    (f"{P}layers.0.q_proj.lora_velora_embed.weight", {}, "not_analysed"),
    ("prompt_embeddings", {}, "not_analysed"),
    ("x.prompt_embeddings", {}, "unknown"),
    (f"{P}layers.0.q_proj.original_module.weight", {"modules_to_save": ["q_proj"]}, "base_copy"),
    *(
        (f"{P}{head}.{leaf}", {}, "full_module")
        for leaf in ("weight", "bias")
        for head in (
            *("score", "classifier", "classification_head", "qa_outputs", "v_head", "value_head", "reward_head"),
            *("summary", "pre_classifier"),
        )
    ),
    (f"{P}a.b.score.weight", {}, "unknown"),  # a head lies in the model itself, or in one part of it
    *((f"{P}q_proj.{kind}_x.default", {}, "not_analysed") for kind in OTHER_TYPES.split()),
]


@every(("key", "fields", "role"), ROLES)
def test_a_tensor_that_is_no_factor_has_the_role_that_peft_gives_it(key, fields, role):
    assert other_role(key, AdapterConfig(**fields)) == role


def test_left_over_tensors_are_named_with_the_cause_that_programs_decide_by():
    names = {
        "x.weight": "unknown",
        "q_proj.lora_velora_embed.weight": "not_analysed",
        "layers.0.ranknum": "not_analysed",
        "q_proj.lora_monteclora_sampler.default.weight": "not_analysed",
        "q_proj.ia3_l": "not_analysed",
        "q_proj.lora_A.weight": "lora_pair",
    }
    assert [(one.name, one.cause) for one in explained(names)] == [
        ("x.weight", LeftoverReason.UNKNOWN),
        ("q_proj.lora_velora_embed.weight", LeftoverReason.TRAINING_ONLY),
        ("layers.0.ranknum", LeftoverReason.TRAINING_ONLY),
        ("q_proj.lora_monteclora_sampler.default.weight", LeftoverReason.TRAINING_ONLY),
        ("q_proj.ia3_l", LeftoverReason.KIND_NOT_ANALYSED),
    ]
    assert [one.reason for one in explained(names)][:2] == [
        "not part of any adapter layout known here",
        "used in training only",
    ]


@every(
    ("names", "first"),
    [
        (["a10", "a9", "a9b"], "a9"),
        (["a999999999", "a1000000000"], "a999999999"),  # nine digits are a number
        (["a2000000000", "a10000000000"], "a10000000000"),  # ten are text
        (["a1.b2", "a1.b10"], "a1.b2"),
        (["a01", "a1.b"], "a01"),
    ],
)
def test_names_are_sorted_by_their_numbers(names, first):
    assert min(names, key=natural_key) == min(reversed(names), key=natural_key) == first


@every(
    ("name", "index", "label"),
    [
        ("model.layers.11.mlp.up_proj", 11, "11"),
        ("Model.Layers.3.q", 3, "3"),
        *((f"x.{stack}.7.y", 7, "7") for stack in (
            "layer", "block", "layer_module", "double_blocks", "resblocks", "transformer_blocks", "h",
        )),
        ("stages.1.blocks.99.x", 199, "1.99"),
        ("stages.1.blocks.100.x", None, "1.100"),  # would be the next stage's
        ("swin.encoder.layers.2.blocks.7.attention.self.query", 207, "2.7"),
        ("layer1.0.conv1", 100, "1.0"),
        ("layer9.11.conv1", 911, "9.11"),
        ("down_blocks.0.to_q", 0, "down.0"),
        ("mid_block.to_q", 100, "mid"),
        ("up_blocks.0.x", 200, "up.0"),
        ("single_blocks.0.x", 100, "single.0"),
        ("decoder.block.7.y", 107, "decoder.7"),
        *((name, None, None) for name in ("players.3.x", "layers.3x", "classifier")),
    ],
)  # fmt: skip
def test_a_layer_counts_from_the_start_of_its_section_and_is_named_by_both(name, index, label):
    assert (layer_index(name), layer_label(name)) == (index, label)


@every(
    ("name", "key"),
    [
        ("base_model.model.h.0.q.lora_A.weight", Key("h.0.q", "lora_A", "", "weight")),
        ("h.0.q.lora_B.one.two.weight", Key("h.0.q", "lora_B", "one.two", "weight")),
        ("q.lora_B.bias", Key("q", "lora_B", "", "bias")),
        ("e.lora_embedding_A.default", Key("e", "lora_embedding_A", "default", "")),
        ("_fsdp_wrapped_module.x._checkpoint_wrapped_module.q.lora_A.weight", Key("x.q", "lora_A", "", "weight")),
        ("m.lora_A.q.lora_B.weight", Key("m.lora_A.q", "lora_B", "", "weight")),
        ("lora_A.weight", None),
        ("q.weight", None),
    ],
)
def test_a_name_is_taken_apart_from_its_end(name, key):
    assert parse_key(name) == key


def test_each_tensor_is_of_one_group():
    attention, experts = f"{P}model.layers.0.self_attn.q_proj", f"{P}model.layers.0.mlp.experts"
    names = [
        f"{attention}.lora_A.weight",
        f"{attention}.lora_B.weight",
        f"{P}model.visual.blocks.0.attn.qkv.lora_A.weight",
        f"{experts}.base_layer.lora_A.weight",
        f"{experts}.lora_B.weight",
        f"{experts}.3.up_proj.lora_A.weight",
        f"{P}lm_head.lora_A.weight",
        f"{P}model.embed_tokens.lora_embedding_A",
        f"{attention}.lora_magnitude_vector",
        f"{attention}.lora_B.bias",
        f"{P}model.layers.0.q.base_layer.bias",
        f"{P}model.embed_tokens.base_layer.weight",
        f"{P}model.embed_tokens.token_adapter.trainable_tokens_delta",
        f"{P}model.score.weight",
        f"{P}lm_head.weight",
    ]
    groups = grouped(names)
    assert groups == {
        "language": ["model.layers.0.self_attn.q_proj"],
        "tower": ["model.visual.blocks.0.attn.qkv"],
        "expert_parameters": ["model.layers.0.mlp.experts.base_layer", "model.layers.0.mlp.experts"],
        "experts": ["model.layers.0.mlp.experts.3.up_proj"],
        "head": ["lm_head"],
        "embedding": ["model.embed_tokens"],
        "magnitudes": ["model.layers.0.self_attn.q_proj"],
        "biases": ["model.layers.0.self_attn.q_proj", "model.layers.0.q.base_layer"],
        "copies": ["model.embed_tokens.base_layer"],
        "token_rows": ["model.embed_tokens.token_adapter"],
        "whole": ["model.score", "lm_head"],
    }
    tied = {"tied_head": ["lm_head"], "tied_whole": ["lm_head"], "whole": ["model.score"]}
    assert on_tied_base(groups) == {key: names for key, names in groups.items() if key != "head"} | tied

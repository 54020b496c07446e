"""Small real models, one of each kind of module tree, made on the spot by transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_BODY = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "vocab_size": 40}
_DECODER = {**_BODY, "num_hidden_layers": 3, "num_key_value_heads": 1}
_ENCODER = {**_BODY, "num_hidden_layers": 2, "max_position_embeddings": 16}
_GPT2 = {"n_embd": 16, "n_layer": 3, "n_head": 2, "vocab_size": 40, "n_positions": 16}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 8}
_DEEPSEEK = {
    **_BODY,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "moe_intermediate_size": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 6,
    "kv_lora_rank": 6,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 4,
}
_VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}

Make = Callable[[Any], Any]

MODELS: dict[str, tuple[str | None, Make]] = {  # name: PEFT's task type, and the model given transformers
    "llama": ("CAUSAL_LM", lambda t: t.LlamaForCausalLM(t.LlamaConfig(**_DECODER))),
    "llama-tied": (
        "CAUSAL_LM",
        lambda t: t.LlamaForCausalLM(t.LlamaConfig(**_DECODER, tie_word_embeddings=True)),
    ),
    "qwen2": (None, lambda t: t.Qwen2ForCausalLM(t.Qwen2Config(**_DECODER))),
    "gemma2": ("CAUSAL_LM", lambda t: t.Gemma2ForCausalLM(t.Gemma2Config(**_DECODER, head_dim=8))),
    "gpt2": ("CAUSAL_LM", lambda t: t.GPT2LMHeadModel(t.GPT2Config(**_GPT2))),
    "gpt-neox": (
        "CAUSAL_LM",
        lambda t: t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**_BODY, num_hidden_layers=3)),
    ),
    "phi": ("CAUSAL_LM", lambda t: t.PhiForCausalLM(t.PhiConfig(**_BODY, num_hidden_layers=2))),
    "mixtral": (
        "CAUSAL_LM",
        lambda t: t.MixtralForCausalLM(t.MixtralConfig(**_DECODER, num_local_experts=3, num_experts_per_tok=2)),
    ),
    "qwen2-moe": (
        "CAUSAL_LM",
        lambda t: t.Qwen2MoeForCausalLM(
            t.Qwen2MoeConfig(**_DECODER, **_EXPERTS, num_experts=3, shared_expert_intermediate_size=12)
        ),
    ),
    "qwen3-moe": (
        "CAUSAL_LM",
        lambda t: t.Qwen3MoeForCausalLM(t.Qwen3MoeConfig(**_DECODER, **_EXPERTS, head_dim=8, num_experts=3)),
    ),
    "deepseek-v3": ("CAUSAL_LM", lambda t: t.DeepseekV3ForCausalLM(t.DeepseekV3Config(**_DEEPSEEK))),
    "gpt-oss": (
        "CAUSAL_LM",
        lambda t: t.GptOssForCausalLM(t.GptOssConfig(**_DECODER, head_dim=8, num_local_experts=3)),
    ),
    "mamba": (
        "CAUSAL_LM",
        lambda t: t.MambaForCausalLM(
            t.MambaConfig(hidden_size=16, num_hidden_layers=2, vocab_size=40, state_size=4)
        ),
    ),
    "distilbert": (
        "SEQ_CLS",
        lambda t: t.DistilBertForSequenceClassification(
            t.DistilBertConfig(
                dim=16, hidden_dim=24, n_layers=2, n_heads=2, vocab_size=40, max_position_embeddings=16
            )
        ),
    ),
    "roberta": ("SEQ_CLS", lambda t: t.RobertaForSequenceClassification(t.RobertaConfig(**_ENCODER))),
    "roberta-no-task": (None, lambda t: t.RobertaForSequenceClassification(t.RobertaConfig(**_ENCODER))),
    "bert-tokens": ("TOKEN_CLS", lambda t: t.BertForTokenClassification(t.BertConfig(**_ENCODER))),
    "t5": (
        "SEQ_2_SEQ_LM",
        lambda t: t.T5ForConditionalGeneration(
            t.T5Config(d_model=16, d_kv=8, d_ff=24, num_layers=2, num_decoder_layers=3, num_heads=2, vocab_size=40)
        ),
    ),
    "bart": (
        "SEQ_2_SEQ_LM",
        lambda t: t.BartForConditionalGeneration(
            t.BartConfig(
                d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
                encoder_ffn_dim=24, decoder_ffn_dim=24, vocab_size=40, max_position_embeddings=16,
            )
        ),
    ),
    "llava": (
        "CAUSAL_LM",
        lambda t: t.LlavaForConditionalGeneration(
            t.LlavaConfig(
                text_config=t.LlamaConfig(**_DECODER),
                vision_config=t.CLIPVisionConfig(**_VISION, image_size=8, patch_size=4),
            )
        ),
    ),
    "convnext": (
        None,
        lambda t: t.ConvNextForImageClassification(t.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 2], num_stages=2)),
    ),
}  # fmt: skip

_Q = ["q_proj", "c_attn", "query", "q_lin", "query_key_value", "q"]

SETTINGS: dict[str, dict[str, Any]] = {  # arguments of peft.LoraConfig besides r
    "PEFT's default": {},
    "all-linear": {"target_modules": "all-linear"},
    "suffixes": {"target_modules": [*_Q, "v_proj"]},
    "an expression": {"target_modules": r".*\.(q_proj|c_attn|q_lin|query|up_proj|w1|w3|gate_proj)"},
    "an expression with layers": {"target_modules": r"model\.layers\.[02]\.self_attn\.(q|k)_proj"},
    "whole names": {
        "target_modules": [
            "model.layers.0.self_attn.q_proj",
            "transformer.h.1.attn.c_attn",
            "distilbert.transformer.layer.0.attention.q_lin",
        ]
    },
    "some layers": {"target_modules": [*_Q, "k_proj", "dense"], "layers_to_transform": [1]},
    "a layer by pattern": {"target_modules": _Q, "layers_to_transform": 0, "layers_pattern": "layers"},
    "excluded suffixes": {"target_modules": "all-linear", "exclude_modules": ["q_proj", "v_lin", "c_attn", "query"]},
    "excluded by expression": {"target_modules": "all-linear", "exclude_modules": r".*mlp.*|.*ffn.*"},
    "embeddings": {"target_modules": ["embed_tokens", "wte", "word_embeddings", "q_proj", "lm_head"]},
    "the MLP": {"target_modules": ["gate_proj", "up_proj", "down_proj"]},
    "half of a fused pair": {"target_modules": ["up_proj"]},
    "Mixtral's old names": {"target_modules": ["w1", "w2", "w3", "gate"]},
    "a block": {"target_modules": ["mlp"]},
    "nothing there": {"target_modules": ["nothing_here"]},
    "whole modules besides": {"target_modules": _Q, "modules_to_save": ["lm_head", "embed_tokens"]},
    "all biases": {"target_modules": "all-linear", "bias": "all"},
    "biases of the adapted": {"target_modules": "all-linear", "bias": "lora_only"},
    "DoRA": {"target_modules": "all-linear", "use_dora": True},
    "a bias on B": {"target_modules": "all-linear", "lora_bias": True},
    "dropout": {"target_modules": "all-linear", "lora_dropout": 0.1},
    "ranks by pattern": {
        "target_modules": "all-linear",
        "rank_pattern": {"q_proj": 3, r".*\.v_proj": 7, "down_proj": 5},
    },
    "token rows": {"target_modules": _Q, "trainable_token_indices": [1, 2]},
    "expert parameters": {"target_modules": [], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
    "a router": {"target_modules": ["q_proj"], "target_parameters": ["experts.down_proj", "gate.weight"]},
    "a head": {"target_modules": ["pre_classifier", "q_lin", "dense"]},
    "the state-space mixer": {"target_modules": ["in_proj", "x_proj"]},
    "Mamba's output": {"target_modules": ["in_proj", "out_proj"]},
}

"""A training step followed without weights: what can be worked out on paper, and what each setting does to it."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    Qwen3MoeConfig,
)

from gradience.models.cost import Follower

VOCABULARY, WIDTH, LAYERS, BATCH, LENGTH = 4096, 64, 2, 4, 128
LORA = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "target_modules": ["q_proj", "v_proj"]}
LOGITS = BATCH * LENGTH * VOCABULARY


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("base"), LlamaConfig, "LlamaForCausalLM")


def saved(folder, kind, head, **changes):
    kind(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=128, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True, dtype=torch.bfloat16,
        architectures=[head], **changes,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def follow(base, **changes):
    step = {"base": str(base), "adapter": LORA, "task": "CAUSAL_LM", "batch": BATCH, "length": LENGTH}
    return Follower().follow({**step, **changes})[0]


@pytest.fixture(scope="module")
def plain(base):
    return follow(base)


def test_the_parts_that_can_be_worked_out_on_paper(base):
    found = follow(base)
    adapter = LAYERS * 8 * ((WIDTH + WIDTH) + (WIDTH + WIDTH // 2))  # rank times the widths of q and v
    assert found["adapter"] == 4 * adapter  # float32, on a base in bfloat16
    assert found["optimizer"] == 8 * adapter
    block = 2 * WIDTH * WIDTH + 2 * WIDTH * WIDTH // 2 + 3 * WIDTH * 128
    least = 2 * (VOCABULARY * WIDTH + LAYERS * block)  # the head is the embedding, and norms are small
    assert least <= found["weights"] <= 1.1 * least
    assert found["loss"] == pytest.approx(3 * 4 * LOGITS, rel=0.01)  # logarithms, and two gradients


@pytest.mark.parametrize(
    ("changes", "part", "times"),
    [
        ({"optimizer": "adamw_8bit"}, "optimizer", (1.0, 1.0)),  # small parameters keep 32-bit states
        ({"optimizer": "sgd"}, "optimizer", (0.0, 0.0)),
        ({"optimizer": "paged_adamw_32bit"}, "optimizer", (0.0, 0.0)),
        ({"adapter_float32": False}, "adapter", (0.5, 0.5)),
        ({"dtype": "float32"}, "weights", (1.9, 2.1)),
        ({"bits": 4}, "weights", (0.5, 0.95)),
        ({"checkpointing": True}, "activations", (0.0, 0.6)),
        ({"attention": "eager"}, "activations", (1.05, 9.0)),
        ({"batch": 8}, "loss", (1.99, 2.01)),
        ({"fused_loss": True}, "loss", (0.0, 0.2)),
        ({"adapter": {**LORA, "lora_dropout": 0.1}}, "activations", (1.01, 1.5)),
        ({"adapter": {**LORA, "use_dora": True}}, "activations", (1.01, 3.0)),
        ({"autocast": "bfloat16"}, "activations", (0.5, 0.99)),
        ({"padded": False}, "activations", (0.5, 0.99)),
    ],
)
def test_a_setting_changes_its_part(base, plain, changes, part, times):
    least, most = times
    assert least <= follow(base, **changes)[part] / plain[part] <= most


def test_where_the_matrices_start_and_a_saved_files_further_keys_change_nothing(base):
    """PiSSA starts from the base's weights; a saved config is for inference, and may be of a later PEFT."""
    pissa = {**LORA, "init_lora_weights": "pissa_niter_4", "inference_mode": True, "of_a_later_peft": 1}
    assert follow(base, adapter=pissa) == follow(base)


def test_an_adapter_that_asks_for_numbers_is_made_of_few_blocks(base):
    """BOFT reads a value of its own as it is made, which a tensor on meta has not."""
    boft = {"peft_type": "BOFT", "boft_block_size": 4, "target_modules": ["q_proj"]}
    found = follow(base, adapter=boft)
    assert found["loss"] == follow(base)["loss"]
    assert found["weights"] > follow(base)["weights"]  # its permutations


TILE = BATCH * (LENGTH - 1) * 32768 * 2  # of scores of all tokens but the last, in bfloat16


def test_pairs_are_twice_the_rows_and_are_scored_in_tiles(base, plain):
    pairs, rows = (follow(base, objective=name, batch=n) for name, n in (("dpo", 3), ("kto", 6)))
    assert pairs == rows
    for name, times in (("kto", 1), ("dpo", 2)):
        found = follow(base, objective=name)
        assert found["loss"] == pytest.approx(times * TILE, rel=0.02)
    assert follow(base, objective="dpo", batch=40)["loss"] == pytest.approx(4096 * 32768 * 2, rel=0.02)
    assert plain["loss"] == pytest.approx(3 * 4 * LOGITS, rel=0.01)


def test_a_reference_is_a_second_model_or_a_pass_that_leaves_nothing(base):
    alone, off = (follow(base, objective="dpo", reference=reference) for reference in ("", "adapter"))
    assert alone == off  # what passes without gradients lives no longer than the backward pass's own tile
    full = {"objective": "dpo", "adapter": {}}
    single, double = (follow(base, **full, reference=reference) for reference in ("", "model"))
    weights = single["adapter"]  # all that is trained
    assert double["weights"] - single["weights"] == pytest.approx(weights, rel=0.01)
    assert {**double, "weights": 0} == {**single, "weights": 0}


def test_all_logits_live_in_orpo_and_none_in_a_reward_model(base):
    orpo = follow(base, objective="orpo", batch=2)["loss"]
    logits = 2 * 2 * LENGTH * VOCABULARY * 2  # two pairs, in bfloat16
    assert orpo == pytest.approx(3 * logits, rel=0.02)
    scored = {**LORA, "task_type": "SEQ_CLS"}
    found = follow(base, objective="reward", batch=2, adapter=scored)
    assert found["loss"] == 0
    assert found["adapter"] == follow(base, batch=4)["adapter"] + 512  # the head of one value, in whole blocks


def test_only_completions_are_scored_and_a_rollout_keeps_the_cache_of_all_its_rows(base):
    step = {"objective": "rl", "completion": 32}
    assert follow(base, **step)["loss"] == pytest.approx(BATCH * 32 * 32768 * 2, rel=0.02)
    assert sum(follow(base, **step, generated=1).values()) == sum(follow(base, **step).values())
    assert rollout(base) == LENGTH * CACHE + ROW


CACHE = 2 * LAYERS * (WIDTH // 2) * 2  # keys and values of a token: two heads of four, in bfloat16
PROMPT = 8  # so short that the last token, and not the prompt, takes the most
# The mask and the prompt's ids, of 64 bits; the last token's logits, in float32 too, and their softmax.
ROW = 8 * (LENGTH + PROMPT) + (2 + 4 + 4) * VOCABULARY


def rollout(base):
    """The bytes of one row that is generated."""
    step = {"objective": "rl", "completion": LENGTH - PROMPT, "batch": 1}
    few, many = (sum(follow(base, **step, generated=rows).values()) for rows in (4096, 12288))
    assert (many - few) % 8192 == 0
    return (many - few) // 8192


def test_a_sliding_window_bounds_the_cache_of_a_rollout(tmp_path):
    window = 96
    assert rollout(saved(tmp_path, MistralConfig, "MistralForCausalLM", sliding_window=window)) == window * CACHE + ROW


def test_gemma_2_caps_its_scores_in_eager_attention_and_keeps_what_was_capped(tmp_path):
    """Of each block the hyperbolic tangent of all scores lives until the backward pass."""
    capped, plain = (
        saved(tmp_path / name, Gemma2Config, "Gemma2ForCausalLM", head_dim=16, attn_logit_softcapping=cap)
        for name, cap in (("capped", 50.0), ("plain", None))
    )
    step = {"adapter": LORA, "task": "CAUSAL_LM", "batch": BATCH, "length": LENGTH}
    _, _, attention = Follower().follow({"base": str(capped), **step})
    with torch.device("meta"):  # transformers itself: up to 5.6 it takes sdpa, which caps nothing
        chosen = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(capped)).config._attn_implementation
    assert attention == chosen
    parts, without = (follow(base, attention="eager") for base in (capped, plain))
    assert parts["activations"] - without["activations"] == LAYERS * BATCH * 4 * LENGTH * LENGTH * 2
    assert {**parts, "activations": 0} == {**without, "activations": 0}


def test_a_model_without_torchs_kernel_attends_as_transformers_lets_it(tmp_path):
    """Bloom adds a slope to its scores; asked for torch's kernel, transformers refuses to make it."""
    bloom = BloomConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, n_layer=LAYERS, n_head=4, dtype=torch.bfloat16)
    bloom.save_pretrained(tmp_path)
    step = {"base": str(tmp_path), "task": "CAUSAL_LM", "batch": BATCH, "length": LENGTH}
    adapter = {**LORA, "target_modules": ["query_key_value"]}
    _, reached, attention = Follower().follow({**step, "adapter": adapter})
    assert attention == "eager"
    assert reached["trainable_params"] == LAYERS * 8 * (WIDTH + 3 * WIDTH)
    assert Follower().attempt({**step, "adapter": adapter, "attention": "sdpa"}) == "ValueError"


def test_an_update_of_stacked_experts_is_followed(tmp_path):
    """PEFT turns autocast off around it, on whatever device the experts are; afterwards torch has its own again."""
    experts, inner, autocast = 4, 32, torch.autocast
    moe = saved(
        tmp_path, Qwen3MoeConfig, "Qwen3MoeForCausalLM", head_dim=16,
        num_experts=experts, num_experts_per_tok=2, moe_intermediate_size=inner,
    )  # fmt: skip
    adapter = {**LORA, "target_modules": [], "target_parameters": ["mlp.experts.down_proj"]}
    step = {"base": str(moe), "adapter": adapter, "task": "CAUSAL_LM", "batch": BATCH, "length": LENGTH}
    _, reached, _ = Follower().follow(step)
    assert reached["trainable_params"] == LAYERS * experts * 8 * (inner + WIDTH)
    assert torch.autocast is autocast

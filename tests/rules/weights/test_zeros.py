"""Where the modules of zero update lie, in words."""

from __future__ import annotations

from tables import every

from gradience.rules.weights.zeros import place_of

LEAVES = ("q_proj", "v_proj")
TEXT = [f"model.layers.{n}.self_attn.{leaf}" for n in range(6) for leaf in LEAVES]
EYES = [f"model.visual.blocks.{n}.attn.qkv" for n in range(3)]
EXPERTS = [f"model.layers.{n}.mlp.experts[{e}]" for n in range(2) for e in range(5)]
KOHYA = [f"lora_te_text_model_encoder_layers_{n}_mlp_fc1" for n in range(2)]
UNET = [f"lora_unet_mid_block_attentions_0_attn{n}_to_q" for n in range(2)]


@every(
    ("zero", "all_of", "says"),
    [
        (EYES, TEXT + EYES, "all of the tower that looks or listens"),
        (KOHYA, UNET + KOHYA, "all of the text encoder"),
        (TEXT, [*TEXT, "lm_head"], "all but lm_head"),
        (TEXT[:6], TEXT, "all of layers 0 to 2"),
        (TEXT[:4], TEXT, "all of layers 0 and 1"),
        ([*TEXT[:2], *TEXT[4:10]], TEXT, "all of layers 0 and 2 to 4"),
        (TEXT[2:4], TEXT, "all of layer 1"),
        (TEXT[::2], TEXT, "every q_proj"),
        ([name for name in EXPERTS if name[-2] != "3"], EXPERTS, "all of 4 of 5 experts"),
        (TEXT[:3], TEXT, None),
        (TEXT, TEXT, None),
        ([], TEXT, None),
        (["a"], ["a", "b"], None),
    ],
)
def test_modules_of_zero_update_are_a_part_of_the_model(zero, all_of, says):
    assert place_of(zero, all_of) == says

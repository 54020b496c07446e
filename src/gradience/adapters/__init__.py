"""Read adapter folders: which tensors they hold, and which update each tensor belongs to.

This file classifies a module by its name, into a type and a layer. It is the only classifier of names, and it imports
nothing heavy.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

TOWER: Final = re.compile(
    r"(?:^|[._])(?:visual|vision_tower|vision_model|vision_encoder|visual_encoder|image_encoder|img_encoder|vit"
    r"|vision_transformer|audio_tower|audio_encoder)(?:[._]|$)"
)
"""A module of what looks or listens, in a model whose language model is the greater part."""
EMBEDDINGS: Final = ("embed_tokens", "wte", "word_embeddings", "embed_in", "shared")
OUTPUTS: Final = ("lm_head", "embed_out")

# Words that decide only if nothing else in the path does: BERT's output.dense, T5's wo.
_WEAK: Final = {"output": "mlp", "wo": "mlp", "out_proj": "attn", "q": "attn", "k": "attn", "v": "attn", "o": "attn"}

_SUFFIX: Final = re.compile(r"(?::[^:]*)?(?:\[\d+\])?(?::[^:]*)?$")
_SEP: Final = "[._]"
_PAIRS: Final = re.compile(
    rf"(?:^|{_SEP})(?:stages{_SEP}(\d{{1,9}}){_SEP}(?:blocks|layers)|layers{_SEP}(\d{{1,9}}){_SEP}blocks|layer(\d)){_SEP}(\d{{1,9}})(?=$|{_SEP})"
)
_SECTIONS: Final = re.compile(
    rf"(?:^|{_SEP})(down_blocks|mid_block|up_blocks|single_transformer_blocks|single_blocks|decoder{_SEP}block)"
    rf"(?:{_SEP}(\d{{1,9}}))?(?=$|{_SEP})"
)
_SECTION_START: Final = {"down_blocks": 0, "mid_block": 100, "up_blocks": 200}
_SECTION_SIZE: Final = 100
_LAYER: Final = re.compile(
    rf"(?:^|{_SEP})(?:layers?|h|blocks?|layer_module|transformer_blocks|double_blocks|resblocks){_SEP}(\d{{1,9}})(?=$|{_SEP})",
    re.IGNORECASE,
)
_KEPT: Final = 1 << 14  # names in the cache: the adapters of a collection share theirs


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ATTENTION: Final = _words(
    "self_attn self_attention attn attention attentions cross_attn cross_attention crossattention "
    "selfattention encdecattention encoder_attn decoder_attn linear_attn mha attn1 attn2 multihead_attn "
    "qkv qkv_proj query_key_value q_proj k_proj v_proj o_proj q_lin k_lin v_lin out_lin query key value "
    "c_attn wq wk wv wqkv in_proj_qkv to_q to_k to_v to_out to_qkv add_q_proj add_k_proj add_v_proj "
    "to_add_out q_a_proj q_b_proj kv_a_proj_with_mqa kv_b_proj kv_proj attn_output attn_qkv"
)
_MLP: Final = _words(
    "mlp ffn ff ff_context feed_forward feedforward densereludense intermediate block_sparse_moe moe "
    "expert experts shared_expert shared_experts gate_proj up_proj down_proj gate_up_proj fc1 fc2 fc_in "
    "fc_out c_fc lin1 lin2 w1 w2 w3 wi wi_0 wi_1 dense_h_to_4h dense_4h_to_h pwconv1 pwconv2 linear1 "
    "linear2 channel_mixer proj_mlp"
)
# State-space and recurrent mixers: Mamba, Mamba 2, Jamba, RWKV.
_SSM: Final = _words("mixer mamba mamba_block ssm x_proj dt_proj time_mixer time_mix")
_CONVOLUTION: Final = _words("conv conv1 conv2 conv3 conv_in conv_out conv1d dwconv conv_shortcut downsample")
_EMBEDDINGS: Final = _words(
    "embed_tokens word_embeddings wte wpe embedding embeddings tok_embeddings embed_in shared lm_head "
    "embed_out position_embeddings token_type_embeddings embed_positions token_embedding "
    "position_embedding"
)
_TYPES: Final[dict[str, str]] = {
    **dict.fromkeys(_CONVOLUTION, "conv"),
    **dict.fromkeys(_SSM, "ssm"),
    **dict.fromkeys(_MLP, "mlp"),
    **dict.fromkeys(_ATTENTION, "attn"),
}
_WORDS: Final = re.compile(
    r"(?<![a-z0-9])(?:" + "|".join(sorted(map(re.escape, _TYPES), key=len, reverse=True)) + r")(?![a-z0-9])"
)


@lru_cache(_KEPT)
def module_type(name: str) -> str:
    """The type of a module path: `attn`, `mlp`, `ssm`, `conv`, `embedding` or `other`.

    The component nearest the leaf that has a type decides. `ssm` is a state-space mixer (Mamba, RWKV). A head
    (`classifier`, `score`, `pooler`) is `other`. lm_head is an `embedding`, because in many models it shares its
    matrix with the embedding.

    >>> module_type("model.layers.0.self_attn.q_proj"), module_type("transformer.h.3.mlp.c_proj")
    ('attn', 'mlp')
    >>> module_type("bert.encoder.layer.1.attention.output.dense"), module_type("lm_head")
    ('attn', 'embedding')
    """
    # A report's name may end in an expert's index and an adapter's name, which are no part of the path.
    path = _SUFFIX.sub("", name)
    if is_embedding(path):
        return "embedding"
    parts = path.lower().split(".")
    # From the leaf up: in `attention.output.dense` only `attention` has a type, in `mlp.experts.w1` all parts do.
    for part in reversed(parts):
        if (kind := _TYPES.get(part)) is not None:
            return kind
    if (kind := _in_words(parts)) is not None:
        return kind
    return next((_WEAK[part] for part in reversed(parts) if part in _WEAK), "other")


def _in_words(parts: list[str]) -> str | None:
    """The type of kohya's underscored names, or of a component such as `to_q_lora`."""
    for part in reversed(parts):
        hits = _WORDS.findall(part)
        if hits:
            return _TYPES[hits[-1]]
    return None


def is_embedding(path: str) -> bool:
    """Whether the path's last component is an embedding or the output head that mirrors it."""
    return path.rpartition(".")[2].lower() in _EMBEDDINGS


@lru_cache(_KEPT)
def layer_index(name: str) -> int | None:
    """The index of the layer that a module path names, or None.

    In a network of sections several layers have the same number, so the index is 100 * section + block there. This
    holds for the stages of ConvNeXt and Swin, ResNet's layer1..4, and the parts of a UNet (down, middle, up). Flux's
    single-stream blocks and T5's decoder blocks count from 100. Encoder and decoder `layers` (BART, Whisper) share
    numbers, because their names do not tell a decoder-only model's layers from those of a decoder after an encoder.

    >>> layer_index("model.layers.11.mlp.up_proj"), layer_index("classifier")
    (11, None)
    >>> layer_index("stages.2.blocks.7.mlp.fc1"), layer_index("encoder.block.3.layer.0.SelfAttention.q")
    (207, 3)
    """
    if (hit := _PAIRS.search(name)) is not None:
        section, block = int(hit[1] or hit[2] or hit[3]), int(hit[4])
        return section * _SECTION_SIZE + block if block < _SECTION_SIZE else None
    if (hit := _SECTIONS.search(name)) is not None:
        start = _SECTION_START.get(hit[1], _SECTION_SIZE)
        return start + int(hit[2] or 0)
    hit = _LAYER.search(name)
    return int(hit[1]) if hit else None


def layer_label(name: str) -> str | None:
    """The layer's label for people: its number, or section and block if the network has sections.

    >>> layer_label("model.layers.11.mlp.up_proj"), layer_label("stages.2.blocks.7.mlp.fc1"), layer_label("classifier")
    ('11', '2.7', None)
    >>> layer_label("down_blocks.1.attentions.0.to_q"), layer_label("single_transformer_blocks.4.attn.to_q")
    ('down.1', 'single.4')
    """
    if (hit := _PAIRS.search(name)) is not None:
        return f"{hit[1] or hit[2] or hit[3]}.{hit[4]}"
    if (hit := _SECTIONS.search(name)) is not None:
        section = re.split(_SEP, hit[1])[0]
        return section if hit[2] is None else f"{section}.{hit[2]}"
    index = layer_index(name)
    return None if index is None else str(index)

"""What a module's name says of it: its type and its layer. The only classifier of names."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["layer_index", "module_type", "natural_key"]

# Last matching component wins: `attn.c_proj` is attention by its parent, `mlp.c_proj` is not.
_ATTENTION: Final = re.compile(
    r"(?:^|[._])(?:self_attn|self_attention|attn|attention|attentions|cross_attn|crossattention"
    r"|selfattention|encdecattention|encoder_attn|mha|mixer_attn|attn\d|to_[qkv](?:_lora)?|qkv|qkv_proj|query_key_value"
    r"|q_proj|k_proj|v_proj|o_proj|q_lin|k_lin|v_lin|out_lin|query|key|value|c_attn|wq|wk|wv|wo|wqkv|in_proj_qkv"
    r"|q_a_proj|q_b_proj|kv_a_proj_with_mqa|kv_b_proj|[qkvo])(?=$|[._])",
    re.IGNORECASE,
)
_MLP: Final = re.compile(
    r"(?:^|[._])(?:mlp|ffn|ff|feed_forward|feedforward|densereludense|intermediate|block_sparse_moe|moe|experts?"
    r"|shared_expert|gate_proj|up_proj|down_proj|gate_up_proj|fc1|fc2|fc_in|fc_out|c_fc|lin1|lin2"
    r"|w1|w2|w3|wi|wi_0|wi_1|wo|dense_h_to_4h|dense_4h_to_h|pwconv1|pwconv2|output)(?=$|[._])",
    re.IGNORECASE,
)
_EMBEDDING: Final = re.compile(
    r"(?:^|[._])(?:embed_tokens|word_embeddings|wte|wpe|embeddings?|tok_embeddings|embed_in|shared"
    r"|lm_head|embed_out|position_embeddings)$",
    re.IGNORECASE,
)
_LAYER: Final = re.compile(
    r"(?:^|[._])(?:layers?|h|blocks?|layer_module|transformer_blocks|single_transformer_blocks|resblocks)[._](\d+)(?=$|[._])",
    re.IGNORECASE,
)
_DIGITS: Final = re.compile(r"(\d+)")


def module_type(name: str) -> str:
    """Return `attn`, `mlp`, `embedding` or `other` for a module path.

    >>> module_type("model.layers.0.self_attn.q_proj"), module_type("transformer.h.3.mlp.c_proj")
    ('attn', 'mlp')
    >>> module_type("bert.encoder.layer.1.attention.output.dense"), module_type("lm_head")
    ('attn', 'embedding')
    """
    if _EMBEDDING.search(name):
        return "embedding"
    mlp = _last(_MLP, name)
    attention = _last(_ATTENTION, name)
    if _is_attention_output(name):
        return "attn"
    if mlp < 0 and attention < 0:
        return "other"
    return "attn" if attention > mlp else "mlp"


def _last(pattern: re.Pattern[str], name: str) -> int:
    """Return where the pattern matches last, or -1."""
    return max((hit.start() for hit in pattern.finditer(name)), default=-1)


def _is_attention_output(name: str) -> bool:
    """`attention.output.dense` of BERT: an output that belongs to attention, by its parent."""
    return re.search(r"(?:attention|attn)[._]output(?:$|[._])", name, re.IGNORECASE) is not None


def layer_index(name: str) -> int | None:
    """Return the index of the layer a module path names, or None.

    >>> layer_index("model.layers.11.mlp.up_proj"), layer_index("classifier")
    (11, None)
    """
    hit = _LAYER.search(name)
    return int(hit[1]) if hit else None


def natural_key(name: str) -> list[tuple[int, str]]:
    """Return a sort key that puts layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in _DIGITS.split(name)]

"""Which part of a block a *target* names: attention, MLP, or not decidable.

A target is a suffix or an expression that matches many modules: `dense` hits BERT's attention and MLP alike.
The paths of modules that exist are classified in ``adapters.names``; that question always has an answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

Part = Literal["attn", "mlp", "either", "unknown"]

_ATTENTION = frozenset(
    """
    q_proj k_proj v_proj o_proj qkv_proj q k v o query key value query_key_value c_attn wqkv wq wk wv
    q_lin k_lin v_lin out_lin query_proj key_proj value_proj in_proj q_a_proj q_b_proj kv_a_proj_with_mqa
    kv_b_proj out_proj to_q to_k to_v to_qkv self_attn attn attention qkv receptance r_proj
    """.split()  # noqa: SIM905 - a word list reads better than 100 quoted lines
)
_MLP = frozenset(
    """
    gate_proj up_proj down_proj gate_up_proj fc1 fc2 fc_in fc_out c_fc dense_h_to_4h dense_4h_to_h w1 w2 w3
    lin1 lin2 wi wo wi_0 wi_1 mlp ffn feed_forward experts intermediate linear_fc1 linear_fc2 ff_proj ff_out
    """.split()  # noqa: SIM905 - a word list reads better than 100 quoted lines
)
_EITHER = frozenset(["c_proj", "dense", "proj", "output"])  # attention in one model, MLP in another
_MLP_PATH = re.compile(r"(?:^|[._])(?:mlp|ffn|feed_forward|experts?|intermediate)(?:[._]|$)")
_ATTENTION_PATH = re.compile(r"(?:^|[._])(?:self_attn|attn|attention|self_attention)(?:[._]|$)")
_ALL = "all-linear"


def part_of(name: str) -> Part:
    """Return the part by the last component, or by the path where the last is ambiguous.

    >>> part_of("model.layers.0.mlp.up_proj"), part_of("q_proj"), part_of("dense"), part_of("foo")
    ('mlp', 'attn', 'either', 'unknown')
    """
    path, _, last = name.lower().rpartition(".")
    if last in _MLP or _MLP_PATH.search(path):
        return "mlp"
    if last in _ATTENTION or _ATTENTION_PATH.search(path):
        return "attn"
    return "either" if last in _EITHER else "unknown"


def reaches_mlp(targets: Sequence[str] | str) -> bool | None:
    """Return whether the targets include an MLP module; None where the names do not tell."""
    if isinstance(targets, str):
        return _expression_reaches_mlp(targets)
    parts = {part_of(name) for name in targets}
    if "mlp" in parts:
        return True
    return False if parts == {"attn"} else None


def _expression_reaches_mlp(text: str) -> bool | None:
    if text.lower() == _ALL:
        return True
    words = set(re.findall(r"[a-z][a-z0-9_]*", text.lower()))
    if words & _MLP:
        return True
    return False if words & _ATTENTION and not words & _EITHER else None

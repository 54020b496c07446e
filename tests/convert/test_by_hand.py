"""What a conversion says of ranks that were padded, of experts in an unknown layout, and which path a module has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gradience.adapters.layout import Module
from gradience.errors import AdapterError
from gradience.verbs.convert.source import _peft_path
from gradience.verbs.convert.updates import _stack
from gradience.verbs.convert.write import peft_notes


def update(rank: int, parameter: str | None) -> Any:
    return SimpleNamespace(part=SimpleNamespace(rank=rank), parameter=parameter, path="m.q")


@pytest.mark.parametrize(
    ("some", "lower"),
    [
        (
            [(2, "down_proj"), (4, "up_proj")],
            "1 pairs on experts are padded with zeros to rank 4, the one of all of them",
        ),
        ([(4, "down_proj"), (4, "up_proj")], None),
        ([(2, None), (4, "up_proj")], None),  # a layer of its own keeps its rank
        ([(2, None), (3, None)], None),
        (
            [(2, "a"), (3, "b"), (1, None), (4, "c")],
            "2 pairs on experts are padded with zeros to rank 4, the one of all of them",
        ),
    ],
)
def test_pairs_on_experts_are_padded_to_the_rank_of_all(some, lower):
    assert peft_notes([update(*one) for one in some]) == ([] if lower is None else [lower])


def module(name: str, **keys: str) -> Module:
    return Module(name, "linear", (2, 2), 1, 1.0, 1.0, 4, lambda: (None, None), keys=keys)  # type: ignore[arg-type,return-value]


def test_a_path_is_that_of_the_keys_else_the_name():
    assert _peft_path(module("other", lora_A="base_model.model.h.0.attn.lora_A.weight")) == "h.0.attn"
    assert _peft_path(module("own", lora_down="h_0_attn.alpha")) == "own"
    assert _peft_path(module("own")) == "own"


@pytest.mark.parametrize("name", ["m.mlp.other.down_proj", "m.mlp.experts.strange"])
def test_experts_of_an_unknown_layout_are_refused(name):
    with pytest.raises(AdapterError, match="laid out in a way that is not known here"):
        _stack(name, [module(name)])

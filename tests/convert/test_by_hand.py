"""What a conversion says of ranks that were padded, of experts in an unknown layout, and which path a module has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gradience.adapters.layout import Module
from gradience.errors import AdapterError
from gradience.io.spool import Spool
from gradience.spectral.update import decomposed
from gradience.verbs.convert.factored import Choice, _truncated, from_factors
from gradience.verbs.convert.source import _peft_path, renamed
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


def pair(r: int = 3, scale: float = 2.0) -> Module:
    rng = np.random.default_rng(0)
    b, a = rng.standard_normal((6, r)).astype(np.float32), rng.standard_normal((r, 5)).astype(np.float32)
    return Module("m", "linear", (6, 5), r, r * scale, scale, 33, lambda: (b, a))


@pytest.mark.parametrize(
    ("choice", "copy", "rank", "method"),
    [
        (Choice(), True, 3, "copied"),
        (Choice(rank=3), True, 3, "copied"),
        (Choice(rank=9), True, 3, "copied"),
        (Choice(rank=2), True, 2, "truncated"),
        (Choice(energy=1.0), True, 3, "copied"),
        (Choice(), False, 3, "factors"),
        (Choice(rank=3), False, 3, "factors"),
        (Choice(rank=1), False, 1, "truncated"),
    ],
)
def test_factors_are_the_files_own_unless_something_is_left_out(tmp_path, choice, copy, rank, method):
    own = pair()
    found = from_factors(own, choice, Spool(tmp_path), scale=2.0 if copy else 0.5, copy=copy)
    b, a = found.load()
    assert (found.rank, found.method, b.shape, a.shape) == (rank, method, (6, rank), (rank, 5))
    whole = 2.0 * (own.load()[0].astype(float) @ own.load()[1])
    assert found.norm == pytest.approx(np.linalg.norm(whole))
    assert np.linalg.norm(found.scale * (b.astype(float) @ a) - whole) == pytest.approx(found.rest, abs=1e-5)


@pytest.mark.parametrize(("first", "second", "kept"), [(3, 2, 2), (2, 3, 2), (1, None, 1), (0, 0, 1)])
def test_the_smaller_of_two_choices_decides_and_one_at_least_is_kept(tmp_path, first, second, kept):
    low = decomposed(*pair().load(), 2.0)
    found = _truncated(low, Choice(first), Choice(second), Spool(tmp_path), 2.0)
    assert found.rank == kept
    assert found.rest == pytest.approx(float(np.linalg.norm(low.sigma[kept:])))


@pytest.mark.parametrize(
    ("path", "new", "renamed_to"),
    [("model", "x", "x"), ("model.a", "x", "x.a"), ("model.a", "", "a"), ("models.a", "x", "models.a")],
)
def test_a_prefix_is_a_whole_path_or_ends_on_a_dot(path, new, renamed_to):
    assert renamed(path, {"model": new}) == renamed_to

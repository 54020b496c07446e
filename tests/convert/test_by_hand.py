"""What MLX-LM's files have room for, and which parameters of transformers its experts are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tables import every

from gradience.adapters.layout import Module
from gradience.errors import AdapterError
from gradience.verbs.convert.updates import LayerUpdate, UpdatePair
from gradience.verbs.convert.write import expert_updates, mlx_tensors


def written(rank: int, scale: float, name: str = "m.q", *, dora: bool = False, **more: Any) -> LayerUpdate:
    """A layer on its way into MLX-LM's files, of W 6 x 5."""
    rng = np.random.default_rng(rank)
    b, a = rng.standard_normal((6, rank)).astype(np.float32), rng.standard_normal((rank, 5)).astype(np.float32)
    part = UpdatePair(
        rank, scale, (6, 5), (np.dtype(np.float32), np.dtype(np.float32)), lambda: (b, a), "copied", 1.0, 0.0
    )
    magnitude = (lambda: np.ones(6, np.float32)) if dora else None
    return LayerUpdate((name,), "linear", name, rank, part, magnitude=magnitude, **more)


@every(
    "some",
    [
        [(4, 2.0), (4, 2.0)],
        [(4, 2.0), (3, 2.0), (1, 2.0)],
        [(4, 2.0), (4, 0.5), (4, 2.0)],
        [(4, 0.5), (2, 8.0), (3, 8.0)],
    ],
)
def test_mlx_lm_has_one_rank_the_largest_and_one_scale_the_commonest(some):
    updates = [written(rank, scale, f"m.{n}") for n, (rank, scale) in enumerate(some)]
    tensors = {tensor.name: tensor for tensor in mlx_tensors(updates)}
    shared = max(rank for rank, _ in some), 8.0 if (2, 8.0) in some else 2.0
    for update in updates:
        a, b = (tensors[f"{update.path}.lora_{side}"] for side in "ab")
        assert (a.shape, b.shape) == ((5, shared[0]), (shared[0], 6))
        own_b, own_a = update.part.load()
        made = shared[1] * a.load() @ b.load()
        np.testing.assert_allclose(made.T, update.part.scale * own_b @ own_a, rtol=1e-6)
        np.testing.assert_array_equal(a.load()[:, : update.part.rank], own_a.T)
        assert not a.load()[:, update.part.rank :].any()


def test_factors_of_16_bits_that_take_a_ratio_are_stored_in_float32():
    half = np.dtype(np.float16)
    b, a = np.full((6, 2), 3.0, half), np.full((2, 5), 0.5, half)
    part = UpdatePair(2, 3.0, (6, 5), (half, half), lambda: (b, a), "copied", 1.0, 0.0)
    own = LayerUpdate(("m.z",), "linear", "m.z", 2, part)
    found = {tensor.name: tensor for tensor in mlx_tensors([written(2, 2.0), written(2, 2.0, "m.v"), own])}
    assert (found["m.z.lora_a"].dtype, found["m.z.lora_b"].dtype) == ("F16", "F32")
    np.testing.assert_allclose(found["m.z.lora_b"].load(), 4.5)
    alone = {tensor.name: tensor.dtype for tensor in mlx_tensors([own])}
    assert alone == {"m.z.lora_a": "F16", "m.z.lora_b": "F16"}


def expert(name: str, index: int, shape: tuple[int, int], r: int = 2) -> Module:
    rng = np.random.default_rng([len(name), index])
    b, a = (rng.standard_normal(s).astype(np.float32) for s in ((shape[0], r), (r, shape[1])))
    return Module(f"{name}[{index}]", "expert", shape, r, 6.0, 3.0, 0, lambda: (b, a), expert=index)


@every(
    ("path", "target"),
    [
        ("m.mlp.switch_mlp", "m.mlp.experts"),
        ("m.block_sparse_moe.switch_mlp", "m.mlp.experts"),  # Mixtral's in MLX-LM and in transformers 5
    ],
)
def test_experts_of_mlx_lm_are_parameters_in_the_order_of_transformers(path, target):
    shapes = {"down_proj": (5, 4), "up_proj": (4, 5), "gate_proj": (4, 5)}
    some = [expert(f"{path}.{name}", e, shape) for name, shape in shapes.items() for e in range(2)]
    found = expert_updates(some, "peft")
    assert [one.target for one in found] == [f"{target}.gate_up_proj", f"{target}.down_proj"]
    assert found[0].names == (f"{path}.gate_proj", f"{path}.up_proj")
    assert [one.shape for one in found] == [(8, 5), (5, 4)]
    squares = sum(np.sum((3.0 * np.matmul(*(x.astype(float) for x in one.load()))) ** 2) for one in some[2:])
    assert found[0].part.norm == pytest.approx(np.sqrt(squares), rel=1e-6)
    with pytest.raises(AdapterError) as error:
        expert_updates([expert("m.mlp.experts.down_proj", 0, (5, 4))], "peft")
    assert error.value.message == (
        "m.mlp.experts.down_proj: only MLX-LM's switch_mlp has a known counterpart in transformers"
    )
    odd = [expert(f"{path}.gate_proj", 0, (4, 5)), expert(f"{path}.up_proj", 0, (6, 5))]
    with pytest.raises(AdapterError, match="gate_proj and up_proj of an expert layer have different shapes"):
        expert_updates(odd, "peft")

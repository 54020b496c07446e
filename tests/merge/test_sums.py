"""linear, cat and svd: PEFT loads what is written without a warning, and it adds sum w_i dW_i to the weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from peft_models import furthest, merged_update
from tables import grid

from gradience import merge_adapters
from gradience.spectral.sums import gram_norm, numerical_rank, pair_grams, squared_distance

KINDS = {
    "linear": {},
    "rslora": {"use_rslora": True, "lora_alpha": 3},
    "patterns": {"rank_pattern": {"layers.1.q_proj": 2}, "alpha_pattern": {"up_proj": 1}},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "conv": {"target_modules": ["conv2d"]},
    "stored (in, out)": {"target_modules": ["c_attn"], "fan_in_fan_out": True},
    "experts": {"target_modules": [], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
    "attention": {"target_modules": ["attention"]},
    "layers": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "regex": {"target_modules": r".*layers\.[01]\.q_proj"},
}


SIDES = [("one", 1, {"r": 4}), ("two", 2, {"r": 3, "lora_alpha": 16})]


def squared_norm(b: np.ndarray, a: np.ndarray) -> float:
    return gram_norm(pair_grams(b, a), lambda: (b, a))


@grid(each=2, kind=KINDS, method=["linear", "cat"])
def test_exact_methods_are_the_weighted_sum(kind, method, save, tmp_path):
    one, two = (save(name, **{"seed": seed, **KINDS[kind], **more}) for name, seed, more in SIDES)
    report = merge_adapters([one.folder, two.folder], tmp_path / "out", method=method, weights=[0.7, -1.5])
    update = merged_update(one.model, tmp_path / "out")
    assert furthest(update, [(0.7, one.update), (-1.5, two.update)]) < 1e-5
    assert report.relative_error is not None
    assert report.relative_error < 1e-6
    assert all(row.rank <= sum(row.ranks) for row in report.modules)


def test_adapters_of_other_ranks_scales_and_modules_are_summed_as_if_absent_were_zero(save, tmp_path):
    one = save("one", seed=1, r=2, lora_alpha=7)
    two = save("two", seed=2, r=5, use_rslora=True, target_modules=["q_proj", "embed_tokens"])
    three = save("three", seed=3, r=3, target_modules=r".*\.up_proj")
    parts = [one, two, three]
    merge_adapters([p.folder for p in parts], tmp_path / "out", weights=[1.0, 0.5, 0.25])
    update = merged_update(one.model, tmp_path / "out")
    assert furthest(update, zip([1.0, 0.5, 0.25], [p.update for p in parts], strict=True)) < 1e-5


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_svd_is_the_best_of_its_rank_and_tells_its_error(rank, save, tmp_path):
    one, two = save("one", seed=1), save("two", seed=2, r=3)
    report = merge_adapters([one.folder, two.folder], tmp_path / "out", method="svd", rank=rank)
    update = merged_update(one.model, tmp_path / "out")
    lost = energy = 0.0
    for row in report.modules:
        target = (one.update[f"{row.name}.weight"] + two.update[f"{row.name}.weight"]) / 2
        sigma = np.linalg.svd(target, compute_uv=False)
        best = np.linalg.norm(sigma[rank:]) / np.linalg.norm(sigma)
        seen = np.linalg.norm(update[f"{row.name}.weight"] - target) / np.linalg.norm(target)
        assert seen == pytest.approx(best, abs=1e-5)
        assert row.relative_error == pytest.approx(best, abs=1e-5)
        assert row.rank == rank
        lost, energy = lost + np.sum(sigma[rank:] ** 2), energy + np.sum(sigma**2)
    assert report.relative_error == pytest.approx(np.sqrt(lost / energy), abs=1e-5)


def test_sixteen_bit_adapters_stay_so_and_the_error_includes_the_rounding(save, tmp_path):
    sides = [save(name, seed=seed, dtype=torch.bfloat16) for seed, name in enumerate(("one", "two"))]
    report = merge_adapters([s.folder for s in sides], tmp_path / "out", method="svd", rank=8, weights=[1 / 3, 2 / 3])
    assert report.dtype == "BF16"
    update = merged_update(sides[0].model, tmp_path / "out")
    for row in report.modules:
        name = f"{row.name}.weight"
        target = sides[0].update[name] / 3 + sides[1].update[name] * 2 / 3
        seen = np.linalg.norm(update[name] - target) / np.linalg.norm(target)
        assert row.relative_error == pytest.approx(seen, rel=0.02)
        assert 1e-4 < seen < 1e-2


@given(
    seed=st.integers(0, 99),
    out=st.integers(1, 30),
    inner=st.integers(1, 30),
    r=st.integers(1, 8),
    nearly=st.sampled_from([1.0, 1e-4, 1e-9]),
)
def test_norm_distance_and_rank_are_those_of_the_dense_sum(seed, out, inner, r, nearly):
    rng = np.random.default_rng(seed)
    b, a = rng.standard_normal((out, r)), rng.standard_normal((r, inner))
    rest = nearly * rng.standard_normal((out, 1)), rng.standard_normal((1, inner))
    stacked = np.hstack([b, -b, rest[0]]), np.vstack([a, a, rest[1]])
    dense = rest[0] @ rest[1]
    assert squared_norm(*stacked) == pytest.approx(np.sum(dense**2), rel=1e-4)
    assert numerical_rank(*stacked) == 1
    assert numerical_rank(b, a) == np.linalg.matrix_rank(b @ a, rtol=1e-6)
    assert squared_distance((b, a), rest) == pytest.approx(np.sum((b @ a - dense) ** 2), rel=1e-9)

"""A resize of modules of many ranks to one: each its best of that rank, and refusals that leave nothing."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hand_made import adapter, diagonal
from safetensors.numpy import load_file

from gradience import AdapterError, resize_adapter
from gradience.rewrite.resize.factors import Cut, planned_file
from gradience.rewrite.resize.subject import Subject, resizable_pairs
from gradience.rewrite.sides import open_stored

RNG = np.random.default_rng(5)


def factors(r: int, d_out: int, d_in: int, dtype: type = np.float32) -> tuple[np.ndarray, np.ndarray]:
    decay = 0.6 ** np.arange(r)[:, None]
    return RNG.standard_normal((d_out, r)).astype(dtype), (RNG.standard_normal((r, d_in)) * decay).astype(dtype)


def cancelling() -> tuple[np.ndarray, np.ndarray]:
    """Return factors whose parts all but cancel: QR decides, not Gram matrices."""
    b, a = factors(4, 30, 40)
    moved = b + 1e-5 * RNG.standard_normal(b.shape).astype(np.float32)
    return np.hstack([b, moved]), np.vstack([a, -a])


@pytest.fixture
def mixed(tmp_path) -> Path:
    """Return an adapter of many ranks, one of them below what will be asked for, one update zero, one all but zero."""
    modules = {f"layers.{i}.q_proj": factors(8, 24 + i, 20) for i in range(70)}
    modules |= {
        "zero": (np.zeros((9, 8), np.float32), factors(8, 9, 7)[1]),
        "low": diagonal(3.0, 2.0),
        "wide": factors(96, 40, 24),
        "cancels": cancelling(),
        "half": factors(8, 30, 20, ml_dtypes.bfloat16),
    }
    ranks = {"low": 2, "wide": 96}
    return adapter(tmp_path / "mixed", modules, r=8, rank_pattern=ranks, alpha_pattern=ranks)


def product(folder: Path, name: str) -> np.ndarray:
    found = load_file(folder / "adapter_model.safetensors")
    b, a = (found[f"base_model.model.{name}.lora_{side}.weight"].astype(np.float64) for side in "BA")
    return b @ a


@pytest.mark.parametrize(("dtype", "near"), [(None, 1e-6), ("bfloat16", 1e-2), ("float32", 1e-6)])
def test_each_module_becomes_its_best_of_the_rank(mixed, tmp_path, dtype, near):
    report = resize_adapter(mixed, tmp_path / "out", rank=3, dtype=dtype)
    rows = {row.name: row for row in report.modules}
    assert (rows["low"].rank_after, rows["wide"].rank_after, rows["zero"].relative_error) == (2, 3, None)
    for name in ("layers.0.q_proj", "layers.69.q_proj", "wide", "zero", "low"):
        u, sigma, v = np.linalg.svd(product(mixed, name))
        best = (u[:, :3] * sigma[:3]) @ v[:3] if name != "low" else product(mixed, name)
        np.testing.assert_allclose(product(tmp_path / "out", name), best, atol=near * max(sigma[0], 1e-9))
        if sigma[0] > 0.0 and name != "low":
            lost = np.linalg.norm(sigma[3:]) / np.linalg.norm(sigma)
            assert rows[name].relative_error == pytest.approx(lost, rel=1e-6)
    assert np.linalg.matrix_rank(product(tmp_path / "out", "cancels"), rtol=1e-6) == 3


def test_the_stated_error_is_that_of_the_dense_update(tmp_path):
    b, a = factors(8, 24, 20)
    folder = adapter(tmp_path / "a", {"q_proj": (b, a)})
    report = resize_adapter(folder, tmp_path / "out", rank=3)
    sigma = np.linalg.svd(b.astype(np.float64) @ a, compute_uv=False)
    assert report.relative_error == pytest.approx(np.linalg.norm(sigma[3:]) / np.linalg.norm(sigma), rel=1e-9)


@pytest.mark.parametrize("spoiled", ["b", "low"])
def test_a_module_that_is_not_finite_is_refused_by_name_and_nothing_stays(tmp_path, spoiled):
    modules = {"a": factors(8, 24, 20), "b": factors(8, 24, 20), "low": diagonal(3.0, 2.0)}
    modules[spoiled][1][0, 0] = np.inf
    folder = adapter(tmp_path / "adapter", modules, r=8, rank_pattern={"low": 2}, alpha_pattern={"low": 2})
    with pytest.raises(AdapterError, match=f"^{spoiled} holds NaN"):
        resize_adapter(folder, tmp_path / "out", rank=3)
    assert [entry.name for entry in tmp_path.iterdir()] == ["adapter"]


def test_the_later_factor_of_a_pair_that_is_cut_comes_with_the_other(tmp_path):
    modules = {"a": factors(4, 9, 7), "low": diagonal(3.0)}
    place = adapter(tmp_path / "a", modules, r=4, rank_pattern={"low": 1}, extra={"head.weight": np.ones(3)})
    stored = open_stored(place)
    pairs = resizable_pairs(stored.adapter)
    tensors = planned_file(Subject(stored, pairs, None), [Cut(pair, 1, [], dict) for pair in pairs])
    marked = [tensor.name for tensor in tensors if tensor.with_another]
    cut = [name for name in stored.tensors.tensors if ".a." in name]
    assert marked == cut[1:]
    assert len(cut) == 2

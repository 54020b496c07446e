"""DoRA's refit by itself: rows of nothing, what it fits, and a base that does not fit."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from tables import every

from gradience import AdapterError, resize_adapter
from gradience.rewrite.resize.factors import refitted


def weight(w, b, a, m, scale):
    """DoRA's weight: each row of W + s B A at its magnitude."""
    v = w + scale * b @ a
    norm = np.linalg.norm(v, axis=1, keepdims=True)
    return m[:, None] * v / np.where(norm > 0.0, norm, 1.0)


def factors(seed=0):
    rng = np.random.default_rng(seed)
    w, b, a = rng.standard_normal((7, 5)), 0.2 * rng.standard_normal((7, 4)), rng.standard_normal((4, 5))
    return w, b, a, np.linalg.norm(w, axis=1) * (1 + 0.1 * rng.standard_normal(7))


def test_a_row_of_nothing_stays_nothing_and_harms_no_other():
    w, b, a, m = factors()
    w[2], b[2] = 0.0, 0.0
    fit = refitted(w, b, a, m, scale=2.0, rank=4)
    assert fit.magnitude[2] == 0.0
    assert all(np.isfinite(each).all() for each in (fit.b, fit.a, fit.magnitude))
    new = weight(w, fit.b, fit.a, fit.magnitude, 2.0)
    np.testing.assert_allclose(new, weight(w, b, a, m, 2.0), atol=1e-10)


def test_a_magnitude_of_zero_takes_its_row_out():
    w, b, a, m = factors(1)
    m[3] = 0.0
    fit = refitted(w, b, a, m, scale=1.5, rank=2)
    assert not fit.b[3].any()
    assert fit.magnitude[3] == 0.0


def test_a_row_a_millionth_as_long_as_the_others_is_fitted_like_them():
    w, b, a, m = factors(3)
    small = np.where(np.arange(7) == 4, 1e-6, 1.0)
    one = refitted(w, b, a, m, scale=1.5, rank=2)
    two = refitted(small[:, None] * w, small[:, None] * b, a, m, scale=1.5, rank=2)
    np.testing.assert_allclose(two.magnitude, one.magnitude, rtol=1e-9)
    assert two.lost == pytest.approx(one.lost, rel=1e-9)


@every("rank", [1, 2, 3, 4])
def test_the_loss_is_the_squared_distance_of_both_weights_and_the_energy_that_of_the_change(rank):
    w, b, a, m = factors(2)
    m[1] *= -1.0  # training may turn one
    fit = refitted(w, b, a, m, scale=1.5, rank=rank)
    weights = m / np.linalg.norm(w + 1.5 * b @ a, axis=1)
    u, sigma, v = np.linalg.svd(weights[:, None] * (b @ a))
    np.testing.assert_allclose(weights[:, None] * (fit.b @ fit.a), (u[:, :rank] * sigma[:rank]) @ v[:rank], atol=1e-12)
    old, new = weight(w, b, a, m, 1.5), weight(w, fit.b, fit.a, fit.magnitude, 1.5)
    assert fit.lost == pytest.approx(np.sum((old - new) ** 2), rel=1e-9, abs=1e-12)
    assert fit.energy == pytest.approx(np.sum((old - w) ** 2), rel=1e-9)
    unit = (w + 1.5 * fit.b @ fit.a) / np.linalg.norm(w + 1.5 * fit.b @ fit.a, axis=1, keepdims=True)
    np.testing.assert_allclose(fit.magnitude, np.sum(old * unit, axis=1), atol=1e-12)  # least squares


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((7, 6), r"m\.q\.weight is of shape \[7, 6\] in the base, and the update of \[7, 5\]"),
        (None, r"the base has no m\.q\.weight"),
    ],
)
def test_a_base_that_does_not_fit_is_refused_with_both_shapes(tmp_path, shape, says):
    w, b, a, m = (each.astype(np.float32) for each in factors(3))
    adapter, base = tmp_path / "a", tmp_path / "base"
    for folder in (adapter, base):
        folder.mkdir()
    key = "base_model.model.m.q.lora_"
    tensors = {f"{key}A.weight": a, f"{key}B.weight": b, f"{key}magnitude_vector.weight": m}
    save_file(tensors, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "use_dora": True, "target_modules": ["q"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    save_file({"m.q.weight" if shape else "m.v.weight": np.ones(shape or w.shape, np.float32)},
              base / "model.safetensors")  # fmt: skip
    (base / "config.json").write_text("{}")
    with pytest.raises(AdapterError, match=says):
        resize_adapter(adapter, rank=2, base=base)
    with pytest.raises(AdapterError, match=r"m\.q is DoRA: its magnitudes are relative to norm\(W \+ s B A\)"):
        resize_adapter(adapter, rank=2)

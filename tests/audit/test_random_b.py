"""A noise-like lora_B is found whatever stands beside it, and no trained one is called noise."""

from __future__ import annotations

import numpy as np
import pytest
from tables import few

from gradience import audit_adapter

OUT, INNER, LAYERS = 96, 64, 6
RANKS, SEEDS = (4, 8, 16), few(range(6), each=3)


def gaussian(rng, r, scale):
    return rng.standard_normal((OUT, r)) * scale


def trained(rng, r):
    """A factor that one direction leads, as training leaves it."""
    led = np.outer(rng.standard_normal(OUT), rng.standard_normal(r))
    return 0.01 * (led + 0.3 * rng.standard_normal((OUT, r)))


def steep(rng, r):
    """A lora_A that was trained: its spectrum falls, so that the product's does whatever B is."""
    return rng.standard_normal((r, INNER)) * 0.5 ** np.arange(r)[:, None]


@pytest.mark.parametrize("r", RANKS)
def test_gaussian_b_beside_a_trained_a_is_random_like(r, write_adapter):
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        folder = write_adapter(
            lambda _, rng=rng: (gaussian(rng, r, 0.01), steep(rng, r)), name=f"g{seed}", layers=LAYERS, r=r
        )
        report = audit_adapter(folder)
        assert report.health.verdict == "random_like"
        assert "lora_B" in report.health.reason
        assert report.suggested == {}
        assert report.summary.suggested_r_global_90 is None


@pytest.mark.parametrize("r", RANKS)
def test_a_trained_b_is_trained(r, write_adapter):
    rng = np.random.default_rng(r)
    folder = write_adapter(lambda _: (trained(rng, r), steep(rng, r)), layers=LAYERS, r=r)
    report = audit_adapter(folder)
    assert report.health.verdict == "trained"
    assert report.modules[0].b_stable_rank < 0.7 * report.modules[0].b_null_stable_rank


def test_an_orthonormal_b_is_flatter_than_noise_and_not_called_so(write_adapter):
    rng = np.random.default_rng(0)
    factors = lambda _: (0.1 * np.linalg.qr(rng.standard_normal((OUT, 8)))[0], steep(rng, 8))  # noqa: E731
    assert audit_adapter(write_adapter(factors, layers=LAYERS)).health.verdict == "trained"


@pytest.mark.parametrize(("start", "told"), [("gaussian", True), (True, True), ("pissa", False), ("olora", False)])
def test_b_is_judged_only_where_it_started_at_zero(start, told, write_adapter):
    rng = np.random.default_rng(0)
    folder = write_adapter(lambda _: (gaussian(rng, 8, 0.01), steep(rng, 8)), layers=LAYERS, init_lora_weights=start)
    report = audit_adapter(folder)
    assert (report.health.verdict == "random_like") is told
    assert (report.modules[0].b_stable_rank is not None) is told


def test_lora_b_of_a_transposed_weight_is_the_second_factor_of_the_file(write_adapter):
    rng = np.random.default_rng(0)
    b = gaussian(rng, 8, 0.01)
    folder = write_adapter(lambda _: (b, steep(rng, 8)), layers=LAYERS, fan_in_fan_out=True)
    row = audit_adapter(folder).modules[0]
    sigma = np.linalg.svd(b.astype(np.float32).astype(np.float64), compute_uv=False)
    assert row.b_stable_rank == pytest.approx((sigma**2).sum() / sigma[0] ** 2, rel=1e-6)
    assert row.shape == [INNER, OUT]

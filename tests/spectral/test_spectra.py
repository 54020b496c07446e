"""The core against the dense textbook formula, in float64, and the laws of a spectrum."""

from __future__ import annotations

import math

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, strategies as st
from tables import every, grid

from gradience.spectral import batch, devices
from gradience.spectral.batch import spectra
from gradience.spectral.grams import Factors
from gradience.spectral.update import null_stable_rank

BOUND = 1e-6  # of sigma_1


def one(b: np.ndarray, a: np.ndarray, scale: float = 1.0) -> batch.Spectrum:
    return spectra([lambda: Factors(b, a, scale)])[0]


def dense(b: np.ndarray, a: np.ndarray, scale: float = 1.0) -> np.ndarray:
    update_ = scale * (b.astype(np.float64) @ a.astype(np.float64))
    sigma = np.linalg.svd(update_, compute_uv=False)
    return np.pad(sigma, (0, a.shape[0]))[: a.shape[0]]


def factors(rng, d_out=150, r=8, d_in=270, condition=1.0, size=1.0):
    decay = np.logspace(0, -math.log10(condition), r) if r > 1 else np.ones(1)
    return rng.standard_normal((d_out, r)) * size, rng.standard_normal((r, d_in)) * decay[:, None]


@grid(each=3, r=[1, 2, 3, 8, 17, 64, 512], condition=[1.0, 1e3, 1e7])
def test_sigma_is_within_the_bound_of_dense_float64(r, condition):
    b, a = factors(np.random.default_rng(r), d_out=600, r=r, d_in=530, condition=condition)
    b, a = b.astype(np.float32), a.astype(np.float32)
    expected = dense(b, a, 2.0)
    assert np.max(np.abs(one(b, a, 2.0).sigma - expected)) <= BOUND * expected[0]


@every("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
def test_every_storage_dtype_is_read_exactly(dtype):
    b, a = (x.astype(dtype) for x in factors(np.random.default_rng(0)))
    expected = dense(b, a)
    assert np.max(np.abs(one(b, a).sigma - expected)) <= BOUND * expected[0]


def cancelling(condition):
    """Factors whose large directions meet each other's small ones, in bases that no row scale undoes."""
    rng = np.random.default_rng(2)
    left, _ = np.linalg.qr(rng.standard_normal((8, 8)))
    right, _ = np.linalg.qr(rng.standard_normal((8, 8)))
    sizes = np.logspace(0, -math.log10(condition), 8)
    b, a = factors(rng)
    return b @ (left * sizes) @ right, right.T @ (left / sizes).T @ a


@pytest.mark.parametrize("condition", [1e2, 1e5, 1e7])
def test_factors_that_all_but_cancel_fall_back_to_qr_and_keep_the_bound(condition):
    b, a = cancelling(condition)
    expected = dense(b, a, -3.0)
    assert np.max(np.abs(one(b, a, -3.0).sigma - expected)) <= BOUND * expected[0]


def test_the_gram_route_alone_would_miss_the_bound_there_and_says_so():
    b, a = cancelling(1e7)
    with jax.enable_x64(True):  # noqa: FBT003  # JAX's own signature
        found = jax.device_get(batch.by_grams(b.T @ b, a @ a.T))
    expected = dense(b, a)
    assert np.max(np.abs(found.sigma - expected)) > BOUND * expected[0]
    assert not found.trusted


@given(seed=st.integers(0, 2**16), r=st.integers(1, 8), shift=st.floats(-3, 3))
def test_sigma_does_not_see_a_change_of_basis_between_the_factors(seed, r, shift):
    rng = np.random.default_rng(seed)
    b, a = factors(rng, d_out=40, r=r, d_in=50)
    mix, _ = np.linalg.qr(rng.standard_normal((r, r)))
    mix = mix * np.logspace(0, shift, r)
    plain, mixed = one(b, a), one(b @ mix, np.linalg.solve(mix, a))
    assert np.max(np.abs(plain.sigma - mixed.sigma)) <= BOUND * plain.sigma[0]


@given(seed=st.integers(0, 2**16), scale=st.floats(-1e6, 1e6).filter(lambda s: abs(s) > 1e-6))
def test_sigma_is_linear_in_the_scale_and_the_ratios_do_not_see_it(seed, scale):
    b, a = factors(np.random.default_rng(seed), d_out=40, r=4, d_in=50)
    plain, scaled = one(b, a), one(b, a, scale)
    assert scaled.sigma == pytest.approx(abs(scale) * plain.sigma)
    assert scaled.stable_rank == plain.stable_rank
    assert scaled.energy_ranks == plain.energy_ranks


@given(seed=st.integers(0, 2**16), r=st.integers(1, 12), decay=st.floats(0.05, 1.0))
def test_the_quantities_agree_with_the_textbook_within_1e_5(seed, r, decay):
    b, a = factors(np.random.default_rng(seed), d_out=40, r=r, d_in=50)
    a = a * (decay ** np.arange(r))[:, None]
    sigma, found = dense(b, a), one(b, a)
    energy, share = sigma**2, sigma / sigma.sum()
    assert found.stable_rank == pytest.approx(energy.sum() / energy[0], rel=1e-5)
    assert found.effective_rank == pytest.approx(math.exp(-np.sum(share * np.log(share))), rel=1e-5)
    assert found.participation_ratio == pytest.approx(energy.sum() ** 2 / np.sum(energy**2), rel=1e-5)
    assert found.frobenius_norm == pytest.approx(math.sqrt(energy.sum()), rel=1e-5)
    tails = [math.sqrt(max(energy[k:].sum(), 0.0) / energy.sum()) for k in range(r + 1)]
    assert found.relative_errors == pytest.approx(tails, abs=1e-5)
    for k, t in zip(found.energy_ranks, (0.90, 0.95, 0.99), strict=True):
        reached = np.cumsum(energy) / energy.sum()
        assert reached[k - 1] >= t - 1e-9
        assert k == 1 or reached[k - 2] < t + 1e-9


def test_a_zero_update_is_finite_and_has_no_rank():
    found = one(np.zeros((30, 8), np.float32), np.ones((8, 20), np.float32))
    assert found.finite
    assert (found.spectral_norm, found.stable_rank, found.energy_ranks) == (0.0, 0.0, (0, 0, 0))


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_non_finite_weight_is_said_and_spoils_no_neighbour(poison):
    rng = np.random.default_rng(4)
    b, a = factors(rng)
    broken = b.copy()
    broken[3, 2] = poison
    bad, good = spectra([lambda: Factors(broken, a, 1.0), lambda: Factors(b, a, 1.0)])
    assert not bad.finite
    assert good.finite
    assert good.sigma == pytest.approx(dense(b, a))


@pytest.mark.parametrize(("r", "measured"), [(8, 0.914), (16, 0.866), (32, 0.812), (64, 0.733), (128, 0.640)])
def test_the_null_agrees_with_full_random_factors_at_width_4096(r, measured):
    assert null_stable_rank(r, 4096, 4096) / r == pytest.approx(measured, rel=0.03)


def test_the_null_of_a_rank_beyond_both_sides_is_that_of_random_factors():
    rng = np.random.default_rng(6)
    sigma = np.linalg.svd(rng.standard_normal((500, 5, 70)) @ rng.standard_normal((500, 70, 6)), compute_uv=False)
    seen = np.mean(np.sum(sigma**2, axis=1) / sigma[:, 0] ** 2)
    assert np.mean([null_stable_rank(70, 5, 6, seed=seed) for seed in range(30)]) == pytest.approx(seen, rel=0.05)


def test_no_modules_give_no_spectra():
    assert spectra([]) == []


def test_using_the_core_leaves_jax_as_it_was():
    before = jax.config.jax_enable_x64
    one(np.ones((3, 1)), np.ones((1, 4)))
    assert jax.config.jax_enable_x64 == before
    assert jax.numpy.asarray(1.5).dtype == np.float32


def test_an_unknown_device_is_refused_with_its_name():
    with pytest.raises(ValueError, match=r"^JAX finds no tpu device here: "):
        devices.use_device("tpu")


def test_a_device_is_the_first_of_its_kind_and_auto_leaves_the_choice_to_jax(monkeypatch):
    chosen = []
    monkeypatch.setattr("jax.devices", lambda kind: [f"{kind}:0", f"{kind}:1"])
    monkeypatch.setattr("jax.config.update", lambda *option: chosen.append(option))
    for name in ("auto", "gpu"):
        devices.use_device(name)
    assert chosen == [("jax_default_device", "gpu:0")]


@pytest.mark.parametrize("seed", range(4))
def test_singular_values_have_thirteen_digits_of_the_dense_ones_and_the_same_energy_ranks(seed):
    """Of factors as training leaves them: A near its random start, B with directions that fall off."""
    rng = np.random.default_rng(seed)
    d_out, r, d_in = [(64, 8, 64), (512, 16, 300), (300, 64, 700), (1024, 32, 256)][seed]
    b = (rng.standard_normal((d_out, r)) * 0.9 ** np.arange(r)).astype(np.float32)
    a = rng.uniform(-1.0, 1.0, (r, d_in)).astype(np.float32)
    expected, found = dense(b, a, 2.0), one(b, a, 2.0)
    assert found.sigma == pytest.approx(expected, rel=1e-13)
    held = np.cumsum(expected**2) / np.sum(expected**2)
    assert found.energy_ranks == tuple(int(np.argmax(held >= share)) + 1 for share in (0.90, 0.95, 0.99))

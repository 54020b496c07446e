"""Tiles, batches and threads: whatever the widths and however many modules, the numbers are those of dense float64."""

from __future__ import annotations

import threading

import jax
import ml_dtypes
import numpy as np
import pytest
from tables import grid

from gradience import spectral
from gradience.spectral import batch, grams
from gradience.spectral.batch import spectra
from gradience.spectral.grams import Factors, grams_of

LONG = [(40, 4096), (4096, 40), (4097, 33), (33, 9000), (9000, 40), (12, 1023), (1025, 12), (1, 5000)]


def _case(seed: int, out: int, inner: int, r: int, dtype: type) -> Factors:
    rng = np.random.default_rng(seed)
    b, a = rng.standard_normal((out, r)), rng.standard_normal((r, inner)) * 10.0 ** rng.uniform(-3, 0, (r, 1))
    return Factors(b.astype(dtype), a.astype(dtype), float(rng.choice([-0.5, 2.0, 1e-6])))


@grid(each=2, cores=[1, 2, 5], dtype=[np.float32, ml_dtypes.bfloat16])
def test_sigma_is_that_of_the_dense_update_at_every_width_and_on_any_number_of_threads(monkeypatch, cores, dtype):
    monkeypatch.setattr(spectral, "cores", lambda: cores)
    cases = [
        _case(i, *LONG[i % len(LONG)], r=(1, 5, 64, 96)[i // len(LONG)], dtype=dtype) for i in range(4 * len(LONG))
    ]
    found = spectra([lambda case=case: case for case in cases])
    assert len(found) == len(cases)
    for (b, a, scale), spectrum in zip(cases, found, strict=True):
        dense = np.linalg.svd(scale * (b.astype(np.float64) @ a.astype(np.float64)), compute_uv=False)
        n = min(len(dense), len(spectrum.sigma))
        np.testing.assert_allclose(spectrum.sigma[:n], dense[:n], rtol=0, atol=1e-6 * dense[0])


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float64])
def test_grams_are_those_of_float64(monkeypatch, dtype):
    monkeypatch.setattr(grams, "_BLOCK", 4096)  # several blocks, the last one shorter
    cases = [_case(i, *LONG[i % len(LONG)], r=(1, 5, 40)[i % 3], dtype=dtype) for i in range(12)]
    for case, found in zip(cases, grams_of([lambda case=case: case for case in cases]), strict=True):
        b, a = case.b.astype(np.float64), case.a.astype(np.float64)
        assert (found.r, found.scale) == (len(a), case.scale)
        size = max(8, 1 << (len(a) - 1).bit_length())
        for gram, wide in ((found.gram_a, a), (found.gram_b, b.T)):
            expected = np.zeros((size, size))
            expected[: len(a), : len(a)] = np.einsum("ik,jk->ij", wide, wide)
            np.testing.assert_allclose(gram, expected, rtol=0, atol=1e-13 * np.abs(expected).max())


@pytest.mark.parametrize("on_cpu", [True, False])
def test_what_is_not_finite_is_told_from_grams(monkeypatch, on_cpu):
    monkeypatch.setattr(batch, "on_cpu", lambda: on_cpu)
    case = _case(1, 20, 30, r=4, dtype=np.float32)
    case.a[1, 1] = np.inf
    assert not spectra([lambda: case])[0].finite


def test_the_device_is_the_one_that_jax_was_given():
    assert grams.on_cpu() is (jax.devices()[0].platform == "cpu")
    with jax.default_device(jax.devices("cpu")[0]):
        assert grams.on_cpu()


def test_each_module_is_loaded_once_and_several_threads_take_part(monkeypatch):
    monkeypatch.setattr(spectral, "cores", lambda: 2)
    loaded, both = [], threading.Barrier(2)

    def load(index: int) -> Factors:
        if index in {0, 20}:
            both.wait(timeout=300)  # passed only if another thread is at work
        loaded.append(index)
        return _case(index, 20, 30, r=4, dtype=np.float32)

    spectra([lambda index=index: load(index) for index in range(40)])
    assert sorted(loaded) == list(range(40))


def test_an_error_in_a_thread_reaches_the_caller(monkeypatch):
    monkeypatch.setattr(spectral, "cores", lambda: 2)

    def load(index: int) -> Factors:
        if index == 17:
            raise OSError("the disk went away")
        return _case(index, 20, 30, r=4, dtype=np.float32)

    with pytest.raises(OSError, match="the disk went away"):
        spectra([lambda index=index: load(index) for index in range(40)])

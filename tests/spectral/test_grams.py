"""Tiles, batches and threads: whatever the widths and however many modules, the numbers are those of dense float64."""

from __future__ import annotations

import threading

import ml_dtypes
import numpy as np
import pytest

from gradience.spectral import batch as grams
from gradience.spectral.batch import Factors, spectra

LONG = [(40, 4096), (4096, 40), (4097, 33), (33, 9000), (9000, 40), (12, 1023), (1025, 12), (1, 5000)]


def _case(seed: int, out: int, inner: int, r: int, dtype: type) -> Factors:
    rng = np.random.default_rng(seed)
    b, a = rng.standard_normal((out, r)), rng.standard_normal((r, inner)) * 10.0 ** rng.uniform(-3, 0, (r, 1))
    return Factors(b.astype(dtype), a.astype(dtype), float(rng.choice([-0.5, 2.0, 1e-6])))


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("cores", [1, 2, 5])
def test_sigma_is_that_of_the_dense_update_at_every_width_and_on_any_number_of_threads(monkeypatch, cores, dtype):
    monkeypatch.setattr(grams, "_cores", lambda: cores)
    cases = [
        _case(i, *LONG[i % len(LONG)], r=(1, 5, 64, 96)[i // len(LONG)], dtype=dtype) for i in range(4 * len(LONG))
    ]
    found = spectra([lambda case=case: case for case in cases])
    assert len(found) == len(cases)
    for (b, a, scale), spectrum in zip(cases, found, strict=True):
        dense = np.linalg.svd(scale * (b.astype(np.float64) @ a.astype(np.float64)), compute_uv=False)
        n = min(len(dense), len(spectrum.sigma))
        np.testing.assert_allclose(spectrum.sigma[:n], dense[:n], rtol=0, atol=1e-6 * dense[0])


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_grams_on_the_host_are_those_of_the_device(monkeypatch, dtype):
    monkeypatch.setattr(grams, "_HOST_ELEMENTS", 4096)  # several blocks, the last one shorter
    cases = [_case(i, *LONG[i % len(LONG)], r=(1, 5, 40)[i % 3], dtype=dtype) for i in range(12)]
    loads = [lambda case=case: case for case in cases]
    for host, device in zip(grams.grams_on_host(loads), grams.grams_of(loads), strict=True):
        assert (host.r, host.scale) == (device.r, device.scale)
        for one, other in ((host.gram_a, device.gram_a), (host.gram_b, device.gram_b)):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-12 * np.abs(other).max())


def test_what_is_not_finite_is_told_from_grams_on_the_host():
    case = _case(1, 20, 30, r=4, dtype=np.float32)
    case.a[1, 1] = np.inf
    loads = [lambda: case]
    assert not spectra(loads, grams.grams_on_host(loads))[0].finite


def test_each_module_is_loaded_once_and_several_threads_take_part(monkeypatch):
    monkeypatch.setattr(grams, "_cores", lambda: 2)
    loaded, both = [], threading.Barrier(2)

    def load(index: int) -> Factors:
        if index in {0, 20}:
            both.wait(timeout=30)  # passed only if another thread is at work
        loaded.append(index)
        return _case(index, 20, 30, r=4, dtype=np.float32)

    spectra([lambda index=index: load(index) for index in range(40)])
    assert sorted(loaded) == list(range(40))


def test_an_error_in_a_thread_reaches_the_caller(monkeypatch):
    monkeypatch.setattr(grams, "_cores", lambda: 2)

    def load(index: int) -> Factors:
        if index == 17:
            raise OSError("the disk went away")
        return _case(index, 20, 30, r=4, dtype=np.float32)

    with pytest.raises(OSError, match="the disk went away"):
        spectra([lambda index=index: load(index) for index in range(40)])

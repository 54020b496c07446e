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
from gradience.spectral.grams import Factors, Sketch, grams_of, grams_on_host

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


# --- updates computed together: the bits of each are its own, whatever it is stacked with --------------------------


SHAPES = [(40, 24, 4), (40, 24, 4), (300, 24, 4), (40, 24, 8), (40, 24, 5), (20, 30, 70), (40, 24, 4)]


def factors(seed, out, inner, r, dtype=np.float32):
    rng = np.random.default_rng(seed)
    b, a = rng.standard_normal((out, r)), rng.standard_normal((r, inner))
    return Factors(b.astype(dtype), a.astype(dtype), 0.5 + seed)


def loads_of(cases):
    return [lambda case=case: case for case in cases]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16])
def test_stacked_grams_are_those_of_each_update_alone(monkeypatch, dtype):
    cases = [factors(i, *shape, dtype=dtype) for i, shape in enumerate(SHAPES)]
    for most in (1 << 18, 3000, 1):  # all of a shape in one stack, some, none
        monkeypatch.setattr(grams, "_STACKED", most)
        found, _ = grams.grams_and_sketch([f"m{i}" for i in range(len(cases))], loads_of(cases))
        for one, alone in zip(found, map(grams_on_host, cases), strict=True):
            assert (one.r, one.scale) == (alone.r, alone.scale)
            np.testing.assert_allclose(one.gram_a, alone.gram_a, rtol=1e-13, atol=1e-13)
            np.testing.assert_allclose(one.gram_b, alone.gram_b, rtol=1e-13, atol=1e-13)


def test_the_bits_of_an_update_do_not_depend_on_its_neighbours():
    cases = [factors(i, 40, 24, 4) for i in range(9)]
    together, _ = grams.grams_and_sketch([f"m{i}" for i in range(9)], loads_of(cases))
    for place, case in enumerate(cases):
        (alone,), _ = grams.grams_and_sketch(["m"], loads_of([case]))
        assert (alone.gram_a == together[place].gram_a).all()
        assert (alone.gram_b == together[place].gram_b).all()


def test_a_sketch_is_the_sum_of_the_modules_sketches_stacked_or_not(monkeypatch):
    cases = [factors(i, *shape) for i, shape in enumerate(SHAPES)]
    names = [f"layer.{i}" for i in range(len(cases))]
    expected = Sketch()
    for name, (b, a, scale) in zip(names, cases, strict=True):
        expected.add(name, b, a, scale)
    for most in (1 << 18, 1):
        monkeypatch.setattr(grams, "_STACKED", most)
        found = grams.grams_and_sketch(names, loads_of(cases))[1]
        assert found == pytest.approx(expected.numbers(), rel=1e-5, abs=1e-3)


def test_one_update_that_is_not_finite_spoils_no_other():
    cases = [factors(i, 40, 24, 4) for i in range(3)]
    cases[1].a[2, 3] = np.nan
    made, numbers = grams.grams_and_sketch(["x", "y", "z"], loads_of(cases))
    assert [one.finite for one in spectra(loads_of(cases), made)] == [True, False, True]
    without = grams.grams_and_sketch(["x", "z"], loads_of([cases[0], cases[2]]))[1]
    assert numbers == pytest.approx(without, rel=1e-6)

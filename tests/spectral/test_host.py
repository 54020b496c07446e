"""Updates computed together: the bits of each are its own, whatever it is stacked with."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from gradience.spectral import grams as sketch
from gradience.spectral.batch import spectra
from gradience.spectral.grams import Factors, Sketch, grams_on_host

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
        monkeypatch.setattr(sketch, "_STACKED", most)
        found, _ = sketch.grams_and_sketch([f"m{i}" for i in range(len(cases))], loads_of(cases))
        for one, alone in zip(found, map(grams_on_host, cases), strict=True):
            assert (one.r, one.scale) == (alone.r, alone.scale)
            np.testing.assert_allclose(one.gram_a, alone.gram_a, rtol=1e-13, atol=1e-13)
            np.testing.assert_allclose(one.gram_b, alone.gram_b, rtol=1e-13, atol=1e-13)


def test_the_bits_of_an_update_do_not_depend_on_its_neighbours():
    cases = [factors(i, 40, 24, 4) for i in range(9)]
    together, _ = sketch.grams_and_sketch([f"m{i}" for i in range(9)], loads_of(cases))
    for place, case in enumerate(cases):
        (alone,), _ = sketch.grams_and_sketch(["m"], loads_of([case]))
        assert (alone.gram_a == together[place].gram_a).all()
        assert (alone.gram_b == together[place].gram_b).all()


def test_a_sketch_is_the_sum_of_the_modules_sketches_stacked_or_not(monkeypatch):
    cases = [factors(i, *shape) for i, shape in enumerate(SHAPES)]
    names = [f"layer.{i}" for i in range(len(cases))]
    expected = Sketch()
    for name, (b, a, scale) in zip(names, cases, strict=True):
        expected.add(name, b, a, scale)
    for most in (1 << 18, 1):
        monkeypatch.setattr(sketch, "_STACKED", most)
        found = sketch.grams_and_sketch(names, loads_of(cases))[1]
        assert found == pytest.approx(expected.numbers(), rel=1e-5, abs=1e-3)


def test_one_update_that_is_not_finite_spoils_no_other():
    cases = [factors(i, 40, 24, 4) for i in range(3)]
    cases[1].a[2, 3] = np.nan
    grams, numbers = sketch.grams_and_sketch(["x", "y", "z"], loads_of(cases))
    assert [one.finite for one in spectra(loads_of(cases), grams)] == [True, False, True]
    without = sketch.grams_and_sketch(["x", "z"], loads_of([cases[0], cases[2]]))[1]
    assert numbers == pytest.approx(without, rel=1e-6)

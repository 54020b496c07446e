"""The norm of a weight as it is stored, against dense float64."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from shaped import FLAT, SPECTRA, of
from tables import every, grid

from gradience.spectral import krylov
from gradience.spectral.krylov import Operator, as_float32, leading, spectral_norm


@grid(each=3, scale=[1e-6, 1.0, 1e6], kind=SPECTRA)
def test_it_is_within_1e_5_of_dense_float64(kind, scale):
    w = of(SPECTRA[kind], scale)
    found = spectral_norm(w)
    assert found.converged
    assert found.value == pytest.approx(np.linalg.norm(w.astype(np.float64), 2), rel=3e-6, abs=1e-30)


@pytest.mark.parametrize("apart", [3e-5, 1e-4, 3e-4, 1e-3, 1e-2])
def test_a_second_value_all_but_as_large_does_not_hide_the_first(apart):
    """The next value that a few products show is far away: its distance would have vouched for a mean of the two."""
    w = of(np.r_[1.0 + apart, 1.0, 0.3 * FLAT[2:] / FLAT[2]])
    true = np.linalg.norm(w.astype(np.float64), 2)
    for seed in range(10):
        found = spectral_norm(w, seed=seed)
        assert found.converged
        assert found.value == pytest.approx(true, rel=1e-5)


@grid(
    each=4,
    shape=[(701, 300), (300, 701), (5, 7), (97, 97), (1, 8)],
    dtype=[ml_dtypes.bfloat16, np.float16, np.float32, np.float64],
)
def test_every_dtype_and_shape_has_the_norm_of_its_own_values(dtype, shape):
    w = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    assert spectral_norm(w).value == pytest.approx(np.linalg.norm(w.astype(np.float64), 2), rel=3e-6)


def test_a_space_of_few_directions_ends_early_and_one_seed_gives_one_answer():
    for name in ("rank 3", "one spike"):
        assert spectral_norm(of(SPECTRA[name])).passes <= 4
    assert spectral_norm(of(FLAT), seed=7) == spectral_norm(of(FLAT), seed=7)


def test_where_one_vector_does_not_get_there_a_block_does(monkeypatch):
    monkeypatch.setattr(krylov, "_PASSES", 3)
    w = of(FLAT)
    found = spectral_norm(w)
    assert found.converged
    of_blocks = leading(Operator.of(as_float32(w)))
    assert found.passes == 2 * of_blocks.steps > 3
    assert found.value == pytest.approx(np.linalg.norm(w, 2), rel=1e-6)
    monkeypatch.setattr(krylov, "leading", lambda *_, **__: of_blocks._replace(converged=False))
    assert spectral_norm(w) == found._replace(converged=False)  # if a block does not get there either


@pytest.mark.parametrize("scale", [1e-36, 1e-24, 1e-22, 1e-17, 1e17, 1e25, 1e35])
def test_a_weight_whose_squares_leave_float32_has_its_norm(scale):
    w = (of(FLAT) * np.float64(scale)).astype(np.float32)
    found = spectral_norm(w)
    assert found.converged
    assert found.value == pytest.approx(np.linalg.norm(w.astype(np.float64), 2), rel=1e-5)


@every(
    ("residual", "gap", "close"),
    [(0.25, 0.0, True), (0.26, 0.0, False), (0.5, 1.0, True), (0.5, 0.99, False), (0.51, 1.0, False)],
)
def test_a_value_is_close_by_its_residual_or_by_its_square_over_the_gap(residual, gap, close, monkeypatch):
    monkeypatch.setattr(krylov, "_ERROR", 0.125)  # of the value: twice as much of its square
    assert bool(krylov.is_close(np.float64(1.0), residual, gap)) is close

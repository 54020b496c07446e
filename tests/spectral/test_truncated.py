"""The leading part of a dense matrix against numpy's SVD, where all of it is computed and where it is iterated."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st
from tables import grid

from gradience.spectral import update
from gradience.spectral.update import leading_part, part_with_energy, rank_for_energy


def decaying(m, n, decay, seed=0):
    """Return a matrix with singular values that fall as decay^i, and those values."""
    rng = np.random.default_rng(seed)
    k = min(m, n)
    u, v = (np.linalg.qr(rng.standard_normal((size, k)))[0] for size in (m, n))
    sigma = decay ** np.arange(k, dtype=np.float64)
    return (u * sigma) @ v.T, sigma


@grid(each=4, shape=[(300, 200), (200, 300)], decay=[0.5, 0.9, 0.99, 1.0], iterated=[False, True])
def test_a_part_leaves_out_no_more_than_the_best_of_its_rank(monkeypatch, shape, decay, iterated):
    if iterated:
        monkeypatch.setattr(update, "_DENSE_UNDER", 0)
    matrix, sigma = decaying(*shape, decay)
    part = leading_part(matrix, 8)
    best = np.linalg.norm(sigma[8:])
    assert part.norm == pytest.approx(np.linalg.norm(sigma))
    assert best * (1 - 1e-9) <= part.rest <= best * 1.01 + 1e-12
    measured = np.linalg.norm(matrix - (part.low.u * part.low.sigma) @ part.low.v)
    assert part.rest == pytest.approx(measured, rel=1e-9, abs=1e-12)


def test_a_matrix_of_low_rank_is_found_whole_by_iteration(monkeypatch):
    monkeypatch.setattr(update, "_DENSE_UNDER", 0)
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((400, 6)) @ rng.standard_normal((6, 300))
    part = leading_part(matrix, 6)
    assert part.rest < 1e-12 * part.norm


@pytest.mark.parametrize("iterated", [False, True])
@pytest.mark.parametrize("energy", [0.3, 0.9, 0.9999, 1.0])
def test_an_energy_is_held_by_the_least_rank(monkeypatch, energy, iterated):
    if iterated:
        monkeypatch.setattr(update, "_DENSE_UNDER", 0)
        monkeypatch.setattr(update, "_FIRST_RANK", 2)
    matrix, sigma = decaying(160, 120, 0.8)
    part = part_with_energy(matrix, energy)
    share = np.cumsum(sigma**2) / np.sum(sigma**2)
    assert len(part.low.sigma) == 1 + np.sum(share < energy * (1 - 1e-12))


def test_a_matrix_of_zeros_has_a_part_of_zeros():
    part = leading_part(np.zeros((5, 4)), 2)
    assert (part.norm, part.rest) == (0.0, 0.0)
    assert part_with_energy(np.zeros((5, 4)), 0.9).low.sigma.shape == (1,)


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20), st.floats(0.01, 1.0))
def test_the_rank_for_an_energy_is_the_first_that_reaches_it(values, energy):
    sigma = np.sort(np.array(values))[::-1]
    total = float(np.sum(sigma**2))
    k = rank_for_energy(sigma, energy, total)
    assert k is not None
    held = np.cumsum(sigma**2)
    assert held[k - 1] >= energy * total * (1 - 1e-9)
    assert k == 1 or held[k - 2] < energy * total


def test_after_the_last_pass_the_core_is_that_of_the_last_basis(monkeypatch):
    monkeypatch.setattr(update, "_DENSE_UNDER", 0)
    monkeypatch.setattr(update, "_SETTLED", -1.0)  # no pass is the last for what it gained
    monkeypatch.setattr(update, "_MOST_PASSES", 1)
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((400, 6)) @ rng.standard_normal((6, 300))
    part = leading_part(matrix, 6)
    assert part.low.sigma == pytest.approx(np.linalg.svd(matrix, compute_uv=False)[:6])
    assert part.rest < 1e-12 * part.norm

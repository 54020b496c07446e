"""A weighted sum of updates from its parts, against the dense matrix: Gram matrices, new factors, and their loss."""

from __future__ import annotations

import jax
import ml_dtypes
import numpy as np
import pytest
from tables import every, grid

from gradience.spectral import sums
from gradience.spectral.sums import (
    balanced_sum,
    balancing,
    gram_norm,
    is_narrow,
    low_rank_sum,
    numerical_rank,
    sum_grams,
)

DTYPES = [np.dtype(kind) for kind in (ml_dtypes.bfloat16, np.float16, np.float32, np.float64)]


def _parts(seed: int = 0, *, out: int = 30, inner: int = 20, ranks: tuple[int, ...] = (4, 5), kind=np.float32):
    rng = np.random.default_rng(seed)
    return [
        (rng.standard_normal((out, r)).astype(kind), rng.standard_normal((r, inner)).astype(kind), 0.7 - i)
        for i, r in enumerate(ranks)
    ]


def _dense(parts) -> np.ndarray:
    return sum(c * b.astype(np.float64) @ a.astype(np.float64) for b, a, c in parts)


def _stacked(parts) -> tuple[np.ndarray, np.ndarray]:
    return np.hstack([c * b.astype(float) for b, _, c in parts]), np.vstack([a.astype(float) for _, a, _ in parts])


@pytest.mark.parametrize("ranks", [(4,), (4, 5), (2, 3, 4)])
def test_gram_matrices_are_those_of_the_weighted_stack(ranks):
    parts = _parts(ranks=ranks)
    b, a = _stacked(parts)
    gram_b, gram_a = sum_grams(parts)
    np.testing.assert_allclose(gram_b, b.T @ b, atol=1e-12 * np.abs(b.T @ b).max())
    np.testing.assert_allclose(gram_a, a @ a.T, atol=1e-12 * np.abs(a @ a.T).max())


@grid(each=4, block=[1 << 18, 60], rank=[3, 5, 8], dtype=DTYPES)
def test_the_loss_is_that_of_what_is_stored_and_the_factors_are_the_best(dtype, rank, block, monkeypatch):
    monkeypatch.setattr(sums, "_BLOCK", block)
    parts = _parts(kind=ml_dtypes.bfloat16)
    dense, grams, kinds = _dense(parts), sum_grams(parts), set()
    new_factor = sums.new_factor
    monkeypatch.setattr(
        sums, "new_factor", lambda x, *args, **more: kinds.add(x.dtype.name) or new_factor(x, *args, **more)
    )
    b, a, loss = low_rank_sum(parts, grams, rank, dtype)
    assert kinds == {"float32" if dtype.itemsize == 2 else "float64"}
    assert (b.shape, a.shape, b.dtype, a.dtype) == ((30, rank), (rank, 20), dtype, dtype)
    product = b.astype(np.float64) @ a.astype(np.float64)
    assert loss == pytest.approx(np.sum((dense - product) ** 2), rel=1e-7)
    u, sigma, v = np.linalg.svd(dense)
    best = (u[:, :rank] * sigma[:rank]) @ v[:rank]
    rounding = max(float(ml_dtypes.finfo(dtype).eps), 1e-14)
    np.testing.assert_allclose(product, best, atol=2.0 * rounding * sigma[0])


def test_a_sum_at_its_own_rank_loses_its_rounding_alone_and_a_full_one_stays_as_it_is():
    b, a, _ = _parts()[0]
    twice = [(b, a, 0.3), (b, a, 0.4)]
    for dtype, digits in ((np.dtype(ml_dtypes.bfloat16), 1e-4), (np.dtype(np.float32), 1e-2)):
        found = low_rank_sum(twice, sum_grams(twice), None, dtype)
        assert found.b.shape == (30, 4)
        truth = np.sum((_dense(twice) - found.b.astype(np.float64) @ found.a.astype(np.float64)) ** 2)
        assert found.loss == pytest.approx(truth, rel=digits)  # of float32, products in float64 find the roundings
        assert truth > 0.0
    parts = _parts()
    assert numerical_rank(*_stacked(parts)) == 9
    assert low_rank_sum(parts, sum_grams(parts), None, np.dtype(np.float32)) is None
    assert low_rank_sum(parts, sum_grams(parts), 9, np.dtype(np.float32)) is None


def test_parts_that_all_but_cancel_are_taken_apart_by_qr():
    b, a, _ = _parts(kind=np.float64)[0]
    near = b + 1e-6 * np.random.default_rng(1).standard_normal(b.shape)
    parts = [(b, a, 1.0), (near, a, -1.0)]
    found = low_rank_sum(parts, sum_grams(parts), 2, np.dtype(np.float64))
    dense = _dense(parts)
    sigma = np.linalg.svd(dense, compute_uv=False)
    assert np.linalg.norm(dense - found.b @ found.a) == pytest.approx(np.linalg.norm(sigma[2:]), rel=1e-6)
    assert gram_norm(sum_grams(parts), lambda: _stacked(parts)) == pytest.approx(np.sum(dense**2), rel=1e-6)
    # two terms cancel to their rounding, above 1e-6 of the third term: the rank is that of the third
    p, q, x, y = np.random.default_rng(0).standard_normal((4, 24))
    assert numerical_rank(np.stack([p, -p, 1e-11 * x], axis=1), np.stack([q, q, y])) == 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fortran", [False, True])
def test_balanced_factors_lose_what_rounding_costs_and_nothing_where_weights_are_powers_of_two(dtype, fortran):
    parts = [((1e3 * b).astype(ml_dtypes.bfloat16), a, c) for b, a, c in _parts(kind=ml_dtypes.bfloat16)]
    if fortran:
        parts = [(np.asfortranarray(b), np.asfortranarray(a), c) for b, a, c in parts]
    b, a, loss = balanced_sum(parts, sum_grams(parts), dtype)
    product = b.astype(np.float64) @ a.astype(np.float64)
    size = np.sum(_dense(parts) ** 2)
    # Of half precision by products in float32; what float32 rounds is known to 1e-7 of it.
    assert loss == pytest.approx(np.sum((_dense(parts) - product) ** 2), rel=1e-3, abs=1e-13 * size)
    lengths = np.linalg.norm(b.astype(float), axis=0) / np.linalg.norm(a.astype(float), axis=1)
    assert ((lengths > 0.49) & (lengths < 2.01)).all()
    fine = [(1e3 * b, a, c) for b, a, c in _parts(kind=np.float64)]  # of which rounding changes a too
    b, a, loss = balanced_sum(fine, sum_grams(fine), dtype)
    truth = np.sum((_dense(fine) - b.astype(np.float64) @ a.astype(np.float64)) ** 2)
    assert loss == pytest.approx(truth, rel=1e-3, abs=1e-13 * size)
    exact = [(b, a, 0.5 - i) for i, (b, a, _) in enumerate(parts)]
    b, a, loss = balanced_sum(exact, sum_grams(exact), dtype)
    assert loss == 0.0
    np.testing.assert_allclose(b.astype(float) @ a.astype(float), _dense(exact), rtol=1e-13, atol=1e-13 * size**0.5)


@every(
    ("out", "inner", "ranks", "narrow"),
    [
        (30, 20, (40, 24), True),
        (30, 20, (40, 25), False),
        (70, 80, (41, 29), True),
        (80, 70, (41, 30), False),
    ],
)
def test_more_ranks_than_a_side_has_rows_are_another_form(out, inner, ranks, narrow):
    assert is_narrow(_parts(out=out, inner=inner, ranks=ranks)) == narrow


def test_each_term_of_the_loss_counts_for_roundings_as_large_as_the_factors():
    """Of a sum of rank 4 the best 3 are kept: u and v are its leading singular vectors, e and f any changes."""
    rng = np.random.default_rng(2)
    b, a = rng.standard_normal((7, 4)), rng.standard_normal((4, 5))
    left_vectors, sigma, right_vectors = np.linalg.svd(b @ a)
    left = np.linalg.lstsq(b, left_vectors[:, :3] * np.sqrt(sigma[:3]))[0]
    right = np.linalg.lstsq(a.T, right_vectors[:3].T * np.sqrt(sigma[:3]))[0].T
    e, f = rng.standard_normal((7, 3)), rng.standard_normal((3, 5))
    with jax.enable_x64(True):  # noqa: FBT003  # JAX's own signature
        found = sums.loss((b.T @ b, b.T @ e, e.T @ e), (a @ a.T, a @ f.T, f @ f.T), left, right)
    truth = np.sum((b @ a - (b @ left + e) @ (right @ a + f)) ** 2)
    assert float(found) + sigma[3] ** 2 == pytest.approx(truth, rel=1e-12)


def test_a_column_or_a_row_of_zeros_is_left_as_it_is():
    columns, rows = np.array([0.0, 2.0, 3.0, 0.0, 1.0]), np.array([8.0, 8.0, 0.0, 0.0, 1.5])
    assert balancing(columns, rows).tolist() == [1.0, 2.0, 1.0, 1.0, 1.0]  # sqrt(4), and the nearest power to sqrt(1.5)

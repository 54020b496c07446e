"""The products of several updates' factors in one pass, against the dense products of the factors in float64."""

from __future__ import annotations

import jax
import ml_dtypes
import numpy as np
import pytest

from gradience.spectral import subspace, subspace as module
from gradience.spectral.subspace import StackTerm, crossed, row_geometries

RANKS = (3, 5, 2, 4)
DTYPES = (np.float32, ml_dtypes.bfloat16, np.float64, np.float16)


@pytest.fixture
def factors():
    rng = np.random.default_rng(0)
    shapes = [((700, r), (r, 530)) for r in RANKS]
    return [
        tuple(rng.standard_normal(shape).astype(kind) for shape in some)
        for some, kind in zip(shapes, DTYPES, strict=True)
    ]


def _padded(x, shape=(8, 8)):
    return np.pad(x, [(0, most - size) for most, size in zip(shape, x.shape, strict=True)])


def _wide(factors):
    return [tuple(x.astype(np.float64) for x in some) for some in factors]


@pytest.mark.parametrize("pairs", [[(0, 1)], [(0, 1), (0, 2), (1, 2)], [(0, 3), (1, 2)], [(0, 1), (1, 2), (2, 3)]])
@pytest.mark.parametrize("fortran", [False, True])
def test_products_are_those_of_the_factors_in_float64(factors, pairs, fortran, monkeypatch):
    if fortran:
        factors = [(np.asfortranarray(b), np.asfortranarray(a)) for b, a in factors]
        monkeypatch.setattr(module, "_BLOCK", 1)
        monkeypatch.setattr(module, "_LEAST_WIDTH", 64)  # in blocks, the last of them narrower
    found = crossed({i: lambda some=some: some for i, some in enumerate(factors)}, pairs, 8)
    named = {i for pair in pairs for i in pair}
    wide = _wide(factors)
    assert found.b.keys() == found.a.keys()
    assert found.b.keys() >= {*pairs, *((i, i) for i in named)}
    for i, j in found.b:
        np.testing.assert_allclose(found.b[i, j], _padded(wide[i][0].T @ wide[j][0]), rtol=1e-12, atol=1e-11)
        np.testing.assert_allclose(found.a[i, j], _padded(wide[i][1] @ wide[j][1].T), rtol=1e-12, atol=1e-11)
    i, j = pairs[0]
    gram_b, gram_a = found.together((i, j))
    both_b = np.hstack([_padded(wide[k][0], (700, 8)) for k in (i, j)])
    both_a = np.vstack([_padded(wide[k][1], (8, 530)) for k in (i, j)])
    np.testing.assert_allclose(gram_b, both_b.T @ both_b, rtol=1e-12, atol=1e-11)
    np.testing.assert_allclose(gram_a, both_a @ both_a.T, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize(  # the first two have 14 760 and 12 300 bytes
    ("kept", "loads"), [(0, [1, 2, 1]), (27060, [1, 2, 1]), (27061, [1, 1, 1]), (1 << 25, [1, 1, 1])]
)
def test_factors_are_loaded_once_where_they_fit_and_again_where_not(factors, monkeypatch, kept, loads):
    """With no room, (0, 1) is followed by (0, 2), which keeps 0, and by (1, 2), which keeps 2."""
    monkeypatch.setattr(module, "_KEPT", kept)
    seen = [0] * 3

    def load(i):
        seen[i] += 1
        return factors[i]

    found = crossed({i: lambda i=i: load(i) for i in range(3)}, [(0, 1), (0, 2), (1, 2)], 8)
    assert seen == loads
    wide = _wide(factors)
    np.testing.assert_allclose(found.b[1, 2], _padded(wide[1][0].T @ wide[2][0]), rtol=1e-12, atol=1e-11)
    assert crossed({0: lambda: (np.zeros((4, 0)), np.zeros((0, 3)))}, [(0, 0)], 8).b[0, 0].shape == (8, 8)


def test_what_is_not_finite_stays_with_its_own_update(factors):
    factors[1][0][3, 1] = np.nan
    found = crossed({i: lambda some=some: some for i, some in enumerate(factors[:3])}, [(0, 1), (0, 2), (1, 2)], 8)
    assert not np.isfinite(found.b[1, 1]).all()
    assert not np.isfinite(found.b[0, 1]).all()
    assert np.isfinite(found.b[0, 2]).all()


def test_a_row_of_three_has_the_geometry_of_each_two_and_passes_over_a_gap(factors):
    row = [StackTerm(lambda some=some: some, some[1].shape[0], 0.5 - i) for i, some in enumerate(factors[:3])]
    whole, gap = row_geometries([row, [row[0], None, row[2]]], [(0, 1), (0, 2), (1, 2)])
    dense = [(0.5 - i) * b @ a for i, (b, a) in enumerate(_wide(factors[:3]))]
    assert set(whole.pairs) == {(0, 1), (0, 2), (1, 2)}
    assert (set(gap.pairs), set(gap.own)) == ({(0, 2)}, {0, 2})
    for (i, j), found in whole.pairs.items():
        assert found.inner == pytest.approx(np.sum(dense[i] * dense[j]), rel=1e-9)
        assert found.norms == pytest.approx((np.linalg.norm(dense[i]), np.linalg.norm(dense[j])), rel=1e-12)
        assert found.distance == pytest.approx(np.linalg.norm(dense[j] - dense[i]), rel=1e-12)
        vectors = [np.linalg.svd(dense[k]) for k in (i, j)]
        sides = ((found.left, [u for u, _, _ in vectors]), (found.right, [v.T for _, _, v in vectors]))
        for cross, (one, two) in sides:
            truth = one[:, : RANKS[i]].T @ two[:, : RANKS[j]]
            np.testing.assert_allclose(np.abs(cross), np.abs(truth), atol=1e-11)
    assert gap.pairs[0, 2].inner == pytest.approx(whole.pairs[0, 2].inner, rel=1e-12)  # sums of another length in BLAS


@pytest.mark.parametrize("dependent", [False, True])
def test_the_square_of_a_root_is_the_gram_matrix(dependent):
    x = np.random.default_rng(1).standard_normal((40, 6)) * [*np.logspace(0, -9, 5), 0.0]
    if dependent:
        x[:, 4] = x[:, 0] - x[:, 1]
    gram = x.T @ x
    with jax.enable_x64(True):  # noqa: FBT003  # JAX's own signature
        root = np.asarray(subspace.root(gram))
    length = np.sqrt(np.diagonal(gram)) + (np.diagonal(gram) == 0.0)
    np.testing.assert_allclose(root.T @ root / np.outer(length, length), gram / np.outer(length, length), atol=1e-14)
    assert not root[:, 5].any()


def test_on_a_device_a_row_has_the_same_grams_and_geometry(factors, monkeypatch):
    row = [StackTerm(lambda some=some: some, some[1].shape[0], 0.5 - i) for i, some in enumerate(factors[:3])]
    pairs = [(0, 1), (0, 2), (1, 2)]
    (here,) = row_geometries([row], pairs)
    monkeypatch.setattr(subspace, "on_cpu", lambda: False)
    (there,) = row_geometries([row], pairs)
    assert there.own.keys() == here.own.keys()
    for place, grams in here.own.items():
        for one, two in zip(grams, there.own[place], strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-12, atol=1e-11)
    assert [there.pairs[pair].inner for pair in pairs] == pytest.approx([here.pairs[pair].inner for pair in pairs])

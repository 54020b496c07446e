"""At which rank the factors of a sum are: as they are, at the rank that it has, or at the rank that was asked for."""

from __future__ import annotations

import numpy as np
import pytest
from tables import every

from gradience.rewrite.compare import _wanted
from gradience.rewrite.merge.methods import Recipe, _factors
from gradience.spectral.sums import pair_grams


@every(
    ("method", "rank", "most", "columns"),
    [
        ("cat", None, 2, 4),
        ("linear", None, 2, 3),
        ("svd", 2, 4, 2),
        ("svd", None, 1, 1),
        ("svd", 9, 4, 4),
        ("ties", 2, 4, 2),
    ],
)
def test_four_columns_of_which_one_is_another_s_double(method, rank, most, columns):
    rng = np.random.default_rng(0)
    b, a = rng.standard_normal((9, 4)), rng.standard_normal((4, 8))
    b[:, 3], a[3] = b[:, 0], 2 * a[0]
    made = _factors((b, a), pair_grams(b, a), Recipe(method, (1.0, 1.0), rank, 0.5, 0), most)
    assert (made[0].shape, made[1].shape) == ((9, columns), (columns, 8))
    sigma = np.linalg.svd(b @ a, compute_uv=False)
    assert np.linalg.norm(made[0] @ made[1] - b @ a) == pytest.approx(np.linalg.norm(sigma[columns:]), abs=1e-9)


def test_of_a_series_each_is_compared_with_the_next_and_the_last():
    assert _wanted(4, series=False) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert _wanted(4, series=True) == [(0, 1), (0, 3), (1, 2), (1, 3), (2, 3)]

"""An adapter's own numbers, taken from what its pairs were compared by."""

from __future__ import annotations

import numpy as np
import pytest

from gradience.verbs.beside import _energy


def test_the_squared_norm_is_that_of_the_dense_update_or_is_not_vouched_for():
    rng = np.random.default_rng(0)
    b, a = rng.standard_normal((30, 4)), rng.standard_normal((4, 20))
    assert _energy(b.T @ b, a @ a.T, -0.5) == pytest.approx(np.sum((0.5 * b @ a) ** 2), rel=1e-12)
    assert _energy(np.zeros((2, 2)), np.eye(2), 3.0) == 0.0
    assert _energy(np.full((2, 2), np.nan), np.eye(2), 1.0) is None
    assert _energy(np.eye(2), np.eye(2), np.inf) is None


@pytest.mark.parametrize(("angle", "vouched"), [(0.16, True), (0.12, False)])
def test_parts_that_all_but_cancel_are_left_to_the_spectrum(angle, vouched):
    """Of b_1 = -b_2 and unit rows an angle apart: |b a|^2 over the sum of squares is 1 - cos(angle), here 1 %."""
    gram_b = np.array([[1.0, -1.0], [-1.0, 1.0]])
    gram_a = np.array([[1.0, np.cos(angle)], [np.cos(angle), 1.0]])
    assert (_energy(gram_b, gram_a, 1.0) is not None) == vouched

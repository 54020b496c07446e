"""Factors of a rank beyond their product's sides: the same numbers, at the product's cost."""

from __future__ import annotations

import numpy as np
import pytest

from gradience.spectral.batch import spectra
from gradience.spectral.grams import Factors, grams_of, inner_size, narrowed
from gradience.spectral.update import reduced


@pytest.mark.parametrize(("d_out", "d_in", "rank"), [(1, 1, 500), (3, 70, 400), (70, 3, 400)])
def test_a_rank_beyond_both_sides_has_the_spectrum_of_the_dense_product(d_out, d_in, rank):
    rng = np.random.default_rng(0)
    b, a = rng.standard_normal((d_out, rank)), rng.standard_normal((rank, d_in))
    least = min(d_out, d_in)
    assert narrowed(b, a)[0].shape[1] == least == inner_size(rank, d_out, d_in)
    np.testing.assert_allclose(np.matmul(*narrowed(b, a)), b @ a)
    loads = [lambda: Factors(b, a, 2.0)]
    assert len(grams_of(loads)[0].gram_a) == 8  # the least bucket
    found = spectra(loads)[0]
    np.testing.assert_allclose(found.sigma[:least], 2.0 * np.linalg.svd(b @ a, compute_uv=False), rtol=1e-6)
    assert found.sigma.shape == (rank,)
    assert not found.sigma[least:].any()
    assert found.relative_errors.shape == (rank + 1,)
    np.testing.assert_allclose(np.matmul(*reduced(b, a, 1.0, least)), b @ a, rtol=1e-6, atol=1e-9)


def test_a_rank_within_the_sides_is_left_as_it_is():
    b, a = np.ones((100, 64)), np.ones((64, 2))
    assert narrowed(b, a)[0] is b

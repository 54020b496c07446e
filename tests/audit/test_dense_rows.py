"""The row of a module whose update is a whole matrix: of nothing, of a small one, of one whose numbers are bounds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gradience.adapters.layout import Module
from gradience.judge.audit.rows import RowSettings, dense_row, knee_rank


def module(r: int = 2) -> Module:
    return Module("m.q_proj", "dora", (6, 5), r, 4.0, 2.0, 22, lambda: (np.zeros((6, r)), np.zeros((r, 5))))


def spectrum(*sigma: float, rest: float = 0.0, whole: bool = True) -> Any:
    values = np.array(sigma)
    energy = float(np.sum(values**2)) + rest
    ranks = {0.9: (1, 1), 0.95: (1, 2), 0.99: (2, 2)}
    return SimpleNamespace(
        sigma=values, energy=energy, is_whole=whole, converged=True, size=5, energy_rank=lambda share: ranks[share]
    )


def test_an_update_of_nothing_has_norms_of_nothing():
    row = dense_row(module(), spectrum(0.0, 0.0)).row
    assert (row.state, row.spectral_norm, row.frobenius_norm) == ("zero", 0.0, 0.0)
    assert (row.stable_rank, row.energy_rank_90) == (None, None)


def test_a_whole_spectrum_gives_all_numbers_but_those_of_the_rank():
    row, errors = dense_row(module(), spectrum(2.0, 1.0, 0.0, 0.0, 0.0))
    assert (row.spectral_norm, row.stable_rank) == (2.0, 1.25)
    assert row.frobenius_norm == pytest.approx(5**0.5)
    assert (row.utilization, row.null_stable_rank) == (None, None)
    assert errors == pytest.approx([1.0, (1 / 5) ** 0.5, 0.0], abs=1e-9)


def test_of_a_leading_part_what_needs_every_value_is_unknown():
    row, errors = dense_row(module(), spectrum(2.0, 1.0, rest=5.0, whole=False), RowSettings(1))
    assert (row.energy_rank_90, row.energy_rank_95, row.energy_rank_99) == (1, None, 2)
    assert row.spectral_norm == 2.0
    assert row.frobenius_norm == pytest.approx(10**0.5)
    assert errors == pytest.approx([1.0, 0.6**0.5, 0.5**0.5])
    assert row.top_singular_values == [2.0]


def test_the_knee_is_where_the_share_kept_is_farthest_above_the_straight_line():
    def errors(*squares: float) -> Any:
        left = 1.0 - np.cumsum([0.0, *squares]) / sum(squares)
        return np.sqrt(np.maximum(left, 0.0))

    assert knee_rank(errors(16.0, 1.0, 1.0, 1.0)) == 1
    assert knee_rank(errors(9.0, 9.0, 0.01, 0.01, 0.01)) == 2
    assert knee_rank(errors(1.0, 1.0, 1.0, 1.0)) == 4
    assert knee_rank(errors(5.0)) == 1


def test_a_leading_part_that_is_all_of_it_leaves_nothing_out():
    assert dense_row(module(), spectrum(2.0, 1.0, whole=False)).errors == [1.0, pytest.approx(0.2**0.5), 0.0]

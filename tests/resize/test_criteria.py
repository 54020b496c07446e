"""Each criterion is its formula; a budget is spent as well as brute force can."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, strategies as st
from tables import every

from gradience.rewrite.options import ResizeOptions, Target
from gradience.rewrite.resize.weights import PriceList, module_rank, ranks_within

SPECTRA = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20).map(lambda s: np.sort(np.asarray(s))[::-1])
SHARES = st.floats(0.01, 0.99)


def holds(sigma: np.ndarray, k: int, value: float) -> bool:
    """Return whether rank k keeps that share of the energy, by the formula as the help gives it."""
    return np.sum(sigma[:k] ** 2) >= value * np.sum(sigma**2)


@given(sigma=SPECTRA, value=SHARES)
def test_the_rank_is_the_least_that_fulfils_the_formula(sigma, value):
    k = module_rank(Target("energy", value), sigma)
    assert 1 <= k <= len(sigma)
    assert holds(sigma, k, value * (1 - 1e-9))
    assert k == 1 or not holds(sigma, k - 1, value * (1 + 1e-9))


@given(sigma=SPECTRA, low=SHARES, high=SHARES)
def test_more_energy_never_takes_a_lower_rank(sigma, low, high):
    low, high = sorted((low, high))
    assert module_rank(Target("energy", low), sigma) <= module_rank(Target("energy", high), sigma)


def test_a_zero_module_keeps_one_direction_and_no_rank_rises():
    assert module_rank(Target("energy", 0.9), np.zeros(8)) == 1
    assert module_rank(Target("rank", 16.0), np.ones(8)) == 8


GROUPS = st.lists(
    st.tuples(st.lists(st.floats(0.0, 10.0), min_size=1, max_size=4), st.integers(1, 6)), min_size=1, max_size=4
)


@given(groups=GROUPS, budget=st.integers(1, 60))
def test_a_budget_is_kept_and_spent_to_within_one_step_of_the_best(groups, budget):
    priced = {str(i): PriceList(np.sort(gains)[::-1], cost) for i, (gains, cost) in enumerate(groups)}
    ranks = ranks_within(priced, budget)
    if ranks is None:
        assert sum(p.cost for p in priced.values()) > budget
        return
    assert sum(priced[n].cost * k for n, k in ranks.items()) <= budget
    kept = sum(priced[n].gains[:k].sum() for n, k in ranks.items())
    best = max(
        sum(p.gains[:k].sum() for p, k in zip(priced.values(), ks, strict=True))
        for ks in itertools.product(*(range(1, len(p.gains) + 1) for p in priced.values()))
        if sum(p.cost * k for p, k in zip(priced.values(), ks, strict=True)) <= budget
    )
    one_step = max((float(p.gains[1]) for p in priced.values() if len(p.gains) > 1), default=0.0)
    assert best - one_step - 1e-9 <= kept <= best + 1e-9


@given(groups=GROUPS, budget=st.integers(1, 60))
def test_a_larger_budget_at_one_price_never_lowers_a_rank(groups, budget):
    priced = {str(i): PriceList(np.sort(gains)[::-1], 2) for i, (gains, _) in enumerate(groups)}
    small, large = ranks_within(priced, budget), ranks_within(priced, budget + 2)
    if small is not None and large is not None:
        assert all(small[name] <= large[name] for name in priced)


@every(
    "given_",
    [
        {},
        {"rank": 4, "energy": 0.9},
        {"rank": 0},
        {"rank": 2.5},
        {"energy": 0.0},
        {"energy": 1.5},
        {"energy": float("nan")},
        {"max_mb": -1},
        {"max_params": 0},
    ],
    ids=str,
)
def test_anything_but_one_criterion_in_its_range_is_refused(given_):
    with pytest.raises(ValueError, match="expected"):
        ResizeOptions(**given_).target()


@every(
    ("name", "value", "rank"),
    [
        ("energy", 0.25, 1),
        ("energy", 0.2501, 2),
        ("energy", 0.75, 3),
        ("energy", 1.0, 4),
        ("energy", 0.7501, 4),
    ],
)
def test_of_four_equal_directions_each_is_a_quarter(name, value, rank):
    assert module_rank(Target(name, value), np.ones(4)) == rank


@every(
    ("budget", "ranks"),
    [
        (4, None),
        (5, {"a": 1, "b": 1}),
        (6, {"a": 1, "b": 1}),
        (7, {"a": 1, "b": 2}),
        (9, {"a": 1, "b": 2}),
        (10, {"a": 2, "b": 2}),
        (100, {"a": 2, "b": 2}),
    ],
)
def test_a_budget_buys_the_dearest_gain_per_parameter_to_the_last_one_and_nothing_of_no_gain(budget, ranks):
    groups = {"a": PriceList(np.asarray([4.0, 1.0, 0.0]), 3), "b": PriceList(np.asarray([2.0, 2.0, 0.0]), 2)}
    assert ranks_within(groups, budget) == ranks
    dear = {
        "a": PriceList(np.asarray([9.0, 4.0]), 3),
        "b": PriceList(np.asarray([9.0, 3.0]), 2),
    }  # 4 for 3, and 3 for 2
    assert ranks_within(dear, 8) == {"a": 1, "b": 2}
    too_dear = {"a": PriceList(np.asarray([9.0, 9.0]), 3), "b": PriceList(np.asarray([9.0, 3.0]), 2)}
    assert ranks_within(too_dear, 7) == {"a": 1, "b": 2}


@every(
    ("name", "value"),
    [
        ("rank", 1),
        ("energy", 1.0),
        ("max_mb", 0.001),
        ("max_params", 1),
        ("like_suggested", True),
    ],
)
def test_the_ends_of_a_range_belong_to_it(name, value):
    assert ResizeOptions(**{name: value}).target()[:2] == (name, float(value))


@every(
    ("name", "value"),
    [
        ("energy", 1.001),
        ("max_mb", 0),
    ],
)
def test_what_lies_just_outside_a_range_is_refused(name, value):
    with pytest.raises(ValueError, match=name.replace("_", "-")):
        ResizeOptions(**{name: value}).target()

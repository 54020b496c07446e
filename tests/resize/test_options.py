"""Which options make a criterion, which are refused in which words, and what rank or budget a criterion gives."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st
from tables import every

from gradience.errors import OptionError
from gradience.verbs.resize.options import ResizeOptions, Target
from gradience.verbs.resize.weights import PriceList, module_rank, ranks_within

ONE = "expected exactly one criterion, got "
BASELESS = "{} needs --base, because it runs the model"


@every(
    ("given", "message"),
    [
        ({}, f"{ONE}none"),
        ({"like_suggested": False, "rank": None}, f"{ONE}none"),
        ({"energy": 0.5, "rank": 1}, f"{ONE}--rank and --energy"),
        ({"energy": 0.0, "rank": 1}, f"{ONE}--rank and --energy"),
        ({"rank": 0}, "--rank is 0, expected a whole number from 1"),
        ({"rank": 1.5}, "--rank is 1.5, expected a whole number from 1"),
        ({"rank": "4"}, "--rank is '4', expected a whole number from 1"),
        ({"energy": 0.0}, "--energy is 0.0, expected above 0, at most 1"),
        ({"energy": 1.001}, "--energy is 1.001, expected above 0, at most 1"),
        ({"energy": math.nan}, "--energy is nan, expected a finite number"),
        ({"max_mb": 0.0}, "--max-mb is 0.0, expected above 0"),
        ({"max_mb": math.inf}, "--max-mb is inf, expected a finite number"),
        ({"max_params": 0.5}, "--max-params is 0.5, expected a whole number from 1"),
        ({"like_suggested": 2}, "--like-suggested is 2, expected true"),
        ({"kl": 0}, "--kl is 0, expected above 0, in nats"),
        ({"kl": 0.1, "flips": 0.0}, "--flips is 0.0, expected above 0, at most 1"),
        ({"kl": 0.1, "flips": 1.1}, "--flips is 1.1, expected above 0, at most 1"),
        ({"rank": 1, "flips": 0.1}, "--flips is a bound beside a KL, and none is given"),
        ({"rank": 1, "seed": -1}, "--seed is -1, expected a whole number from 0"),
        ({"kl": 0.1}, "--kl needs --data"),
        ({"rank": 1, "calibrate": True}, "--calibrate needs --data"),
        ({"rank": 1, "recover": True}, "--recover needs --data"),
        ({"rank": 1, "calibrate": "t"}, "--calibrate is 't', expected true, and the rows by --data FILE"),
        ({"rank": 1, "recover": "t", "data": "t"}, "--recover is 't', expected true, and the rows by --data FILE"),
        ({"rank": 1, "data": "d"}, "nothing asks for --data's rows"),
        ({"rank": 1, "data": "d", "calibrate": True}, BASELESS.format("--calibrate")),
        ({"kl": 0.1, "data": "d"}, BASELESS.format("--kl")),
        ({"energy": 0.5, "data": "d", "recover": True}, BASELESS.format("--recover")),
        (
            {"energy": 0.5, "calibrate": True, "data": "d", "base": "b"},
            "--energy is a rule on singular values, which --calibrate does without",
        ),
    ],
)
def test_what_is_no_criterion_in_its_range_or_lacks_its_company_is_refused_in_words(given, message):
    with pytest.raises(OptionError) as error:
        ResizeOptions(**given).target()
    assert error.value.message == message


@every(
    ("name", "value"), [("rank", 1), ("energy", 1.0), ("max_mb", 0.001), ("max_params", 1), ("like_suggested", True)]
)
def test_the_ends_of_a_range_belong_to_it(name, value):
    assert ResizeOptions(**{name: value}).target() == (name, float(value), 0.02)


@every(
    ("options", "calibrates", "recovers"),
    [
        ({"rank": 1, "calibrate": True}, True, False),
        ({"rank": 1, "recover": True}, False, True),
        ({"rank": 1, "calibrate": True, "recover": True}, True, True),
        ({"kl": 0.1}, True, False),
        ({"kl": 0.1, "calibrate": True}, True, False),
        ({"kl": 0.1, "recover": True}, True, True),
        ({"rank": 1}, False, False),
    ],
)
def test_calibration_and_recovery_take_the_rows_of_data(options, calibrates, recovers):
    taken = ResizeOptions().completed({"data": "d"} | options)
    assert (taken.inputs, taken.recovers_on) == (Path("d") if calibrates else None, Path("d") if recovers else None)


# --- the rank of one module --------------------------------------------------------------------------------------

SPECTRA = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20).map(lambda s: np.sort(np.asarray(s))[::-1])


@given(sigma=SPECTRA, value=st.floats(0.01, 0.99))
def test_the_rank_is_the_least_that_holds_the_energy(sigma, value):
    k, held = module_rank(Target("energy", value), sigma), np.cumsum(sigma**2) / np.sum(sigma**2)
    assert held[k - 1] >= value * (1 - 1e-9)
    assert k == 1 or held[k - 2] < value * (1 + 1e-9)


@every(
    ("name", "value", "sigma", "rank"),
    [
        *[("energy", value, np.ones(4), rank) for value, rank in ((0.25, 1), (0.2501, 2), (0.75, 3), (1.0, 4))],
        ("energy", 0.9, np.zeros(3), 1),
        ("energy", 0.9, np.zeros(0), 1),
        ("rank", 2.0, np.zeros(3), 2),
        ("rank", 16.0, np.ones(8), 8),
    ],
)
def test_equal_directions_share_the_energy_and_of_nothing_one_direction_is_kept(name, value, sigma, rank):
    assert module_rank(Target(name, value), sigma) == rank


# --- a budget ------------------------------------------------------------------------------------------------------

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
    most = max(
        sum(p.gains[:k].sum() for p, k in zip(priced.values(), ks, strict=True))
        for ks in itertools.product(*(range(1, len(p.gains) + 1) for p in priced.values()))
        if sum(p.cost * k for p, k in zip(priced.values(), ks, strict=True)) <= budget
    )
    one_step = max((float(p.gains[1]) for p in priced.values() if len(p.gains) > 1), default=0.0)
    assert most - one_step - 1e-9 <= kept <= most + 1e-9


@every(
    ("a", "b", "budget", "ranks"),
    [
        *[(([4.0, 1.0, 0.0], 3), ([2.0, 2.0, 0.0], 2), budget, ranks) for budget, ranks in (
            (4, None), (5, (1, 1)), (6, (1, 1)), (7, (1, 2)), (9, (1, 2)), (10, (2, 2)), (100, (2, 2)),
        )],
        (([9.0, 4.0], 3), ([9.0, 3.0], 2), 8, (1, 2)),  # 4 for 3, and 3 for 2
        (([9.0, 9.0], 3), ([9.0, 3.0], 2), 7, (1, 2)),  # the dearer does not fit
    ],
)  # fmt: skip
def test_a_budget_buys_the_dearest_gain_for_its_price_and_nothing_of_no_gain(a, b, budget, ranks):
    groups = {name: PriceList(np.asarray(gains), cost) for name, (gains, cost) in (("a", a), ("b", b))}
    assert ranks_within(groups, budget) == (ranks and dict(zip("ab", ranks, strict=True)))

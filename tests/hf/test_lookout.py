"""The rules on rows as they come: what speaks, when first, once; and which rows are a reason to ask the rules."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from tables import every

from gradience.hf.recorder import Lookout, live_ids, live_rules
from gradience.schema import ConfigSnapshot, TrainingSnapshot


def watch(losses, norms=None, stop_on=()):
    """The ids found, each with its row, counted from 1."""
    lookout = Lookout(ConfigSnapshot(), stop_on)
    norms = [1.0] * len(losses) if norms is None else norms
    rows = zip(losses, norms, strict=True)
    return [
        (finding.id, step)
        for step, (loss, norm) in enumerate(rows, 1)
        for finding in lookout.row(step, {"loss": loss, "grad_norm": norm, "lr": 2e-4})
    ]


@pytest.fixture
def looks(monkeypatch):
    """The rows, counted from 1, after which the rules were asked."""
    rows = []

    def judge(_rules, facts):
        rows.append(facts.run.last_step)
        return SimpleNamespace(findings=[])

    monkeypatch.setattr("gradience.rules.judge", judge)
    return rows


def falling(n, noise=0.02, seed=0):
    draw = np.random.default_rng(seed)
    return [float(2 * math.exp(-i / 100) + 1 + noise * draw.normal()) for i in range(n)]


HIGH, LOW = 2.61, 2.59  # over and under 1.3 times a lowest loss of 2


@every(
    ("losses", "norms", "rows"),
    [
        ([2.0, LOW, LOW, LOW], None, []),
        ([2.0, HIGH, HIGH], None, []),
        ([2.0, HIGH, HIGH, HIGH], None, [4]),  # three rows running
        ([2.0, HIGH, HIGH, LOW, HIGH, HIGH], None, []),
        ([2.0, HIGH, HIGH, 1.0, 1.29, 1.31, 1.31, 1.31], None, [8]),  # of the lowest so far
        ([1.0, 2.0, 2.0, 1.0, *[2.0] * 4, 0.0, -1.0, 1.3, math.inf, *[1.31] * 3], None, [7, 8, 9, 12, 15]),
        ([2.0, math.nan], None, [2]),
        ([2.0, -1.0, -1.0, -1.0], None, []),  # neither zero nor less is a level
        ([1.0] * 4, [4.0, 1.0, 0.0041, 9.0], []),
        ([1.0] * 4, [4.0, 1.0, 0.0039, 9.0], [3]),  # a thousandth of the first
        ([1.0] * 2, [4.0, math.inf], [2]),
        ([1.0] * 2, [4.0, math.nan], [2]),
        ([1.0] * 3, [4.0, None, 1.0], []),  # not logged
        ([1.0] * 4, [None, None, 4.0, 0.003], [4]),
        ([1.0] * 39 + [math.nan] * 12, None, [40, 43, 46, 49]),  # a twentieth of the rows passes between two looks
        (falling(500, noise=0.01), None, []),
    ],
)
def test_three_high_rows_running_or_one_odd_row_are_a_reason_to_look(losses, norms, rows, looks):
    looks.clear()
    assert watch(losses, norms) == []
    assert looks == rows


def test_a_nan_is_found_in_its_row_and_once():
    assert watch([*falling(50), math.nan, math.nan, math.nan]) == [("NUM101", 51)]
    assert ("NUM101", 121) in watch([*falling(100), *[9.0] * 20, math.nan])  # after a look for another reason too
    assert watch([*falling(20), 0.0], [*[1.0] * 20, math.nan]) == [("NUM102", 21)]


def test_no_gradient_is_found_after_a_few_rows():
    (found,) = watch(falling(60), [*[1.0] * 20, *[0.0] * 40])
    assert found[0] == "GRD108"
    assert 21 < found[1] <= 32


@pytest.mark.parametrize("n", [30, 300])
def test_a_divergence_is_found_within_a_tenth_of_the_rows_before_it(n):
    (found,) = watch([*falling(n), *[8.0 + 0.1 * (i % 3) for i in range(n)]])
    assert found[0] == "DIV104"
    assert n < found[1] <= n + max(10, 0.3 * n)


def test_of_a_hundred_noisy_healthy_curves_at_most_one_is_called_anything():
    draw = np.random.default_rng(1)
    called = 0
    for _ in range(100):
        level, noise = draw.uniform(0.5, 3), draw.uniform(0.05, 0.3)
        losses = [float((level * math.exp(-i / 60) + level) * math.exp(noise * draw.normal())) for i in range(150)]
        called += bool(watch(losses))
    assert called <= 1


@every(
    ("measured", "found"),
    [
        (
            {"f1": (0.0, 0.0, 0.0, 0.0, 0.0)},
            [("HLD146", 60)],
        ),  # nothing is right at the third, and two may be too early
        ({"f1": (0.0, 0.0, 0.2, 0.5, 0.6)}, []),
        ({"loss": (2.0, 1.2, 1.6, 1.8, 2.0)}, [("OVF110", 80)]),
        ({"loss": (2.0, 1.2, 1.6, 1.8, 2.0), "f1": (0.5, 0.6, 0.7, 0.8, 0.9)}, []),  # what decides gains
        ({"loss": (4.0, 3.9, 3.9, 3.9, 3.9), "epoch": (0.1, 0.2, 0.3, 0.4, 0.5)}, []),  # no row comes again
        ({"loss": (4.0, 3.9, 3.9, 3.9, 3.9), "epoch": (0.3, 0.6, 0.9, 1.2, 1.5)}, [("GAP111", 80)]),
    ],
)
def test_evaluations_are_judged_by_all_that_they_measured(measured, found):
    lookout, said = Lookout(ConfigSnapshot(training=TrainingSnapshot(max_steps=200))), []
    for step, loss in enumerate(falling(100, noise=0.005), 1):
        lookout.row(step, {"loss": loss, "grad_norm": 1.0})
        if step % 20 == 0:
            values = {name: column[step // 20 - 1] for name, column in measured.items()}
            said += [(f.id, step) for f in lookout.evaluation(step, "eval", {"loss": loss, "n": 100, **values})]
    assert said == found


def test_rows_without_a_loss_are_left_out_and_every_evaluation_is_a_reason_to_look(looks):
    lookout = Lookout(ConfigSnapshot())
    assert lookout.row(1, {"reward": 0.5}) == ()
    assert lookout.evaluation(1, "eval", {"accuracy": 0.5}) == []
    lookout.row(10, {"loss": 1.0, "grad_norm": 1.0})
    for step in (4, 12):
        lookout.evaluation(step, "eval", {"loss": 1.0})
    assert looks == [1, 10, 12]  # the last step is the furthest of either


def test_only_what_is_asked_for_stops():
    lookout = Lookout(ConfigSnapshot(), {"NUM101"})
    found = lookout.row(1, {"loss": math.inf})
    assert lookout.stops(found) == ["NUM101"]
    assert Lookout(ConfigSnapshot(), {rule.id for rule in live_rules()} - {"NUM101"}).stops(found) == []


def test_only_rules_that_speak_in_training_may_stop_it():
    assert live_ids("num101") == {"NUM101"}
    assert live_ids(["div104", "GRD108"]) == {"DIV104", "GRD108"}
    assert live_ids(()) == frozenset()
    wiring = [f"WIR{number}" for number in (*range(170, 189), 190)]
    first = ["NUM102", "NUM101", "DIV104", "GRD108", "OVF110", "HLD146", "GAP111"]
    fed = [f"DAT{number}" for number in (301, 309, 333, 347, 349, 361, 329, 355, 366, 358)]
    fed += ["FED227", "FED228", "DAT305", "DAT307", "DAT316"]
    every = [*first, *fed, "FED226", "WIR189", "LED412", "LED405", *wiring]
    assert [rule.id for rule in live_rules()] == every
    says = f"stop_on: expected ids among {', '.join(every)}, got LR001, NOL106"
    with pytest.raises(ValueError, match=f"^{says}$"):
        live_ids(["NOL106", "NUM101", "lr001"])

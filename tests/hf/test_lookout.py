"""The rules on rows as they come: what speaks, when first, once."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gradience.hf.recorder import Lookout, live_rules
from gradience.schema import ConfigSnapshot


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


def falling(n, noise=0.02, seed=0):
    draw = np.random.default_rng(seed)
    return [float(2 * math.exp(-i / 100) + 1 + noise * draw.normal()) for i in range(n)]


def test_a_nan_is_found_in_its_row_and_once():
    assert watch([*falling(50), math.nan, math.nan, math.nan]) == [("NUM101", 51)]


def test_a_nan_right_after_a_look_for_another_reason_is_found_in_its_row_too():
    assert ("NUM101", 121) in watch([*falling(100), *[9.0] * 20, math.nan])


def test_a_masked_nan_is_found_in_its_row():
    assert watch([*falling(20), 0.0], [*[1.0] * 20, math.nan]) == [("NUM102", 21)]


def test_no_gradient_is_found_after_a_few_rows():
    (found,) = watch(falling(60), [*[1.0] * 20, *[0.0] * 40])
    assert found[0] == "GRD108"
    assert 21 < found[1] <= 32


@pytest.mark.parametrize("n", [30, 300, 1000])
def test_a_divergence_is_found_within_a_tenth_of_the_rows_before_it(n):
    (found,) = watch([*falling(n), *[8.0 + 0.1 * (i % 3) for i in range(n)]])
    assert found[0] == "DIV104"
    assert n < found[1] <= n + max(10, 0.3 * n)


def test_overfitting_is_found_at_the_evaluation_that_shows_it():
    lookout = Lookout(ConfigSnapshot())
    found = []
    for step, loss in enumerate(falling(200, noise=0.005), 1):
        lookout.row(step, {"loss": loss, "grad_norm": 1.0})
        if step % 20 == 0:
            held_out = 2.0 - 0.01 * step if step <= 80 else 1.2 + 0.01 * (step - 80)
            found += [(f.id, step) for f in lookout.evaluation(step, "eval", {"loss": held_out, "n": 100})]
    assert [f[0] for f in found] == ["OVF110"]
    assert 100 < found[0][1] <= 160


def test_healthy_curves_are_not_judged_at_all_and_noisy_ones_seldom_found(monkeypatch):
    monkeypatch.setattr(Lookout, "_judge", lambda _self: pytest.fail("there was no reason to look"))
    assert watch(falling(500, noise=0.01)) == []


def test_of_two_hundred_noisy_healthy_curves_at_most_two_are_called_anything():
    draw = np.random.default_rng(1)
    called = 0
    for _ in range(200):
        level, noise = draw.uniform(0.5, 3), draw.uniform(0.05, 0.3)
        losses = [float((level * math.exp(-i / 60) + level) * math.exp(noise * draw.normal())) for i in range(150)]
        called += bool(watch(losses))
    assert called <= 2


def test_rows_without_a_loss_and_evaluations_without_one_are_left_out():
    lookout = Lookout(ConfigSnapshot())
    assert lookout.row(1, {"reward": 0.5}) == ()
    assert lookout.evaluation(1, "eval", {"accuracy": 0.5}) == ()
    assert (lookout._run.last_step, lookout._run.evals) == (None, [])
    lookout.row(10, {"loss": 1.0, "grad_norm": 1.0})
    for step, last in ((4, 10), (12, 12)):
        lookout.evaluation(step, "eval", {"loss": 1.0})
        assert lookout._run.last_step == last


def test_only_what_is_asked_for_stops():
    lookout = Lookout(ConfigSnapshot(), {"NUM101"})
    found = lookout.row(1, {"loss": math.inf})
    assert lookout.stops(found) == ["NUM101"]
    assert Lookout(ConfigSnapshot(), {rule.id for rule in live_rules()} - {"NUM101"}).stops(found) == []


def test_three_high_rows_running_or_one_odd_row_are_a_reason_to_look(monkeypatch):
    lookout, looks = Lookout(ConfigSnapshot()), []
    monkeypatch.setattr(lookout, "_look", lambda reason: looks.append((len(lookout._run.steps), reason)) or ())
    losses = [1.0, 2.0, 2.0, 1.0, 2.0, 2.0, 2.0, 2.0, 0.0, -1.0, 1.3, math.inf, 1.31, 1.31, 1.31]
    for step, loss in enumerate(losses, 1):
        lookout.row(step, {"loss": loss, "grad_norm": 1.0})
    assert looks == [(7, "high"), (8, "high"), (9, "odd"), (12, "odd"), (15, "high")]
    assert lookout._lowest == 1.0  # neither zero nor less is a level

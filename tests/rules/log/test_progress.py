"""A run that ended while it got better, and a loss that steps down with each epoch; and what is neither."""

from __future__ import annotations

import math
import random

import pytest
from log_runs import evaluation, facts_of, finding as said, logged_rows, reason

from gradience.schema.reports import EvalPoint
from gradience.verbs.monitor.run import monitor_run


def evals(losses, *, every=10):
    return [evaluation(every * (i + 1), loss) for i, loss in enumerate(losses)]


def facts(losses=(), *, held_out=(), epochs=None, rates=None):
    history = evals(held_out)
    point = EvalPoint(split="eval", step=history[-1].step, metrics=history[-1].metrics) if history else None
    n = len(losses)
    return facts_of(
        logged_rows(list(range(1, n + 1)), list(losses), [1.0] * n, rates or [1e-4] * n),
        history=history,
        held_out=point,
        epoch=epochs,
        last_step=n,
        status="ok",
    )


def falling(n=120, *, sigma=0.01, drop=0.0, epochs=3, seed=0):
    """A loss that falls slowly, and by `drop` of itself at the end of each epoch."""
    rng = random.Random(seed)  # noqa: S311  # seeded on purpose
    slow = [2.0 * (1 - 0.2 * (1 - math.exp(-3 * i / n))) for i in range(n)]
    return [x * (1 - drop) ** int(i * epochs / n) * (1 + rng.gauss(0, sigma)) for i, x in enumerate(slow)]


def test_a_smooth_loss_over_several_epochs_gets_nothing():
    assert said("MEM127", facts(falling(), epochs=3.0)) is None


def test_one_epoch_has_no_end_to_look_at():
    run = facts(falling(drop=0.2), epochs=1.0)
    assert said("MEM127", run) is None
    assert reason("MEM127", run) is None


@pytest.mark.parametrize(("n", "epochs", "why"), [(24, 5.0, "it needs 2"), (120, None, "how often")])
def test_few_rows_an_epoch_or_no_epochs_are_not_judged(n, epochs, why):
    assert why in reason("MEM127", facts(falling(n), epochs=epochs))


def test_the_real_runs_of_others_are_called_what_they_are(shared_data):
    names = ("sft-mistral-final.json", "sft-plateau.json", "2023-no-grad-norm.json")
    reports = {name: monitor_run(shared_data / "trainer_states" / name) for name in names}
    found = {name: {f.id for f in (*of.findings, *of.readings)} for name, of in reports.items()}
    assert "MEM127" in found["sft-mistral-final.json"]
    assert "PLT105" in found["sft-plateau.json"]
    assert not {"MEM127", "PLT105"} & found["2023-no-grad-norm.json"]

"""A run that ended while it got better, and a loss that steps down with each epoch; and what is neither."""

from __future__ import annotations

import math
import random

import pytest
from log_runs import changed, evaluation, facts_of, finding as said, logged_rows, reason

from gradience.schema import ConfigSnapshot, TrainingSnapshot
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


def test_a_held_out_loss_that_falls_to_the_end_is_said_with_its_steps():
    finding = said("UND126", facts(held_out=[1.0, 0.9, 0.8, 0.7]))
    assert finding.severity == "info"
    assert "0.8 at step 30, 0.7 at step 40" in finding.message


@pytest.mark.parametrize("held_out", [[1.0, 0.8, 0.75, 0.748], [1.0, 0.7, 0.6, 0.65], [1.0, 0.9, 0.99, 0.9, 1.0, 0.89]])
def test_one_that_has_settled_or_turned_or_only_jitters_gets_nothing(held_out):
    assert said("UND126", facts(held_out=held_out)) is None


def test_nothing_is_unfinished_inside_warmup_or_in_mid_run():
    falls = [1.0, 0.9, 0.8, 0.7]
    rising = facts(falling(40), held_out=falls, rates=[1e-6 * i for i in range(40)])
    assert "peak" in reason("UND126", rising)
    planned = ConfigSnapshot(training=TrainingSnapshot(max_steps=41))
    assert "step 40 of 41" in reason("UND126", changed(facts(falling(40), held_out=falls), config=planned))


def test_steps_at_the_ends_of_epochs_are_memory():
    finding = said("MEM127", facts(falling(drop=0.2), epochs=3.0))
    assert finding.severity == "info"
    assert len(finding.values["drops"]) == 2
    assert all(drop == pytest.approx(0.2, abs=0.05) for drop in finding.values["drops"])


def test_a_smooth_loss_over_several_epochs_gets_nothing():
    assert said("MEM127", facts(falling(), epochs=3.0)) is None


def test_one_epoch_has_no_end_to_look_at():
    run = facts(falling(drop=0.2), epochs=1.0)
    assert said("MEM127", run) is None
    assert reason("MEM127", run) is None


@pytest.mark.parametrize(("n", "epochs", "why"), [(24, 5.0, "it needs 2"), (120, None, "how often")])
def test_few_rows_an_epoch_or_no_epochs_are_not_judged(n, epochs, why):
    assert why in reason("MEM127", facts(falling(n), epochs=epochs))


def cosine(n):
    return [1e-4 * 0.5 * (1 + math.cos(math.pi * i / n)) for i in range(n)]


def test_a_plateau_that_outlasts_the_learning_rate_is_seen_over_the_last_half():
    flat = [2.3 - 0.3 * min(1.0, i / 60) + 0.001 * (i % 3) for i in range(200)]
    finding = said("PLT105", facts(flat, rates=cosine(200)))
    assert finding.values["from_step"] in {71, 101}
    assert finding.message.startswith(f"The loss no longer falls from step {finding.values['from_step']} on: 2.001 in")


def test_a_loss_that_still_falls_while_the_rate_decays_is_no_plateau():
    assert said("PLT105", facts(falling(200, sigma=0.001), rates=cosine(200))) is None


def test_the_real_runs_of_others_are_called_what_they_are(shared_data):
    names = ("sft-mistral-final.json", "sft-plateau.json", "2023-no-grad-norm.json")
    reports = {name: monitor_run(shared_data / "trainer_states" / name) for name in names}
    found = {name: {f.id for f in (*of.findings, *of.readings)} for name, of in reports.items()}
    assert "MEM127" in found["sft-mistral-final.json"]
    assert "PLT105" in found["sft-plateau.json"]
    assert not {"MEM127", "PLT105"} & found["2023-no-grad-norm.json"]

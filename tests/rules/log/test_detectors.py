"""What several detectors share, and laws that hold of any series. Their thresholds are held in `log_runs.py`."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings, strategies as st
from log_runs import FALL, changed, evaluation, facts_of, finding as said, logged_rows, reason, run
from tables import every

from gradience.rules.log import DETECTORS, detect
from gradience.rules.log.learning import learning
from gradience.schema import ConfigSnapshot, LoraSnapshot, OptimizerSnapshot, TrainingSnapshot

NAN, INF = math.nan, math.inf


def curve(n=60, *, start=2.0, fall=0.4, sigma=0.01, seed=0):
    """A healthy loss: it falls by `fall` of its start, ever slower, under a little noise."""
    rng = random.Random(seed)  # noqa: S311  # seeded on purpose
    return [start * (1 - fall * (1 - math.exp(-4 * i / n))) * (1 + rng.gauss(0, sigma)) for i in range(n)]


def flat(n=60, *, level=2.0, sigma=0.005, seed=0):
    rng = random.Random(seed)  # noqa: S311  # seeded on purpose
    return [level * (1 + rng.gauss(0, sigma)) for _ in range(n)]


def norms(n=60, *, sigma=0.2, seed=1):
    rng = random.Random(seed)  # noqa: S311  # seeded on purpose
    return [math.exp(rng.gauss(0, sigma)) for _ in range(n)]


def facts(losses=None, *, grads=None, rates=None, **more):
    losses = curve() if losses is None else losses
    n = len(losses)
    series = logged_rows(
        more.pop("steps", list(range(1, n + 1))),
        losses,
        norms(n) if grads is None else grads,
        [2e-4] * n if rates is None else rates,
        frozenset(more.pop("lost", ())),
    )
    return facts_of(series, status="ok", **more)


def config_of(*, lr=None, task=None, **training):
    return ConfigSnapshot(
        optimizer=OptimizerSnapshot(lr=lr), lora=LoraSnapshot(task_type=task), training=TrainingSnapshot(**training)
    )


def evals(losses, *, every=10):
    return [evaluation(every * (i + 1), loss) for i, loss in enumerate(losses)]


# --- numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_one_loss_that_is_no_number_is_an_error(bad):
    finding = said("NUM101", facts([*curve(30), bad]))
    assert finding.severity == "error"
    assert "step 31" in finding.message


def test_a_missing_gradient_norm_is_not_a_nan():
    assert said("NUM101", facts(grads=[NAN] * 60)) is None


@every(
    ("losses", "says"),
    [
        ([1.0, "NaN"], "eval loss at step {1}"),
        ([1.0, "NaN", 1.0, "Infinity"], "eval loss in 2 of 4 evaluations (first: step {1})"),
        (["NaN", "NaN"], "eval loss in all 2 evaluations (first: step {0})"),
    ],
)
def test_evaluations_that_are_no_numbers_are_a_warning_that_says_how_many(losses, says):
    history = evals(losses)
    finding = said("NUM101", facts(history=history))
    assert finding.severity == "warning"
    assert finding.message == f"Not finite: {says.format(*(event.step for event in history))}."


def test_a_zero_loss_is_normal_in_rl_unless_the_gradient_is_not_finite():
    losses, logged = [0.0] * 40, frozenset({"reward", "kl"})
    assert said("NUM102", facts(losses, logged=logged)) is None
    grads = norms(40)
    grads[20] = INF
    assert said("NUM102", facts(losses, grads=grads, logged=logged)) is not None


# --- level -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [20, 60, 300])
def test_heavy_noise_on_a_flat_loss_is_called_a_divergence_at_most_once_in_a_hundred(n):
    runs = (facts(list(map(abs, flat(n, sigma=0.3, seed=seed)))) for seed in range(100))
    assert sum(said("DIV104", run) is not None for run in runs) <= 1


# --- evaluation --------------------------------------------------------------------------------------------------


# --- the log -----------------------------------------------------------------------------------------------------


def test_an_evaluation_done_twice_at_one_step_is_nothing_to_say():
    assert said("DUP117", facts(history=evals([1.0]) + evals([1.0]))) is None


# --- what else a run shows -----------------------------------------------------------------------------------------


def test_norms_that_are_all_nan_were_recorded():
    assert (
        reason("GRD107", facts(grads=[NAN] * 60, lost=range(1, 61))) == "none of 60 recorded gradient norms is finite"
    )
    assert reason("GRD107", facts(grads=[NAN] * 60)) == "no gradient norm was recorded"


def test_a_fall_that_noise_could_have_made_is_named_with_the_least_that_would_have_been_seen():
    result = learning(facts([2.0, 2.1, 1.9, 2.05, 1.95, 1.98]))
    assert (result.shown, result.says) == (False, "6 rows are too few to tell a fall of 1% from noise")


@every(
    ("planned", "last", "more"),
    [(10, 9, True), (10, 10, False), (10, 11, False), (-1, 9, False), (None, 9, False), (10, None, False)],
)
def test_more_rows_may_follow_until_the_last_planned_step(planned, last, more):
    assert changed(facts(config=config_of(max_steps=planned)), last_step=last).in_mid_run is more


@pytest.mark.parametrize(("kind", "labels", "classes"), [("reward", None, 2), ("reward", 5, 2), (None, 5, 5)])
def test_a_reward_model_chooses_between_two_answers_whatever_the_labels(kind, labels, classes):
    seen = said("CHN112", run(FALL, held_out=[0.69] * 2, accuracy=1.0 / classes, n=400, kind=kind, num_labels=labels))
    assert (seen.values["chance"], f"for {classes} classes, n=400)" in seen.message) == (1.0 / classes, True)


@every("rows", [0, 1, 4])
def test_rows_are_judged_by_step_and_those_of_one_step_as_they_were_written(rows):
    run = logged_rows([3, 1, 2, 1][:rows], [0.3, 0.1, 0.2, 0.15][:rows], [3.0, 1.0, 2.0, 1.5][:rows], [1.0] * rows)
    run.record.out_of_order = 2  # a resume may leave fewer rows than were counted
    of = facts_of(run).series
    whole = {4: ([1, 1, 2, 3], [0.1, 0.15, 0.2, 0.3], [1.0, 1.5, 2.0, 3.0]), 1: ([3], [0.3], [3.0]), 0: ([], [], [])}
    assert (*map(list, (of.steps, of.losses, of.grad_norms)),) == whole[rows]


# --- laws --------------------------------------------------------------------------------------------------------

extreme = st.sampled_from([1e308, -1e308, 5e-324, 1e-310, -0.0, INF])
anything = st.one_of(st.floats(), extreme, st.just(0.0), st.just(NAN), st.floats(1e-3, 10.0))


@st.composite
def any_run(draw):
    n = draw(st.integers(0, 80))
    columns = [draw(st.lists(anything, min_size=n, max_size=n)) for _ in range(3)]
    steps = draw(st.lists(st.integers(0, 200), min_size=n, max_size=n))
    history = evals(draw(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=6)))
    lost = frozenset(draw(st.lists(st.sampled_from(steps), max_size=3))) if steps else frozenset()
    logged = draw(st.sampled_from([frozenset(), frozenset({"reward"}), frozenset({"rewards/margins"})]))
    epochs = draw(st.sampled_from([None, 3.0, 50.0]))
    return facts_of(logged_rows(steps, *columns, lost), history=history, logged=logged, epoch=epochs, last_step=200)


@settings(max_examples=50, deadline=None)
@given(any_run())
def test_no_series_of_floats_makes_a_detector_crash_and_every_one_answers_once(run):
    findings, not_run, _ = detect(run)
    answered = [f.id for f in findings] + [item.id for item in not_run]
    assert len(answered) == len(set(answered))
    assert set(answered) <= {d.id for d in DETECTORS}


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(60)), st.sampled_from(["spike", "diverged", "clean"]))
def test_the_order_in_which_rows_are_given_changes_no_finding_but_that_on_it(order, kind):
    losses, grads, rates = curve(), norms(), [2e-4 * (1 - i / 60) for i in range(60)]
    if kind == "spike":
        losses[30:33] = [9.0] * 3
    elif kind == "diverged":
        losses[45:] = [8.0] * 15
    run = facts(losses, grads=grads, rates=rates)
    mixed = facts(
        [losses[i] for i in order],
        grads=[grads[i] for i in order],
        rates=[rates[i] for i in order],
        steps=[i + 1 for i in order],
    )
    judged, told, read = detect(mixed)
    assert ([found for found in judged if found.id != "DUP117"], told, read) == detect(run)

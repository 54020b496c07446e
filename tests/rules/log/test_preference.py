"""What is said of preference training and of RL, on columns where the answer is known."""

from __future__ import annotations

import math
import random

import msgspec
from hypothesis import given, strategies as st
from log_runs import changed, facts_of, finding as said, logged_rows, reason
from tables import every

from gradience.rules.log import detect
from gradience.rules.log.facts import Signal
from gradience.rules.log.story import story_parts
from gradience.schema import ConfigSnapshot, TrainingSnapshot
from gradience.schema.events import EvalMetrics
from gradience.schema.reports import EvalPoint, TrainSummary

N = 60


def noisy(start, end, *, n=N, sigma=0.02, seed=0):
    rng = random.Random(seed)  # noqa: S311  # seeded on purpose
    return [start + (end - start) * i / (n - 1) + rng.gauss(0, sigma) for i in range(n)]


def facts(kind, losses=None, *, first_step=1, **columns):
    n = len(next(iter(columns.values()))) if columns else N
    losses = noisy(0.69, 0.4, n=n) if losses is None else losses
    steps = list(range(first_step, first_step + n))
    signals = {name.replace("__", "/"): Signal(steps, values) for name, values in columns.items()}
    return facts_of(
        logged_rows(steps, losses, [1.0] * n, [1e-5] * n),
        status="ok",
        config=ConfigSnapshot(training=TrainingSnapshot(extras={"trainer": kind})),
        logged=frozenset(signals),
        signals=signals,
    )


# --- preference --------------------------------------------------------------------------------------------------


def preference(accuracy, margin, **more):
    return facts("preference", rewards__accuracies=accuracy, rewards__margins=margin, **more)


def test_only_pairs_told_apart_the_wrong_way_round_ask_which_answer_is_chosen():
    wrong, alike = said("PRF119", preference(noisy(0.2, 0.2), noisy(-1, -1))), preference(noisy(0.5, 0.5), noisy(0, 0))
    assert wrong.action.startswith("See which answer the trainer takes as chosen")
    assert "chosen" not in (said("PRF119", alike).action or "")


def story(run):
    return story_parts(run, detect(run).told, TrainSummary(rows=N))


@every(
    ("held_out", "pairs", "where", "told"),
    [
        (0.59, 100, " in training", "; held out 59%"),
        (0.61, 100, "", "; held out 61%"),
        (0.56, 280, "", "; held out 56%"),
        (0.59, None, "", "; held out 59%"),  # of how many pairs is not known
        (None, 100, "", ""),
    ],
)
def test_pairs_told_apart_in_training_alone_are_told_so(held_out, pairs, where, told):
    extras = {} if held_out is None else {"rewards/accuracies": held_out}
    point = EvalPoint(split="eval", step=N, metrics=EvalMetrics(loss=0.7, n=pairs, extras=extras))
    own = msgspec.structs.replace(point, split="train", metrics=EvalMetrics(n=100, extras={"rewards/accuracies": 0.5}))
    run = changed(preference(noisy(0.5, 0.9), noisy(0, 2.0, sigma=0.1)), evals=[own, point])
    part = story(run)[0]
    assert part.says.startswith(f"tells chosen from rejected{where}: reward accuracy 80% (+/- 2%), margin 1.52")
    assert part.says.endswith(f" in the second half{told}")
    assert part.doubt is bool(where)


# --- ties and both answers ----------------------------------------------------------------------------------------


def test_ties_are_no_wrong_order():
    """TRL counts a pair as right where its margin is over 0, so pairs without a margin give an accuracy of 0."""
    run = preference([0.0] * N, [0.0] * N, rewards__chosen=noisy(0, -1), rewards__rejected=noisy(0, -1))
    assert said("PRF119", run) is None
    found = said("PRF140", run)
    assert "The margin is 0 in all 60 rows, so nothing is preferred; both answers have the same reward" in found.message
    assert "margin 0 throughout: both are equal" in [part.says for part in story(run)]


def test_rewards_of_zero_are_a_reference_that_is_the_policy():
    run = preference([0.0] * N, [0.0] * N, rewards__chosen=[0.0] * N, rewards__rejected=[0.0] * N)
    assert "both rewards are 0 although gradients are not: the reference changes with the policy" in (
        said("PRF140", run).message
    )
    still = changed(run, grad_norms=[0.0] * N)
    assert said("PRF140", still) is None
    assert reason("PRF140", still) == "nothing was trained, or no gradient was logged"


def both(chosen, rejected, margin=(0, 3)):
    ends = {"margin": margin, "logps__chosen": chosen, "logps__rejected": rejected, "rewards__chosen": (0, -9)}
    return preference(noisy(0.5, 0.9), **{name: noisy(*of, sigma=0.0) for name, of in ends.items()})


def test_both_answers_that_lose_probability_while_the_margin_grows_are_said_in_one_sentence():
    message = said("PRF120", both((-100, -200), (-100, -300))).message
    assert message.startswith("Both answers lose probability, while the margin grows from 0.102 to 2.9: ")
    assert "log-probability of chosen answers from -103.4 to -196.6, of rejected ones from -106.8 to -293.2" in message
    assert said("PRF120", both((-100, -200), (-300, -100))).message.startswith("The chosen answers lose probability")
    flat = said("PRF120", both((-100, -200), (-100, -300), margin=(1, 1))).message
    assert flat.startswith("Both answers lose probability: log")


# --- saturation --------------------------------------------------------------------------------------------------


def saturating(loss, margin, n=12):
    losses = [0.6931] * (n // 2) + [loss] * (n - n // 2)
    return facts("preference", losses, rewards__margins=[0.0] * (n // 2) + [margin] * (n - n // 2))


def test_saturation_names_where_loss_and_margin_came_from_and_is_not_a_nan():
    run = saturating(0.0, 141.0)
    assert "loss 0.693 -> 0, margin 0 -> 141: nothing is left to learn" in said("PRF130", run).message
    assert said("NUM102", run) is None
    assert said("REP128", run) is None


values = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e12, max_value=1e12)
columns = st.lists(values, min_size=20, max_size=80)


@given(columns, st.sampled_from(["rl", "preference"]))
def test_any_column_is_judged_without_a_crash(column, kind):
    names = ("reward", "frac_reward_zero_std", "kl", "completions/clipped_ratio", "rewards/accuracies")
    signals = dict.fromkeys((*names, "rewards/margins", "rewards/chosen"), column)
    for finding in detect(facts(kind, **signals))[0]:
        assert all(not isinstance(v, float) or math.isfinite(v) for v in finding.values.values())

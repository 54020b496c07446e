"""What is said of RL: each statement at its threshold, on columns whose answer is known, under each trainer's names."""

from __future__ import annotations

import random
from itertools import chain

import pytest
from log_runs import facts_of, finding, logged_rows, reason as why
from tables import every

from gradience.rules.log import detect, rewards
from gradience.rules.log.facts import Signal
from gradience.rules.log.story import story_parts
from gradience.schema import ConfigSnapshot, OptimizerSnapshot, TrainingSnapshot
from gradience.schema.reports import TrainSummary
from gradience.telemetry import signals

N = 30


def run(columns, *, rate=1e-5, norm=1.0, kind="rl", optimizer=None, losses=None):
    n = max(map(len, columns.values()))
    steps = list(range(1, n + 1))
    return facts_of(
        logged_rows(steps, losses or [1e-4] * n, [norm] * n, [rate] * n),
        status="ok",
        config=ConfigSnapshot(
            training=TrainingSnapshot(extras={"trainer": kind}), optimizer=OptimizerSnapshot(name=optimizer)
        ),
        logged=frozenset(columns),
        signals={name: Signal(steps[: len(values)], values) for name, values in columns.items() if values},
    )


def said(about, columns, **more):
    return finding(about, run(columns, **more))


def reason(about, columns, **more):
    return why(about, run(columns, **more))


def story(columns, **more):
    facts = run(columns, **more)
    return [part.says for part in story_parts(facts, detect(facts).told, TrainSummary(rows=N))]


def line(start, end, n=N, sigma=0.0, seed=0):
    rng = random.Random(seed)  # noqa: S311  # seeded on purpose
    return [start + (end - start) * i / (n - 1) + rng.gauss(0, sigma) for i in range(n)]


def ends(start, end, n=N):
    """A column whose first half is `start` and whose second half is `end`."""
    return [start] * (n // 2) + [end] * (n - n // 2)


def test_each_column_that_a_rule_asks_for_is_kept_in_a_summary():
    asked = (signals.REWARD, signals.REWARD_STD, signals.EQUAL_GROUPS, signals.ENTROPY, signals.LENGTH, signals.CLIPPED)
    asked += (signals.ENDED_LENGTH, signals.CUT_OFF, signals.TOKEN_KL, signals.ANSWER_KL, signals.HIGHEST_REWARD)
    assert set(chain.from_iterable(asked)) <= set(signals.SIGNALS)
    assert len(set(signals.SIGNALS)) == len(signals.SIGNALS)


# --- the reward ----------------------------------------------------------------------------------------------------


def test_the_story_says_cannot_tell_of_noise_and_never_that_it_learns():
    says = story({"reward": line(0.0, 0.0, sigma=5.0), "reward_std": [5.0] * N})
    assert says[0].startswith("cannot tell whether the reward rises: ")
    assert "its noise hides a change under " in says[0]
    assert not any("learns" in part for part in says)


@pytest.mark.parametrize("name", signals.REWARD)
def test_the_story_says_that_the_reward_rises_under_each_name(name):
    assert story({name: line(0.0, 1.0)})[0] == "the reward rises: 0.08621 -> 0.9138 (medians of 6 rows)"


def test_equal_groups_say_why_a_reward_does_not_rise():
    flat = {"reward": [1.0] * N}
    assert said("RWD122", flat).severity == "info"
    assert said("RWD122", {**flat, "frac_reward_zero_std": [0.95] * N}) is None
    assert said("RWD122", {**flat, "frac_reward_zero_std": [0.85] * N}).severity == "info"


def test_rewards_that_are_no_numbers_are_said_from_the_first_on():
    beside = {"frac_reward_zero_std": [0.0] * 20, "completions/mean_length": [9.0] * 20}
    found = said("RWN139", beside)
    assert (found.severity, found.values["missing"], found.values["rows"]) == ("error", 20, 20)
    assert said("RWN139", {**beside, "reward": [1.0] * 18}).severity == "warning"
    assert said("RWN139", {**beside, "reward": [1.0] * 19}).severity == "info"
    assert said("RWN139", {**beside, "reward": [1.0] * 20}) is None
    assert story(beside)[0] == "no reward in 20 of 20 rows"


def test_a_trainer_that_may_log_no_reward_is_not_judged_for_it():
    assert reason("RWN139", {"response_length/mean": [9.0] * 20}) == "the trainer may log no reward"
    assert said("RWN139", {"response_length/mean": [9.0] * 20, "critic/rewards/mean": []}).severity == "error"


# --- entropy, KL, clipping -----------------------------------------------------------------------------------------


def test_an_entropy_of_zero_at_first_is_not_judged():
    assert reason("ENT135", {"entropy": ends(0.0, 0.0)}) == "the entropy starts at 0"
    assert "it needs 6" in reason("ENT135", {"entropy": [1.0] * 5})


@every(
    ("values", "start"),
    [
        ([3.0, 2.0, 1.0, *[0.1] * N], 3.0),
        ([1.0, 2.0, 3.0, *[9.0] * N], 1.0),
        ([2.0, 3.0, 1.0, *[0.1] * N], 2.0),
        ([1.0, 3.0, 2.0, *[9.0] * N], 2.0),
    ],
)
def test_a_run_that_collapses_at_once_starts_at_its_first_row(values, start):
    assert rewards.Logged("x", range(len(values)), values).start == start


TRL = {"frac_reward_zero_std": [0.0] * N, "reward": line(0.0, 1.0)}


@every(
    ("columns", "more"),
    [
        ({**TRL, "kl": [0.0] * N}, {"norm": 0.0}),
        ({**TRL, "kl": [0.0] * N}, {"rate": 0.0}),
        ({**TRL, "kl": [0.0] * N, "frac_reward_zero_std": [1.0] * N}, {}),
        ({**TRL, "kl": [0.0] * 4}, {}),
        ({"kl": [0.0] * N, "response_length": [9.0] * N}, {}),  # OpenRLHF without a reference
        ({**TRL, "actor/kl_loss": [0.0] * N}, {}),  # verl with a coefficient of 0
    ],
)
def test_a_kl_of_zero_that_something_else_explains_is_no_fault(columns, more):
    assert said("KLZ138", columns, **more) is None
    assert reason("KLZ138", columns, **more)


# --- lengths -------------------------------------------------------------------------------------------------------


def lengths(first, last, *, cut=0.0, **more):
    return {"completions/mean_length": ends(first, last), "completions/clipped_ratio": [cut] * N, **more}


@every(
    ("columns", "how"),
    [
        (lengths(20.0, 8.0, **{"completions/mean_terminated_length": ends(9.0, 8.0)}), None),  # fewer are cut off
        (lengths(20.0, 8.0, **{"completions/mean_terminated_length": ends(16.0, 8.0)}), "shrank"),
    ],
)
def test_lengths_at_both_ends(columns, how):
    found = said("LEN136", columns)
    assert (found and found.values["how"]) == how


def test_a_reward_that_rises_with_the_length_is_told_with_it():
    grown = lengths(10.0, 20.0, cut=0.75)
    found = said("LEN136", {**grown, "reward": line(0.0, 1.0)})
    assert found.message == (
        "The completions grew from 10 to 20 tokens (75% of them are cut off there), while the reward rose from "
        "0.08621 to 0.9138: see whether the reward pays for length instead of the task."
    )
    still = said("LEN136", {**grown, "reward": line(1.0, 0.0)})
    assert still.message.endswith("tokens (75% of them are cut off there), and the reward did not rise.")
    assert "reward" not in said("LEN136", {**grown, "reward": line(0.0, 0.0, sigma=1.0)}).message
    level = said("LEN136", {**grown, "reward": [0.5, 0.499, 0.501] * 10})  # neither rises nor begins below its end
    assert (level.severity, "did not rise" in level.message) == ("warning", True)
    assert "completions grew from 10 to 20 tokens while the reward rose" in story({**grown, "reward": line(0.0, 1.0)})

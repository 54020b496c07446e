"""What the monitor says of real preference and RL runs by TRL, made here: good ones, and ones broken on purpose."""

from __future__ import annotations

import math

import pytest

from gradience.verbs.monitor.run import monitor_run

pytestmark = pytest.mark.oracle("trl")


STEPS = 48


def given(out, **more):
    return {
        "output_dir": str(out),
        "max_steps": STEPS,
        "logging_steps": 1,
        "per_device_train_batch_size": 8,
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        "learning_rate": 9e-3,
        "lr_scheduler_type": "constant",
        **more,
    }


def pairs(*, told_apart):
    """Pairs that differ always in the same way, or that are each other's mirror: nothing to learn."""
    good, bad = " w4 w5 w6", " w7 w8 w9"
    one = {"prompt": "w1 w2 w3", "chosen": good, "rejected": bad}
    other = {"prompt": "w1 w2 w3", "chosen": bad, "rejected": good}
    return [one] * 64 if told_apart else [one, other] * 32


def dpo(training, callback, tokenizer, out, *, told_apart):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    run = DPOTrainer(
        model=training.llama(),
        args=DPOConfig(max_length=16, **given(out)),
        train_dataset=Dataset.from_list(pairs(told_apart=told_apart)),
        processing_class=tokenizer,
        callbacks=[callback()],
    )
    run.train()
    return monitor_run(out)


def grpo(training, callback, tokenizer, out, reward):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    run = GRPOTrainer(
        model=training.llama(),
        reward_funcs=reward,
        args=GRPOConfig(max_completion_length=8, num_generations=4, beta=0.01, **given(out, max_steps=24)),
        train_dataset=Dataset.from_list([{"prompt": "w1 w2 w3"}, {"prompt": "w4 w5"}] * 16),
        processing_class=tokenizer,
        callbacks=[callback()],
    )
    run.train()
    return monitor_run(out)


def ids(report):
    return {finding.id for finding in report.findings if finding.severity != "info"}


def test_dpo_that_learns_starts_at_ln_2_and_gets_nothing_grave(training, callback, tokenizer, tmp_path):
    report = dpo(training, callback, tokenizer, tmp_path, told_apart=True)
    assert report.train.first_loss == pytest.approx(math.log(2.0), abs=1e-3)
    assert ids(report) == set()
    assert report.story.startswith("tells chosen from rejected: reward accuracy 100%")
    assert "; loss 0.69" in report.story


@pytest.mark.slow  # trains with TRL
def test_dpo_on_pairs_that_contradict_each_other_is_said_not_to_tell_them_apart(
    training, callback, tokenizer, tmp_path
):
    report = dpo(training, callback, tokenizer, tmp_path, told_apart=False)
    assert {"PRF119", "NOL106"} & ids(report)
    assert all("ln 2" in f.message for f in report.findings if f.id == "NOL106")


def varied(completions, **_):
    """Reward words of an even number."""
    return [sum(int(word[1:]) % 2 == 0 for word in text.split() if word[1:].isdigit()) / 8 for text in completions]


def constant(completions, **_):
    return [1.0 for _ in completions]


@pytest.mark.slow  # trains with TRL
def test_grpo_that_learns_has_a_loss_near_zero_and_nothing_grave_is_said_of_it(training, callback, tokenizer, tmp_path):
    report = grpo(training, callback, tokenizer, tmp_path, varied)
    assert abs(report.train.last_loss) < 0.5
    assert ids(report) <= {"CLP125"}  # a model of random weights seldom ends a completion, which is said
    assert "reward " in report.story


@pytest.mark.slow  # trains with TRL
def test_grpo_whose_rewards_are_all_the_same_is_said_to_teach_nothing(training, callback, tokenizer, tmp_path):
    report = grpo(training, callback, tokenizer, tmp_path, constant)
    assert "ZVR123" in ids(report)
    assert "100% of the groups have equal rewards" in report.story

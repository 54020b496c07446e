"""What a row is, by its keys."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradience.telemetry.rows import split_of, split_row

WORDS = "loss grad_norm epoch eval_loss eval_runtime eval_g0_loss eval_g0_runtime g0_runtime test_loss val_loss "
KEYS = st.sampled_from([*WORDS.split(), "train_loss", "train_runtime", "total_flos", "reward", "eval_", "_"])


@pytest.mark.parametrize(
    ("row", "train", "evals", "summary"),
    [
        ({"loss": 1, "epoch": 2, "reward": 3}, {"loss", "epoch", "reward"}, {}, set()),
        ({"eval_loss": 1, "eval_runtime": 2, "epoch": 3}, set(), {"eval": {"loss", "runtime", "epoch"}}, set()),
        ({"eval_g0_loss": 1, "eval_g0_runtime": 2}, set(), {"g0": {"loss", "runtime"}}, set()),
        ({"eval_a_loss": 1, "eval_a_accuracy": 2}, set(), {"a": {"loss", "accuracy"}}, set()),
        ({"total_flos": 1, "train_loss": 2, "epoch": 3}, set(), {}, {"total_flos", "train_loss", "epoch"}),
        ({"train_loss": 1, "train_runtime": 2}, set(), {"train": {"loss", "runtime"}}, set()),
        ({"test_loss": 1, "test_runtime": 2}, set(), {"test": {"loss", "runtime"}}, set()),
        ({"eval_runtime": 1, "eval_my_runtime": 2}, set(), {"eval": {"runtime", "my_runtime"}}, set()),
        (
            {"eval_a_loss": 1, "eval_a_runtime": 1, "eval_entropy": 2},
            set(),
            {"a": {"loss", "runtime", "entropy"}},
            set(),
        ),
        ({"loss": 1, "val_loss": 2, "val_accuracy": 3}, {"loss"}, {"val": {"loss", "accuracy"}}, set()),
        ({"loss": 1, "valid_tokens": 2}, {"loss", "valid_tokens"}, {}, set()),
        ({"loss": 1, "step_runtime": 2}, {"loss", "step_runtime"}, {}, set()),
        ({"loss": 1, "train_runtime": 2}, {"loss", "train_runtime"}, {}, set()),
        (
            {"eval_a_runtime": 1, "a_runtime": 2, "a_f1": 3},
            set(),
            {"a": {"runtime", "f1"}, "eval_a": {"runtime"}},
            set(),
        ),
        ({"reward": 1}, {"reward"}, {}, set()),
        ({}, set(), {}, set()),
    ],
)
def test_a_row_is_what_its_keys_say(row, train, evals, summary):
    parts = split_row(row)
    assert set(parts.train) == train
    assert {split: set(held) for split, held in parts.evals.items()} == evals
    assert set(parts.summary) == summary


def test_a_joined_row_is_taken_apart():
    parts = split_row(
        {"loss": 1, "eval_a_runtime": 2, "eval_b_runtime": 3, "train_loss": 4, "total_flos": 5, "epoch": 6}
    )
    assert parts.train == {"loss": 1, "epoch": 6}
    assert parts.evals == {"a": {"runtime": 2}, "b": {"runtime": 3}}
    assert parts.summary == {"train_loss": 4, "total_flos": 5, "epoch": 6}


@given(st.dictionaries(KEYS, st.integers(), max_size=10))
def test_no_value_of_a_row_is_lost(row):
    parts = split_row(row)
    kept = [
        *parts.train.values(),
        *parts.summary.values(),
        *(v for held in parts.evals.values() for v in held.values()),
    ]
    assert set(row.values()) <= set(kept)


@pytest.mark.parametrize("prefix", ["eval", "eval_hard", "test", "train"])
def test_a_split_has_the_data_sets_name(prefix):
    assert split_of(prefix) == {"eval_hard": "hard"}.get(prefix, prefix)

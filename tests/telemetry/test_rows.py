"""What a row is, by its keys."""

from __future__ import annotations

import math
from enum import Enum

import numpy as np
from hypothesis import given, strategies as st
from tables import every

from gradience.telemetry.rows import eval_columns, plain_columns, split_row, train_columns


class Name(Enum):
    STEP = "step"


WORDS = "loss grad_norm epoch eval_loss eval_runtime eval_g0_loss eval_g0_runtime g0_runtime test_loss val_loss "
RESERVED = {"step_": 1, "run_id_": "x", "extras_": 2, "event_": 3, "self_": 4}
KEYS = st.sampled_from([*WORDS.split(), "train_loss", "train_runtime", "total_flos", "reward", "eval_", "_"])


@given(st.dictionaries(KEYS, st.integers(), max_size=10))
def test_no_value_of_a_row_is_lost(row):
    parts = split_row(row)
    kept = [
        *parts.train.values(),
        *parts.summary.values(),
        *(v for held in parts.evals.values() for v in held.values()),
    ]
    assert set(row.values()) <= set(kept)


def test_what_an_evaluation_measured_itself_goes_before_what_stands_beside_it():
    parts = split_row({"eval_loss": 1, "eval_runtime": 2, "runtime": 3, "epoch": 4})
    assert parts.evals == {"eval": {"loss": 1, "runtime": 2, "epoch": 4}}


@every(
    ("row", "known", "extras"),
    [
        ({"loss": 1, "lr": 0.1}, {"loss": 1.0, "lr": 0.1}, {}),
        ({"loss": "1.5", "epoch": " 2 "}, {"loss": 1.5, "epoch": 2.0}, {}),
        ({"loss": math.nan, "grad_norm": -math.inf}, {"loss": "NaN", "grad_norm": "-Infinity"}, {}),
        ({"loss": True, "grad_norm": "high", "epoch": None}, {}, {"loss_": True, "grad_norm_": "high", "epoch_": None}),
        ({"learning_rate": [0.1, "0.2"]}, {"lr": [0.1, 0.2]}, {}),
        ({"learning_rate": [0.1, None]}, {}, {"learning_rate": [0.1, None]}),
        ({"lr": []}, {}, {"lr_": []}),
        ({"learning_rate": 0.1, "lr": 0.2}, {"lr": 0.1}, {"lr_": 0.2}),
        ({"loss": [0.5]}, {}, {"loss_": [0.5]}),
        ({"step": 1, "run_id": "x", "extras": 2, "event": 3, "self": 4}, {}, RESERVED),
        ({"reward": 0.5, "kl": "0.1"}, {}, {"reward": 0.5, "kl": "0.1"}),
        ({Name.STEP: 1, 7: 2}, {}, {"step_": 1, "7": 2}),
        ({"loss": 0, "lr": [0], "epoch": "0", "grad_norm": 0.0},
         {"loss": 0.0, "lr": [0.0], "epoch": 0.0, "grad_norm": 0.0}, {}),
        ({"lr": "high", "learning_rate": 0.1}, {"lr": 0.1}, {"lr_": "high"}),
    ],
)  # fmt: skip
def test_known_columns_get_the_recorders_names_and_all_else_stays_beside_them(row, known, extras):
    assert train_columns(row) == (known, extras)


@every(
    ("measured", "known", "extras"),
    [
        ({"loss": 0.5, "perplexity": 2, "accuracy": 1}, {"loss": 0.5, "ppl": 2.0, "accuracy": 1.0}, {}),
        ({"ppl": 2.0, "perplexity": 3.0}, {"ppl": 2.0}, {"perplexity": 3.0}),
        ({"n": 8}, {"n": 8}, {}),
        ({"n": "8"}, {"n": 8}, {}),
        ({"n": -1}, {}, {"n_": -1}),
        ({"n": 1.5}, {}, {"n_": 1.5}),
        ({"accuracy": {"a": 1}, "runtime": 2.0}, {}, {"accuracy_": {"a": 1}, "runtime": 2.0}),
    ],
)
def test_measurements_get_the_recorders_names_too(measured, known, extras):
    found = eval_columns(measured)
    assert found == (known, extras)
    assert list(map(type, found.known.values())) == list(map(type, known.values()))


@every("word", ["eval", "val", "valid", "validation", "test", "dev", "predict"])
@every("metric", ["loss", "accuracy", "acc", "ppl", "perplexity", "runtime"])
def test_these_words_begin_what_is_measured_on_held_out_data(word, metric):
    assert split_row({f"{word}_{metric}": 1.0, "loss": 2.0}) == ({"loss": 2.0}, {word: {metric: 1.0}}, {})
    assert split_row({f"x{word}_{metric}": 1.0, "loss": 2.0}).evals == {}


@every(
    ("row", "columns"),
    [
        (
            {"loss": 1.5, "learning_rate": 2e-4, "grad_norm": 1.0, "epoch": 0.5},
            {"loss": 1.5, "lr": 2e-4, "grad_norm": 1.0, "epoch": 0.5},
        ),
        ({"loss": 1.5}, {"loss": 1.5}),
        ({"loss": 1.5, "lr": 1.0}, {"loss": 1.5, "lr": 1.0}),
        ({"loss": 1.5, "lr": 1.0, "learning_rate": 2.0}, None),  # one of them is an extra
        ({"loss": 1.5, "reward": 0.5}, None),
        ({"loss": 1}, None),
        ({"loss": np.float64(1.5)}, None),
        ({"loss": 1.5, "lr": None}, None),
        ({"loss": 0.0, "epoch": 0.0}, {"loss": 0.0, "epoch": 0.0}),
        ({"loss": 1.5, "epoch": 1}, None),
        ({"epoch": 1.0}, None),
        ({}, None),
    ],
)
def test_a_row_of_known_columns_and_floats_alone_is_plain(row, columns):
    assert plain_columns(row) == columns


@every(
    ("row", "train", "evals", "summary"),
    [
        ({"loss": 1, "eval_runtime": 2}, {"loss": 1}, {"eval": {"runtime": 2}}, {}),
        ({"loss": 1, "x_runtime": 2}, {"loss": 1, "x_runtime": 2}, {}, {}),
        ({"x_runtime": 2, "x_f1": 1, "epoch": 3}, {}, {"x": {"runtime": 2, "f1": 1, "epoch": 3}}, {}),
        ({"_runtime": 2, "reward": 1}, {"_runtime": 2, "reward": 1}, {}, {}),
        ({"eval_f1": 1, "epoch": 2}, {}, {"eval": {"f1": 1, "epoch": 2}}, {}),
        ({"eval_a_loss": 1, "eval_a_f1": 2}, {}, {"a": {"loss": 1, "f1": 2}}, {}),
        ({"eval_a_loss": 1, "eval_b_f1": 2}, {}, {"eval": {"a_loss": 1, "b_f1": 2}}, {}),
        ({"eval_a_loss": 1, "eval_b_loss": 2}, {}, {"eval": {"a_loss": 1, "b_loss": 2}}, {}),
        ({"eval_a_loss": 1, "eval_a_b_loss": 2}, {}, {"eval": {"a_loss": 1, "a_b_loss": 2}}, {}),
        ({"test_f1": 1}, {"test_f1": 1}, {}, {}),
        ({"test_acc": 1, "test_f1": 2}, {}, {"test": {"acc": 1, "f1": 2}}, {}),
        ({"val_loss": 1, "eval_loss": 2}, {}, {"val": {"loss": 1}, "eval": {"loss": 2}}, {}),
        ({"eval_a_runtime": 1, "eval_b_runtime": 2, "epoch": 3, "kl": 4}, {"kl": 4},
         {"a": {"runtime": 1, "epoch": 3}, "b": {"runtime": 2, "epoch": 3}}, {}),
        ({"eval_a_runtime": 1, "eval_a_b_runtime": 2}, {}, {"a": {"runtime": 1, "b_runtime": 2}}, {}),
        ({"eval_a_runtime": 1, "eval_a_f1": 2, "eval_loss": 3}, {}, {"a": {"runtime": 1, "f1": 2}, "eval": {"loss": 3}},
         {}),
        ({"eval_a_loss": 1, "eval_a_runtime": 2, "test_loss": 3, "epoch": 4, "step": 5}, {"step": 5},
         {"a": {"loss": 1, "runtime": 2, "epoch": 4}, "test": {"loss": 3, "epoch": 4}}, {}),
        ({"total_flos": 1, "kl": 2}, {}, {}, {"total_flos": 1, "kl": 2}),
        ({"total_flos": 1, "train_loss": 3, "loss": 2}, {"loss": 2}, {}, {"total_flos": 1, "train_loss": 3}),
        ({"total_flos": 1, "loss": 2, "epoch": 3}, {"loss": 2, "epoch": 3}, {}, {"total_flos": 1, "epoch": 3}),
        ({"total_flos": 1, "eval_loss": 2}, {}, {"eval": {"loss": 2}}, {"total_flos": 1}),
        ({"total_flos": 0, "loss": 0, "epoch": 0}, {"loss": 0, "epoch": 0}, {}, {"total_flos": 0, "epoch": 0}),
        ({"total_flos": 1, "epoch": None, "lr": 0}, {"lr": 0, "epoch": None}, {}, {"total_flos": 1, "epoch": None}),
        ({"eval_loss": 0, "epoch": 0}, {}, {"eval": {"loss": 0, "epoch": 0}}, {}),
        ({"eval_runtime": 0, "loss": 0}, {"loss": 0}, {"eval": {"runtime": 0}}, {}),
        ({"eval_a_runtime": 0, "eval_b_runtime": 0, "epoch": 0}, {},
         {"a": {"runtime": 0, "epoch": 0}, "b": {"runtime": 0, "epoch": 0}}, {}),
        ({"predict_ppl": 1, "lr": 2, "epoch": 3}, {"lr": 2, "epoch": 3}, {"predict": {"ppl": 1}}, {}),
        ({"eval_loss": 1, "loss": 3, "f1": 2}, {"loss": 3, "f1": 2}, {"eval": {"loss": 1}}, {}),
        ({"eval_loss": 1, "f1": 2}, {}, {"eval": {"loss": 1, "f1": 2}}, {}),
        ({"eval_loss": 1, "grad_norm": 3, "f1": 2}, {"grad_norm": 3, "f1": 2}, {"eval": {"loss": 1}}, {}),
        ({"eval_loss": 1, "learning_rate": 3, "f1": 2}, {"learning_rate": 3, "f1": 2}, {"eval": {"loss": 1}}, {}),
        ({"loss": 1, "epoch": 2, "reward": 3}, {"loss": 1, "epoch": 2, "reward": 3}, {}, {}),
        ({"train_loss": 1, "train_runtime": 2}, {}, {"train": {"loss": 1, "runtime": 2}}, {}),
        ({"eval_a_loss": 1, "eval_a_runtime": 2, "eval_entropy": 3}, {}, {"a": {"loss": 1, "runtime": 2, "entropy": 3}},
         {}),
        ({"loss": 1, "valid_tokens": 2}, {"loss": 1, "valid_tokens": 2}, {}, {}),
        ({"learning_rate": 1, "step_runtime": 2}, {"learning_rate": 1}, {"step": {"runtime": 2}}, {}),  # without a loss
        ({"eval_a_runtime": 1, "a_runtime": 2, "a_f1": 3}, {}, {"a": {"runtime": 2, "f1": 3}, "eval_a": {"runtime": 1}},
         {}),
        # the short prefix has the name, in any order of letters
        ({"eval_test_runtime": 1, "test_loss": 2}, {}, {"test": {"loss": 2}, "eval_test": {"runtime": 1}}, {}),
        ({"evaluation_runtime": 1, "loss": 2}, {"loss": 2}, {"evaluation": {"runtime": 1}}, {}),
        ({"validation_loss": 1, "eval_a_runtime": 2, "eval_entropy": 3}, {},
         {"validation": {"loss": 1}, "a": {"runtime": 2, "entropy": 3}}, {}),
        ({"total_flos": 1, "training_time": 2, "loss": 3}, {"training_time": 2, "loss": 3}, {}, {"total_flos": 1}),
        ({"eval_a_runtime": 1, "eval_ab_runtime": 2}, {}, {"a": {"runtime": 1}, "ab": {"runtime": 2}}, {}),
        (
            {"eval_a_runtime": 1, "eval_bc_runtime": 2, "eval_entropy": 3},  # of two evaluations the longer name has it
            {},
            {"a": {"runtime": 1}, "bc": {"runtime": 2, "entropy": 3}},
            {},
        ),
        ({"devices": 1, "loss": 2}, {"devices": 1, "loss": 2}, {}, {}),
    ],
)  # fmt: skip
def test_a_row_is_taken_apart_value_by_value(row, train, evals, summary):
    assert split_row(row) == (train, evals, summary)

"""What a row is, by its keys."""

from __future__ import annotations

import math
from decimal import Decimal
from enum import Enum

import numpy as np
from hypothesis import given, strategies as st
from tables import every

from gradience.schema.values import described
from gradience.telemetry.rows import eval_columns, plain_columns, split_of, split_row, train_columns


class Kind(str, Enum):  # noqa: UP042  # as those of transformers are
    A = "a"


class Name(Enum):
    STEP = "step"


class Place(Enum):
    B = 2


class Gone:
    """Looks like a number, and gives none: as a tensor whose data were given away does."""

    def __float__(self) -> float:
        raise RuntimeError("no data")


WORDS = "loss grad_norm epoch eval_loss eval_runtime eval_g0_loss eval_g0_runtime g0_runtime test_loss val_loss "
RESERVED = {"step_": 1, "run_id_": "x", "extras_": 2, "event_": 3, "self_": 4}
KEYS = st.sampled_from([*WORDS.split(), "train_loss", "train_runtime", "total_flos", "reward", "eval_", "_"])


@every(
    ("row", "train", "evals", "summary"),
    [
        ({"loss": 1, "epoch": 2, "reward": 3}, {"loss", "epoch", "reward"}, {}, set()),
        ({"eval_loss": 1, "eval_runtime": 2, "epoch": 3}, set(), {"eval": {"loss", "runtime", "epoch"}}, set()),
        ({"eval_g0_loss": 1, "eval_g0_runtime": 2}, set(), {"g0": {"loss", "runtime"}}, set()),
        ({"eval_a_loss": 1, "eval_a_accuracy": 2}, set(), {"a": {"loss", "accuracy"}}, set()),
        ({"eval_a_accuracy": 2, "eval_a_loss": 1}, set(), {"a": {"loss", "accuracy"}}, set()),
        ({"test_loss": 1, "eval_a_loss": 2, "eval_a_f1": 3}, set(), {"test": {"loss"}, "a": {"loss", "f1"}}, set()),
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
        ({"learning_rate": 1, "step_runtime": 2}, {"learning_rate"}, {"step": {"runtime"}}, set()),  # without a loss
        ({"loss": 1, "train_runtime": 2}, {"loss", "train_runtime"}, {}, set()),
        (
            {"eval_a_runtime": 1, "a_runtime": 2, "a_f1": 3},
            set(),
            {"a": {"runtime", "f1"}, "eval_a": {"runtime"}},
            set(),
        ),
        ({"_runtime": 1, "reward": 2}, {"_runtime", "reward"}, {}, set()),  # W&B's own
        (
            {"eval_a_runtime": 1, "eval_a_loss": 2, "eval_loss": 3},
            set(),
            {"a": {"runtime", "loss"}, "eval": {"loss"}},
            set(),
        ),
        ({"reward": 1}, {"reward"}, {}, set()),
        ({}, set(), {}, set()),
        (
            {"eval_test_runtime": 1, "test_loss": 2},  # the short prefix has the name, in any order of letters
            set(),
            {"test": {"loss"}, "eval_test": {"runtime"}},
            set(),
        ),
        ({"total_flos": 1, "train_loss": 2, "eval_f1": 3}, set(), {"eval": {"f1"}}, {"total_flos", "train_loss"}),
        ({"total_flos": 1, "lr": 2, "kl": 3}, {"lr", "kl"}, {}, {"total_flos"}),
        ({"total_flos": 1, "train_x": 2, "grad_norm": 3}, {"grad_norm"}, {}, {"total_flos", "train_x"}),
        ({"evaluation_runtime": 1, "loss": 2}, {"loss"}, {"evaluation": {"runtime"}}, set()),
        (
            {"validation_loss": 1, "eval_a_runtime": 2, "eval_entropy": 3},
            set(),
            {"validation": {"loss"}, "a": {"runtime", "entropy"}},
            set(),
        ),
        ({"total_flos": 1, "training_time": 2, "loss": 3}, {"training_time", "loss"}, {}, {"total_flos"}),
        ({"eval_a_runtime": 1, "eval_ab_runtime": 2}, set(), {"a": {"runtime"}, "ab": {"runtime"}}, set()),
        (
            {"eval_a_runtime": 1, "eval_bc_runtime": 2, "eval_entropy": 3},  # of two evaluations the longer name has it
            set(),
            {"a": {"runtime"}, "bc": {"runtime", "entropy"}},
            set(),
        ),
        ({"devices": 1, "loss": 2}, {"devices", "loss"}, {}, set()),
        ({"dev_loss": 1, "dev_f1": 2, "loss": 2}, {"loss"}, {"dev": {"loss", "f1"}}, set()),
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
    many = split_row({f"eval_{split}_runtime": 1 for split in "hgfedcba"})  # in one order in every process
    assert list(many.evals) == list("abcdefgh")


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


@every("prefix", ["eval", "eval_", "eval_hard", "test", "train"])
def test_a_split_has_the_data_sets_name(prefix):
    assert split_of(prefix) == {"eval_hard": "hard"}.get(prefix, prefix)


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
        (
            {"loss": 0, "lr": [0], "epoch": "0", "grad_norm": 0.0},
            {"loss": 0.0, "lr": [0.0], "epoch": 0.0, "grad_norm": 0.0},
            {},
        ),
        ({"lr": "high", "learning_rate": 0.1}, {"lr": 0.1}, {"lr_": "high"}),
    ],
)
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


@every(
    ("value", "shown"),
    [
        (list(range(64)), list(range(64))),
        (list(range(65)), "<65 values>"),
        ({str(i): 0 for i in range(65)}, "<65 values>"),
        (np.zeros((8, 8)), [[0.0] * 8] * 8),
        (np.zeros((5, 13)), "<array of shape [5, 13]>"),
        (np.ones((1, 1, 1)), 1.0),
        (np.zeros(0), []),
        (2**53 - 1, 2**53 - 1),
        (-(2**53), "-9007199254740992"),
        (2**200, "<a huge number>"),
        (math.inf, "Infinity"),
        ({1: {2.5}}, {"1": [2.5]}),
        (b"x", "<bytes>"),
        (Gone(), "<Gone>"),
        ("a\ud800", "a?"),
        (Decimal("1e400"), "Infinity"),
        (Kind.A, "a"),
        ([Place.B], [2]),
    ],
    ids=str,
)
def test_a_logged_value_is_json_and_bounded(value, shown):
    assert described(value) == shown


def test_a_logged_value_has_eight_levels_and_below_them_a_count():
    nested: object = [1, 2]
    for _ in range(7):
        nested = [nested]
    assert described(nested) == nested
    assert described([nested]) == [[[[[[[["<2 values>"]]]]]]]]


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

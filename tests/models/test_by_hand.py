"""What is summed over tokens, which predictions count, and what fits into a batch: worked out on paper."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from gradience.models.inputs import ModelInput, batches  # noqa: E402
from gradience.models.outputs import InputScores, divergence, tokens_within  # noqa: E402

# --- sums over tokens --------------------------------------------------------------------------------------------


# --- predictions -------------------------------------------------------------------------------------------------


def model(task: str = "causal-lm", **config: Any) -> Any:
    embeddings = SimpleNamespace(weight=np.zeros((50, 2)))
    return SimpleNamespace(
        task=task,
        config=SimpleNamespace(**config),
        tokenizer=SimpleNamespace(special_ids=[0, 9]),
        model=SimpleNamespace(get_input_embeddings=lambda: embeddings),
    )


def test_a_batch_s_tokens_follow_from_the_size_of_the_model():
    per_token = 4 * (24 * 2 * 64 + 4 * 1000)
    assert tokens_within(model(hidden_size=64, num_hidden_layers=2, vocab_size=1000)) == (96 << 20) // per_token
    assert tokens_within(model("other", hidden_size=64, num_hidden_layers=2, vocab_size=1000)) == (96 << 20) // (
        4 * 24 * 2 * 64
    )
    assert tokens_within(model(hidden_size=10**8)) == 1


# --- inputs ------------------------------------------------------------------------------------------------------


def test_batches_take_the_longest_first_and_as_many_as_fit():
    examples = [ModelInput(tuple(range(n)), 0, n - 1, None) for n in (2, 4, 4, 1, 3)]
    made = batches(examples, tokens=9, pad=7)
    assert [one.rows for one in made] == [[1, 2], [4, 0, 3]]
    assert made[1].ids.tolist() == [[0, 1, 2], [0, 1, 7], [0, 7, 7]]
    assert made[1].mask.tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0]]
    assert made[1].counts.tolist() == [[True, True, False], [True, False, False], [False] * 3]
    assert [one.rows for one in batches(examples, tokens=9, pad=None)] == [[1], [2], [4], [0], [3]]
    assert [len(one.rows) for one in batches(examples, tokens=1, pad=0)] == [1] * 5


def test_one_prediction_is_its_own_mean():
    assert divergence([InputScores(0, 1, 0.5, 1, 0.0, 0.0, 0)]) == (0.5, 1.0, 1)

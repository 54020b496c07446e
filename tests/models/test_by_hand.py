"""What is summed over tokens, which predictions count, and what fits into a batch: worked out on paper."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from gradience.errors import AdapterError, ConfigError  # noqa: E402  # after what may be missing
from gradience.models.inputs import Batch, Example, _chosen, _Reader, batches  # noqa: E402
from gradience.models.outputs import Scored, _against, _class_of, _labels, _scored, divergence, row_sizes, tokens_within  # noqa: E402
from gradience.models.statistics import _Store, _Sums  # noqa: E402

# --- sums over tokens --------------------------------------------------------------------------------------------


def batch(mask: list[list[int]], counts: list[list[int]] | None = None) -> Batch:
    some = np.array(mask)
    return Batch(
        np.zeros_like(some), some, np.array(counts if counts is not None else mask, bool), list(range(len(mask)))
    )


def summed(mask: list[list[int]], z: Any, h: Any) -> tuple[Any, Any]:
    sums = _Sums(2, torch.device("cpu"))
    sums.begin(batch(mask), torch.device("cpu"))
    sums.add(torch.tensor(z), torch.tensor(h))
    return sums.moments(), sums.of_rows.numpy()


Z = [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]]
H = [[[1.0, 0.0], [0.0, 1.0]], [[2.0, 0.0], [0.0, 3.0]]]


def test_moments_are_means_over_the_tokens_that_the_mask_shows():
    moments, rows = summed([[1, 1], [1, 0]], Z, H)
    tokens = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    assert moments.g == pytest.approx(tokens.T @ tokens / 3)
    assert moments.h == pytest.approx(np.diag([1.0 + 4.0, 1.0]) / 3)
    assert rows[0] == pytest.approx(np.array([[1.0, 2.0], [3.0, 4.0]]))  # h z^T, summed over the row's tokens
    assert rows[1] == pytest.approx(np.array([[10.0, 12.0], [0.0, 0.0]]))


def test_rows_that_a_module_sees_one_by_one_are_put_together_again():
    flat, whole = (np.array(x).reshape(4, 2).tolist() for x in (Z, H))
    assert summed([[1, 1], [1, 0]], flat, whole)[1] == pytest.approx(summed([[1, 1], [1, 0]], Z, H)[1])


def test_a_mask_is_of_places_not_of_rows():
    z = np.arange(12.0).reshape(2, 3, 2)
    moments, rows = summed([[1, 1, 0], [1, 0, 0]], z.tolist(), np.ones((2, 3, 2)).tolist())
    assert rows[0] == pytest.approx(np.tile(z[0, :2].sum(axis=0), (2, 1)))
    assert moments.h == pytest.approx(np.ones((2, 2)))


def test_a_sequence_of_its_own_has_no_mask():
    moments, rows = summed([[1, 0], [1, 0]], [[1.0, 2.0], [3.0, 4.0]], [[1.0, 0.0], [0.0, 1.0]])
    assert moments.g == pytest.approx(np.array([[10.0, 14.0], [14.0, 20.0]]) / 2)
    assert rows[1] == pytest.approx(np.array([[0.0, 0.0], [3.0, 4.0]]))


def test_rows_of_other_numbers_belong_to_no_input_and_nothing_seen_is_zero():
    with pytest.raises(AdapterError, match="sees 3 rows of a batch of 2"):
        summed([[1, 1], [1, 1]], [[1.0, 2.0]] * 3, [[1.0, 2.0]] * 3)
    sums = _Sums(2, torch.device("cpu"))
    assert sums.moments().g.tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_sums_on_disk_are_those_of_their_module_and_rows(tmp_path):
    store = _Store(tmp_path / "sums", {"a": 1, "b": 3, "c": 2}, 3, np.float32)
    made = {
        name: np.arange(3 * r * r, dtype=float).reshape(3, r, r) + place
        for place, (name, r) in enumerate({"a": 1, "b": 3, "c": 2}.items())
    }
    for part in (slice(0, 2), slice(2, 3)):
        store.append({name: torch.from_numpy(x[part]) for name, x in made.items()})
    assert all(np.array_equal(store.read(name), x) for name, x in made.items())
    assert (tmp_path / "sums").stat().st_size == 3 * (1 + 9 + 4) * 4


# --- predictions -------------------------------------------------------------------------------------------------


def test_kl_and_flips_of_two_classes():
    p, q = torch.tensor([[0.75, 0.25], [0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75], [0.5, 0.5]]).log()
    kl, flips = _against(p, q)
    assert kl.tolist() == pytest.approx([0.75 * np.log(3) - 0.25 * np.log(3), 0.0])
    assert flips.tolist() == [True, False]
    assert _against(p, p + 0.1)[0].tolist() == [0.0, 0.0]  # no rounding makes it less
    certain = torch.tensor([[1.0, 0.0]]).log()
    assert _against(certain, certain)[0].tolist() == [0.0]
    assert [x.tolist() for x in _against(None, q)] == [[0.0, 0.0], [False, False]]


def test_a_loss_is_over_labels_that_are_known():
    found = torch.tensor([[0.5, 0.5], [0.125, 0.875], [0.9, 0.1]]).log()
    one = _scored(
        4,
        3,
        torch.tensor([1.0, 0.5, 0.0]),
        torch.tensor([True, False, True]),
        found=found,
        labels=torch.tensor([0, 1, -1]),
    )
    assert one == Scored(4, 3, 1.5, 2, 2, pytest.approx(-np.log(0.5 * 0.875)), 2)
    none = _scored(0, 3, torch.zeros(3), torch.zeros(3), found=found, labels=torch.tensor([-1, -1, -1]))
    assert (none.known, none.loss, none.hits) == (0, 0.0, 0)
    assert divergence([one, none]) == (1.5 / 6, 2 / 6, 6)
    assert divergence([]) == (0.0, 0.0, 0)


def model(task: str = "causal-lm", **config: Any) -> Any:
    embeddings = SimpleNamespace(weight=np.zeros((50, 2)))
    return SimpleNamespace(
        task=task,
        config=SimpleNamespace(**config),
        tokenizer=SimpleNamespace(special_ids=[0, 9]),
        model=SimpleNamespace(get_input_embeddings=lambda: embeddings),
    )


def test_labels_are_the_next_tokens_or_the_rows_own():
    examples = [Example((5, 6, 7), 0, 2, None), Example((5, 6, 7), 1, 3, "low")]
    both = batch([[1, 1, 1]] * 2, [[1, 1, 0], [0, 1, 1]])
    cpu = torch.device("cpu")
    assert _labels(model(), examples, both, cpu).tolist() == [6, 7, 7, -1]  # nothing is known behind the last token
    assert _labels(model("sequence-classification", label2id={"low": 2}), examples, both, cpu).tolist() == [-1, 2]
    assert _labels(model("other"), examples, both, cpu).tolist() == [-1] * 4
    assert row_sizes(model(), both) == [2, 2]
    assert row_sizes(model("sequence-classification"), both) == [1, 1]
    four = model(label2id={"low": 2}, num_labels=4)
    assert [_class_of(four, label) for label in (3, 4, -1, "low", "high", None)] == [3, -1, -1, 2, -1, -1]


def test_a_batch_s_tokens_follow_from_the_size_of_the_model():
    per_token = 4 * (24 * 2 * 64 + 4 * 1000)
    assert tokens_within(model(hidden_size=64, num_hidden_layers=2, vocab_size=1000)) == (96 << 20) // per_token
    assert tokens_within(model("other", hidden_size=64, num_hidden_layers=2, vocab_size=1000)) == (96 << 20) // (
        4 * 24 * 2 * 64
    )
    assert tokens_within(model(hidden_size=10**8)) == 1


# --- inputs ------------------------------------------------------------------------------------------------------


def test_batches_take_the_longest_first_and_as_many_as_fit():
    examples = [Example(tuple(range(n)), 0, n - 1, None) for n in (2, 4, 4, 1, 3)]
    made = batches(examples, tokens=9, pad=7)
    assert [one.rows for one in made] == [[1, 2], [4, 0, 3]]
    assert made[1].ids.tolist() == [[0, 1, 2], [0, 1, 7], [0, 7, 7]]
    assert made[1].mask.tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0]]
    assert made[1].counts.tolist() == [[True, True, False], [True, False, False], [False] * 3]
    assert [one.rows for one in batches(examples, tokens=9, pad=None)] == [[1], [2], [4], [0], [3]]
    assert [len(one.rows) for one in batches(examples, tokens=1, pad=0)] == [1] * 5


def test_rows_are_chosen_by_the_hash_of_their_content():
    rows = [(n, f"row {n % 7}") for n in range(1, 15)]
    every, found = _chosen(rows, 99, 0)
    assert (found, sorted(number for number, _ in every)) == (7, [1, 2, 3, 4, 5, 6, 7])  # a copy is not counted
    for most in range(1, 8):
        assert _chosen(rows[::-1], most, 0)[0] == [(number + 7, row) for number, row in every[:most]]


def test_an_object_is_the_same_in_any_order_of_its_keys():
    one, two = {"text": "a", "label": 1}, {"label": 1, "text": "a"}
    assert _chosen([(1, one), (2, two), (3, {"text": "a", "label": 2})], 9, 0)[1] == 2


def reader(task: str = "causal-lm", *, longest: int = 9) -> _Reader:
    return _Reader("rows.jsonl", model(task), longest, token_ids=True)  # type: ignore[arg-type]  # named in errors


def test_ids_are_those_of_the_base():
    assert reader().example(1, [0, 49]).ids == (0, 49)
    for ids, odd in (([50], "50"), ([-1, 50], "-1"), ([3, 77, -5], "77")):
        with pytest.raises(ConfigError, match=f"row 4: token id {odd}, and the base has ids from 0 to 49"):
            reader().example(4, ids)
    for row in ([], [1.5], ["1"], {"ids": [1]}, [True]):
        with pytest.raises(ConfigError, match="expected a list of token ids"):
            reader().example(1, row)


def test_places_that_count_by_task():
    ids = [0, 4, 5, 9]
    assert reader().example(1, ids)[1:3] == (0, 3)
    assert reader("sequence-classification").example(1, ids)[1:3] == (0, 4)
    assert reader("other").example(1, ids)[1:3] == (1, 3)  # without the special tokens at the ends
    assert reader("other").example(1, [4, 5])[1:3] == (0, 2)
    places = reader()._places
    assert [
        places([1, 2, 3], prompt, opened=opened) for prompt, opened in ((0, False), (1, False), (2, False), (0, True))
    ] == [
        (0, 2),
        (0, 2),
        (1, 2),
        (0, 3),
    ]


def test_long_rows_are_cut_and_counted():
    some = reader(longest=3)
    assert [some.example(1, list(range(1, n + 1))).ids for n in (3, 4, 5)] == [(1, 2, 3)] * 3
    assert some.cut == 2
    with pytest.raises(ConfigError, match="label is float"):
        some.example(1, {"input_ids": [1], "label": 0.5})


def test_one_prediction_is_its_own_mean():
    assert divergence([Scored(0, 1, 0.5, 1, 0.0, 0.0, 0)]) == (0.5, 1.0, 1)

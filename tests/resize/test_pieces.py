"""Pieces, their order and their budgets, and what a calibration decides without a model, by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from hand_made import WEIGHTS, adapter, best, diagonal, kohya
from tables import every

from gradience import AdapterError, ConfigError
from gradience.models.inputs import ModelInput
from gradience.rewriting.sides import open_stored
from gradience.verbs.resize import subject as of_subject
from gradience.verbs.resize.options import Target
from gradience.verbs.resize.outputs import affordable
from gradience.verbs.resize.pieces import (
    Order,
    RankCandidate,
    combined,
    first_pieces,
    gates_of,
    ordered,
    pieces_of,
    predicted_kl,
    share_left_out,
    shortest,
    within,
)
from gradience.verbs.resize.subject import Subject, refuse_to_run, resizable_pairs, split_inputs, targets_of

# --- pieces ------------------------------------------------------------------------------------------------------


def test_pieces_are_the_svd_of_the_two_roots_and_of_the_weights_grams_their_singular_vectors():
    rng = np.random.default_rng(0)
    g, h = (x @ x.T for x in rng.normal(size=(2, 5, 9)))
    pieces = pieces_of(g, h)
    root_g, root_h = scipy.linalg.sqrtm(g).real, scipy.linalg.sqrtm(h).real
    u, s, v = np.linalg.svd(root_h @ root_g)
    np.testing.assert_allclose(pieces.sizes, s, rtol=1e-9)
    for k in range(6):
        wanted = np.linalg.inv(root_h) @ (u[:, :k] * s[:k]) @ v[:k] @ np.linalg.inv(root_g)
        np.testing.assert_allclose(combined(pieces, range(k)), wanted, atol=1e-9)
    np.testing.assert_allclose(combined(pieces, range(5)), np.eye(5), atol=1e-9)
    b, a = rng.normal(size=(7, 3)), rng.normal(size=(3, 9))
    pieces = pieces_of(a @ a.T, b.T @ b)
    for k in (1, 2):
        np.testing.assert_allclose(b @ combined(pieces, range(k)) @ a, best(b @ a, k), atol=1e-9)


def test_a_moment_without_an_inverse_has_its_least_values_raised_and_one_of_nothing_none():
    pieces = pieces_of(np.diag([4.0, 1.0, 0.0]), np.diag([1.0, 9.0, 1.0]))
    # roots: 2, 1, sqrt(4e-9) and 1, 3, 1: products 2, 3, 2 sqrt(1e-9)
    np.testing.assert_allclose(pieces.sizes, [3.0, 2.0, 2.0 * 1e-9**0.5], rtol=1e-9)
    for k, place in enumerate((1, 0, 2)):
        unit = np.zeros((3, 3))
        unit[place, place] = 1.0
        np.testing.assert_allclose(combined(pieces, [k]), unit, atol=1e-9)
    zero = pieces_of(np.eye(2), np.zeros((2, 2)))
    np.testing.assert_allclose(combined(zero, range(2)), np.eye(2), atol=1e-12)
    lopsided = np.asarray([[1.0, 2.0], [0.0, 1.0]])
    values = np.linalg.eigvalsh((lopsided + lopsided.T) / 2)[::-1].clip(2e-9)
    np.testing.assert_allclose(pieces_of(lopsided, np.eye(2)).sizes ** 2, values, atol=1e-8)


def test_gates_are_the_pieces_parts_of_the_gradients_and_what_is_left_out_is_predicted_to_cost_half_its_square():
    pieces = pieces_of(np.eye(2) * 4.0, np.eye(2))
    gradients = np.asarray([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 1.0]]])
    found = gates_of(pieces, gradients)
    wanted = [[float(np.sum(g * np.outer(pieces.left[:, i], pieces.right[i]))) for i in range(2)] for g in gradients]
    np.testing.assert_allclose(found, wanted)
    np.testing.assert_allclose(found.sum(axis=1), [5.0, 1.0])  # the pieces sum to the identity
    gates = {"a": np.asarray([[3.0, 1.0], [1.0, 2.0]]), "b": np.asarray([[4.0], [-2.0]])}
    candidates = {name: RankCandidate(gate, 1) for name, gate in gates.items()}
    assert predicted_kl(candidates, {"a": [0], "b": []}, 8) == pytest.approx(0.5 * ((1 + 4) ** 2 + 0) / 8)
    assert predicted_kl(candidates, {"a": [0, 1], "b": [0]}, 8) == 0.0
    assert predicted_kl(candidates, {"a": [0], "b": [0]}, 0) == pytest.approx(0.5 * (1 + 4))


def test_a_share_left_out_is_of_the_updates_norm():
    gram_a, gram_b = np.diag([1.0, 4.0]), np.diag([9.0, 1.0])  # squares 9 and 4
    assert share_left_out(np.diag([1.0, 0.0]), gram_a, gram_b) == pytest.approx(math.sqrt(4 / 13))
    assert share_left_out(np.eye(2), gram_a, gram_b) == 0.0
    assert share_left_out(np.zeros((2, 2)), gram_a, gram_b) == 1.0
    assert share_left_out(np.eye(2), 0 * gram_a, gram_b) is None
    rng = np.random.default_rng(0)
    for x, y in rng.standard_normal((20, 2)):  # what is left out is at right angles to all of B: rounding alone
        rest = np.outer([-y, x], rng.standard_normal(2))
        assert share_left_out(np.eye(2) - rest, gram_a, np.outer([x, y], [x, y])) == pytest.approx(0.0, abs=1e-6)


ONES = np.ones((1, 2))
ORDERS = [  # candidates, the order of the pieces, and how many must stay
    ({"a": RankCandidate(np.array([[3.0, 1.0], [-3.0, 1.0]]), 1), "b": RankCandidate(np.array([[4.0, 0.5]] * 2), 2)},
     "a0 b0 a1 b1", 1),  # 9, 16 / 2, 1, .25 / 2
    ({"b": RankCandidate(ONES, 1), "a": RankCandidate(ONES[:, :1], 1)}, "b0 b1 a0", 1),  # equals in the file's order
    ({"a": RankCandidate(ONES, 0), "b": RankCandidate(ONES[:, :1], 1)}, "a0 a1 b0", 1),  # a cost of nothing is one
    ({"a": RankCandidate(4 * ONES, 1), "b": RankCandidate(ONES, 2, least=1)}, "b0 a0 a1 b1", 1),
    ({"a": RankCandidate(ONES, 1, least=1), "b": RankCandidate(2 * ONES[:, :1], 1, least=1)}, "b0 a0 a1", 2),
]  # fmt: skip


@every(("candidates", "pieces", "least"), ORDERS)
def test_pieces_are_ordered_by_mean_squared_gate_per_parameter_after_those_that_must_stay(candidates, pieces, least):
    assert ordered(candidates) == Order([(piece[0], int(piece[1])) for piece in pieces.split()], least)


@every(
    ("pieces", "least", "budget", "price_of_b", "kept"),
    [
        ("b0 a0 a1", 2, 1, 1, None),
        ("b0 a0 a1", 2, 2, 1, ([0], [0])),
        ("b0 a0 a1 b1", 1, 1, 2, None),
        ("b0 a0 a1 b1", 1, 4, 2, ([0, 1], [0])),
        ("a0 b0 a1", 1, 3, 3, ([0, 1], [])),  # b's piece does not fit, and the one after it does
        ("a0 b0 a1", 1, 4, 3, ([0], [0])),
        ("a1 b0 a0", 1, 3, 1, ([0, 1], [0])),  # a module's later piece may come first
    ],
)
def test_a_budget_takes_pieces_in_order_and_passes_over_one_that_does_not_fit(pieces, least, budget, price_of_b, kept):
    order = Order([(piece[0], int(piece[1])) for piece in pieces.split()], least)
    assert within(order, budget, {"a": 1, "b": price_of_b}) == (kept and dict(zip("ab", kept, strict=True)))
    assert first_pieces(order, 0) == {"a": [], "b": []}
    whole = first_pieces(order, len(order.pieces))
    assert all(indices == sorted(indices) for indices in whole.values())
    assert sum(map(len, whole.values())) == len(order.pieces)


@every(("pieces", "step"), [(99, 1), (199, 1), (200, 2), (350, 3)])
def test_the_shortest_beginning_is_sought_to_one_in_a_hundred(pieces, step):
    order = Order([("a", k) for k in range(pieces)], 1)
    for enough in (1, 2, 61):
        asked = []
        found = shortest(order, lambda count, enough=enough, asked=asked: asked.append(count) or count >= enough)
        assert enough <= found < enough + step
        assert len(asked) <= math.ceil(math.log2(pieces / step)) + 1
        assert all(1 <= count < pieces for count in asked)
    assert shortest(Order([("a", 0)], 1), lambda _: False) == 1


def test_a_rank_is_a_budget_of_as_much_as_each_module_has():
    """Of ranks 2 and 8 a rank of 4 takes two and four, six pieces of one price."""
    pairs = [
        SimpleNamespace(path=path, layout=SimpleNamespace(rank=r, params_per_rank=5))
        for path, r in (("p", 2), ("q", 8))
    ]
    order = Order([("q", n) for n in range(8)] + [("p", 0), ("p", 1)], 0)
    subject: Any = SimpleNamespace(pairs=pairs)
    assert affordable(subject, order, Target("rank", 4)) == {"p": [], "q": [0, 1, 2, 3, 4, 5]}
    with pytest.raises(AdapterError) as error:
        affordable(subject, order._replace(least=1), Target("max_params", 4))
    assert error.value.message == "the budget leaves 4 parameters, and the least that can be written needs more"


# --- targets, inputs and files -----------------------------------------------------------------------------------

NAMES = ["", "default", "v", "v.lora_A", "v.lora_A.default", "attn.base_layer.out", "x.attn.base_layer.out", "xv"]


@every(
    ("kept", "targets"),
    [
        (["v", "default"], ["default", "v"]),  # nor is what PEFT added, `v.lora_A.default`, another module of the base
        (["x.attn.out"], ["x.attn.out"]),
        (["attn.out"], r"(?:attn\.out)"),  # by PEFT's rule for a list `x.attn.out` would be meant too
        (["v", "attn.out"], r"(?:attn\.out|v)"),
    ],
)
def test_targets_are_a_list_of_paths_unless_another_module_ends_alike(kept, targets):
    inner = SimpleNamespace(named_modules=lambda: [(name, None) for name in NAMES])
    loaded: Any = SimpleNamespace(model=SimpleNamespace(base_model=SimpleNamespace(model=inner)))
    beside = {} if isinstance(targets, list) else {"layers_to_transform": None, "layers_pattern": None}
    assert targets_of(kept, loaded) == {"target_modules": targets, **beside}


@every(
    ("usable", "task", "chosen", "most"),
    [
        (24, "causal", 16, 192),
        (25, "causal", 17, 192),
        (191, "causal", 128, 192),
        (192, "causal", 128, 192),
        (150, "sequence-classification", 100, 384),
        (384, "sequence-classification", 128, 384),
        (23, "causal", None, 192),
    ],
)
def test_two_thirds_of_the_different_inputs_choose_and_the_rest_measures(usable, task, chosen, most, monkeypatch):
    asked, rows = [], [ModelInput((i,), 0, 1) for i in range(usable)]

    def read(path, loaded, *, most, seed):
        asked.append((path, most, seed))
        return SimpleNamespace(examples=rows[:9] + rows, cut=3)

    monkeypatch.setattr(of_subject, "read_inputs", read)
    split = lambda: split_inputs("t", SimpleNamespace(task=task), most=128, seed=5)  # noqa: E731
    if chosen is None:
        with pytest.raises(ConfigError) as error:
            split()
        assert error.value.message == "t has 23 different inputs that can be used, expected at least 24"
        assert error.value.advice == "192 are used where there are so many; they need no labels"
        return
    found = split()
    assert asked == [("t", most, 5)]
    assert (found.chosen_by, found.measured_on, found.cut) == (rows[:chosen], rows[chosen:], 3)


def test_what_peft_would_not_load_is_not_run(tmp_path):
    def subject_of(path):
        stored = open_stored(path)
        return Subject(stored, resizable_pairs(stored.adapter), None)

    with pytest.raises(AdapterError) as error:
        refuse_to_run(subject_of(kohya(tmp_path / "in.safetensors", {"a": (*diagonal(4.0, 3.0), 2.0)})))
    assert error.value.message == "the adapter is in kohya's format, which PEFT does not load"
    assert error.value.advice == "'gradience convert' makes a PEFT adapter of it"
    folder = adapter(tmp_path / "a", {"q": diagonal(1.0)})
    whole = subject_of(folder)
    for name in (WEIGHTS, "adapter_model.bin"):
        files = whole.stored.files._replace(weights=folder / name)
        refuse_to_run(whole._replace(stored=whole.stored._replace(files=files)))
    (folder / WEIGHTS).rename(folder / "other.safetensors")
    other = subject_of(folder)
    with pytest.raises(AdapterError) as error:
        refuse_to_run(other)
    assert error.value.advice == "to run the model, put both into a folder under these names"
    assert error.value.message == (
        f"PEFT loads adapter_config.json and {WEIGHTS} of one folder, and these are {other.stored.files.config} and "
        f"{other.stored.files.weights}"
    )

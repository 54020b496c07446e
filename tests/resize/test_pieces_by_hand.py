"""Pieces, their order and their budgets, and what a calibration decides without a model, by hand."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hand_made import adapter, diagonal, kohya
from tables import every

from gradience import AdapterError, ConfigError
from gradience.models.inputs import ModelInput
from gradience.rewrite.options import Target
from gradience.rewrite.resize import running
from gradience.rewrite.resize.outputs import affordable
from gradience.rewrite.resize.pieces import (
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
from gradience.rewrite.resize.running import split_inputs, targets_of, without_modules
from gradience.rewrite.resize.subject import Subject, refuse_to_run, resizable_pairs
from gradience.rewrite.sides import open_stored

# --- pieces ------------------------------------------------------------------------------------------------------


def test_pieces_of_diagonal_moments():
    pieces = pieces_of(np.diag([4.0, 1.0, 0.0]), np.diag([1.0, 9.0, 1.0]))
    # roots: 2, 1, sqrt(4e-9) and 1, 3, 1: products 2, 3, 2 sqrt(1e-9)
    np.testing.assert_allclose(pieces.sizes, [3.0, 2.0, 2.0 * 1e-9**0.5], rtol=1e-9)
    for k, place in enumerate((1, 0, 2)):
        unit = np.zeros((3, 3))
        unit[place, place] = 1.0
        np.testing.assert_allclose(combined(pieces, [k]), unit, atol=1e-9)
    single = pieces_of(np.diag([0.0, 0.0, 4.0]), np.diag([1.0, 9.0, 1.0]))  # one eigenvalue alone is over zero
    np.testing.assert_allclose(single.sizes, [2.0, 6.0 * 1e-9**0.5, 2.0 * 1e-9**0.5], rtol=1e-9)
    lopsided = np.asarray([[1.0, 2.0], [0.0, 1.0]])
    turned = pieces_of(lopsided, np.eye(2))
    np.testing.assert_allclose(
        turned.sizes**2, np.linalg.eigvalsh((lopsided + lopsided.T) / 2)[::-1].clip(2e-9), atol=1e-8
    )


def test_gates_are_the_pieces_parts_of_the_gradients():
    pieces = pieces_of(np.eye(2) * 4.0, np.eye(2))
    gradients = np.asarray([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 1.0]]])
    found = gates_of(pieces, gradients)
    wanted = [[float(np.sum(g * np.outer(pieces.left[:, i], pieces.right[i]))) for i in range(2)] for g in gradients]
    np.testing.assert_allclose(found, wanted)
    np.testing.assert_allclose(found.sum(axis=1), [5.0, 1.0])  # the pieces sum to the identity


def test_a_share_left_out_is_of_the_update_s_norm():
    gram_a, gram_b = np.diag([1.0, 4.0]), np.diag([9.0, 1.0])  # squares 9 and 4
    assert share_left_out(np.diag([1.0, 0.0]), gram_a, gram_b) == pytest.approx(math.sqrt(4 / 13))
    assert share_left_out(np.eye(2), gram_a, gram_b) == 0.0
    assert share_left_out(np.zeros((2, 2)), gram_a, gram_b) == 1.0
    assert share_left_out(np.eye(2), 0 * gram_a, gram_b) is None
    rng = np.random.default_rng(0)
    for x, y in rng.standard_normal((20, 2)):  # what is left out is at right angles to all of B: rounding alone
        rest = np.outer([-y, x], rng.standard_normal(2))
        assert share_left_out(np.eye(2) - rest, gram_a, np.outer([x, y], [x, y])) == pytest.approx(0.0, abs=1e-6)


def test_predicted_costs_are_half_the_mean_square_of_what_the_gates_left_out_say():
    gates = {"a": np.asarray([[3.0, 1.0], [1.0, 2.0]]), "b": np.asarray([[4.0], [-2.0]])}
    candidates = {name: RankCandidate(gate, 1) for name, gate in gates.items()}
    assert predicted_kl(candidates, {"a": [0], "b": []}, 8) == pytest.approx(0.5 * ((1 + 4) ** 2 + 0) / 8)
    assert predicted_kl(candidates, {"a": [0, 1], "b": [0]}, 8) == 0.0
    assert predicted_kl(candidates, {"a": [0], "b": [0]}, 0) == pytest.approx(0.5 * (1 + 4))


def test_equal_scores_keep_their_order_and_costs_of_nothing_count_as_one():
    order = ordered({"a": RankCandidate(np.ones((1, 2)), 0), "b": RankCandidate(np.ones((1, 1)), 1)})
    assert order == Order([("a", 0), ("a", 1), ("b", 0)], 1)
    both = ordered(
        {"a": RankCandidate(np.ones((1, 2)), 1, least=1), "b": RankCandidate(2 * np.ones((1, 1)), 1, least=1)}
    )
    assert both == Order([("b", 0), ("a", 0), ("a", 1)], 2)
    assert first_pieces(both, 2) == {"a": [0], "b": [0]}
    assert first_pieces(both, 0) == {"a": [], "b": []}
    turned = Order([("a", 1), ("b", 0), ("a", 0)], 1)  # a module's later piece may come first
    assert first_pieces(turned, 3) == within(turned, 3, {"a": 1, "b": 1}) == {"a": [0, 1], "b": [0]}
    assert within(both, 1, {"a": 1, "b": 1}) is None
    assert within(both, 2, {"a": 1, "b": 1}) == {"a": [0], "b": [0]}
    dear_between = Order([("a", 0), ("b", 0), ("a", 1)], 1)  # b's piece does not fit, and the one after it does
    assert within(dear_between, 3, {"a": 1, "b": 3}) == {"a": [0, 1], "b": []}
    assert within(dear_between, 4, {"a": 1, "b": 3}) == {"a": [0], "b": [0]}


@every(("pieces", "step"), [(99, 1), (199, 1), (200, 2), (350, 3)])
def test_the_shortest_beginning_is_sought_to_one_in_a_hundred(pieces, step):
    order = Order([("a", k) for k in range(pieces)], 1)
    asked = []

    def holds(count: int) -> bool:
        asked.append(count)
        return count >= 61

    found = shortest(order, holds)
    assert 61 <= found < 61 + step
    assert len(asked) <= math.ceil(math.log2(pieces / step)) + 1
    assert all(1 <= count < pieces for count in asked)
    assert shortest(Order([("a", 0)], 1), holds) == 1


def test_targets_of_the_modules_that_stay():
    assert without_modules(["h.q", "a.q"], ["h.q", "a.q", "h.k"]) == {"target_modules": ["a.q", "h.q"]}
    pattern = {"target_modules": r"(?:a\.q|q)", "layers_to_transform": None, "layers_pattern": None}
    assert without_modules(["q", "a.q"], ["q", "a.q", "b.q"]) == pattern
    assert without_modules(["a.q"], ["a.q", "x.a.q"])["target_modules"] == r"(?:a\.q)"
    assert without_modules(["a.q"], ["a.q", "xa.q"])["target_modules"] == ["a.q"]


# --- calibration, without a model --------------------------------------------------------------------------------


@every(
    ("usable", "task", "chosen", "most"),
    [
        (24, "causal", 16, 192),
        (25, "causal", 17, 192),
        (191, "causal", 128, 192),
        (192, "causal", 128, 192),
        (150, "sequence-classification", 100, 384),
        (384, "sequence-classification", 128, 384),
    ],
)
def test_two_thirds_of_the_inputs_choose_and_the_rest_measures(usable, task, chosen, most, monkeypatch):
    asked = []
    rows = [ModelInput((i,), 0, 1) for i in range(usable)]

    def read(path, loaded, *, most, seed, token_ids):
        asked.append((path, most, seed, token_ids))
        return SimpleNamespace(examples=rows, cut=3)

    monkeypatch.setattr(running, "read_inputs", read)
    found = split_inputs("t", SimpleNamespace(task=task), most=128, seed=5, token_ids=True)
    assert asked == [("t", most, 5, True)]
    assert (found.chosen_by, found.measured_on, found.cut) == (rows[:chosen], rows[chosen:], 3)


def test_fewer_inputs_than_24_are_refused_with_the_number_that_would_be_used(monkeypatch):
    rows = [ModelInput((i % 23,), 0, 1) for i in range(30)]  # equal ones count once
    monkeypatch.setattr(running, "read_inputs", lambda *_, **__: SimpleNamespace(examples=rows, cut=0))
    with pytest.raises(ConfigError) as error:
        split_inputs("t", SimpleNamespace(task="causal"), most=128, seed=0)
    assert str(error.value) == "t has 23 different inputs that can be used, expected at least 24"
    assert error.value.advice == "192 are used where there are so many; they need no labels"


def subject_of(path: Path) -> Subject:
    stored = open_stored(path)
    return Subject(stored, resizable_pairs(stored.adapter), None)


def test_what_peft_would_not_load_is_not_calibrated(tmp_path):
    source = kohya(tmp_path / "in.safetensors", {"a": (*diagonal(4.0, 3.0), 2.0)})
    with pytest.raises(AdapterError) as error:
        refuse_to_run(subject_of(source))
    assert str(error.value) == "the adapter is in kohya's format, which PEFT does not load"
    assert error.value.advice == "'gradience convert' makes a PEFT adapter of it"
    folder = adapter(tmp_path / "a", {"q": diagonal(1.0)})
    whole = subject_of(folder)
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        files = whole.stored.files._replace(weights=folder / name)
        refuse_to_run(whole._replace(stored=whole.stored._replace(files=files)))
    (folder / "adapter_model.safetensors").rename(folder / "other.safetensors")
    other = subject_of(folder)
    files = other.stored.files
    with pytest.raises(AdapterError) as error:
        refuse_to_run(other)
    assert error.value.advice == "to run the model, put both into a folder under these names"
    assert str(error.value) == (
        f"PEFT loads adapter_config.json and adapter_model.safetensors of one folder, and these are {files.config} and "
        f"{files.weights}"
    )


def test_a_rank_is_a_budget_of_as_much_as_each_module_has():
    """Of ranks 2 and 8 a rank of 4 takes two and four, six pieces of one price."""
    pairs = [
        SimpleNamespace(path=path, layout=SimpleNamespace(rank=r, params_per_rank=5))
        for path, r in (("p", 2), ("q", 8))
    ]
    order = Order([("q", n) for n in range(8)] + [("p", 0), ("p", 1)], 0)
    subject: Any = SimpleNamespace(pairs=pairs)
    assert affordable(subject, order, Target("rank", 4)) == {"p": [], "q": [0, 1, 2, 3, 4, 5]}


def test_modules_that_peft_added_are_no_other_modules_of_the_base():
    """Names as they are in the base decide: there is an `x.attn.out`, and no `v.lora_A.default`."""
    names = ["", "default", "v", "v.lora_A", "v.lora_A.default", "attn.base_layer.out", "x.attn.base_layer.out"]
    inner = SimpleNamespace(named_modules=lambda: [(name, None) for name in names])
    model = SimpleNamespace(base_model=SimpleNamespace(model=inner))
    loaded: Any = SimpleNamespace(model=model)
    assert targets_of(["default"], loaded) == {"target_modules": ["default"]}
    assert targets_of(["attn.out"], loaded)["target_modules"] == r"(?:attn\.out)"
    assert targets_of(["x.attn.out"], loaded) == {"target_modules": ["x.attn.out"]}

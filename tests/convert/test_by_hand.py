"""What a conversion says of ranks that were padded, of experts in an unknown layout, and which path a module has."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tables import every

from gradience.adapters.layout import Module
from gradience.errors import AdapterError, OptionError
from gradience.rewrite.convert import _experts
from gradience.rewrite.convert.source import _kohya_paths, _peft_path, renamed
from gradience.rewrite.convert.updates import (
    Factored,
    LayerUpdate,
    RankChoice,
    _is_pair,
    _rank_bound,
    _scale,
    _takes_dora,
    _truncated,
    from_factors,
)
from gradience.rewrite.convert.write import _gate_up, _stack, expert_updates, mlx_notes, mlx_tensors, peft_notes
from gradience.rewrite.options import ConvertOptions
from gradience.rewrite.writing import ArraySpool
from gradience.spectral.update import decomposed


def update(rank: int, parameter: str | None) -> Any:
    return SimpleNamespace(part=SimpleNamespace(rank=rank), parameter=parameter, path="m.q")


@every(
    ("some", "lower"),
    [
        (
            [(2, "down_proj"), (4, "up_proj")],
            "1 pairs on experts are padded with zeros to rank 4, the one of all of them",
        ),
        ([(4, "down_proj"), (4, "up_proj")], None),
        ([(2, None), (4, "up_proj")], None),  # a layer of its own keeps its rank
        ([(2, None), (3, None)], None),
        (
            [(2, "a"), (3, "b"), (1, None), (4, "c")],
            "2 pairs on experts are padded with zeros to rank 4, the one of all of them",
        ),
    ],
)
def test_pairs_on_experts_are_padded_to_the_rank_of_all(some, lower):
    assert peft_notes([update(*one) for one in some]) == ([] if lower is None else [lower])


def module(name: str, **keys: str) -> Module:
    return Module(name, "linear", (2, 2), 1, 1.0, 1.0, 4, lambda: (None, None), keys=keys)  # type: ignore[arg-type,return-value]


def test_a_path_is_that_of_the_keys_else_the_name():
    assert _peft_path(module("other", lora_A="base_model.model.h.0.attn.lora_A.weight")) == "h.0.attn"
    assert _peft_path(module("own", lora_down="h_0_attn.alpha")) == "own"
    assert _peft_path(module("own")) == "own"


@pytest.mark.parametrize("name", ["m.mlp.other.down_proj", "m.mlp.experts.strange"])
def test_experts_of_an_unknown_layout_are_refused(name):
    with pytest.raises(AdapterError, match="laid out in a way that is not known here"):
        _stack(name, [module(name)])


def pair(r: int = 3, scale: float = 2.0) -> Module:
    rng = np.random.default_rng(0)
    b, a = rng.standard_normal((6, r)).astype(np.float32), rng.standard_normal((r, 5)).astype(np.float32)
    return Module("m", "linear", (6, 5), r, r * scale, scale, 33, lambda: (b, a))


@pytest.mark.parametrize(
    ("choice", "copy", "rank", "method"),
    [
        (RankChoice(), True, 3, "copied"),
        (RankChoice(rank=3), True, 3, "copied"),
        (RankChoice(rank=9), True, 3, "copied"),
        (RankChoice(rank=2), True, 2, "truncated"),
        (RankChoice(energy=1.0), True, 3, "copied"),
        (RankChoice(), False, 3, "factors"),
        (RankChoice(rank=3), False, 3, "factors"),
        (RankChoice(rank=1), False, 1, "truncated"),
    ],
)
def test_factors_are_the_files_own_unless_something_is_left_out(tmp_path, choice, copy, rank, method):
    own = pair()
    found = from_factors(own, choice, ArraySpool(tmp_path), scale=2.0 if copy else 0.5, copy=copy)
    b, a = found.load()
    assert (found.rank, found.method, b.shape, a.shape) == (rank, method, (6, rank), (rank, 5))
    whole = 2.0 * (own.load()[0].astype(float) @ own.load()[1])
    assert found.norm == pytest.approx(np.linalg.norm(whole))
    assert np.linalg.norm(found.scale * (b.astype(float) @ a) - whole) == pytest.approx(found.rest, abs=1e-5)


def test_factors_of_as_many_columns_as_the_lesser_side_are_kept_as_they_are(tmp_path):
    own = pair(5, 2.0)
    found = from_factors(own, RankChoice(), ArraySpool(tmp_path), scale=0.5, copy=False)
    (b, a), (own_b, own_a) = found.load(), own.load()
    np.testing.assert_array_equal(b, own_b)
    np.testing.assert_array_equal(a, 4.0 * own_a)
    more = from_factors(pair(6, 2.0), RankChoice(), ArraySpool(tmp_path), scale=0.5, copy=False)
    assert (more.rank, more.load()[0].shape) == (5, (6, 5))


@pytest.mark.parametrize(("first", "second", "kept"), [(3, 2, 2), (2, 3, 2), (1, None, 1), (0, 0, 1)])
def test_the_smaller_of_two_choices_decides_and_one_at_least_is_kept(tmp_path, first, second, kept):
    low = decomposed(*pair().load(), 2.0)
    found = _truncated(low, RankChoice(first), RankChoice(second), ArraySpool(tmp_path), 2.0)
    assert found.rank == kept
    assert found.rest == pytest.approx(float(np.linalg.norm(low.sigma[kept:])))


@every(
    ("path", "new", "renamed_to"),
    [("model", "x", "x"), ("model.a", "x", "x.a"), ("model.a", "", "a"), ("models.a", "x", "models.a")],
)
def test_a_prefix_is_a_whole_path_or_ends_on_a_dot(path, new, renamed_to):
    assert renamed(path, {"model": new}) == renamed_to


def written(rank: int, scale: float, name: str = "m.q", *, dora: bool = False, **more: Any) -> LayerUpdate:
    """A layer on its way into MLX-LM's files, of W 6 x 5."""
    rng = np.random.default_rng(rank)
    b, a = rng.standard_normal((6, rank)).astype(np.float32), rng.standard_normal((rank, 5)).astype(np.float32)
    part = Factored(
        rank, scale, (6, 5), (np.dtype(np.float32), np.dtype(np.float32)), lambda: (b, a), "copied", 1.0, 0.0
    )
    magnitude = (lambda: np.ones(6, np.float32)) if dora else None
    return LayerUpdate((name,), "linear", name, rank, part, magnitude=magnitude, **more)


PADDED, FOLDED = (
    "MLX-LM takes one rank: {} modules of a lower one are padded with zeros to {}",
    "MLX-LM takes one scale: in {} modules the ratio to {} goes into lora_b",
)


@every(
    ("some", "notes"),
    [
        ([(4, 2.0), (4, 2.0)], []),
        ([(4, 2.0), (3, 2.0), (1, 2.0)], [PADDED.format(2, 4)]),
        ([(4, 2.0), (4, 0.5), (4, 2.0)], [FOLDED.format(1, 2)]),
        ([(4, 0.5), (2, 8.0), (3, 8.0)], [PADDED.format(2, 4), FOLDED.format(1, 8)]),
    ],
)
def test_mlx_lm_has_one_rank_the_largest_and_one_scale_the_commonest(some, notes):
    updates = [written(rank, scale, f"m.{n}") for n, (rank, scale) in enumerate(some)]
    assert mlx_notes(updates) == notes
    tensors = {tensor.name: tensor for tensor in mlx_tensors(updates)}
    shared = max(rank for rank, _ in some), 8.0 if (2, 8.0) in some else 2.0
    for update in updates:
        a, b = (tensors[f"{update.path}.lora_{side}"] for side in "ab")
        assert (a.shape, b.shape) == ((5, shared[0]), (shared[0], 6))
        own_b, own_a = update.part.load()
        made = shared[1] * a.load() @ b.load()
        np.testing.assert_allclose(made.T, update.part.scale * own_b @ own_a, rtol=1e-6)
        np.testing.assert_array_equal(a.load()[:, : update.part.rank], own_a.T)
        assert not a.load()[:, update.part.rank :].any()


def test_factors_of_16_bits_that_take_a_ratio_are_stored_in_float32():
    half = np.dtype(np.float16)
    b, a = np.full((6, 2), 3.0, half), np.full((2, 5), 0.5, half)
    part = Factored(2, 3.0, (6, 5), (half, half), lambda: (b, a), "copied", 1.0, 0.0)
    own = LayerUpdate(("m.z",), "linear", "m.z", 2, part)
    found = {tensor.name: tensor for tensor in mlx_tensors([written(2, 2.0), written(2, 2.0, "m.v"), own])}
    assert (found["m.z.lora_a"].dtype, found["m.z.lora_b"].dtype) == ("F16", "F32")
    np.testing.assert_allclose(found["m.z.lora_b"].load(), 4.5)
    alone = {tensor.name: tensor.dtype for tensor in mlx_tensors([own])}
    assert alone == {"m.z.lora_a": "F16", "m.z.lora_b": "F16"}


@every(
    ("some", "said"),
    [
        ([written(2, 1.0), written(2, 1.0, "m.c", kernel=(3, 3))], "m.c: MLX-LM has no LoRA layer for a convolution"),
        (
            [written(2, 1.0, "m.a", dora=True), written(2, 1.0, "m.b"), written(2, 1.0, "m.c")],
            "m.b: no DoRA, and MLX-LM makes all modules of an adapter DoRA or none",
        ),
        (
            [written(2, 1.0, "m.a", dora=True), written(2, 1.0, "m.switch_mlp", parameter="up_proj")],
            "m.switch_mlp.up_proj: MLX-LM has no DoRA for experts",
        ),
        ([written(2, 1.0, "m.a", dora=True), written(2, 1.0, "m.b", dora=True)], None),
        ([written(2, 1.0, "m.a"), written(2, 1.0, "m.b")], None),
    ],
)
def test_what_mlx_lm_has_no_layer_for_is_refused_by_name(some, said):
    if said is None:
        assert len(mlx_tensors(some)) == 2 * 2 + sum(one.magnitude is not None for one in some)
        return
    with pytest.raises(AdapterError) as error:
        mlx_tensors(some)
    assert str(error.value) == said


@every(
    ("rank", "energy", "said"),
    [
        (1, None, None),
        (0, None, "--rank is 0, expected a whole number from 1"),
        (None, 1.0, None),
        (None, 0.001, None),
        (None, 0.0, "--energy is 0.0, expected above 0, at most 1"),
        (None, 1.001, "--energy is 1.001, expected above 0, at most 1"),
        (None, -0.1, "--energy is -0.1, expected above 0, at most 1"),
        (4, 0.9, "--rank and --energy were both given"),
        (None, None, None),
    ],
)
def test_what_is_asked_for_is_within_its_range(rank, energy, said):
    options = ConvertOptions(rank=rank, energy=energy)
    if said is None:
        options.refuse_bad()
        return
    with pytest.raises(OptionError) as error:
        options.refuse_bad()
    assert str(error.value) == said


@pytest.mark.parametrize("count", [1, 3, 5])
def test_modules_that_a_base_does_not_name_are_counted_and_three_are_listed(count):
    base: Any = SimpleNamespace(files=[SimpleNamespace(tensors=["down.0.to_q.weight", "a_b.c.weight", "a.b_c.weight"])])
    known = module("lora_unet_down_0_to_q")
    assert _kohya_paths([known], base) == {"lora_unet_down_0_to_q": "down.0.to_q"}
    strangers = [module(f"lora_unet_x{n}") for n in range(count - 1)] + [
        module("lora_unet_a_b_c")
    ]  # which two could be
    with pytest.raises(AdapterError) as error:
        _kohya_paths([known, *strangers], base)
    listed = ", ".join(one.name for one in strangers[:3])
    assert str(error.value) == (f"{count} of {count + 1} modules are not in the base under their names ({listed})")
    with pytest.raises(AdapterError, match="which only the base's own names undo"):
        _kohya_paths([known], None)


def source_of(
    peft_type: str = "LORA", *, changes: bool = False, is_peft: bool = True, weights: str | None = None
) -> Any:
    return SimpleNamespace(
        adapter=SimpleNamespace(
            file_format=SimpleNamespace(is_peft=is_peft, embeds_by_name=False),
            tensors={},
        ),
        raw={"init_weights": weights, "r": 3},
        traits=SimpleNamespace(peft_type=peft_type, start=SimpleNamespace(changes_base=changes), bdlora=False),
    )


@every(
    ("source", "kind", "keys", "magnitude", "bound"),
    [
        (source_of(changes=True), "linear", {}, False, 2 * 3),  # the trained pair, and what the start took out
        (source_of(), "linear", {"lora_diag": "x"}, False, 2 * 3),
        (source_of(), "dora", {}, True, None),
        (source_of(changes=True), "dora", {}, True, None),
        (source_of("HIRA"), "hira", {}, False, None),
        (source_of("MISS"), "miss", {}, False, 3),
        (source_of("MISS", weights="bat"), "miss", {}, False, None),
        (source_of("VERA"), "vera", {}, False, 3),
        (source_of(), "linear", {}, False, None),
    ],
)
def test_the_rank_that_an_update_cannot_exceed(source, kind, keys, magnitude, bound):
    one = replace(module("m", **keys), kind=kind, r=3, magnitude=(lambda: np.ones(6)) if magnitude else None)
    assert _rank_bound(source, one) == bound


@every(
    ("source", "keys", "is_pair", "scale"),
    [
        (source_of(), {"lora_A": "a"}, True, 2.0),
        (source_of(), {"lora_diag": "d"}, False, 2.0),
        (source_of("ADALORA"), {"lora_A": "a"}, False, 1.0),  # E is multiplied into A
        (source_of(is_peft=False), {"lora_A": "a"}, True, 2.0),
        (source_of(is_peft=False), {"lora_mid": "a"}, False, 2.0),
        (source_of(is_peft=False), {"hada_w1_a": "a"}, False, 2.0),
        (source_of(is_peft=False), {"lokr_w1": "a"}, False, 2.0),
    ],
)
def test_the_files_own_numbers_and_scale_are_written_where_they_are_a_pair(source, keys, is_pair, scale):
    one = replace(module("m", **keys), scale=2.0)
    assert (_is_pair(source, one), _scale(source, one)) == (is_pair, scale)


@every(
    ("target", "is_peft", "rows", "kept"),
    [
        ("mlx", True, None, True),
        ("peft", True, None, False),  # PEFT's DoRA to PEFT's plain LoRA
        ("peft", False, None, True),
        ("peft", False, (6, 1), True),  # kohya's norms of outputs
        ("peft", False, (1, 5), False),  # and those of inputs
        ("peft", False, (6, 5), False),
        ("peft", False, (5, 1), False),
    ],
)
def test_magnitudes_are_kept_where_the_target_has_them_of_each_output(target, is_peft, rows, kept):
    source = source_of(is_peft=is_peft)
    source.adapter.tensors = {"n": SimpleNamespace(shape=rows)}
    keys = {} if rows is None else {"magnitude": "n"}
    one = replace(module("m", **keys), kind="dora", shape=(6, 5))
    assert _takes_dora(source, one, target) is kept


@every("shared", [True, False])
@every("halves", ["both", "gate", "up"])
def test_gate_and_up_become_one_pair_of_both_halves(halves, shared):
    """dW of gate above that of up; one A where both have the same, else the two below each other."""
    rng = np.random.default_rng(3)
    a = rng.standard_normal((2, 3, 5)).astype(np.float32)

    def stack(name: str, rank: int, own_a: np.ndarray) -> LayerUpdate:
        b = rng.standard_normal((2, 6, rank)).astype(np.float32)
        kinds = (np.dtype(np.float32), np.dtype(np.float32))
        part = Factored(rank, 2.0, (6, 5), kinds, lambda: (b, own_a), "copied", 3.0 if name == "gate" else 4.0, 0.0)
        return LayerUpdate((f"m.{name}_proj",), "expert", "m", rank, part, parameter=f"{name}_proj", experts=2)

    other = a if shared else rng.standard_normal((2, 4, 5)).astype(np.float32)
    gate, up = stack("gate", 3, a), stack("up", other.shape[1], other)
    found = _gate_up(gate if halves != "up" else None, up if halves != "gate" else None)
    b_both, a_both = found.part.load()
    rank = {"both": 3 if shared else 7, "gate": 3, "up": other.shape[1]}[halves]
    assert (found.part.rank, found.part.shape, found.parameter) == (rank, (12, 5), "gate_up_proj")
    assert found.part.norm == {"both": 5.0, "gate": 3.0, "up": 4.0}[halves]
    made = b_both @ a_both
    for half, span in ((gate, slice(0, 6)), (up, slice(6, 12))):
        own_b, own_a = half.part.load()
        is_there = halves in {"both", "gate" if half is gate else "up"}
        np.testing.assert_allclose(made[:, span], own_b @ own_a if is_there else 0.0, rtol=1e-5, atol=1e-6)


def expert(name: str, index: int, shape: tuple[int, int], r: int = 2) -> Module:
    rng = np.random.default_rng([len(name), index])
    b, a = (rng.standard_normal(s).astype(np.float32) for s in ((shape[0], r), (r, shape[1])))
    return Module(f"{name}[{index}]", "expert", shape, r, 6.0, 3.0, 0, lambda: (b, a), expert=index)


@pytest.mark.parametrize(
    ("parameter", "shape", "names"),
    [
        ("gate_up_proj", (8, 5), ["m.mlp.switch_mlp.gate_proj", "m.mlp.switch_mlp.up_proj"]),
        ("down_proj", (5, 4), ["m.mlp.switch_mlp.down_proj"]),
    ],
)
def test_experts_of_peft_are_those_of_mlx_lm_a_fused_parameter_in_two(parameter, shape, names):
    some = [expert(f"m.mlp.experts.{parameter}", e, shape) for e in range(3)]
    found = expert_updates(some, "mlx")
    assert [(one.target, one.experts, one.part.scale) for one in found] == [(name, 3, 3.0) for name in names]
    rows = shape[0] // len(names)
    for place, one in enumerate(found):
        b, a = one.load()
        half = slice(place * rows, (place + 1) * rows)
        for e, own in enumerate(some):
            own_b, own_a = own.load()
            np.testing.assert_array_equal(b[e], own_b[half])
            np.testing.assert_array_equal(a[e], own_a)
        truth = [3.0 * own.load()[0][half].astype(float) @ own.load()[1] for own in some]
        assert one.part.norm == pytest.approx(np.linalg.norm(truth), rel=1e-6)
        assert one.shape == (rows, shape[1])


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("m.mlp.switch_mlp", "m.mlp.experts"),
        ("m.block_sparse_moe.switch_mlp", "m.mlp.experts"),  # Mixtral's in MLX-LM and in transformers 5
    ],
)
def test_experts_of_mlx_lm_are_parameters_in_the_order_of_transformers(path, target):
    shapes = {"down_proj": (5, 4), "up_proj": (4, 5), "gate_proj": (4, 5)}
    some = [expert(f"{path}.{name}", e, shape) for name, shape in shapes.items() for e in range(2)]
    found = expert_updates(some, "peft")
    assert [one.target for one in found] == [f"{target}.gate_up_proj", f"{target}.down_proj"]
    assert found[0].names == (f"{path}.gate_proj", f"{path}.up_proj")
    assert [one.shape for one in found] == [(8, 5), (5, 4)]
    squares = sum(np.sum((3.0 * np.matmul(*(x.astype(float) for x in one.load()))) ** 2) for one in some[2:])
    assert found[0].part.norm == pytest.approx(np.sqrt(squares), rel=1e-6)
    with pytest.raises(AdapterError) as error:
        expert_updates([expert("m.mlp.experts.down_proj", 0, (5, 4))], "peft")
    assert str(error.value) == (
        "m.mlp.experts.down_proj: only MLX-LM's switch_mlp has a known counterpart in transformers"
    )
    odd = [expert(f"{path}.gate_proj", 0, (4, 5)), expert(f"{path}.up_proj", 0, (6, 5))]
    with pytest.raises(AdapterError, match="gate_proj and up_proj of an expert layer have different shapes"):
        expert_updates(odd, "peft")


@pytest.mark.parametrize("choice", [RankChoice(rank=1), RankChoice(energy=0.5)])
def test_experts_are_not_cut(choice):
    source: Any = SimpleNamespace(experts=[expert("m.mlp.experts.down_proj", e, (5, 4)) for e in (2, 3)])
    with pytest.raises(AdapterError) as error:
        _experts(source, choice, "mlx", {})
    assert str(error.value) == "m.mlp.experts.down_proj[2]: stacked experts are converted whole, not cut to a rank"
    assert error.value.advice == "leave out --rank and --energy"
    assert [one.target for one in _experts(source, RankChoice(), "mlx", {"m": "x"})] == ["x.mlp.switch_mlp.down_proj"]

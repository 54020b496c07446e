"""One module merged, against dense float64: the factors that a method gives, and the four norms that it reports."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tables import every, grid

from gradience.adapters.layout import Module
from gradience.errors import AdapterError
from gradience.io.safetensors import DTYPES
from gradience.spectral.merging import dropped, mask_generator
from gradience.spectral.sums import is_narrow
from gradience.verbs.merge.methods import Recipe, merged_module
from gradience.verbs.merge.pairs import MergedPair

SHAPES = {"within the sides": ((80, 70), (3, 5)), "beyond the sides": ((14, 11), (40, 30))}
METHODS = ("linear", "cat", "svd", "ties", "dare_linear", "dare_ties")
WEIGHTS = (0.75, -0.5)


def module(shape: tuple[int, int], r: int, seed: int, scale: float, **more: Any) -> Module:
    rng = np.random.default_rng(seed)
    b, a = (rng.standard_normal(s).astype(np.float32) for s in ((shape[0], r), (r, shape[1])))
    made = {"b": b, "a": a, **more}
    return Module("m.q", "linear", shape, r, scale * r, scale, 0, lambda: (made["b"], made["a"]))


def dense(one: Module, weight: float) -> np.ndarray:
    b, a = one.load()
    return weight * one.scale * b.astype(np.float64) @ a.astype(np.float64)


def target_of(updates: list[np.ndarray], method: str, density: float, places: list[int]) -> np.ndarray:
    """The update that a method defines, entry by entry."""
    if method in {"linear", "cat", "svd"}:
        return np.sum(updates, axis=0)
    if method == "ties":
        kept = []
        for x in updates:
            least = np.sort(np.abs(x), axis=None)[::-1][int(density * x.size) - 1]
            kept.append(np.where(np.abs(x) >= least, x, 0.0))
    else:
        masks = [
            mask_generator(5, place, "m.q").random(x.shape, np.float32)
            for place, x in zip(places, updates, strict=True)
        ]
        kept = [np.where(mask < density, x / density, 0.0) for mask, x in zip(masks, updates, strict=True)]
    if method == "dare_linear":
        return np.sum(kept, axis=0)
    sign = np.sign(np.sum(kept, axis=0))
    agrees = [(np.sign(x) == sign) & (sign != 0.0) for x in kept]
    total = np.sum([np.where(one, x, 0.0) for one, x in zip(agrees, kept, strict=True)], axis=0)
    return total / np.maximum(np.sum(agrees, axis=0), 1)


@grid(each=4, size=SHAPES, method=METHODS, dtype=["F32", "BF16"], holders=["both", "the second"])
def test_factors_and_norms_are_those_of_the_dense_updates(size, method, dtype, holders, tmp_path):
    shape, ranks = SHAPES[size]
    modules = [module(shape, r, seed, scale) for seed, (r, scale) in enumerate(zip(ranks, (2.0, 0.5), strict=True))]
    row = [modules[0] if holders == "both" else None, modules[1]]
    places = [place for place, one in enumerate(row) if one is not None]
    updates = [dense(one, w) for one, w in zip(row, WEIGHTS, strict=True) if one is not None]
    assert is_narrow([(*one.load(), 1.0) for one in modules]) is (size == "within the sides")
    density = 0.5 if method in METHODS[3:] else None
    asked = 4 if method not in {"linear", "cat"} else None
    factors, losses = merged_module(row, Recipe(method, WEIGHTS, asked, density, 5), DTYPES[dtype])
    plain, target = np.sum(updates, axis=0), target_of(updates, method, density or 1.0, places)
    held, fewest = sum(one.r for one in row if one is not None), min(shape)
    rank = {"linear": min(held, fewest), "cat": held}.get(method, 4)
    assert (factors.b.shape, factors.a.shape) == ((shape[0], rank), (rank, shape[1]))
    assert factors.b.dtype == factors.a.dtype == DTYPES[dtype]
    made = factors.b.astype(np.float64) @ factors.a.astype(np.float64)
    sigma = np.linalg.svd(target, compute_uv=False)
    close = 1e-5 if dtype == "F32" else 2e-2
    assert np.linalg.norm(made - target) == pytest.approx(np.linalg.norm(sigma[rank:]), abs=close * sigma[0])
    squares = [np.sum(x**2) for x in (target, made - target, plain, made - plain)]
    assert losses == pytest.approx(squares, rel=1e-4 if dtype == "F32" else 1e-3, abs=1e-9 * squares[0])


def test_svd_and_dense_methods_take_the_largest_rank_there_is_unless_told_another():
    row = [module((80, 70), 3, 0, 1.0), module((80, 70), 5, 1, 1.0)]
    for method in METHODS[2:]:
        factors, _ = merged_module(row, Recipe(method, (1.0, 1.0), None, 0.5, 0), DTYPES["F32"])
        assert factors.b.shape == (80, 5)
    wide = [module((6, 4), 70, 0, 1.0), module((6, 4), 9, 1, 1.0)]
    for method, rank in (("svd", 70), ("ties", 4), ("dare_linear", 4)):  # a dense one has no more than its sides
        factors, _ = merged_module(wide, Recipe(method, (1.0, 1.0), None, 0.5, 0), DTYPES["F32"])
        assert factors.a.shape == (rank, 4)


@every("r", [2, 40])
@every("method", METHODS)
@every("fault", ["nan", "over float64", "over the dtype"])
def test_what_cannot_be_written_is_refused_in_words(fault, method, r):
    size = {"nan": np.nan, "over float64": 1.0, "over the dtype": 1e12}[fault]
    b = np.full((7, r), size, np.float64)
    one = module((7, 6), r, 0, 1.0, b=b * (1e300 if fault == "over float64" else 1.0))
    recipe = Recipe(method, (1.0, 1.0), None, 1.0 if method in METHODS[3:] else None, 0)
    with pytest.raises(AdapterError) as error:
        merged_module([one, one], recipe, DTYPES["F16"])
    if fault == "nan":
        said = "m.q holds NaN or infinite numbers in one of the adapters", "'gradience audit' says which"
    elif fault == "over float64":
        said = "m.q: the weighted sum is over the range of float64", "give smaller --weights"
    else:
        said = "m.q: the merged factors do not fit float16", "name a wider --dtype"
    assert (error.value.message, error.value.advice) == said


def test_an_entry_at_the_density_itself_is_dropped():
    """Random numbers are from 0 and under 1: those under the density are kept."""
    generator: Any = SimpleNamespace(random=lambda shape, dtype: np.array([[0.0, 0.25, 0.2, 0.9]], dtype))
    assert dropped(np.ones((1, 4), np.float32), 0.25, generator).tolist() == [[4.0, 0.0, 4.0, 0.0]]


@every("method", ["linear", "svd", "cat"])
@every("r", [3, 40])
def test_what_cancels_loses_nothing_by_its_rounding(r, method):
    """The factors of `cat` are rounded to float16, and their product is not quite zero."""
    one = module((14, 11), r, 0, 1.0)
    factors, losses = merged_module([one] * 3, Recipe(method, (0.1, 0.2, -0.3)), DTYPES["F16"])
    assert losses == (0.0, 0.0, 0.0, 0.0)
    assert factors.b.shape[1] == (3 * r if method == "cat" else 1)


@every(
    ("base_name", "path", "found"),
    [
        ("m.experts.down_proj", "m.experts.down_proj", True),
        ("m.q.weight", "m.q", False),
        ("m.gate.weight", "m.gate.weight", True),
        ("layers.0.experts.up", "layers.5.experts.up", True),  # a replica of layer 0
        (None, "m.q", False),
    ],
)
def test_a_parameter_is_what_the_path_itself_names(base_name, path, found):
    one = replace(module((6, 5), 2, 0, 1.0), base_name=base_name)
    layout: Any = None
    assert MergedPair(path, layout, ((None, one),)).is_parameter is found

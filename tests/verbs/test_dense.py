"""The numbers of every verb over adapters, held against dense float64 matrices on adapters that a seed drew."""

from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from drawn_adapters import adapter, base
from safetensors.numpy import load_file
from tables import few

import gradience as g

pytestmark = pytest.mark.slow  # many draws: `nox -s properties`

SEEDS = few(range(4), each=4)


class Drawn(NamedTuple):
    """Folders of two adapters that can be merged and of their base, and what they hold."""

    one: Path
    two: Path
    under: Path


def exactly(value: float | None) -> Any:
    return pytest.approx(value, rel=2e-4, abs=1e-6)


def updates(folder: Path) -> dict[str, np.ndarray]:
    """The dense update of each module, as PEFT defines it: alpha / r (rsLoRA: / sqrt(r)) times B A."""
    config = json.loads((folder / "adapter_config.json").read_bytes())
    tensors = {name: x.astype(np.float64) for name, x in load_file(folder / "adapter_model.safetensors").items()}
    found = {}
    for name in config["target_modules"]:
        a, b = (tensors[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
        of_module = (value for key, value in config["alpha_pattern"].items() if re.search(rf"(^|\.){key}$", name))
        alpha, r = next(of_module, config["lora_alpha"]), len(a)
        found[name] = alpha / (math.sqrt(r) if config["use_rslora"] else r) * b @ a
    return dict(sorted(found.items()))


def size(x: np.ndarray) -> float:
    return float(np.linalg.norm(x))


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.sum(x * y)) / (size(x) * size(y))


def stacked(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> list[np.ndarray]:
    """All entries of both; a module that one does not have is zero there."""
    every = one | two
    return [np.concatenate([side.get(name, 0.0 * x).ravel() for name, x in every.items()]) for side in (one, two)]


def cut(x: np.ndarray, rank: int) -> np.ndarray:
    """The best approximation of a rank."""
    u, s, v = np.linalg.svd(x)
    return (u[:, :rank] * s[:rank]) @ v[:rank]


@pytest.fixture(scope="module", params=SEEDS)
def drawn(request: Any, tmp_path_factory: Any) -> Drawn:
    root, rng = tmp_path_factory.mktemp("dense"), random.Random(f"dense {request.param}")  # noqa: S311  # repeats itself
    under = base(root / "base", rng)
    return Drawn(*(adapter(root / name, rng, plain=True) for name in ("one", "two")), under)


def test_an_audit_has_the_numbers_of_the_dense_updates(drawn: Drawn) -> None:
    report, dense = g.audit_adapter(drawn.one, top_singular_values=3), updates(drawn.one)
    assert sorted(row.name for row in report.modules) == list(dense)
    total = sum(size(x) ** 2 for x in dense.values())
    for row in report.modules:
        sigma = np.linalg.svd(dense[row.name], compute_uv=False)[: row.r]
        energy = sigma**2 / np.sum(sigma**2)
        kept = np.cumsum(energy)
        p = sigma / np.sum(sigma)
        assert (row.spectral_norm, row.frobenius_norm) == (exactly(sigma[0]), exactly(size(dense[row.name])))
        assert row.stable_rank == exactly(1.0 / energy[0])
        assert row.utilization == exactly(row.stable_rank / row.r)
        assert row.participation_ratio == exactly(1.0 / np.sum(energy**2))
        assert row.effective_rank == exactly(math.exp(-float(np.sum(p * np.log(p)))))
        for share, rank in ((0.9, row.energy_rank_90), (0.95, row.energy_rank_95), (0.99, row.energy_rank_99)):
            assert rank == int(np.argmax(kept >= share - 1e-9)) + 1
        assert {int(k): error for k, error in row.relative_errors.items()} == {
            k: exactly(math.sqrt(max(1.0 - kept[k - 1], 0.0))) for k in range(1, row.r) if f"{k}" in row.relative_errors
        }
        assert row.top_singular_values == [exactly(x) for x in sigma[:3]]
        assert row.energy_share == exactly(size(dense[row.name]) ** 2 / total)
    ranks = [row.stable_rank for row in report.modules]
    weights = [row.params for row in report.modules]
    summary = report.summary
    assert (summary.stable_rank_mean, summary.stable_rank_median) == (
        exactly(np.mean(ranks)),
        exactly(np.median(ranks)),
    )
    assert summary.stable_rank_weighted_mean == exactly(np.average(ranks, weights=weights))
    assert summary.update_norm == exactly(math.sqrt(total))
    assert summary.total_lora_params == sum(weights)
    assert summary.energy_rank_90_p90 == exactly(np.percentile([row.energy_rank_90 for row in report.modules], 90))


def test_an_audit_beside_a_base_has_the_numbers_of_the_dense_weights(drawn: Drawn) -> None:
    report = g.audit_adapter(drawn.one, base=drawn.under, norms_cache=False)
    weights = {name: x.astype(np.float64) for name, x in load_file(drawn.under / "model.safetensors").items()}
    dense = updates(drawn.one)
    for row in report.modules:
        weight, update = weights[f"{row.name}.weight"], dense[row.name]
        ratio = np.linalg.norm(update, 2) / np.linalg.norm(weight, 2)
        assert (row.udr, row.relative_frobenius) == (exactly(ratio), exactly(size(update) / size(weight)))
        assert row.sdi == exactly(math.log10(ratio))
        assert row.base.spectral_norm == exactly(np.linalg.norm(weight, 2))
    compared = [weights[f"{name}.weight"] for name in dense]
    assert report.base.relative_frobenius == exactly(
        math.sqrt(sum(size(x) ** 2 for x in dense.values()) / sum(size(x) ** 2 for x in compared))
    )
    assert report.base.udr_max == exactly(max(row.udr for row in report.modules))
    assert report.base.udr_median == exactly(np.median([row.udr for row in report.modules]))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"rank": 1}, None),
        ({"rank": 2}, None),
        ({"energy": 0.9}, math.sqrt(0.1)),
        ({"energy": 0.5}, math.sqrt(0.5)),
        ({"energy": 0.9975}, 0.05),
    ],
    ids=str,
)
def test_a_resize_is_the_best_cut_at_the_least_rank_that_is_allowed(
    drawn: Drawn, tmp_path: Path, options: dict[str, Any], error: float | None
) -> None:
    report, dense = g.resize_adapter(drawn.one, tmp_path / "out", **options), updates(drawn.one)
    written = updates(tmp_path / "out")
    lost = 0.0
    for row in report.modules:
        whole = dense[row.name]
        errors = [size(whole - cut(whole, k)) / size(whole) for k in range(row.rank_before + 1)]
        wanted = options.get("rank") or next(k for k in range(1, len(errors)) if errors[k] <= error + 1e-6)
        assert row.rank_after == min(wanted, row.rank_before)
        assert row.relative_error == pytest.approx(errors[row.rank_after], abs=1e-4)
        exact = cut(whole, row.rank_after)
        assert size(written[row.name] - exact) <= 0.01 * size(whole)  # stored in its own dtype
        lost += size(whole - exact) ** 2
    assert report.relative_error == pytest.approx(math.sqrt(lost / sum(size(x) ** 2 for x in dense.values())), abs=1e-4)
    assert report.params_after == sum(
        x.size for x in load_file(tmp_path / "out" / "adapter_model.safetensors").values()
    )


def ties(parts: list[np.ndarray], density: float, weights: list[float]) -> np.ndarray:
    """Keep the largest entries of each, elect a sign by the sum, and take the mean of those that agree with it."""
    kept = []
    for part in parts:
        n = max(1, math.floor(density * part.size))
        least = np.sort(np.abs(part), axis=None)[-n]
        kept.append(np.where(np.abs(part) >= least, part, 0.0))
    weighted = np.array([w * x for w, x in zip(weights, kept, strict=True)])
    agree = np.sign(weighted) == np.sign(weighted.sum(axis=0))
    agree &= weighted != 0.0
    return np.sum(weighted * agree, axis=0) / np.maximum(agree.sum(axis=0), 1)


@pytest.mark.parametrize(
    ("method", "options", "rank"),
    [
        ("linear", {"weights": [1.0, -0.5]}, None),
        ("linear", {}, None),
        ("cat", {"weights": [0.3, 0.9]}, None),
        ("svd", {"weights": [0.3, 0.9], "rank": 2}, 2),
        ("ties", {"density": 0.4, "rank": 3}, 3),
        ("ties", {"density": 0.7, "weights": [0.6, 1.4]}, 0),  # the larger rank of both
    ],
    ids=str,
)
def test_a_merge_is_that_of_the_dense_updates_cut_to_its_rank(
    drawn: Drawn, tmp_path: Path, method: str, options: dict[str, Any], rank: int | None
) -> None:
    report = g.merge_adapters([drawn.one, drawn.two], tmp_path / "out", method=method, **options)
    one, two, written = updates(drawn.one), updates(drawn.two), updates(tmp_path / "out")
    weights = options.get("weights") or [1.0 if method == "ties" else 0.5] * 2
    assert report.weights == weights
    for row in report.modules:
        shape = (one if row.name in one else two)[row.name].shape
        parts = [side.get(row.name, np.zeros(shape)) for side in (one, two)]
        total = weights[0] * parts[0] + weights[1] * parts[1]
        aim = ties(parts, options["density"], weights) if method == "ties" else total
        exact = aim if rank is None else cut(aim, rank or max(row.ranks))
        tolerance = 2e-5 if report.dtype == "F32" else 4e-4  # of bfloat16's 8 bits
        assert size(written[row.name] - exact) <= 10 * tolerance * size(aim), row.name
        assert row.relative_error == pytest.approx(size(aim - exact) / size(aim), abs=10 * tolerance)
        assert row.distance_from_sum == pytest.approx(size(exact - total) / size(total), abs=10 * tolerance)


def test_a_check_before_a_merge_has_the_cosines_signs_and_shares_of_the_dense_updates(drawn: Drawn) -> None:
    weights = [0.7, 0.6]
    report = g.merge_check(drawn.one, drawn.two, weights=weights, exact=True)
    one, two = updates(drawn.one), updates(drawn.two)
    shared = [name for name in one if name in two]
    assert sorted(row.name for row in report.modules) == shared
    for row in report.modules:
        x, y = weights[0] * one[row.name], weights[1] * two[row.name]
        assert row.norms == [exactly(size(x)), exactly(size(y))]
        assert row.lowest_cosine == pytest.approx(cosine(x, y), abs=1e-5)
        opposed = np.sign(x) * np.sign(y) < 0
        assert row.signs.conflict == exactly(np.mean(opposed))
        lesser = np.minimum(np.abs(x), np.abs(y))[opposed].sum() * 2
        assert row.signs.cancelled == exactly(lesser / (np.abs(x) + np.abs(y)).sum())
        for side, (own, weight) in zip(row.kept, ((one, 0.7), (two, 0.6)), strict=True):
            along = float(np.sum((x + y) * own[row.name])) / size(own[row.name]) ** 2
            assert side.coefficient == pytest.approx(along, abs=1e-4)
            assert weight > 0.0
    assert report.pairs[0].cosine == pytest.approx(cosine(*stacked(one, two)), abs=1e-5)
    norms = [size(x) for x in stacked(one, two)]
    assert [side.adapter.frobenius_norm for side in report.adapters] == [exactly(norm) for norm in norms]
    assert [side.weighted_norm for side in report.adapters] == [
        exactly(weight * norm) for weight, norm in zip(weights, norms, strict=True)
    ]


def test_a_comparison_has_the_cosine_the_ratio_and_the_change_of_the_dense_updates(drawn: Drawn) -> None:
    (pair,) = g.compare_adapters(drawn.one, drawn.two).pairs
    one, two = updates(drawn.one), updates(drawn.two)
    x, y = stacked(one, two)
    assert pair.compared == len(one.keys() & two.keys())
    assert pair.cosine == pytest.approx(cosine(x, y), abs=1e-5)
    assert pair.norm_ratio == exactly(size(y) / size(x))
    assert pair.relative_change == exactly(size(y - x) / size(x))
    for row in pair.modules:
        assert row.cosine == pytest.approx(cosine(one[row.name], two[row.name]), abs=1e-5)

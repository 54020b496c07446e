"""Rows, shares, knees and ledgers of an audit, worked out on paper."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tables import every

from gradience import audit_adapter
from gradience.adapters.layout import Module
from gradience.base.coded import Weight
from gradience.schema.audit import ModuleAudit
from gradience.spectral.batch import spectrum_of
from gradience.spectral.dense import DenseSpectrum
from gradience.spectral.krylov import SpectralNorm
from gradience.verbs.audit import against_base
from gradience.verbs.audit.against_base import Update, update_of
from gradience.verbs.audit.measured import RowSettings, dense_row, knee_rank, module_row
from gradience.verbs.audit.summary import bytes_per_param, layer_summaries, ledger_of, summary_of, with_shares


def row(name: str, norm: Any, state: str = "ok", *, params: int = 10, k90: int | None = 1, **more: Any) -> ModuleAudit:
    made = {"module_type": "attn", "layer": None, "shape": [4, 4], "r": 2, "alpha": 2.0, "scaling": 1.0, **more}
    return ModuleAudit(
        name=name, state=state, frobenius_norm=norm, spectral_norm=norm, params=params, energy_rank_90=k90, **made
    )


def test_shares_are_of_the_squares_and_only_of_what_is_measured():
    rows = with_shares([row("a", 3.0), row("b", 4.0), row("c", 0.0, "zero"), row("d", "NaN", "non_finite")])
    assert [one.energy_share for one in rows] == [pytest.approx(0.36), pytest.approx(0.64), None, None]
    for none in ([], [row("a", 0.0, "zero")], [row("a", "Infinity"), row("b", 1.0)], [row("a", "NaN", "non_finite")]):
        assert with_shares(none) == none


@every(
    ("squares", "knee"),
    [
        ([8.0, 1.0, 1.0], 1),  # held .8, .9, 1 less the chord's 1/3, 2/3, 1: farthest at 1
        ([4.0, 4.0, 1.0, 1.0], 2),  # .4, .8, .9, 1 less .25, .5, .75, 1
        ([1.0, 1.0, 1.0, 1.0], 4),  # a straight line has none
        ([5.0], 1),
        ([3.0, 3.0, 0.0], 2),
    ],
)
def test_the_knee_lies_farthest_above_the_chord(squares, knee):
    tails = np.append(np.cumsum(squares[::-1])[::-1], 0.0)
    assert knee_rank(np.sqrt(tails / tails[0])) == knee


def module(kind: str = "linear", *, r: int = 3, shape: tuple[int, int] = (6, 5), **more: Any) -> Module:
    return Module("layers.2.q_proj", kind, shape, r, 6.0, 2.0, 33, lambda: (np.zeros(0), np.zeros(0)), **more)


def spectrum(*sigma: float) -> Any:
    return spectrum_of(np.asarray(sigma))._replace(factor_stable_ranks=(1.25, 2.5))


def test_a_row_has_the_quantities_of_its_singular_values():
    found, errors = module_row(module(config_r=4), spectrum(2.0, 1.0, 1.0), RowSettings(2, from_zero=True))
    assert (found.stable_rank, found.utilization) == (pytest.approx(6 / 4), pytest.approx(0.5))
    assert found.participation_ratio == pytest.approx(36 / 18)
    entropy = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))
    assert found.effective_rank == pytest.approx(math.exp(entropy))
    assert (found.energy_rank_90, found.energy_rank_95, found.energy_rank_99) == (3, 3, 3)
    assert (found.spectral_norm, found.frobenius_norm) == (2.0, pytest.approx(math.sqrt(6)))
    assert errors == pytest.approx([1.0, math.sqrt(2 / 6), math.sqrt(1 / 6)])
    assert (found.top_singular_values, found.layer, found.module_type) == ([2.0, 1.0], 2, "attn")
    assert (found.r, found.config_r, found.alpha, found.scaling, found.params) == (3, 4, 6.0, 2.0, 33)
    assert module_row(module(config_r=3), spectrum(2.0, 1.0, 1.0)).row.config_r is None


@every(
    ("kind", "settings", "r", "stable"),
    [
        ("linear", {"from_zero": True}, 3, 1.25),
        ("conv", {"from_zero": True}, 3, 1.25),
        ("dora", {"from_zero": True}, 3, 1.25),
        ("linear", {"from_zero": True, "transposed": True}, 3, 2.5),
        ("conv", {"from_zero": True, "transposed": True}, 3, 1.25),  # PEFT ignores the option there
        ("embedding", {"from_zero": True}, 3, None),
        ("adalora", {"from_zero": True}, 3, None),
        ("linear", {}, 3, None),
        ("linear", {"from_zero": True}, 5, 1.25),  # as many as the lesser side
        ("linear", {"from_zero": True}, 6, None),
    ],
)
def test_the_factor_that_began_at_zero_has_its_own_stable_rank(kind, settings, r, stable):
    found = module_row(module(kind, r=r), spectrum(2.0, 1.0, 1.0), RowSettings(**settings)).row
    assert found.b_stable_rank == stable
    assert (found.b_null_stable_rank is None) is (stable is None)


@every(
    ("sigma", "energy", "beyond", "k90", "bounds"),
    [
        ([3.0, 1.0], 10.0, 0.0, 1, None),  # 9 of 10 is .9
        ([3.0, 1.0], 10.5, 0.25, 2, None),  # 9.45 is over 9 + .25
        ([3.0, 1.0], 10.5, 0.5, None, [1, 2]),
        # 9 of 10, where both hold 5: at most k more come with k of at most 1, at least 5 / 8 with each of the eight
        ([2.0, 1.0], 10.0, 1.0, None, [4, 2 + math.ceil(4 / (5 / 8))]),
    ],
)
def test_of_a_large_matrix_energy_ranks_are_given_where_their_bounds_meet(sigma, energy, beyond, k90, bounds):
    """Ten values in all, of which these are the largest; `beyond` bounds each further one's square."""
    held = DenseSpectrum(np.asarray(sigma), energy, 10, next_square=beyond, is_whole=False)
    found, errors = dense_row(module("dora"), held, RowSettings(1))
    assert (found.energy_rank_90, found.energy_rank_90_bounds) == (k90, bounds)
    assert found.stable_rank == pytest.approx(energy / sigma[0] ** 2)
    assert found.frobenius_norm == pytest.approx(math.sqrt(energy))
    left = [energy, energy - sigma[0] ** 2, energy - sum(s * s for s in sigma)]
    assert errors == pytest.approx([math.sqrt(each / energy) for each in left], abs=1e-9)
    assert (found.utilization, found.null_stable_rank, found.top_singular_values) == (None, None, [sigma[0]])


def test_of_a_whole_spectrum_all_is_known_but_what_the_rank_bounds():
    held = DenseSpectrum(np.asarray([2.0, 1.0, 0.0, 0.0, 0.0]), 5.0, 5, is_whole=True)
    found, errors = dense_row(module("dora", r=2), held)
    assert (found.spectral_norm, found.stable_rank, found.frobenius_norm) == (2.0, 1.25, pytest.approx(5**0.5))
    assert (found.utilization, found.null_stable_rank) == (None, None)
    assert errors == pytest.approx([1.0, (1 / 5) ** 0.5, 0.0], abs=1e-9)
    nothing = dense_row(module("dora"), DenseSpectrum(np.zeros(2), 0.0, 5, is_whole=True)).row
    assert (nothing.state, nothing.spectral_norm, nothing.stable_rank) == ("zero", 0.0, None)


def test_the_summary_is_of_what_is_measured():
    rows = with_shares(
        [
            row("layers.0.q", 3.0, params=30, k90=1, stable_rank=1.0, effective_rank=2.0, layer=0),
            row("layers.0.up", 4.0, params=10, k90=4, stable_rank=3.0, module_type="mlp", layer=0),
            row("layers.1.up", 0.0, "zero", params=60, k90=None, module_type="mlp", layer=1),
        ]
    )
    found = summary_of(rows)
    assert (found.total_lora_params, found.n_layers) == (100, 3)
    assert (found.stable_rank_mean, found.stable_rank_median) == (2.0, 2.0)
    assert found.stable_rank_weighted_mean == pytest.approx((30 * 1.0 + 10 * 3.0) / 40)
    assert (found.effective_rank_mean, found.utilization_mean) == (2.0, None)
    assert (found.energy_rank_90_p50, found.energy_rank_90_p90) == (2.5, pytest.approx(3.7))
    assert found.energy_concentration == pytest.approx(0.36**2 + 0.64**2)
    assert (found.update_norm, found.update_size) == (pytest.approx(5.0), pytest.approx(5.0 / math.sqrt(2 * 4.0)))
    groups = {kind: (one.n, one.params, one.energy_share) for kind, one in found.by_type.items()}
    assert groups == {"attn": (1, 30, pytest.approx(0.36)), "mlp": (2, 70, pytest.approx(0.64))}
    layers = [(one.layer, one.label, one.n, one.energy_share) for one in layer_summaries(rows)]
    assert layers == [(0, "0", 2, pytest.approx(1.0)), (1, "1", 1, None)]
    empty = summary_of([row("a", 0.0, "zero", params=7, k90=None)])
    assert (empty.total_lora_params, empty.n_layers, empty.stable_rank_mean, empty.update_norm) == (7, 1, None, None)


def test_the_ledger_has_every_tensor_by_its_role():
    sizes = {"a": ("lora_pair", 10, 2), "b": ("lora_pair", 30, 4), "c": ("full_module", 100, 2), "d": ("scale", 1, 4)}
    tensors = {name: SimpleNamespace(size=n, nbytes=n * each) for name, (_, n, each) in sizes.items()}
    adapter: Any = SimpleNamespace(tensors=tensors, roles={name: role for name, (role, *_) in sizes.items()})
    found = ledger_of(adapter)
    assert [(e.role, e.tensors, e.params, e.bytes) for e in found] == [
        ("full_module", 1, 100, 200),
        ("lora_pair", 2, 40, 140),
        ("scale", 1, 1, 4),
    ]
    assert [e.share for e in found] == pytest.approx([200 / 344, 140 / 344, 4 / 344])
    assert bytes_per_param(found) == 3.5
    assert bytes_per_param(found[:1]) == 0.0
    empty: Any = SimpleNamespace(tensors={"a": SimpleNamespace(size=0, nbytes=0)}, roles={"a": "lora_pair"})
    assert [e.share for e in ledger_of(empty)] == [0.0]
    assert bytes_per_param(ledger_of(empty)) == 0.0


def on_axes(folder: Path, **modules: tuple[float, ...]) -> Path:
    """An adapter of rank 8 whose updates have these singular values along their axes."""
    folder.mkdir()
    tensors = {}
    for name, sigma in modules.items():
        stem = f"base_model.model.{name}.lora"
        tensors[f"{stem}_A.weight"] = np.eye(8, 10, dtype=np.float32)
        tensors[f"{stem}_B.weight"] = (np.eye(11, 8) * np.r_[sigma, np.zeros(8 - len(sigma))]).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": list(modules)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_errors_are_stated_at_the_ranks_that_follow_from_what_is_not_zero(tmp_path):
    """k@90% of q is 6, of v 2: the median 4, the 90th percentile 5.6, so 6; zeros do not pull them down."""
    report = audit_adapter(on_axes(tmp_path / "a", q=(1.0,) * 6, v=(1.0, 1.0), z=()))
    q, v, z = report.modules
    assert (q.energy_rank_90, v.energy_rank_90, z.state) == (6, 2, "zero")
    assert list(q.relative_errors) == list(v.relative_errors) == ["1", "2", "4", "6"]
    assert q.relative_errors["4"] == pytest.approx(math.sqrt(2 / 6))


def test_intruders_are_counted_by_vector_and_by_module(tmp_path, monkeypatch):
    """W = diag(3, 1) in both; q turns 4 of e_1 to e_6, out of W's own directions, and v leaves it where it is."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = on_axes(tmp_path / "a", q=(4.0,), v=(4.0,))
    tensors = load_file(folder / "adapter_model.safetensors")
    b = tensors["base_model.model.q.lora_B.weight"]
    b[[0, 5]] = b[[5, 0]]
    save_file(tensors, folder / "adapter_model.safetensors")
    (tmp_path / "base").mkdir()
    w = np.zeros((11, 10), np.float32)
    w[[0, 1], [0, 1]] = 3.0, 1.0
    save_file({"q.weight": w, "v.weight": w.copy()}, tmp_path / "base" / "model.safetensors")
    seen = []
    report = audit_adapter(
        folder,
        base=tmp_path / "base",
        intruders=True,
        intruder_k=1,
        intruder_eps=0.61,
        progress=lambda *at: seen.append(at),
    )
    assert report.base is not None
    assert (report.base.intruder_total, report.base.intruder_modules, report.base.compared) == (1, 1, 2)
    assert report.base.method == "norms by Lanczos, seed 0, to 1e-5; intruders by dense SVD"
    assert report.base.relative_frobenius == pytest.approx(math.sqrt(32 / 20))
    q, v = (row.base.intruders for row in report.modules)
    assert (q.count, q.k, q.counts) == (1, 1, {"0.3": 0, "0.5": 0, "0.61": 1, "0.7": 1})
    assert (v.count, v.counts["0.7"]) == (0, 0)
    assert [row.udr for row in report.modules] == pytest.approx([4 / 3, 4 / 3])
    assert sorted(seen[:2]) in ([(1, 2, "q"), (2, 2, "v")], [(1, 2, "v"), (2, 2, "q")])  # threads load the factors
    assert seen[2:] == [(0, 0, "which base this is"), (0, 2, "q"), (1, 2, "v"), (2, 2, "")]
    assert audit_adapter(folder, base=tmp_path / "base", seed=3).base.method == "norms by Lanczos, seed 3, to 1e-5"


@pytest.mark.parametrize("converged", [True, False])
def test_a_norm_that_did_not_converge_is_computed_again_the_next_time(converged, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = on_axes(tmp_path / "a", q=(4.0,))
    (tmp_path / "base").mkdir()
    save_file({"q.weight": np.eye(11, 10, dtype=np.float32)}, tmp_path / "base" / "model.safetensors")
    found = SpectralNorm(2.0, 9, converged)
    monkeypatch.setattr(against_base, "spectral_norm", lambda *_args, **_more: found)
    for cached in (0, int(converged)):
        base = audit_adapter(folder, base=tmp_path / "base").base
        assert base is not None
        assert base.norms_cached == cached
    assert audit_adapter(folder, base=tmp_path / "base", norms_cache=False).base.norms_cached == 0
    assert audit_adapter(folder, base=tmp_path / "base").modules[0].base.converged is converged


def test_factors_that_a_base_makes_infinite_are_no_spectrum():
    b, a = np.ones((6, 2)), np.ones((2, 5))
    one = module(factored=lambda _w: (b * np.inf, a))
    found = update_of(one, Weight("w", "w", "F32", np.ones((6, 5), np.float32)))
    assert found.sigma is not None
    assert np.isnan(found.sigma).tolist() == [True]
    whole = update_of(module(factored=lambda _w: (b, a)), Weight("w", "w", "F32", np.ones((6, 5), np.float32)))
    assert whole.sigma is not None
    assert whole.sigma[0] == pytest.approx(2.0 * math.sqrt(30))


def test_the_weights_are_named_one_by_one_only_where_they_are_several(tmp_path):
    folder = on_axes(tmp_path / "a", q=(4.0,), v=(2.0,))
    whole = folder / "adapter_model.safetensors"
    report = audit_adapter(folder)
    assert (report.weights_path, report.weights_paths) == (str(whole), [])
    tensors = load_file(whole)
    whole.unlink()
    shards = [folder / f"adapter_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for shard, name in zip(shards, "qv", strict=True):
        save_file({key: x for key, x in tensors.items() if f".{name}." in key}, shard)
    report = audit_adapter(folder)
    assert (report.weights_path, report.weights_paths) == (str(shards[0]), [str(shard) for shard in shards])
    assert [row.frobenius_norm for row in report.modules] == [4.0, 2.0]


@every(
    ("b", "scale", "size", "fits"),
    [(3.4e38, 1.0, 1.0, True), (1.8e38, -2.0, 1.0, False), (1.0, 1.0, 3.4e38, True), (1.0, 1.0, 3.5e38, False)],
)
def test_an_update_fits_float32_with_its_scaled_factor(b, scale, size, fits):
    update = Update(np.full((2, 1), -b, np.float32), np.ones((1, 3), np.float32), scale)
    assert update.fits_float32(size) is fits

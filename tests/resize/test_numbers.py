"""Numbers of a resize: a budget beside other tensors, what a refusal counts, and what a file of kohya's reports."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tables import every

from gradience import AdapterError, resize_adapter


def write(folder, extra=(), *, r=8, modules=("q",), **config):
    folder.mkdir()
    rng = np.random.default_rng(0)
    tensors = dict(extra)
    for name in modules:
        key = f"base_model.model.{name}.lora_"
        tensors[f"{key}A.weight"] = rng.standard_normal((r, 40)).astype(np.float32)
        tensors[f"{key}B.weight"] = rng.standard_normal((60, r)).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    given = {"peft_type": "LORA", "r": r, "lora_alpha": 2 * r, "target_modules": list(modules), **config}
    (folder / "adapter_config.json").write_text(json.dumps(given))
    return folder


HEAD = {"base_model.model.score.weight": np.ones((10, 100), np.float32)}  # 4000 bytes


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_a_budget_in_megabytes_counts_heads_and_the_header(tmp_path, rank):
    folder = write(tmp_path / "a", HEAD, modules_to_save=["score"])
    exact = resize_adapter(folder, rank=rank).bytes_after
    for more, got in ((8, rank), (399, rank), (-1, rank - 1)):  # a shorter header may save eight bytes
        if got == 0:
            with pytest.raises(
                AdapterError, match=r"the budget leaves 39\d bytes beside the \d+ of the rest, and .* needs 400"
            ):
                resize_adapter(folder, max_mb=(exact + more) / 1e6)
        else:
            report = resize_adapter(folder, tmp_path / f"out{more}", max_mb=(exact + more) / 1e6)
            assert [row.rank_after for row in report.modules] == [got]
            size = (tmp_path / f"out{more}" / "adapter_model.safetensors").stat().st_size
            assert size == report.bytes_after <= exact + more
            assert load_file(tmp_path / f"out{more}" / "adapter_model.safetensors").keys() >= HEAD.keys()


@every(("params", "rank"), [(100, 1), (199, 1), (200, 2), (99, None)])
def test_a_budget_of_parameters_is_of_the_factors_alone(tmp_path, params, rank):
    folder = write(tmp_path / "a", HEAD, modules_to_save=["score"])
    if rank is None:
        with pytest.raises(AdapterError, match="the budget leaves 99 parameters, and rank 1 of every module needs 100"):
            resize_adapter(folder, max_params=params)
        return
    report = resize_adapter(folder, max_params=params)
    assert (report.modules[0].rank_after, report.params_before, report.params_after) == (rank, 800, 100 * rank)


def test_a_refusal_counts_the_tensors_that_may_depend_on_the_rank(tmp_path):
    lone = {f"base_model.model.v.lora_{x}.weight": np.ones((3, 4), np.float32) for x in "A"}
    folder = write(tmp_path / "a", lone)
    with pytest.raises(AdapterError, match=r"1 of its tensors may depend on the rank \(base_model\.model\.v\.lora_A"):
        resize_adapter(folder, rank=2)


def test_errors_are_those_of_the_dense_updates_and_scales_stay(tmp_path):
    folder = write(tmp_path / "a", modules=("q", "v"))
    tensors = load_file(folder / "adapter_model.safetensors")
    report = resize_adapter(folder, tmp_path / "out", rank=3)
    lost = whole = 0.0
    for row in report.modules:
        b, a = (tensors[f"base_model.model.{row.name}.lora_{x}.weight"].astype(np.float64) for x in "BA")
        sigma = 2.0 * np.linalg.svd(b @ a, compute_uv=False)
        assert row.relative_error == pytest.approx(np.linalg.norm(sigma[3:]) / np.linalg.norm(sigma), rel=1e-5)
        assert (row.rank_before, row.rank_after, row.params_before, row.params_after) == (8, 3, 800, 300)
        lost, whole = lost + np.sum(sigma[3:] ** 2), whole + np.sum(sigma**2)
    assert report.relative_error == pytest.approx(np.sqrt(lost / whole), rel=1e-5)
    assert (report.r, report.lora_alpha, report.rank_pattern, report.alpha_pattern) == (3, 6, {}, {})
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (3, 6)


def test_a_file_of_kohyas_has_no_patterns_in_its_report(tmp_path):
    rng = np.random.default_rng(1)
    tensors = {}
    for name, r in (("lora_unet_a", 8), ("lora_unet_b", 4)):
        tensors[f"{name}.lora_down.weight"] = rng.standard_normal((r, 10)).astype(np.float32)
        tensors[f"{name}.lora_up.weight"] = rng.standard_normal((12, r)).astype(np.float32)
        tensors[f"{name}.alpha"] = np.asarray(r / 2, np.float32)
    save_file(tensors, tmp_path / "in.safetensors")
    report = resize_adapter(tmp_path / "in.safetensors", tmp_path / "out.safetensors", energy=0.5)
    assert (report.rank_pattern, report.alpha_pattern) == ({}, {})
    new = load_file(tmp_path / "out.safetensors")
    for row in report.modules:
        assert new[f"{row.name}.alpha"] == pytest.approx(0.5 * row.rank_after)  # the scale is a half, as before
        assert len(new[f"{row.name}.lora_down.weight"]) == row.rank_after < row.rank_before


def test_a_pair_of_lower_rank_than_it_is_cut_to_loses_nothing(tmp_path):
    folder = write(tmp_path / "a")
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    a, b = (f"base_model.model.q.lora_{x}.weight" for x in "AB")
    tensors[b][:, 2:] = 0.0
    save_file(tensors, path, metadata={"format": "pt"})
    resize_adapter(folder, tmp_path / "out", rank=5)
    new = load_file(tmp_path / "out" / "adapter_model.safetensors")
    np.testing.assert_allclose(new[b] @ new[a], tensors[b] @ tensors[a], atol=1e-4)


@every(("init", "after"), [("orthogonal", True), ("Orthogonal", True), ("mica", True), ("gaussian", "gaussian")])
def test_an_initialisation_that_peft_would_run_again_is_the_default_afterwards(tmp_path, init, after):
    folder = write(tmp_path / "a", init_lora_weights=init)
    report = resize_adapter(folder, tmp_path / "out", rank=2)
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["init_lora_weights"] is after or (
        after == init
    )
    says = f"init_lora_weights was {init!r}: PEFT would run it again on loading, for a rank it may refuse"
    assert (says in report.notes) is (after is True)

"""Two adapters and a series of checkpoints, as `gradience compare` sees them, against PEFT's own merges."""

from __future__ import annotations

import json
import shutil

import jsonschema
import msgspec
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from gradience import AdapterError, compare_adapters, convert_adapter
from gradience.cli.main import main
from gradience.schema.export import json_schema


def _vector(update: dict) -> np.ndarray:
    return np.concatenate([value.ravel() for _, value in sorted(update.items())])


def test_cosine_norms_and_change_are_those_of_pefts_merges_across_ranks_and_scales(save):
    one = save("one", seed=1, r=4, lora_alpha=16)
    two = save("two", seed=2, r=6, lora_alpha=3, use_rslora=True, rank_pattern={"layers.1.q_proj": 2})
    report = compare_adapters(one.folder, two.folder)
    pair = report.pairs[0]
    first, second = _vector(one.update), _vector(two.update)
    size = np.linalg.norm(first) * np.linalg.norm(second)
    assert pair.cosine == pytest.approx(first @ second / size, abs=1e-5)
    assert pair.norm_ratio == pytest.approx(np.linalg.norm(second) / np.linalg.norm(first), rel=1e-5)
    assert pair.relative_change == pytest.approx(np.linalg.norm(second - first) / np.linalg.norm(first), rel=1e-5)
    for row in pair.modules:
        x, y = one.update[f"{row.name}.weight"], two.update[f"{row.name}.weight"]
        assert row.cosine == pytest.approx(np.sum(x * y) / (np.linalg.norm(x) * np.linalg.norm(y)), abs=1e-5)
        angles = np.degrees(np.arccos(_cosines_of(x, y, row.ranks)))
        assert row.output_side is not None
        np.testing.assert_allclose(row.output_side.angles, angles, atol=1e-2)


def _cosines_of(x: np.ndarray, y: np.ndarray, ranks: list[int]) -> np.ndarray:
    u, v = (np.linalg.svd(m)[0][:, :r] for m, r in zip((x, y), ranks, strict=True))
    return np.clip(np.linalg.svd(u.T @ v, compute_uv=False), 0, 1)


@pytest.mark.parametrize("first", [True, False])
def test_nothing_is_said_of_the_whole_where_numbers_are_nan(save, first, capsys):
    one, two = save("one", seed=1), save("two", seed=2)
    broken = (one if first else two).folder / "adapter_model.safetensors"
    tensors = load_file(broken)
    name = next(key for key in tensors if "lora_B" in key)
    save_file({**tensors, name: np.full_like(tensors[name], np.nan)}, broken)
    assert main(["compare", str(one.folder), str(two.folder), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    pair = report["pairs"][0]
    whole = ("cosine", "norm_ratio", "relative_change", "energy_moved")
    assert [pair[key] for key in whole] == [None] * 4
    assert [side["frobenius_norm"] is None for side in report["adapters"]] == [first, not first]
    assert main(["compare", str(one.folder), str(two.folder)]) == 0
    text = capsys.readouterr().out
    assert "1 modules hold NaN or infinite numbers" in text
    assert "cosine -, norm ratio -, change -" in text
    assert "%" not in text


def test_modules_of_one_adapter_only_are_listed_and_count_as_zero_in_the_other(save):
    one = save("one", seed=1)
    two = save("two", seed=2, target_modules=["q_proj", "embed_tokens"])
    report = compare_adapters(one.folder, two.folder)
    assert {item.module: item.adapters for item in report.only_in} == {
        "embed_tokens": ["two"],
        "layers.0.up_proj": ["one"],
        "layers.1.up_proj": ["one"],
    }
    keys = sorted(one.update.keys() | two.update.keys())
    shapes = {k: (one.update if k in one.update else two.update)[k].shape for k in keys}
    first, second = (
        np.concatenate([side.update.get(k, np.zeros(shapes[k])).ravel() for k in keys]) for side in (one, two)
    )
    pair = report.pairs[0]
    assert pair.cosine == pytest.approx(first @ second / np.linalg.norm(first) / np.linalg.norm(second), abs=1e-5)
    assert pair.relative_change == pytest.approx(np.linalg.norm(second - first) / np.linalg.norm(first), rel=1e-5)
    assert [item.key for item in report.differences] == ["target_modules"]


def test_energy_that_moves_to_another_layer_is_seen(save):
    def quiet(layer: int):
        def edit(model):
            for name, parameter in model.named_parameters():
                if f"layers.{layer}." in name and "lora_B" in name:
                    parameter.data.zero_()

        return edit

    one, two = save("one", edit=quiet(1)), save("two", edit=quiet(0))
    pair = compare_adapters(one.folder, two.folder).pairs[0]
    assert pair.energy_moved == pytest.approx(1.0)
    assert [s.layer for s in pair.layers] == [0, 1]
    assert [(s.first, s.second) for s in pair.layers] == [pytest.approx((1.0, 0.0)), pytest.approx((0.0, 1.0))]
    assert {row.state for row in pair.modules} == {"zero"}


def test_three_adapters_give_every_cosine_once(save):
    sides = [save(name, seed=seed) for seed, name in enumerate(("a", "b", "c"))]
    report = compare_adapters(*(side.folder for side in sides))
    vectors = [_vector(side.update) for side in sides]
    unit = np.stack([v / np.linalg.norm(v) for v in vectors])
    np.testing.assert_allclose(report.cosines, unit @ unit.T, atol=1e-5)
    assert [(pair.first, pair.second) for pair in report.pairs] == [("a", "b"), ("a", "c")]


@pytest.fixture
def run_folder(save, tmp_path):
    """Checkpoints that turn for three saves, then only grow."""

    def turned(angle: float, size: float):
        def edit(model):
            generator = torch.Generator().manual_seed(5)
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    one, two = (torch.randn(parameter.shape, generator=generator) for _ in range(2))
                    parameter.data = size * (np.cos(angle) * one + np.sin(angle) * two)

        return edit

    folder = tmp_path / "run"
    for step, angle, size in ((10, 1.2, 1.0), (20, 0.6, 1.0), (30, 0.05, 1.5), (100, 0.0, 2.0)):
        saved = save(f"at-{step}", edit=turned(angle, size))
        shutil.move(saved.folder, folder / f"checkpoint-{step}")
    return folder


def test_a_series_is_ordered_by_step_and_says_where_the_update_stops_turning(run_folder):
    report = compare_adapters(run_folder)
    series = report.series
    assert series is not None
    assert [point.step for point in series.points] == [10, 20, 30, 100]
    assert series.settled_step == 30
    assert series.points[-2].cosine_to_final == pytest.approx(np.cos(0.05), abs=0.02)
    assert [point.cosine_to_final for point in series.points[:2]] < [0.99, 0.99]
    norms = [point.frobenius_norm for point in series.points]
    assert norms[3] / norms[2] == pytest.approx(2.0 / 1.5, rel=0.02)
    assert [(pair.first, pair.second) for pair in report.pairs] == [
        ("checkpoint-10", "checkpoint-20"),
        ("checkpoint-20", "checkpoint-30"),
        ("checkpoint-30", "checkpoint-100"),
    ]


def test_a_series_that_turns_to_the_end_has_no_such_step(run_folder):
    shutil.rmtree(run_folder / "checkpoint-30")
    report = compare_adapters(run_folder)
    assert report.series is not None
    assert report.series.settled_step is None


def test_json_validates_and_text_names_what_differs(save, capsys):
    one, two = save("one", seed=1), save("two", seed=2, lora_alpha=32)
    assert main(["compare", str(one.folder), str(two.folder), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, json_schema("compare-adapters"))
    assert main(["compare", str(one.folder), str(two.folder), "--heatmap"]) == 0
    text = capsys.readouterr().out
    assert "lora_alpha: 8  |  32" in text
    assert "Heat map of cosine of one and two" in text
    assert msgspec.json.encode(compare_adapters(one.folder, two.folder)).startswith(b'{"schema":')


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_adapters_are_exit_code_2(count, save, capsys):
    paths = [str(save(f"a{n}").folder) for n in range(count)]
    assert main(["compare", *paths]) == 2
    assert capsys.readouterr().err.startswith("gradience: ")


def test_adapters_without_a_module_in_common_are_refused(save):
    one, two = save("one", target_modules=["q_proj"]), save("two", target_modules=["up_proj"])
    with pytest.raises(AdapterError, match="no module in common"):
        compare_adapters(one.folder, two.folder)


def test_checkpoints_of_different_runs_are_two_adapters_and_no_series(save, tmp_path):
    folders = []
    for seed, run in enumerate(("first", "second")):
        saved = save(f"of-{run}", seed=seed)
        folders.append(tmp_path / run / "checkpoint-200")
        shutil.move(saved.folder, folders[-1])
    report = compare_adapters(*folders)
    assert report.series is None
    assert [item.name for item in report.adapters] == ["first/checkpoint-200", "second/checkpoint-200"]


def test_an_adapter_in_another_format_is_the_same_update(save, tmp_path):
    saved = save("one", seed=1, target_modules=["q_proj"])
    convert_adapter(saved.folder, tmp_path / "mlx", to="mlx")
    pair = compare_adapters(saved.folder, tmp_path / "mlx").pairs[0]
    assert pair.compared == 2
    assert pair.cosine == pytest.approx(1.0, abs=1e-6)
    assert pair.relative_change is not None
    assert pair.relative_change < 1e-5


def test_the_same_folder_twice_has_two_names(save):
    folder = save("one", seed=1).folder
    report = compare_adapters(folder, folder)
    assert [item.name for item in report.adapters] == ["one#1", "one#2"]

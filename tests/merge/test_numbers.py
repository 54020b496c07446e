"""Numbers of a merge that no sum shows: options refused, notes, chances of overlap, and exact factors."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tables import every

from gradience import AdapterError, MergeOptions, OptionError, merge_adapters, merge_check
from gradience.rewrite.merge.methods import TIES_DENSITY, recipe_of, weights_of


def write(folder, modules, *, seed=0, r=2, scale=1.0, **config):
    """An adapter of these modules: name to (out, in)."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, (out, inner) in modules.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = rng.standard_normal((r, inner)).astype(np.float32)
        tensors[f"base_model.model.{name}.lora_B.weight"] = rng.standard_normal((out, r)).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    names = sorted({name.rpartition(".")[2] for name in modules})
    given = {"peft_type": "LORA", "r": r, "lora_alpha": r * scale, "target_modules": names, **config}
    (folder / "adapter_config.json").write_text(json.dumps(given))
    return folder


@every(
    ("method", "options", "message"),
    [
        ("dare_linear", {}, "dare_linear needs a density: its paper keeps as little as 0.1 of the entries"),
        ("linear", {"rank": 4}, "linear is exact and takes no rank: svd gives the best approximation of one"),
        ("svd", {"rank": 0}, "--rank is 0, expected a whole number from 1"),
        ("svd", {"density": 0.5}, "svd drops no entries and takes no density"),
        ("ties", {"density": 0.0}, "--density is 0.0, expected above 0, at most 1"),
        ("ties", {"density": 1.01}, "--density is 1.01, expected above 0, at most 1"),
        ("mean", {}, "--method is 'mean', expected one of linear, cat, svd, ties, dare_linear, dare_ties"),
        ("linear", {"weights": [1.0]}, "1 weights for 2 adapters: expected one for each"),
        ("linear", {"weights": [1.0, float("inf")]}, "weights are [1.0, inf]: expected finite numbers"),
        ("linear", {"weights": [1.0, -1.1e6]}, "weights are [1.0, -1100000.0]: expected at most 1e+06 in size"),
    ],
)
def test_an_option_out_of_its_range_or_place_is_refused_in_words(method, options, message):
    with pytest.raises(OptionError) as error:
        recipe_of(2, MergeOptions(method=method, **options))
    assert str(error.value) == message


def test_the_ends_of_ranges_are_taken_and_defaults_are_the_papers():
    given = {"weights": [1e6, -1e6], "seed": 3}
    assert recipe_of(2, MergeOptions(method="svd", rank=1, **given)).rank == 1
    assert recipe_of(2, MergeOptions(method="dare_ties", density=1.0, **given)) == (
        "dare_ties",
        (1e6, -1e6),
        None,
        1.0,
        3,
    )
    assert recipe_of(2, MergeOptions(method="ties", **given)).density == TIES_DENSITY == 0.2
    assert weights_of(4, None) == (0.25,) * 4
    assert weights_of(3, None, "ties") == weights_of(3, None, "dare_ties") == (1.0,) * 3
    assert weights_of(0, None) == ()


@every(
    ("one", "other", "together"),
    [
        ("meta-llama/Meta-Llama-3-8B", "unsloth/llama-3-8b-bnb-4bit", True),
        ("meta-llama/Llama-2-7b-hf", "mistralai/Mistral-7B-v0.1", False),
        ("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B-Instruct", False),
        ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct-AWQ", True),
        ("/models/Llama-3-8B/", "meta-llama/Llama-3-8B", True),
        ("/cache/models--org--m/snapshots/0a1b", "org/m", True),
        ("org/m", "", True),  # a config that names none says nothing
        ("org/m-8bit", "org/m-4bit", True),
        ("org/m8bit", "org/m4bit", False),
    ],
)
def test_adapters_of_different_bases_are_refused_unless_it_is_meant(one, other, together, tmp_path):
    pair = [
        write(tmp_path / at, {"q": (5, 4)}, base_model_name_or_path=name) for at, name in (("a", one), ("b", other))
    ]
    if not together:
        with pytest.raises(AdapterError, match=r"they are of different base models \(") as refused:
            merge_adapters(pair)
        assert refused.value.advice == "--force-mix merges them nevertheless"
    assert merge_adapters(pair, force_mix=not together).modules[0].name == "q"


def test_adapters_without_a_module_in_common_are_refused_unless_it_is_meant(tmp_path):
    q, v, both = (write(tmp_path / "".join(of), dict.fromkeys(of, (5, 4))) for of in ("q", "v", "qv"))
    with pytest.raises(AdapterError, match="no two of them have a module in common"):
        merge_adapters([q, v])
    assert len(merge_adapters([q, v, both]).modules) == len(merge_adapters([q, v], force_mix=True).modules) == 2


def test_notes_speak_of_bases_tasks_and_scales_only_where_they_differ(tmp_path):
    shapes = {"q": (5, 4)}
    plain = [write(tmp_path / n, shapes, base_model_name_or_path="m", task_type="CAUSAL_LM") for n in "ab"]
    assert merge_adapters(plain).notes == []
    other = write(tmp_path / "c", shapes, base_model_name_or_path="n", task_type="SEQ_CLS", use_rslora=True)
    assert merge_adapters([plain[0], other], force_mix=True).notes == [
        "the configs name different base models (m, n): the first one's is kept",
        "the configs name different task types: the first one's is kept",
        "rsLoRA's scale is in the factors: the merged adapter has alpha = r and use_rslora off",
    ]


def test_the_chance_of_an_overlap_is_that_of_its_own_side(tmp_path):
    folders = [write(tmp_path / str(n), {"q": (50, 20)}, seed=n) for n in (1, 2)]
    (pair,) = merge_check(*folders).pairs
    for side, d in ((pair.output_side, 50), (pair.input_side, 20)):
        assert {(one.i, one.j): one.chance for one in side} == {
            (one.i, one.j): pytest.approx(max(one.i, one.j) / d) for one in side
        }
        assert side[-1].i == 2


def test_one_module_that_depends_on_the_base_is_enough_for_a_note(tmp_path):
    shapes = {"q": (6, 5), "v": (6, 5)}
    plain, mixed = write(tmp_path / "a", shapes, seed=1), write(tmp_path / "b", shapes, seed=2, use_dora=True)
    path = mixed / "adapter_model.safetensors"
    magnitude = {"base_model.model.q.lora_magnitude_vector.weight": np.ones(6, np.float32)}
    save_file(load_file(path) | magnitude, path, metadata={"format": "pt"})
    notes = merge_check(plain, mixed).notes
    assert "b: the numbers are of s B A, which is not the whole of its update" in notes
    assert not any(note.startswith("a:") for note in notes)
    pissa = write(tmp_path / "c", shapes, seed=2, init_lora_weights="pissa")  # which has no magnitude
    assert "c: the numbers are of s B A, which is not the whole of its update" in merge_check(plain, pissa).notes


@pytest.mark.parametrize(
    ("method", "rank", "r"), [("linear", None, 4), ("cat", None, 4), ("svd", None, 2), ("svd", 3, 3)]
)
def test_ranks_and_parameters_of_a_merge(tmp_path, method, rank, r):
    folders = [write(tmp_path / str(n), {"q": (50, 20)}, seed=n) for n in (1, 2)]
    report = merge_adapters(folders, tmp_path / "out", method=method, rank=rank)
    assert (report.r, report.lora_alpha, report.params) == (r, r, r * 70)
    (row,) = report.modules
    assert (row.ranks, row.rank, row.kind) == ([2, 2], r, "linear")
    if method != "svd":
        assert report.relative_error < 1e-6
    else:
        tensors = [load_file(f / "adapter_model.safetensors") for f in folders]
        key = "base_model.model.q.lora_"
        whole = sum(0.5 * t[f"{key}B.weight"].astype(np.float64) @ t[f"{key}A.weight"] for t in tensors)
        sigma = np.linalg.svd(whole, compute_uv=False)
        expected = np.linalg.norm(sigma[r:]) / np.linalg.norm(sigma)
        assert report.relative_error == pytest.approx(expected, rel=1e-3)
        assert report.distance_from_sum == pytest.approx(expected, rel=1e-3)


def test_without_a_rank_the_largest_of_the_adapters_is_taken(tmp_path):
    folders = [write(tmp_path / str(r), {"q": (50, 20)}, seed=r, r=r) for r in (2, 5)]
    for method, density in (("svd", None), ("ties", 0.5)):
        report = merge_adapters(folders, method=method, density=density)
        assert (report.r, report.modules[0].ranks) == (5, [2, 5])


def test_a_check_of_finite_adapters_has_no_note(tmp_path):
    folders = [write(tmp_path / str(n), {"q": (6, 5), "v": (6, 5)}, seed=n) for n in (1, 2)]
    assert merge_check(*folders).notes == []
    path = folders[1] / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.v.lora_B.weight"][0, 0] = np.nan
    save_file(tensors, path, metadata={"format": "pt"})
    report = merge_check(*folders)
    assert report.notes == ["1 modules hold NaN or infinite numbers and are left out (first: v)"]
    assert [module.state for module in report.modules] == ["ok", "non_finite"]


def test_an_entry_beyond_the_dtype_is_refused_and_an_update_of_zero_has_no_ratio(tmp_path):
    one, two = (write(tmp_path / str(n), {"q": (6, 5)}, seed=n) for n in (1, 2))
    key = "base_model.model.q.lora_B.weight"
    for folder, change in ((one, (0, 0, 1e14)), (two, (slice(None), slice(None), 0.0))):
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        tensors[key][change[0], change[1]] = change[2]
        save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(AdapterError, match="q: the merged factors do not fit float16"):
        merge_adapters([one, two], method="cat", dtype="float16")
    (pair,) = merge_check(one, two).pairs
    assert (pair.scale_ratio, pair.cosine) == (None, None)

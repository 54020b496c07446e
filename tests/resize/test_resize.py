"""The verb: identity, the audit's ranks, budgets, dtypes, zeros, and what must not be written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import ml_dtypes
import msgspec
import numpy as np
import pytest
import torch
from jsonschema import Draft202012Validator
from peft import LoraConfig
from resize_nets import Net, same
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch

from gradience import AdapterError, OutputError, audit_adapter, resize_adapter
from gradience.rewrite.resize.weights import module_rank
from gradience.schema.export import json_schema
from gradience.schema.writing import Provenance

LINEAR = ["q_proj", "up_proj"]


@pytest.fixture
def case(make):
    return make(Net(), LoraConfig(r=8, lora_alpha=12, target_modules=LINEAR))


@pytest.mark.parametrize("rank", [8, 64])
def test_at_its_own_rank_or_above_an_adapter_is_copied_bit_for_bit(case, tmp_path, rank):
    report = resize_adapter(case.folder, tmp_path / "out", rank=rank)
    old, new = (load_torch(folder / "adapter_model.safetensors") for folder in (case.folder, tmp_path / "out"))
    assert all(torch.equal(old[name], new[name]) for name in old)
    assert report.relative_error == 0.0
    for name, update in case.update().items():
        assert np.array_equal(update, case.update(tmp_path / "out")[name])


def _falling(model) -> None:
    """Give lora_B the falling spectrum of training, another one in each module; random numbers have no suggestion."""
    factors = [p for name, p in model.named_parameters() if "lora_B" in name]
    for place, factor in enumerate(factors, 1):
        factor.data *= torch.exp(-torch.arange(factor.shape[1]) * (1.2 - 0.2 * place))


def test_the_suggested_ranks_are_exactly_the_ones_that_result(make, tmp_path):
    case = make(Net(), LoraConfig(r=8, lora_alpha=12, target_modules=LINEAR), edit=_falling)
    audit = audit_adapter(case.folder, suggest_per_layer=True)
    suggested = audit.per_layer
    report = resize_adapter(case.folder, tmp_path / "out", like_suggested=True)
    assert audit.like_suggested.params_saved == report.params_before - report.params_after
    assert audit.like_suggested.relative_error == pytest.approx(report.relative_error, rel=1e-9)
    wanted = {row.name: row.rank for row in suggested.modules}
    assert {row.name: row.rank_after for row in report.modules} == wanted
    after = audit_adapter(tmp_path / "out")
    assert {row.name: row.r for row in after.modules} == wanted
    assert len(set(wanted.values())) > 1
    assert report.rank_pattern == suggested.rank_pattern
    assert report.relative_error == pytest.approx(suggested.relative_error, rel=1e-9)
    for row, hint in zip(report.modules, suggested.modules, strict=True):
        assert row.relative_error == pytest.approx(hint.relative_error, rel=1e-9)


def test_the_scaling_of_every_module_is_unchanged(make, tmp_path):
    config = LoraConfig(r=8, lora_alpha=12, target_modules=LINEAR, use_rslora=True, alpha_pattern={"0.q_proj": 5})
    folder = make(Net(), config).folder
    resize_adapter(folder, tmp_path / "out", energy=0.95)
    scales = [{m.name: m.scaling for m in audit_adapter(f).modules} for f in (folder, tmp_path / "out")]
    assert scales[0].keys() == scales[1].keys()
    assert all(scales[1][name] == pytest.approx(scale, rel=1e-12) for name, scale in scales[0].items())


@pytest.mark.parametrize("megabytes", [0.004, 0.006, 0.009])
def test_a_budget_in_megabytes_is_what_the_file_has_at_most(case, tmp_path, megabytes):
    report = resize_adapter(case.folder, tmp_path / "out", max_mb=megabytes)
    size = (tmp_path / "out" / "adapter_model.safetensors").stat().st_size
    assert size == report.bytes_after <= megabytes * 1e6
    assert min(row.rank_after for row in report.modules) >= 1


def test_a_budget_in_parameters_beats_a_uniform_rank_of_the_same_size(make, tmp_path):
    folder = make(Net(), LoraConfig(r=8, target_modules=LINEAR, alpha_pattern={"0.q_proj": 64})).folder
    uniform = resize_adapter(folder, rank=3)
    spread = resize_adapter(folder, tmp_path / "out", max_params=uniform.params_after)
    assert spread.params_after <= uniform.params_after
    assert spread.relative_error < uniform.relative_error


def test_a_budget_under_rank_one_is_refused_with_the_least(case):
    with pytest.raises(AdapterError, match="needs 136"):
        resize_adapter(case.folder, max_params=10)
    with pytest.raises(AdapterError, match="rank 1 of every module"):
        resize_adapter(case.folder, max_mb=0.0001)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float16", 2e-3), ("bfloat16", 2e-2)])
def test_the_dtype_of_the_factors_is_as_asked(case, tmp_path, dtype, tolerance):
    resize_adapter(case.folder, tmp_path / "wide", rank=3)
    resize_adapter(case.folder, tmp_path / "out", rank=3, dtype=dtype)
    tensors = load_torch(tmp_path / "out" / "adapter_model.safetensors")
    assert {str(t.dtype) for t in tensors.values()} == {f"torch.{dtype}"}
    wide, out = case.update(tmp_path / "wide"), case.update(tmp_path / "out")
    assert all(same(out[name], wide[name], wide[name], tolerance) for name in wide)


def test_bf16_factors_stay_bf16(make, tmp_path):
    case = make(Net(), LoraConfig(r=8, target_modules=LINEAR), edit=lambda model: model.bfloat16())
    resize_adapter(case.folder, tmp_path / "out", rank=3)
    tensors = load_torch(tmp_path / "out" / "adapter_model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}


def test_factors_of_8_bits_are_not_rounded_to_8_bits_again(case, tmp_path):
    path = case.folder / "adapter_model.safetensors"
    save_file({n: t.astype(ml_dtypes.float8_e4m3fn) for n, t in load_file(path).items()}, path)
    with pytest.raises(AdapterError, match="8 bits"):
        resize_adapter(case.folder, tmp_path / "out", rank=3)
    resize_adapter(case.folder, tmp_path / "out", rank=3, dtype="bfloat16")
    assert {t.dtype for t in load_torch(tmp_path / "out" / "adapter_model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize("side", ["lora_A", "lora_B"])
def test_a_zero_module_keeps_rank_one_and_can_still_be_trained(make, tmp_path, side):
    def untrained(model):
        for name, parameter in model.named_parameters():
            if side in name and "layers.0.q_proj" in name:
                parameter.data.zero_()

    case = make(Net(), LoraConfig(r=8, target_modules=LINEAR), edit=untrained)
    report = resize_adapter(case.folder, tmp_path / "out", energy=0.9)
    row = next(r for r in report.modules if r.name == "layers.0.q_proj")
    assert (row.rank_after, row.relative_error) == (1, None)
    tensors = load_torch(tmp_path / "out" / "adapter_model.safetensors")
    stem = "base_model.model.layers.0.q_proj"
    zero = {field for field in ("lora_A", "lora_B") if not tensors[f"{stem}.{field}.weight"].any()}
    assert zero == {side}
    assert not case.update(tmp_path / "out")["layers.0.q_proj.weight"].any()


def test_an_update_that_alpha_switches_off_keeps_its_factors(make, tmp_path):
    folder = make(Net(), LoraConfig(r=8, lora_alpha=0, target_modules=["q_proj"])).folder
    resize_adapter(folder, tmp_path / "out", rank=2)
    tensors = load_torch(tmp_path / "out" / "adapter_model.safetensors")
    assert all(tensor.any() for tensor in tensors.values())
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["lora_alpha"] == 0


def test_several_adapters_in_one_file_share_their_ranks(case, tmp_path):
    path = case.folder / "adapter_model.safetensors"
    tensors = load_file(path)
    named = {}
    for name, tensor in tensors.items():
        stem, field, _ = name.rpartition(".lora_")[0], name.rpartition(".lora_")[2][0], 0
        named[f"{stem}.lora_{field}.one.weight"] = tensor
        named[f"{stem}.lora_{field}.two.weight"] = tensor[:, ::-1].copy() if field == "A" else tensor * 3.0
    save_file(named, path)
    report = resize_adapter(case.folder, tmp_path / "out", energy=0.95)
    ranks: dict[str, set[int]] = {}
    for row in report.modules:
        ranks.setdefault(row.name.partition(":")[0], set()).add(row.rank_after)
    assert all(len(some) == 1 for some in ranks.values())
    assert {m.r for m in audit_adapter(tmp_path / "out").modules} == {next(iter(some)) for some in ranks.values()}


def test_torchs_own_file_becomes_a_safetensors_file(case, tmp_path):
    resize_adapter(case.folder, tmp_path / "from_safetensors", rank=2)
    path = case.folder / "adapter_model.safetensors"
    torch.save(load_torch(path), case.folder / "adapter_model.bin")
    path.unlink()
    resize_adapter(case.folder, tmp_path / "from_bin", rank=2)
    one, two = (load_torch(tmp_path / f / "adapter_model.safetensors") for f in ("from_safetensors", "from_bin"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_suggested_ranks_of_a_multihead_attention_are_one_rank(make, tmp_path):
    case = make(Net(), LoraConfig(r=8, target_modules=["mha"]))
    report = resize_adapter(case.folder, tmp_path / "out", like_suggested=True)
    suggested = audit_adapter(case.folder, suggest_per_layer=True).per_layer
    assert {row.rank_after for row in report.modules} == {max(row.rank for row in suggested.modules)}


def test_a_module_that_is_not_finite_is_refused_by_name(make, tmp_path):
    def spoil(model):
        for name, parameter in model.named_parameters():
            if "layers.1.q_proj.lora_B" in name:
                parameter.data[0, 0] = float("nan")

    case = make(Net(), LoraConfig(r=8, target_modules=LINEAR), edit=spoil)
    with pytest.raises(AdapterError, match=r"layers\.1\.q_proj holds NaN"):
        resize_adapter(case.folder, tmp_path / "out", rank=2)
    assert not (tmp_path / "out").exists()


def test_a_tensor_that_may_depend_on_the_rank_is_not_carried_along(case, tmp_path):
    path = case.folder / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.layers.0.q_proj.lora_velora_embed"] = np.zeros((8, 2), np.float32)
    save_file(tensors, path)
    with pytest.raises(AdapterError, match="lora_velora_embed"):
        resize_adapter(case.folder, tmp_path / "out", rank=2)


def test_the_metadata_and_the_record_are_written(case, tmp_path):
    resize_adapter(case.folder, tmp_path / "out", rank=2)
    record = msgspec.json.decode((tmp_path / "out" / "gradience_provenance.json").read_bytes(), type=Provenance)
    assert record.operation == "resize"
    assert record.options == {"criterion": "rank", "value": 2.0, "dtype": None}
    assert [source.name for source in record.sources] == ["adapter_config.json", "adapter_model.safetensors"]
    assert {m.rank_after for m in record.modules} == {2}
    assert str(case.folder) not in (tmp_path / "out" / "gradience_provenance.json").read_text()


def test_a_dry_run_writes_nothing_and_says_the_same(case, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    dry = resize_adapter(case.folder, rank=2)
    assert sorted(tmp_path.rglob("*")) == before
    real = resize_adapter(case.folder, tmp_path / "out", rank=2)
    assert msgspec.structs.replace(real, out=None) == dry
    Draft202012Validator(json_schema("resize")).validate(msgspec.to_builtins(real))


def test_the_source_and_what_holds_it_are_never_replaced(case, tmp_path):
    for place in (case.folder, tmp_path, case.folder / ".." / case.folder.name):
        with pytest.raises(OutputError, match="that is read"):
            resize_adapter(case.folder, place, rank=2, force=True)
    assert (case.folder / "adapter_model.safetensors").is_file()


def test_an_output_that_exists_is_replaced_only_by_force(case, tmp_path):
    out = tmp_path / "out"
    resize_adapter(case.folder, out, rank=2)
    with pytest.raises(OutputError, match="exists already"):
        resize_adapter(case.folder, out, rank=3)
    assert json.loads((out / "adapter_config.json").read_text())["r"] == 2
    resize_adapter(case.folder, out, rank=3, force=True)
    assert json.loads((out / "adapter_config.json").read_text())["r"] == 3


def test_a_resize_of_a_resize_is_the_resize(case, tmp_path):
    resize_adapter(case.folder, tmp_path / "four", rank=4)
    resize_adapter(tmp_path / "four", tmp_path / "two", rank=2)
    resize_adapter(case.folder, tmp_path / "direct", rank=2)
    two, direct = case.update(tmp_path / "two"), case.update(tmp_path / "direct")
    assert all(same(two[name], direct[name], direct[name]) for name in direct)


def test_what_is_not_copied_is_named(case, tmp_path):
    shutil.copy(case.folder / "adapter_config.json", case.folder / "tokenizer.json")
    report = resize_adapter(case.folder, rank=2)
    assert any("tokenizer.json" in note for note in report.notes)


def test_a_criterion_is_that_of_its_module(case):
    report = resize_adapter(case.folder, energy=0.96)
    audit = audit_adapter(case.folder, top_singular_values=8)
    from gradience.rewrite.options import Target

    for row, module in zip(report.modules, audit.modules, strict=True):
        assert row.rank_after == module_rank(Target("energy", 0.96), np.asarray(module.top_singular_values))
        assert row.relative_error <= 0.2


def test_an_adapter_without_pairs_or_config_is_refused(tmp_path):
    folder = Path(tmp_path / "empty")
    folder.mkdir()
    save_file({"base_model.model.score.weight": np.zeros((2, 2), np.float32)}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 8, "modules_to_save": ["score"], "target_modules": ["q"]})
    )
    with pytest.raises(AdapterError, match="no LoRA pair"):
        resize_adapter(folder, rank=2)


def several(folder: Path, ranks: dict[str, int], alpha: float = 8.0) -> Path:
    """Write a file of several adapters, which one config governs."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    tensors = {}
    for name, r in ranks.items():
        tensors[f"base_model.model.h.q_proj.lora_A.{name}.weight"] = rng.standard_normal((r, 12)).astype(np.float32)
        tensors[f"base_model.model.h.q_proj.lora_B.{name}.weight"] = rng.standard_normal((10, r)).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": alpha, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_adapters_of_one_file_are_resized_together_only_where_one_config_can_say_their_ranks(tmp_path):
    report = resize_adapter(several(tmp_path / "equal", {"one": 8, "two": 8}), rank=3)
    assert [row.rank_after for row in report.modules] == [3, 3]
    with pytest.raises(AdapterError, match="share their config, but have ranks 8 and 4"):
        resize_adapter(several(tmp_path / "unequal", {"one": 8, "two": 4}), rank=3)

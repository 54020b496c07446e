"""Laws that tie the verbs to each other, on real PEFT adapters: what one writes, another one measures."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoHaConfig, LoraConfig, get_peft_model
from peft_models import layers, loaded, merged_weights, save_base, weights_of
from safetensors.numpy import load_file, save_file
from torch import nn

from gradience import audit_adapter, compare_adapters, convert_adapter, merge_adapters, resize_adapter

pytestmark = pytest.mark.slow  # many draws: `nox -s properties`

RANK = 6


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = layers(16)

    def forward(self, x):
        return x


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that saves an adapter of `Net` with values from a seed, and gives its folder."""

    def build(name: str, config: Any = None, *, seed: int = 0) -> Path:
        generator = torch.Generator().manual_seed(seed)
        model = get_peft_model(Net(), config or LoraConfig(r=RANK, lora_alpha=9, target_modules=["q_proj", "up_proj"]))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
        model.save_pretrained(tmp_path / name)
        return tmp_path / name

    return build


@pytest.fixture
def base(tmp_path: Path) -> Path:
    save_base(Net(), tmp_path / "base")
    return tmp_path / "base"


def dense(folder: Path) -> dict[str, np.ndarray]:
    """Return what PEFT's own merge of the adapter adds to each weight, in float64; loading must not warn."""
    before, after = weights_of(Net()), merged_weights(loaded(Net(), folder).double())
    return {name: after[name] - before[name] for name in before if name.endswith("weight")}


def cosine(one: Path, two: Path) -> float:
    found = compare_adapters(one, two).pairs[0].cosine
    assert found is not None
    return found


def scaled(source: Path, out: Path, factor: float) -> Path:
    """Write the adapter with every B times the factor."""
    out.mkdir()
    (out / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())
    tensors = load_file(source / "adapter_model.safetensors")
    save_file(
        {name: t * np.float32(factor if "lora_B" in name else 1) for name, t in tensors.items()},
        out / "adapter_model.safetensors",
    )
    return out


def close(one: dict[str, np.ndarray], two: dict[str, np.ndarray], tolerance: float = 1e-5) -> None:
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert np.linalg.norm(value - two[name]) <= tolerance * np.linalg.norm(two[name]), name


@pytest.mark.parametrize("options", [{"rank": RANK}, {"energy": 1.0}])
def test_a_resize_that_cuts_nothing_is_the_adapter(save, tmp_path, options):
    one = save("one")
    report = resize_adapter(one, tmp_path / "same", **options)
    assert report.relative_error == 0.0
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (one, tmp_path / "same"))
    assert all(after[name].tobytes() == tensor.tobytes() for name, tensor in before.items())
    found = compare_adapters(one, tmp_path / "same")
    assert found.pairs[0].cosine == pytest.approx(1.0, abs=1e-9)
    assert found.differences == []


@pytest.mark.parametrize("rank", [1, 4])
def test_the_cosine_to_a_resized_copy_is_the_root_of_the_energy_it_kept(save, tmp_path, rank):
    one = save("one")
    report = resize_adapter(one, tmp_path / "cut", rank=rank)
    kept = math.sqrt(1.0 - report.relative_error**2)
    pair = compare_adapters(one, tmp_path / "cut").pairs[0]
    assert pair.cosine == pytest.approx(kept, abs=1e-6)
    assert pair.norm_ratio == pytest.approx(kept, abs=1e-6)
    assert cosine(tmp_path / "cut", one) == pytest.approx(kept, abs=1e-6)
    errors = {row.name: row.relative_error for row in report.modules}
    for row in pair.modules:
        assert row.cosine == pytest.approx(math.sqrt(1.0 - errors[row.name] ** 2), abs=1e-6)


def test_a_loha_as_a_lora_has_the_spectra_it_had(save, tmp_path):
    loha = save("loha", LoHaConfig(r=3, alpha=5, target_modules=["q_proj", "up_proj"]))
    convert_adapter(loha, tmp_path / "lora")
    before, after = audit_adapter(loha), audit_adapter(tmp_path / "lora")
    assert [m.name for m in before.modules] == [m.name for m in after.modules]
    for one, two in zip(before.modules, after.modules, strict=True):
        assert two.frobenius_norm == pytest.approx(one.frobenius_norm, rel=1e-5)
        assert two.stable_rank == pytest.approx(one.stable_rank, rel=1e-5)
        assert two.energy_rank_90 == one.energy_rank_90
    close(dense(tmp_path / "lora"), dense(loha))
    assert cosine(loha, tmp_path / "lora") == pytest.approx(1.0, abs=1e-6)


def test_to_mlx_and_back_is_the_adapter(save, tmp_path):
    one = save("one")
    convert_adapter(one, tmp_path / "mlx", to="mlx")
    convert_adapter(tmp_path / "mlx", tmp_path / "back")
    assert [m.r for m in audit_adapter(tmp_path / "back").modules] == [RANK] * 4
    after = load_file(tmp_path / "back" / "adapter_model.safetensors")
    before = load_file(one / "adapter_model.safetensors")
    assert {m.name for m in audit_adapter(one).modules} == {m.name for m in audit_adapter(tmp_path / "back").modules}
    assert sorted(t.tobytes() for t in before.values()) == sorted(t.tobytes() for t in after.values())


@pytest.mark.parametrize("method", ["cat", "svd"])
def test_a_merge_with_nothing_is_the_adapter(save, tmp_path, method):
    one = save("one")
    nothing = scaled(save("other", seed=3), tmp_path / "nothing", 0.0)
    merge_adapters([one, nothing], tmp_path / "sum", method=method, weights=[1.0, 1.0])
    close(dense(tmp_path / "sum"), dense(one))
    assert cosine(one, tmp_path / "sum") == pytest.approx(1.0, abs=1e-6)


def test_a_merge_is_the_sum_and_an_adapter_minus_itself_is_nothing(save, tmp_path):
    one, two = save("one", seed=1), save("two", seed=2)
    merge_adapters([one, two], tmp_path / "sum", weights=[0.7, -0.4])
    first, second = dense(one), dense(two)
    close(dense(tmp_path / "sum"), {name: 0.7 * first[name] - 0.4 * second[name] for name in first})
    merge_adapters([one, one], tmp_path / "none", weights=[1.0, -1.0])
    assert all(not update.any() for update in dense(tmp_path / "none").values())
    assert compare_adapters(one, tmp_path / "none").pairs[0].cosine is None

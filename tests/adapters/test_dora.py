"""DoRA's magnitude runs along one axis of each layout; of a square weight no shape would show another."""

from __future__ import annotations

import json

import numpy as np
import pytest
from peft import LoraConfig
from safetensors.numpy import save_file
from tables import every
from torch import nn
from transformers.pytorch_utils import Conv1D

from gradience.adapters.open import find_files, read_adapter
from gradience.errors import AdapterError

RNG = np.random.default_rng(3)


class Square(nn.Module):
    """Each layer that DoRA wraps, with a weight that is a square matrix once it is flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(18, 18)
        self.c_attn = Conv1D(18, 18)
        self.embed_tokens = nn.Embedding(18, 18)
        self.conv2d = nn.Conv2d(2, 18, 3)
        self.conv1d = nn.Conv1d(6, 18, 3)

    def forward(self, x):
        return x


@pytest.mark.parametrize("target", ["q_proj", "c_attn", "embed_tokens", "conv2d", "conv1d"])
def test_pefts_norm_runs_along_the_axis_that_peft_merges_with(make, worst_error, target):
    options = {"fan_in_fan_out": True} if target == "c_attn" else {}
    case = make(Square(), LoraConfig(r=3, lora_alpha=5, target_modules=[target], use_dora=True, **options))
    assert worst_error(case) < 1e-5


@pytest.mark.parametrize("target", ["q_proj", "c_attn", "embed_tokens", "conv2d"])
def test_the_magnitude_that_peft_starts_with_leaves_the_base_as_it_is(make, target):
    """At B = 0 the magnitude is the norm of W, so the update is zero: along another axis it would not be."""
    options = {"fan_in_fan_out": True} if target == "c_attn" else {}

    def reset(model) -> None:
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "lora_embedding_A" in name:
                parameter.data.zero_()
            if "magnitude" in name:
                w = model.base_model.model.get_submodule(target).get_base_layer().weight.detach()
                stored = w.T if target in {"c_attn", "embed_tokens"} else w
                norm = stored.flatten(1).norm(dim=1)
                parameter.data = norm.reshape(parameter.shape)

    case = make(Square(), LoraConfig(r=3, target_modules=[target], use_dora=True, **options), edit=reset)
    (module,) = case.read().modules
    w = case.base[f"{target}.weight"]
    assert np.abs(module.dense(w)).max() < 1e-5 * np.abs(w).max()


def merged(w, delta, magnitude, axis):
    """m (W + dW) / norm(W + dW), the norm over one axis."""
    v = w + delta
    return magnitude * v / np.linalg.norm(v, axis=axis, keepdims=True) - w


def opened(folder, tensors, config):
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapters.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (module,) = read_adapter(find_files(folder)).modules
    return module


@pytest.mark.parametrize("layer", ["self_attn.q_proj", "embed_tokens"])
def test_mlxs_norm_is_of_each_row_of_the_weight_as_stored(tmp_path, layer):
    """mlx_lm/tuner/dora.py: DoRALinear and DoRAEmbedding take linalg.norm(adapted, axis=1)."""
    a, b, w = (RNG.standard_normal(shape).astype(np.float32) for shape in ((9, 2), (2, 9), (9, 9)))
    m = RNG.uniform(0.5, 2.0, 9).astype(np.float32)
    config = {"fine_tune_type": "dora", "model": "base", "lora_parameters": {"rank": 2, "scale": 3.0}}
    stem = f"model.{layer}"
    module = opened(tmp_path, {f"{stem}.lora_a": a, f"{stem}.lora_b": b, f"{stem}.m": m}, config)
    delta = 3.0 * (a @ b if layer == "embed_tokens" else b.T @ a.T)
    np.testing.assert_allclose(module.dense(w), merged(w, delta, m[:, None], 1), atol=1e-5)


def test_torchtunes_norm_is_of_each_output(tmp_path):
    """torchtune/modules/peft/dora.py: linalg.norm(weight + scaling * lora_weight, dim=1)."""
    a, b, w = (RNG.standard_normal(shape).astype(np.float32) for shape in ((2, 9), (9, 2), (9, 9)))
    m = RNG.uniform(0.5, 2.0, 9).astype(np.float32)
    tensors = {"layers.0.attn.q_proj.lora_a.weight": a, "layers.0.attn.q_proj.lora_b.weight": b}
    config = {"r": 2, "lora_alpha": 6, "peft_type": "LORA"}
    module = opened(tmp_path, tensors | {"layers.0.attn.q_proj.magnitude": m}, config)
    np.testing.assert_allclose(module.dense(w), merged(w, 3.0 * b @ a, m[:, None], 1), atol=1e-5)


@pytest.mark.parametrize(("shape", "axis"), [((9, 1), 1), ((9,), 1), ((1, 9), 0)])
def test_lycoris_norm_is_of_the_axis_that_its_shape_leaves_out(tmp_path, shape, axis):
    a, b, w = (RNG.standard_normal(s).astype(np.float32) for s in ((2, 9), (9, 2), (9, 9)))
    m = RNG.uniform(0.5, 2.0, shape).astype(np.float32)
    stem = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {f"{stem}.lora_down.weight": a, f"{stem}.lora_up.weight": b, f"{stem}.dora_scale": m}
    module = opened(tmp_path, tensors, {})
    along = m[:, None] if m.ndim == 1 else m
    np.testing.assert_allclose(module.dense(w), merged(w, b @ a, along, axis), atol=1e-5)


def torchtune(tmp_path, out, inner):
    a, b, w = (RNG.standard_normal(s).astype(np.float32) for s in ((2, inner), (out, 2), (out, inner)))
    m = RNG.uniform(0.5, 2.0, out).astype(np.float32)
    stem = "layers.0.mlp.w1"
    tensors = {f"{stem}.lora_a.weight": a, f"{stem}.lora_b.weight": b, f"{stem}.magnitude": m}
    return opened(tmp_path, tensors, {"r": 2, "lora_alpha": 6}), w, merged(w, 3.0 * b @ a, m[:, None], 1)


def test_of_a_weight_that_the_base_stores_transposed_the_norms_run_along_the_other_axis(tmp_path):
    module, w, truth = torchtune(tmp_path, 9, 5)
    np.testing.assert_allclose(module.dense(w.T), truth.T, atol=1e-5)


@every("shape", [(9, 6), (10, 5), (5, 10), (6, 9), (9, 9), (45, 1)])
def test_a_weight_of_another_shape_is_refused(tmp_path, shape):
    module, _, _ = torchtune(tmp_path, 9, 5)
    with pytest.raises(AdapterError, match="does not fit a base weight of shape"):
        module.dense(np.ones(shape, np.float32))


def test_rows_that_are_longer_than_a_block_are_added_up_row_by_row(tmp_path):
    module, w, truth = torchtune(tmp_path, 3, 600_000)
    np.testing.assert_allclose(module.dense(w), truth, atol=1e-5)


def test_columns_are_added_up_over_all_blocks_of_rows(tmp_path):
    """LyCORIS's norm of each input, over more rows than a block of a million entries has."""
    a, b, w = (RNG.standard_normal(s).astype(np.float32) for s in ((2, 600), (5000, 2), (5000, 600)))
    m = RNG.uniform(0.5, 2.0, (1, 600)).astype(np.float32)
    stem = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {f"{stem}.lora_down.weight": a, f"{stem}.lora_up.weight": b, f"{stem}.dora_scale": m}
    module = opened(tmp_path, tensors, {})
    np.testing.assert_allclose(module.dense(w), merged(w, b @ a, m, 0), atol=1e-4)

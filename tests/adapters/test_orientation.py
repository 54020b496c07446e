"""A base that stores its weights transposed (`fan_in_fan_out`) has each kind's update and its shape transposed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from gradience.adapters.layout import Module
from gradience.adapters.open import open_adapter

PREFIX = "base_model.model."


def only_module(folder: Path, tensors: dict[str, np.ndarray], **config: Any) -> Module:
    folder.mkdir()
    save_file(
        {
            name if name.startswith("base_model.") else f"{PREFIX}{name}": t.astype(np.float32)
            for name, t in tensors.items()
        },
        folder / "adapter_model.safetensors",
    )
    (folder / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 3, **config}))
    _, found = open_adapter(folder)
    (module,) = found.modules
    return module


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape)


A, B, E = drawn(2, 3), drawn(5, 2), drawn(2, 1)
LAMBDA_B, LAMBDA_D = drawn(5), drawn(2)
KINDS = {  # type, tensors, B A as the formula of the kind has it
    "lora": ("LORA", {"q.lora_A.weight": A, "q.lora_B.weight": B}, B @ A),
    "adalora": ("ADALORA", {"q.lora_A": A, "q.lora_B": B, "q.lora_E": E}, B @ (A * E)),
    "vera": (
        "VERA",
        {"q.vera_lambda_b": LAMBDA_B, "q.vera_lambda_d": LAMBDA_D, "base_model.vera_A": A, "base_model.vera_B": B},
        LAMBDA_B[:, None] * (B @ (LAMBDA_D[:, None] * A)),
    ),
}


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_shape_and_update_are_those_of_the_base_s_weight(kind, transposed, tmp_path):
    peft_type, tensors, update = KINDS[kind]
    module = only_module(tmp_path / "a", tensors, peft_type=peft_type, fan_in_fan_out=transposed)
    b, a = module.load()
    assert module.shape == (len(b), a.shape[1]) == ((3, 5) if transposed else (5, 3))
    np.testing.assert_allclose(b @ a, update.T if transposed else update, rtol=1e-5)


@pytest.mark.parametrize("transposed", [False, True])
def test_an_embedding_is_transposed_and_a_convolution_is_not_whatever_the_option_says(transposed, tmp_path):
    embedding = only_module(
        tmp_path / "e",
        {"wte.lora_embedding_A": A, "wte.lora_embedding_B": B},
        peft_type="LORA",
        fan_in_fan_out=transposed,
    )
    assert (embedding.kind, embedding.shape) == ("embedding", (3, 5))
    np.testing.assert_allclose(np.matmul(*embedding.load()), (B @ A).T, rtol=1e-5)
    conv = only_module(
        tmp_path / "c",
        {"conv.lora_A.weight": drawn(2, 3, 1, 2), "conv.lora_B.weight": B[:, :, None, None]},
        peft_type="LORA",
        fan_in_fan_out=transposed,
    )
    assert (conv.kind, conv.shape) == ("conv", (5, 6))
    np.testing.assert_allclose(np.matmul(*conv.load()), B @ drawn(2, 3, 1, 2).reshape(2, 6), rtol=1e-5)


def test_a_parameter_that_names_another_module_is_not_this_one_s(tmp_path):
    module = only_module(
        tmp_path / "a",
        {"y.experts.lora_A.weight": A, "y.experts.lora_B.weight": B},
        peft_type="LORA",
        target_parameters=["mlp.experts.down_proj", "gate_up_proj"],
    )
    assert (module.name, module.base_name) == ("y.experts.gate_up_proj", "y.experts.gate_up_proj")


STORED_DORA = [  # fan_in_fan_out, the tensors' names, the axis of the weight as stored that a norm is taken along
    (False, ("lora_A.weight", "lora_B.weight"), 1),
    (True, ("lora_A.weight", "lora_B.weight"), 0),
    (False, ("lora_embedding_A", "lora_embedding_B"), 0),
    (True, ("lora_embedding_A", "lora_embedding_B"), 0),
]


@pytest.mark.parametrize(("transposed", "names", "axis"), STORED_DORA)
@pytest.mark.parametrize("rslora", [False, True])
def test_doras_norm_is_of_each_output_however_the_base_stores_it(transposed, names, axis, rslora, tmp_path):
    a, b = drawn(2, 5), B  # a square update: no shape says which axis
    tensors = {f"q.{names[0]}": a, f"q.{names[1]}": b, "q.lora_magnitude_vector": np.abs(LAMBDA_B)}
    module = only_module(tmp_path / "a", tensors, peft_type="LORA", fan_in_fan_out=transposed, use_rslora=rslora)
    scale = 3 / (np.sqrt(2) if rslora else 2)
    w = drawn(5, 5)
    v = w + scale * ((b @ a).T if axis == 0 else b @ a)
    factor = np.abs(LAMBDA_B) / np.linalg.norm(v, axis=axis)
    wanted = (factor[None, :] if axis == 0 else factor[:, None]) * v - w
    np.testing.assert_allclose(module.dense(w), wanted, atol=1e-5)
    assert (module.kind, module.scale, module.is_unknown) == ("dora", scale, False)
    assert module.note == "DoRA: s B A is rescaled by the magnitude"

"""What is counted from headers is what PEFT adapts: the same modules and trainable parameters, to the last one."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from tables import every, grid

from gradience.base.coverage import cover
from gradience.base.peft_emulation.layout import Layout, read_layout
from gradience.base.peft_emulation.targets import NotFollowedError
from gradience.configs.document import read_peft_dir
from gradience.schema.document import Coverage

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")


def _beside(name: str) -> Any:
    """A module of this folder: tests are no package."""
    spec = importlib.util.spec_from_file_location(f"base_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[f"base_{name}"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


models = _beside("models")
by_peft = _beside("peft_counts").by_peft


@pytest.fixture(scope="module", params=list(models.MODELS))
def base(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str | None, Any, Layout]:
    """A model, its task type, and what is read of the folder that it was saved to."""
    task_type, make = models.MODELS[request.param]
    model = make(transformers)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return task_type, model, layout_of(folder, task_type)


def layout_of(folder: Path, task_type: str | None) -> Layout:
    return read_layout(folder, transformers=transformers.__version__, task_type=task_type)


def by_headers(base: Path | Layout, config: Any, tmp_path: Path) -> Coverage | None:
    """Return what we count, or None where we say that PEFT refuses or that nothing is reached."""
    config.save_pretrained(tmp_path)
    layout = layout_of(base, config.task_type) if isinstance(base, Path) else base
    try:
        found = cover(read_peft_dir(tmp_path).config, layout, base="base")
    except NotFollowedError:
        return None
    return None if found.refused or not found.modules else found


# What get_peft_model of PEFT 0.21.2 adapted and trained, by model and setting; null where it refused.
COUNTED = json.loads((Path(__file__).parent / "golden" / "peft_counts.json").read_text(encoding="utf-8"))
EVERY = 1 if os.environ.get("GRADIENCE_SLOW") else 24


@every("name", models.SETTINGS)
def test_modules_and_trainable_parameters_are_those_of_get_peft_model(
    request: pytest.FixtureRequest, base: Any, name: str, tmp_path: Path
) -> None:
    """PEFT, which takes most of the time, is asked again for every 24th pair, and for all with GRADIENCE_SLOW=1."""
    task_type, model, layout = base
    kind = request.node.callspec.params["base"]
    settings = copy.deepcopy(models.SETTINGS[name])  # PEFT adds a head to the list that it was given
    config = peft.LoraConfig(r=4, task_type=task_type, **settings)
    mine = by_headers(layout, copy.deepcopy(config), tmp_path)
    theirs = COUNTED[kind][name] and tuple(COUNTED[kind][name])
    assert (mine and (mine.modules, mine.trainable_params)) == theirs
    if (list(models.MODELS).index(kind) + list(models.SETTINGS).index(name)) % EVERY == 0:
        assert by_peft(model, config) == theirs


@pytest.mark.parametrize(
    ("name", "prefix", "targets"),
    [
        ("gpt2", "transformer.", ["transformer.h.1.attn.c_attn"]),
        ("gpt2", "transformer.", r"transformer\.h\.\d\.mlp\.c_fc"),
        ("llama", "model.", r"model\.layers\.0\..*_proj"),
    ],
)
def test_a_file_of_the_bare_model_gets_the_prefix_that_the_head_adds(
    name: str, prefix: str, targets: Any, tmp_path: Path
) -> None:
    """As the hub's gpt2 is: `h.0` in the file, `transformer.h.0` in the model."""
    from safetensors.torch import load_file, save_file

    task_type, make = models.MODELS[name]
    model = make(transformers)
    model.save_pretrained(tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    save_file({key.removeprefix(prefix): value for key, value in load_file(file).items()}, file)
    config = peft.LoraConfig(r=4, task_type=task_type, target_modules=targets)
    mine = by_headers(tmp_path / "base", copy.deepcopy(config), tmp_path / "peft")
    assert mine is not None
    assert (mine.modules, mine.trainable_params) == by_peft(model, config)


@pytest.mark.parametrize(
    "settings",
    [{}, {"bias": "all"}, {"modules_to_save": ["lm_head"]}, {"trainable_token_indices": [1, 2]}, {"use_dora": True}],
    ids=str,
)
@grid(each=2, dtype=["float32", "bfloat16"], name=["qwen2", "llama"])
def test_bytes_are_those_of_the_weights_gradients_and_moments_of_a_real_step(
    name: str, dtype: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    """AdamW of torch, after one step."""
    import torch

    _, make = models.MODELS[name]
    model = make(transformers).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], **settings)
    mine = by_headers(tmp_path / "base", copy.deepcopy(config), tmp_path / "peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers on itself, and PEFT's advice
        adapted = peft.get_peft_model(model, config)
    trained = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    adapted(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    optimizer.step()
    moments = [t for state in optimizer.state.values() for key, t in state.items() if key != "step"]
    assert mine is not None
    assert mine.adapter_bytes == sum(p.nbytes for p in trained)
    assert mine.optimizer_bytes == sum(t.nbytes for t in moments) + sum(p.grad.nbytes for p in trained)
    assert mine.base_params == sum(p.numel() for p in make(transformers).parameters())


def test_layers_of_encoder_and_decoder_count_apart(tmp_path: Path) -> None:
    task_type, make = models.MODELS["t5"]
    make(transformers).save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=2, task_type=task_type, target_modules=r"decoder\..*\.q")
    found = by_headers(tmp_path / "base", config, tmp_path / "peft")
    assert found is not None
    assert (found.layers, found.layers_total, found.modules) == (3, 5, 6)


def test_a_hostile_expression_is_not_followed_rather_than_run_for_years(tmp_path: Path) -> None:
    _, make = models.MODELS["llama"]
    make(transformers).save_pretrained(tmp_path / "base")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "target_modules": "(?:.|.)+(?=!)"}')
    layout = read_layout(tmp_path / "base", transformers="5", task_type=None)
    with pytest.raises(NotFollowedError, match="target_modules"):
        cover(read_peft_dir(tmp_path).config, layout, base="base")


def test_modules_that_transformers_renames_are_said_to_be_not_followed(tmp_path: Path) -> None:
    """ViT's `query` in the file is `q_proj` in memory: no count rather than a wrong one."""
    config = transformers.ViTConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
    )
    transformers.ViTModel(config).save_pretrained(tmp_path / "base")
    peft.LoraConfig(target_modules=["query"]).save_pretrained(tmp_path)
    layout = read_layout(tmp_path / "base", transformers="5.24.0", task_type=None)
    with pytest.raises(NotFollowedError, match="vit"):
        cover(read_peft_dir(tmp_path).config, layout, base="base")

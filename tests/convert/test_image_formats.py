"""kohya's (with LyCORIS's types) and diffusers' files as PEFT: the base's names undo the underscores."""

from __future__ import annotations

import copy
import json
from importlib import import_module

import numpy as np
import pytest
import torch
from peft_models import Net, save_base
from safetensors.numpy import load_file, save_file

from gradience.errors import AdapterError
from gradience.verbs.convert.run import convert_adapter

INPUTS = {"q_proj": (5, 16), "up_proj": (5, 16), "classifier": (5, 16), "conv2d": (2, 6, 7, 7)}
INPUTS |= {"pointwise": INPUTS["conv2d"]}
RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def pair(stem, inner=16, out=20, names=("lora_down.weight", "lora_up.weight"), r=4):
    return {f"{stem}.{names[0]}": normal(r, inner), f"{stem}.{names[1]}": normal(out, r)}


@pytest.fixture
def net():
    return Net().eval()


@pytest.fixture
def base(tmp_path, net):
    save_base(net, tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.oracle("lycoris")
@pytest.mark.parametrize(
    ("algo", "options"),
    [
        ("locon", {}),
        ("locon", {"use_tucker": True}),
        ("locon", {"dora_wd": True}),
        ("loha", {}),
        ("loha", {"dora_wd": True}),
        ("lokr", {"factor": 4}),
        ("lokr", {"full_matrix": True}),
    ],
    ids=str,
)
def test_peft_computes_with_a_converted_adapter_what_lycoris_computes(tmp_path, net, base, algo, options):
    lycoris = import_module("lycoris")
    from peft import PeftModel

    for name in ("attention", "experts", "conv1d"):  # which LyCORIS has no layers for, or others
        delattr(net, name)
    theirs = copy.deepcopy(net)
    sizes = {"linear_dim": 2, "linear_alpha": 3, "conv_dim": 2, "conv_alpha": 1}
    network = lycoris.create_lycoris(theirs, 1.0, algo=algo, **sizes, **options)
    network.apply_to()
    network.eval()
    for name, parameter in network.named_parameters():
        noise = torch.randn_like(parameter)
        parameter.data = parameter.data * (1 + 0.2 * noise) if "dora" in name else 0.5 * noise
    network.save_weights(str(tmp_path / "old.safetensors"), None, None)
    report = convert_adapter(tmp_path / "old.safetensors", tmp_path / "new", base=base)
    ours = PeftModel.from_pretrained(copy.deepcopy(net), tmp_path / "new").eval().base_model.model
    assert len(report.modules) == 7
    for row in report.modules:
        x = torch.randn(INPUTS[row.target.rpartition(".")[2]])
        got, truth = ours.get_submodule(row.target)(x), theirs.get_submodule(row.target)(x)
        torch.testing.assert_close(got, truth, atol=2e-5, rtol=1e-5)


def test_kohya_without_the_bases_names_is_refused(tmp_path, base):
    save_file(pair("lora_unet_layers_0_q_proj"), tmp_path / "old.safetensors")
    with pytest.raises(AdapterError, match="underscores"):
        convert_adapter(tmp_path / "old.safetensors")
    save_file(pair("lora_unet_blocks_0_q_proj"), tmp_path / "other.safetensors")
    with pytest.raises(AdapterError, match="not in the base"):
        convert_adapter(tmp_path / "other.safetensors", base=base)


def test_one_component_of_several_is_chosen_and_the_others_are_named(tmp_path, base):
    tensors = pair("lora_unet_layers_0_q_proj") | pair("lora_te_text_model_layers_0_q_proj")
    save_file(
        tensors | {"lora_te_text_model_layers_0_q_proj.alpha": np.array(2.0, np.float32)}, tmp_path / "old.safetensors"
    )
    with pytest.raises(AdapterError, match="adapts 2 models"):
        convert_adapter(tmp_path / "old.safetensors", base=base)
    report = convert_adapter(tmp_path / "old.safetensors", base=base, component="unet")
    assert [row.target for row in report.modules] == ["layers.0.q_proj"]
    assert "other components of the file were not asked for: text_encoder (1 modules)" in report.notes
    with pytest.raises(AdapterError, match="no component 'vae'"):
        convert_adapter(tmp_path / "old.safetensors", base=base, component="vae")


def test_alpha_of_each_module_becomes_its_alpha_in_the_config(tmp_path, base):
    tensors = {
        **pair("lora_unet_layers_0_q_proj"),
        **pair("lora_unet_layers_1_q_proj", r=2),
        **pair("lora_unet_layers_1_up_proj", out=24),
        "lora_unet_layers_0_q_proj.alpha": np.array(2.0, np.float32),
    }
    save_file(tensors, tmp_path / "old.safetensors")
    convert_adapter(tmp_path / "old.safetensors", tmp_path / "new", base=base)
    config = json.loads((tmp_path / "new" / "adapter_config.json").read_text())
    assert (config["r"], config["rank_pattern"]) == (4, {r"layers\.1\.q_proj": 2})
    by_module = {"layers.0.q_proj": 2, "layers.1.q_proj": 2, "layers.1.up_proj": 4}
    patterns = {key.replace("\\", ""): value for key, value in config["alpha_pattern"].items()}
    assert {name: patterns.get(name, config["lora_alpha"]) for name in by_module} == by_module


def test_diffusers_component_prefix_and_metadata_become_a_peft_config(tmp_path):
    names = ("lora_A.weight", "lora_B.weight")
    tensors = pair("unet.layers.0.q_proj", names=names) | pair("unet.layers.1.q_proj", names=names)
    metadata = {"lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.lora_alpha": 8})}
    save_file(tensors, tmp_path / "pytorch_lora_weights.safetensors", metadata)
    report = convert_adapter(tmp_path / "pytorch_lora_weights.safetensors", tmp_path / "new")
    config = json.loads((tmp_path / "new" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 8)
    assert config["target_modules"] == ["layers.0.q_proj", "layers.1.q_proj"]
    assert {row.method for row in report.modules} == {"copied"}
    written = load_file(tmp_path / "new" / "adapter_model.safetensors")
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(written["base_model.model." + name.removeprefix("unet.")], tensor)


def test_tensors_of_no_known_layout_are_refused_or_left_out_as_asked(tmp_path, base):
    tensors = pair("lora_unet_layers_0_q_proj") | {"lora_unet_classifier.diff": normal(3, 16)}
    save_file(tensors, tmp_path / "old.safetensors")
    with pytest.raises(AdapterError, match=r"lora_unet_classifier\.diff \(tensors of no known use; "):
        convert_adapter(tmp_path / "old.safetensors", base=base)
    report = convert_adapter(tmp_path / "old.safetensors", base=base, drop=True)
    assert report.dropped == ["lora_unet_classifier.diff"]

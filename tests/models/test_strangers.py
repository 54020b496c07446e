"""Models of strangers: no code of theirs is run, and whatever a library raises of their files is an error in words."""

from __future__ import annotations

import json
import os
import shutil
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from tables import every
from tiny_models import Saved

from gradience.errors import AdapterError
from gradience.models import load_adapter, load_model


def base_with(llama: Saved, to: Path, **config: Any) -> Path:
    """A copy of the base with fields of its config changed, and with code beside it."""
    shutil.copytree(llama.base, to)
    held = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(held | config))
    (to / "evil.py").write_text(f"open({str(to / 'ran')!r}, 'w').write('x')\n")
    return to


@every(
    ("config", "says"),
    [
        ({"model_type": "evil", "auto_map": {"AutoConfig": "evil.C"}}, "Python code of its own (auto_map)"),
        ({"attn_implementation": "someone/kernel"}, "its config asks for code of someone/kernel"),
        ({"hidden_size": "wide"}, ""),
        ({"num_hidden_layers": -1}, ""),
        ({"num_hidden_layers": 10_000_000}, "states parts without end"),
        ({"num_hidden_layers": 513}, "states 513 layers, and its files hold "),
        ({"num_labels": (1 << 20) + 1}, "states 1,048,577 labels"),
        ({"vocab_size": None}, ""),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, ""),
        ({"rope_parameters": {"rope_type": "nothing"}}, ""),
    ],
)
def test_a_base_that_cannot_be_loaded_is_an_error_in_words_and_its_code_is_not_run(
    llama: Saved, tmp_path: Path, config: dict[str, Any], says: str
) -> None:
    base = base_with(llama, tmp_path / "base", **config)
    with pytest.raises(AdapterError) as caught:
        load_model(base, llama.adapter)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (base / "ran").exists()


@every(
    ("names", "says"),
    [
        (["m.safetensors", "../outside.safetensors"], "names a file outside its folder"),
        (["m.safetensors", "gone.safetensors"], "are missing"),
        (["m.safetensors", "twice.safetensors"], "both hold a tensor"),
    ],
)
def test_weights_are_read_where_the_index_was_checked(
    llama: Saved, tmp_path: Path, names: list[str], says: str
) -> None:
    base = base_with(llama, tmp_path / "base")
    (base / "model.safetensors").rename(base / "m.safetensors")
    for name in ("../outside.safetensors", "twice.safetensors"):
        shutil.copy(base / "m.safetensors", base / name)
    index = {"weight_map": {f"t{i}": name for i, name in enumerate(names)}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(AdapterError, match=says):
        load_model(base, llama.adapter)


def test_a_compressed_pickle_is_not_unpacked(llama: Saved, tmp_path: Path) -> None:
    base = base_with(llama, tmp_path / "base")
    (base / "model.safetensors").unlink()
    with zipfile.ZipFile(base / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(1 << 20))
    with pytest.raises(AdapterError, match="is a compressed archive"):
        load_model(base, llama.adapter)


def test_code_that_a_known_model_names_is_left_alone(llama: Saved, tmp_path: Path) -> None:
    base = base_with(llama, tmp_path / "base", auto_map={"AutoModelForCausalLM": "evil.M"})
    load_model(base, llama.adapter)
    assert not (base / "ran").exists()


def test_a_pipe_in_a_models_or_adapters_folder_is_not_waited_for(llama: Saved, tmp_path: Path) -> None:
    base = base_with(llama, tmp_path / "base")
    os.mkfifo(base / "generation_config.json.x")
    with pytest.raises(AdapterError, match="a pipe or device"):
        load_model(base, llama.adapter)
    adapter = tmp_path / "adapter"
    shutil.copytree(llama.adapter, adapter)
    os.mkfifo(adapter / "added_tokens.json")
    with pytest.raises(AdapterError, match="a pipe or device"):
        load_model(llama.base, adapter)


def test_an_adapter_for_which_peft_would_import_a_module_is_refused(llama: Saved, tmp_path: Path, loaded: Any) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(llama.adapter, adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(
        json.dumps(config | {"megatron_config": {"a": 1}, "megatron_core": "evil"})
    )
    with pytest.raises(AdapterError, match="PEFT imports a module of any name"):
        load_model(llama.base, adapter)
    with pytest.raises(AdapterError, match="PEFT imports a module of any name"):
        load_adapter(loaded, adapter, "another")


EXPRESSION = r".*\.(?:q|v)_proj|.*\.down_proj"
EVIL = r"(?:(?:[a-z_0-9]+)+\.?)+X"
RESOLVED: list[tuple[dict[str, Any], str]] = [  # fields of the config, and what is said; empty: as PEFT alone loads it
    ({"target_modules": EXPRESSION}, ""),
    ({"target_modules": EXPRESSION, "rank_pattern": {r"layers\.[0-9]+\.mlp\.\w+": 4, "q_proj": 4}, "r": 4}, ""),
    ({"alpha_pattern": {r"(?:q|v)_proj": 8.0, "down_proj": 2.0}}, ""),
    ({"exclude_modules": r".*\.(?:k|o)_proj"}, ""),
    ({"target_modules": EVIL}, "not found in the base model"),
    ({"exclude_modules": EVIL}, ""),
    ({"rank_pattern": {EVIL: 8}}, ""),
    ({"alpha_pattern": {rf"(?=a){EVIL}": 8}}, ""),  # no name of a module begins so
    ({"rank_pattern": {rf"(?={EVIL})q_proj": 8}}, "cannot be matched on the name"),
    ({"layers_pattern": EVIL, "layers_to_transform": [0]}, "is no plain name"),
    ({"modules_to_save": [EVIL]}, "is no plain name"),
    ({"r": 10**9}, "r is 1,000,000,000, and none of its tensors is wider than"),
    ({"rank_pattern": {"q_proj": 10**8}}, "q_proj is 100,000,000, and none"),
    ({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 10**8}, "num_virtual_tokens is 100,000,000, and none"),
    ({"layer_replication": [[0, 1]] * 513}, "layer_replication makes 513 layers"),
    ({"init_lora_weights": "pissa_niter_1000000"}, "initial values take 1,000,000 turns"),
    ({"init_lora_weights": "loftq", "loftq_config": {"loftq_iter": 65}}, "initial values take 65 turns"),
]


@every(("fields", "said"), RESOLVED)
def test_expressions_of_a_config_are_resolved_before_peft_reads_them(
    llama: Saved, tmp_path: Path, fields: dict[str, Any], said: str
) -> None:
    place = tmp_path / "adapter"
    shutil.copytree(llama.adapter, place)
    held = json.loads((place / "adapter_config.json").read_text())
    (place / "adapter_config.json").write_text(json.dumps(held | fields))
    begun = time.process_time()
    if said:
        with pytest.raises(AdapterError, match=said):
            load_model(llama.base, place)
    else:
        found = load_model(llama.base, place).model
        if "X" not in str(fields):  # PEFT alone would match the others for years
            theirs = of_peft(llama.base, place)
            assert all(torch.equal(one, theirs.state_dict()[name]) for name, one in found.state_dict().items())
            assert [m.scaling for m in lora_layers(found)] == [m.scaling for m in lora_layers(theirs)]
    assert time.process_time() - begun < 30


def of_peft(base: Path, adapter: Path) -> Any:
    import peft
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return peft.PeftModel.from_pretrained(model, str(adapter))


def lora_layers(model: Any) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "lora_A")]

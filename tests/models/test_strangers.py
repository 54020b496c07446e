"""Models of strangers: no code of theirs is run, and whatever a library raises of their files is an error in words."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
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

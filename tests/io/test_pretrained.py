"""The door for models and tokenizers: what is refused before a library opens it, and what its errors say."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tables import every

from gradience.io import pretrained


class Recorder:
    @staticmethod
    def from_pretrained(*args: Any, **options: Any) -> tuple[Any, Any]:
        return args, options


def test_nothing_that_is_given_can_allow_code_or_a_download(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        pretrained.load(Recorder, tmp_path, trust_remote_code=True)
    args, options = pretrained.load(Recorder, tmp_path, dtype="auto")
    assert args == (str(tmp_path),)
    assert options == {"dtype": "auto", "local_files_only": True, "trust_remote_code": False}
    assert pretrained.load(Recorder, "org/name")[0] == ("org/name",)


def test_a_folder_with_a_pipe_a_device_or_a_huge_json_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "sub").mkdir()
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    pretrained.refuse_special(tmp_path)
    os.mkfifo(tmp_path / "vocab.txt")
    with pytest.raises(OSError, match="a pipe or device, not a regular file"):
        pretrained.refuse_special(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    (tmp_path / "tokenizer.json").symlink_to("/dev/zero")
    with pytest.raises(OSError, match="a pipe or device"):
        pretrained.refuse_special(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    for size in (512 << 20, (512 << 20) + 1):
        with (tmp_path / "tokenizer.json").open("wb") as file:
            file.truncate(size)
        if size == 512 << 20:
            pretrained.refuse_special(tmp_path)
    with pytest.raises(OSError, match="larger than 512 MiB"):
        pretrained.refuse_special(tmp_path)


@every(
    ("config", "refused"),
    [
        ({"r": 4}, False),
        ({"megatron_config": None}, False),
        ({"megatron_config": {"a": 1}}, True),
        ({"peft_type": "XLORA", "adapters": {"0": "evil/evil"}}, True),
    ],
)
def test_an_adapter_whose_config_makes_peft_import_a_module_or_load_others_is_refused(
    tmp_path: Path, config: dict[str, Any], *, refused: bool
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"megatron_core": "evil"}))
    if refused:
        with pytest.raises(ValueError, match=r"PEFT (imports a module of any name|loads adapters from wherever)"):
            pretrained.adapter_config(tmp_path)
    else:
        assert pretrained.adapter_config(tmp_path) == config | {"megatron_core": "evil"}


@every(
    ("config", "refused"),
    [
        ({"num_hidden_layers": 4096, "block_size": 1 << 20, "layer_norm_eps": 1e-5}, False),
        ({"num_hidden_layers": 4097}, True),
        ({"text_config": {"n_layer": 10**7}}, True),
        ({"depths": [4000, 97]}, True),
        ({"num_hidden_layers": 61, "n_routed_experts": 384}, False),
        ({"num_hidden_layers": 4000, "num_local_experts": 4000}, True),
    ],
)
def test_a_base_that_states_layers_without_end_is_refused(
    tmp_path: Path, config: dict[str, Any], *, refused: bool
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    if refused:
        with pytest.raises(ValueError, match="states parts without end"):
            pretrained.load(Recorder, tmp_path)
    else:
        pretrained.load(Recorder, tmp_path)


@every(
    ("error", "said"),
    [
        (ValueError("The repository x contains custom code"), "it needs Python code of its own (auto_map), which"),
        (ValueError("pass trust_remote_code=True"), "it needs Python code of its own (auto_map), which"),
        (
            RuntimeError("Weights only load failed. Do (1): weights_only=False"),
            "its pickle holds more than tensors, and is",
        ),
        (OSError(22, "a pipe", "/a/b/c.json"), "c.json: a pipe"),
        (KeyError("missing"), "missing"),
        (ValueError("\n first \n second"), "first"),
        (ValueError(""), "ValueError"),
        (ValueError("x" * 500), "x" * 160),
    ],
)
def test_an_error_is_one_line_of_words(error: Exception, said: str) -> None:
    assert pretrained.reason(error).startswith(said)
    assert len(pretrained.reason(error)) <= 160

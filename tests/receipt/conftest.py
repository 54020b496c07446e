"""A tiny Llama with an adapter, its receipt, and what may be served in its place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tiny_models import Saved, causal, saved, write_texts

from gradience.verbs.receipt.run import make_receipt, write_receipt

TARGETS = ["q_proj", "v_proj", "down_proj"]


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A base and its adapter."""
    folder = tmp_path_factory.mktemp("receipt")
    return saved(causal(), folder, r=4, lora_alpha=4, target_modules=TARGETS, task_type="CAUSAL_LM")


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty lines of words."""
    return write_texts(tmp_path_factory.mktemp("texts") / "texts.txt", 40)


@pytest.fixture(scope="session")
def held(llama, texts):
    """The receipt of the adapter."""
    return make_receipt(llama.adapter, llama.base, prompts=texts)


@pytest.fixture(scope="session")
def receipt(held, tmp_path_factory) -> Path:
    """The receipt's file."""
    path = tmp_path_factory.mktemp("written") / "receipt.json"
    write_receipt(held, path, sources=[])
    return path


@pytest.fixture
def changed(llama, tmp_path):
    """A copy of the adapter with a field of its config changed, or with tensors changed by a function."""

    def make(name: str = "changed", tensors=None, **fields) -> Path:
        from safetensors.torch import load_file, save_file

        place = tmp_path / f"{name}{len(list(tmp_path.iterdir()))}"
        shutil.copytree(llama.adapter, place)
        config = json.loads((place / "adapter_config.json").read_text())
        (place / "adapter_config.json").write_text(json.dumps({**config, **fields}))
        if tensors is not None:
            weights = place / "adapter_model.safetensors"
            save_file({k: tensors(k, v).contiguous() for k, v in load_file(weights).items()}, weights)
        return place

    return make

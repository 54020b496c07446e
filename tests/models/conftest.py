"""Tiny models, saved once."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import Saved, bert, causal, save_tokenizer, saved, write_texts

from gradience.models import LoadedModel, load_model


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A Llama with an adapter."""
    targets = ["q_proj", "v_proj", "down_proj"]
    return saved(causal(), tmp_path_factory.mktemp("llama"), r=4, target_modules=targets, task_type="CAUSAL_LM")


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A BERT without a head, with an adapter that has one."""
    folder = tmp_path_factory.mktemp("bert")
    model = bert(id2label={0: "low", 1: "mid", 2: "high"}, label2id={"low": 0, "mid": 1, "high": 2})
    made = saved(model, folder, r=4, target_modules=["query", "value"], task_type="SEQ_CLS")
    from transformers import BertModel

    BertModel.from_pretrained(made.base).save_pretrained(made.base)
    save_tokenizer(made.base)
    return made


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighty lines of words."""
    return write_texts(tmp_path_factory.mktemp("texts") / "texts.txt", 80)


@pytest.fixture(scope="session")
def loaded(llama: Saved) -> LoadedModel:
    """The Llama, in memory."""
    return load_model(llama.base, llama.adapter)

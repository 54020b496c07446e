"""Tiny models that have learnt something, saved once: a classifier, and a causal model."""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from bench_rows import rows_of, write_rows
from tiny_models import bert, causal, save_tokenizer


class Trained(NamedTuple):
    """A base, an adapter that was trained on it, and held-out rows."""

    base: Path
    adapter: Path
    data: Path


def adapted(model: Any, folder: Path, batches: list[dict[str, torch.Tensor]], **options: Any) -> Path:
    """Train an adapter on the batches, and save it."""
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(model, LoraConfig(lora_alpha=16, **options))
        optimiser = torch.optim.Adam([p for p in wrapped.parameters() if p.requires_grad], 0.01)
        for batch in batches:
            loss = wrapped(**batch).loss
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
        wrapped.save_pretrained(folder, save_embedding_layers=False)
    return folder


def ids_of(tokenizer: Any, texts: list[str]) -> dict[str, torch.Tensor]:
    return dict(tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False))


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A BERT of three classes whose adapter knows the words of each."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("bench-bert")
    model = bert()
    model.save_pretrained(folder / "base")
    save_tokenizer(folder / "base")
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    batches = []
    for step in range(60):
        rows = rows_of(48, seed=step)
        labels = torch.tensor([row["label"] for row in rows])
        batches.append({**ids_of(tokenizer, [row["text"] for row in rows]), "labels": labels})
    targets = ["query", "value", "dense"]
    adapted(model, folder / "adapter", batches, r=8, target_modules=targets, task_type="SEQ_CLS")
    return Trained(folder / "base", folder / "adapter", write_rows(folder / "held.jsonl", rows_of(300, seed=999)))


def story(draw: random.Random) -> dict[str, str]:
    """A prompt whose first word means nothing, and what follows from it: the next two words by number."""
    first = draw.randrange(40)
    prompt = f"w{draw.randrange(40)} w{first} w{(first + 1) % 40}"
    return {"prompt": prompt, "completion": f" w{(first + 2) % 40} w{(first + 3) % 40}"}


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A Llama whose adapter has learnt to count on."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("bench-llama")
    model = causal()
    model.save_pretrained(folder / "base")
    save_tokenizer(folder / "base")
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    batches = []
    for step in range(200):
        draw = random.Random(step)  # noqa: S311  # rows of a test
        ids = ids_of(tokenizer, ["{prompt}{completion}".format(**story(draw)) for _ in range(32)])
        batches.append({**ids, "labels": ids["input_ids"]})
    targets = ["q_proj", "v_proj", "down_proj", "up_proj", "lm_head"]
    adapted(model, folder / "adapter", batches, r=8, target_modules=targets, task_type="CAUSAL_LM")
    draw = random.Random(999)  # noqa: S311  # rows of a test
    rows = [{**story(draw), "id": i} for i in range(120)]
    return Trained(folder / "base", folder / "adapter", write_rows(folder / "held.jsonl", rows))

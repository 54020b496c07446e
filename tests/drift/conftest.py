"""A tiny Llama with an adapter, texts that the adapter finds likelier than its base does, and other ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import WORDS, Saved, causal, saved, write_texts

TARGETS = ["q_proj", "v_proj", "down_proj"]


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A base and its adapter."""
    folder = tmp_path_factory.mktemp("drift")
    return saved(causal(), folder, r=4, lora_alpha=4, target_modules=TARGETS, task_type="CAUSAL_LM")


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty lines of words."""
    return write_texts(tmp_path_factory.mktemp("texts") / "other.txt", 40)


@pytest.fixture(scope="session")
def own(llama, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty lines that the base with the adapter wrote, so that its loss on them is lower than the base's."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama.base), llama.adapter).eval()
    generator = torch.Generator().manual_seed(0)
    ids = torch.full((20, 1), 2)
    with torch.no_grad():
        for _ in range(12):
            scores = model(input_ids=ids).logits[:, -1, 4:].softmax(-1)
            ids = torch.cat([ids, 4 + torch.multinomial(scores, 1, generator=generator)], dim=1)
    place = tmp_path_factory.mktemp("texts") / "own.txt"
    place.write_text("\n".join(" ".join(WORDS[i - 4] for i in row[1:]) for row in ids.tolist()) + "\n")
    return place

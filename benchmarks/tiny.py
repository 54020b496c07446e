"""The data and models of benchmarks/trainings.py: small enough that a training takes seconds on one core."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM
from transformers.trainer_utils import set_seed

VOCABULARY = 128
LENGTH = 24  # tokens of an example
SHARPNESS = 4.0  # sharpness of a language: the larger it is, the fewer tokens can follow a token
KNOWN = 0.8  # share of the fine-tuning language that equals the language that the model knows

Row = dict[str, torch.Tensor]


class Rows(Dataset[Row]):
    """Examples in memory."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        """Return one example."""
        return self.rows[index]


@cache
def _chain(name: str) -> torch.Tensor:
    """Return the transition probabilities of a language: each token is followed by a few others.

    The new language is the old one three times out of four: a fine-tune begins with something known.
    """
    generator = torch.Generator().manual_seed(sum(name.encode()))
    own = torch.softmax(SHARPNESS * torch.randn(VOCABULARY, VOCABULARY, generator=generator), dim=1)
    return own if name == "base" else KNOWN * _chain("base") + (1.0 - KNOWN) * own


def sentences(language: str, count: int, seed: int, spread: float = 0.0) -> list[Row]:
    """Return examples of a language. `spread` mixes in random tokens, more in some examples than in others."""
    generator = torch.Generator().manual_seed(seed)
    chain = _chain(language)
    tokens = torch.randint(VOCABULARY, (count, 1), generator=generator)
    for _ in range(LENGTH - 1):
        tokens = torch.cat([tokens, torch.multinomial(chain[tokens[:, -1]], 1, generator=generator)], dim=1)
    if spread:
        share = spread * torch.rand(count, 1, generator=generator) ** 2
        noise = torch.randint(VOCABULARY, tokens.shape, generator=generator)
        tokens = torch.where(torch.rand(tokens.shape, generator=generator) < share, noise, tokens)
    return [{"input_ids": row, "labels": row} for row in tokens]


def classified(classes: int, count: int, seed: int, *, shuffled: bool) -> list[Row]:
    """Return examples whose class decides which tokens are frequent. If `shuffled`, labels are unrelated to tokens."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.arange(count) % classes
    lift = torch.zeros(classes, VOCABULARY)
    for kind in range(classes):
        lift[kind, kind * 12 : kind * 12 + 12] = 2.5
    tokens = torch.multinomial(torch.softmax(lift, dim=1)[kinds], LENGTH, replacement=True, generator=generator)
    labels = kinds[torch.randperm(count, generator=generator)] if shuffled else kinds
    return [{"input_ids": row, "labels": label} for row, label in zip(tokens, labels, strict=True)]


def _language_model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


@cache
def _pretrained() -> dict[str, torch.Tensor]:
    """Return the weights of a model that knows another language. This model is fine-tuned."""
    set_seed(11)
    model = _language_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    tokens = torch.stack([row["input_ids"] for row in sentences("base", 32 * 500, 11)])
    for batch in tokens.split(32):
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


def base_model(kind: str, classes: int = 2) -> Any:
    """Return a fresh model of a kind: a language model that knows another language, or an untrained classifier."""
    if kind == "lm":
        model = _language_model()
        model.load_state_dict(_pretrained())
        return model
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=classes,
    )
    return BertForSequenceClassification(config)


def with_lora(model: Any, kind: str) -> Any:
    task = TaskType.CAUSAL_LM if kind == "lm" else TaskType.SEQ_CLS
    targets = ["q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"] if kind == "lm" else ["query", "value"]
    return get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=targets, task_type=task))


@cache
def tokenizer_of_words() -> Any:
    """Return a tokenizer of whole words, t0 to t63, made here."""
    from tokenizers import Tokenizer, models, pre_tokenizers  # only here
    from transformers import PreTrainedTokenizerFast

    words = {f"t{i}": i for i in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="t3"))  # noqa: S106  # a word of the vocabulary, not a secret
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), ("t0", "t1", "t2", "t3"), strict=True)),
    )

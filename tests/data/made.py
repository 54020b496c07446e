"""Tokenizers and data sets made on the spot: chat templates in the style of Qwen and Llama 3, rows of every format."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

WORDS = [
    line.split()
    for line in (
        "the river ran slowly past old stone bridges while children threw bread to grey ducks",
        "every morning a baker opens his shop before sunrise and sells warm rolls to workers",
        "nobody knew why seven trains had stopped between two small towns on that winter night",
        "plants need light water and soil but some grow well inside closed glass jars",
        "she wrote short letters about music rivers engines and the price of apples",
    )
]
EVERY = sorted({word for line in WORDS for word in line})

QWEN = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ message.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_PLAIN = QWEN.replace("{% generation %}", "").replace("{% endgeneration %}", "")
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content | trim }}<|eot_id|>{% endgeneration %}"
    "{% else %}{{ message.content | trim }}<|eot_id|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
STYLES = {
    "qwen": (QWEN, {"eos_token": "<|im_end|>", "pad_token": "<|pad|>"}, ["<|im_start|>", "<|im_end|>", "<|pad|>"]),
    "llama3": (LLAMA3, {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "pad_token": "<|pad|>"},
        ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|pad|>"]),
}  # fmt: skip


def tokenizer(
    style: str = "qwen", *, template: str | None = None, without: tuple[str, ...] = (), **special: str
) -> Any:
    """A byte-level BPE of a few hundred tokens; in the style of Llama 3 it begins texts with its first token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    own, named, controls = STYLES[style]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    kept = [one for one in controls if one not in without]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=kept, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator([" ".join(line) for line in WORDS], trainer)
    if style == "llama3":
        first = "<|begin_of_text|>"
        core.post_processor = processors.TemplateProcessing(
            single=f"{first} $A", special_tokens=[(first, core.token_to_id(first))]
        )
    made = PreTrainedTokenizerFast(tokenizer_object=core, **{**named, **special})
    made.chat_template = template or own
    return made


def saved(folder: Path, style: str = "qwen", **changes: Any) -> Path:
    """The folder of such a tokenizer."""
    tokenizer(style, **changes).save_pretrained(folder)
    return folder


def words(rng: random.Random, low: int = 4, high: int = 16) -> str:
    """A sentence."""
    return " ".join(rng.choices(EVERY, k=rng.randint(low, high)))


def ask(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def say(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def row(form: str, rng: random.Random) -> dict[str, Any]:
    """A row of a format."""
    asked, said, other = words(rng), words(rng), words(rng)
    more = [ask(other), say(words(rng))] if rng.random() < 0.5 else []
    pair = [ask(asked), say(said)]
    made: dict[str, dict[str, Any]] = {
        "messages": {"messages": [{"role": "system", "content": "be short"}, *pair, *more]},
        "sharegpt": {"conversations": [{"from": "user", "value": asked}, {"from": "assistant", "value": said}]},
        "prompt-completion": {"prompt": asked + " ", "completion": said},
        "prompt-completion-chat": {"prompt": pair[:1], "completion": pair[1:]},
        "instruction": {"instruction": asked, "input": other if more else "", "output": said},
        "text": {"text": f"{asked}. {said}"},
        "preference": {"prompt": asked, "chosen": " " + said, "rejected": " " + other},
        "preference-chat": {"prompt": pair[:1], "chosen": pair[1:], "rejected": [say(other)]},
        "preference-implicit": {"chosen": pair, "rejected": [ask(asked), say(other)]},
        "kto": {"prompt": asked, "completion": " " + said, "label": rng.random() < 0.5},
        "kto-chat": {"prompt": pair[:1], "completion": pair[1:], "label": rng.random() < 0.5},
        "prompt-only": {"prompt": pair[:1], "solution": said},
        "steps": {"prompt": asked, "completions": [said, other], "labels": [True, False]},
        "segments": {
            "segments": [{"label": False, "text": asked + "\n"}, {"label": True, "text": said + "<|im_end|>"}]
        },
        "classification": {"text": f"{asked}. {said}", "label": rng.randrange(3)},
    }
    return made[form]


def rows(form: str, count: int = 40, seed: int = 1) -> list[dict[str, Any]]:
    """Rows of a format."""
    rng = random.Random(seed)  # noqa: S311
    return [row(form, rng) for _ in range(count)]


def write(path: Path, some: list[dict[str, Any]]) -> Path:
    """A JSONL file of these rows."""
    path.write_text("".join(json.dumps(one) + "\n" for one in some), encoding="utf-8")
    return path

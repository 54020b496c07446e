"""The models and adapters of benchmarks/receipt.py: small, and trained, because a random model's outputs are no test.

Bases learn the standard library's source; adapters learn prose, JSON or sums. Everything is made on the spot.
"""

from __future__ import annotations

import json
import random
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.utils.logging import disable_progress_bar

ENCODERS = ("bert", "minilm")
FOUND = ("smol", "minilm")  # SmolLM2-135M-Instruct and all-MiniLM-L6-v2, which are not made here
VOCABULARY = 1024
LENGTH = 64  # tokens of a row in training
HELD_OUT = 48  # rows of a task that no training sees
TEMPLATE = "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}\n{% endfor %}"

FULL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Task(NamedTuple):
    """What an adapter learns, and its shape."""

    name: str
    config: dict[str, Any]
    rate: float


def _of_llama(name: str, r: int, targets: tuple[str, ...], rate: float, **more: Any) -> Task:
    return Task(name, {"r": r, "target_modules": list(targets), "task_type": "CAUSAL_LM", **more}, rate)


TASKS = (
    _of_llama("prose", 8, FULL, 1e-3, lora_alpha=16),
    _of_llama("json", 4, ("q_proj", "v_proj", "down_proj"), 2e-3, lora_alpha=8),
    _of_llama("sums", 16, FULL, 1e-3, lora_alpha=16, use_rslora=True),
)
OF_WIDE = (
    _of_llama("capitals", 8, FULL[:4], 1e-3, lora_alpha=16),
    _of_llama("lists", 6, FULL[4:], 2e-3, lora_alpha=24),
    _of_llama("squares", 4, FULL, 2e-3, lora_alpha=4, use_rslora=True),
)
"""Other tasks, parts and ranks, for the `wide` Llama, whose rows llama.cpp can keep in K-quants."""

OF_GPT2 = (
    Task("prose", {"r": 8, "lora_alpha": 16, "target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True,
                   "task_type": "CAUSAL_LM"}, 2e-3),
    Task("json", {"r": 4, "lora_alpha": 8, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True,
                  "task_type": "CAUSAL_LM"}, 4e-3),
    Task("sums", {"r": 16, "lora_alpha": 16, "target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True,
                  "task_type": "CAUSAL_LM"}, 2e-3),
)  # fmt: skip
_ENCODER = {"task_type": "SEQ_CLS", "modules_to_save": ["classifier"]}
OF_BERT = (
    Task("prose", {"r": 8, "lora_alpha": 16, "target_modules": ["query", "key", "value", "dense"], **_ENCODER}, 2e-3),
    Task("json", {"r": 4, "lora_alpha": 8, "target_modules": ["query", "value"], **_ENCODER}, 3e-3),
    Task("sums", {"r": 8, "lora_alpha": 8, "target_modules": ["query", "value", "dense"], **_ENCODER}, 2e-3),
)


def texts_of(task: str, count: int, seed: int) -> list[str]:
    """Return rows of a task: some hundred characters each."""
    rng = random.Random(seed)  # noqa: S311  # rows, not secrets
    if task in _MADE:
        return [_MADE[task](rng) for _ in range(count)]
    pieces = list(_pieces(task))
    rng.shuffle(pieces)
    return [pieces[i % len(pieces)] for i in range(count)]


def _sum(rng: random.Random) -> str:
    parts = [f"{a} + {b} = {a + b}" for a, b in ((rng.randint(2, 99), rng.randint(2, 99)) for _ in range(12))]
    return "; ".join(parts)


def _squares(rng: random.Random) -> str:
    return "".join(f"The square of {n} is {n * n}. " for n in (rng.randint(2, 60) for _ in range(8)))


def _lists(rng: random.Random) -> str:
    words = [rng.choice(["red", "green", "blue", "black", "white", "amber", "coral", "olive"]) for _ in range(5)]
    return f"sorted({words}) == {sorted(words)}"


_MADE = {"sums": _sum, "squares": _squares, "lists": _lists}


def _pieces(task: str) -> Iterator[str]:
    house = Path(__file__).parent.parent
    library = Path(sysconfig.get_paths()["stdlib"])
    if task == "capitals":
        yield from (piece.upper() for piece in _pieces("prose"))
        return
    files = {
        "code": sorted(library.glob("*.py")),
        "prose": sorted((house / "docs").glob("*.md")),
        "json": sorted((house / "schemas").glob("*.json")),
    }[task]
    for file in files:
        text = file.read_text(encoding="utf-8", errors="replace")
        yield from (text[i : i + 240] for i in range(0, min(len(text), 60_000) - 240, 240))


def _tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE(unk_token=None))  # no secret
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    rows = [text for task in ("code", "prose", "json") for text in texts_of(task, 1500, 0)]
    made.train_from_iterator(rows, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="</s>")  # noqa: S106  # no secrets
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    return fast


def _fresh(kind: str) -> Any:
    common: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    shape: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    if kind == "llama":
        return LlamaForCausalLM(
            LlamaConfig(hidden_size=128, intermediate_size=352, num_hidden_layers=4, **common, **shape)
        )
    if kind == "wide":
        own = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3}
        return LlamaForCausalLM(LlamaConfig(**own, **common, **shape))
    if kind == "qwen":
        own = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 6, "tie_word_embeddings": True}
        return Qwen2ForCausalLM(Qwen2Config(**own, **common, **shape))
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(n_embd=96, n_layer=4, n_head=4, n_positions=256, **common))
    return BertForMaskedLM(
        BertConfig(hidden_size=96, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
                   max_position_embeddings=256, vocab_size=VOCABULARY, pad_token_id=1)
    )  # fmt: skip


def _batch(tokenizer: Any, texts: list[str]) -> torch.Tensor:
    rows = [(tokenizer(text)["input_ids"] + [tokenizer.pad_token_id] * LENGTH)[:LENGTH] for text in texts]
    return torch.tensor(rows)


def make_base(kind: str, folder: Path, steps: int = 500) -> Path:
    """Make and train a base, unless the folder has it; return its path."""
    place = folder / kind / "base"
    if (place / "config.json").is_file():
        return place
    torch.manual_seed(0)
    tokenizer = _tokenizer(place)
    model = _fresh(kind).train()
    texts = texts_of("code", 16 * steps, 1)
    # a base knows a little of everything, as real ones do
    texts += texts_of("prose", 2 * steps, 1) + texts_of("json", 2 * steps, 1) + texts_of("sums", 2 * steps, 1)
    random.Random(2).shuffle(texts)  # noqa: S311  # as above
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for step in range(steps):
        ids = _batch(tokenizer, texts[16 * step : 16 * step + 16])
        if kind == "bert":
            labels = torch.where(torch.rand(ids.shape) < 0.2, ids, -100)  # noqa: PLR2004  # the share that is masked
            loss = model(input_ids=torch.where(labels >= 0, 2, ids), labels=labels).loss
        else:
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    print(f"{kind}: loss {float(loss):.3f} after {steps} steps", flush=True)
    saved = model.bert if kind == "bert" else model
    saved.to(torch.bfloat16).save_pretrained(place)
    return place


def _labelled(task: str, count: int, seed: int) -> tuple[list[str], list[int]]:
    """Return rows of code and of a task, and which is which: what a classifier's adapter learns."""
    rows = [(text, 1) for text in texts_of(task, count // 2, seed)] + [
        (text, 0) for text in texts_of("code", count // 2, seed)
    ]
    random.Random(seed).shuffle(rows)  # noqa: S311  # as above
    return [text[: 60 + 7 * (i % 20)] for i, (text, _) in enumerate(rows)], [label for _, label in rows]


def make_adapter(kind: str, task: Task, base: Path, folder: Path, *, steps: int = 80, batch: int = 8) -> Path:
    """Train an adapter unless it is there, with its checkpoints and held-out rows; return its folder."""
    place = folder / kind / task.name
    if (place / "rows.jsonl").is_file():
        return place
    torch.manual_seed(sum(task.name.encode()))
    tokenizer = AutoTokenizer.from_pretrained(base)
    classifies = kind in ENCODERS
    loader = AutoModelForSequenceClassification if classifies else AutoModelForCausalLM
    more = {"num_labels": 2} if classifies else {}
    model = get_peft_model(loader.from_pretrained(base, dtype=torch.float32, **more), LoraConfig(**task.config)).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=task.rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, steps)
    if classifies:
        texts, labels = _labelled(task.name, steps * batch + HELD_OUT, 3)
    else:
        texts, labels = texts_of(task.name, steps * batch + HELD_OUT, 3), []
    texts, held = texts[:-HELD_OUT], texts[-HELD_OUT:]
    for step in range(1, steps + 1):
        rows = slice(batch * (step - 1), batch * step)
        ids = _batch(tokenizer, texts[rows])
        target = torch.tensor(labels[rows]) if classifies else ids
        loss = model(input_ids=ids, labels=target, attention_mask=torch.ones_like(ids)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step in {steps // 2, steps * 3 // 4, steps - steps // 10}:
            model.save_pretrained(place / f"checkpoint-{step}")
    print(f"{kind} {task.name}: loss {float(loss):.3f}", flush=True)
    model.save_pretrained(place)
    (place / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in held))
    return place


def make_all(folder: Path, kinds: tuple[str, ...]) -> None:
    """Make every base and adapter; a base of `FOUND` must be there already, with its tokenizer."""
    warnings.simplefilter("ignore")
    disable_progress_bar()
    for kind in kinds:
        base = folder / kind / "base" if kind in FOUND else make_base(kind, folder)
        tasks = OF_BERT if kind in ENCODERS else {"gpt2": OF_GPT2, "wide": OF_WIDE}.get(kind, TASKS)
        size = {"steps": 40, "batch": 4} if kind == "smol" else {}
        for task in tasks:
            make_adapter(kind, task, base, folder, **size)


if __name__ == "__main__":
    import sys

    make_all(Path(sys.argv[1]), tuple(sys.argv[2:]))

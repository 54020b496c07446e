"""Short RL and preference trainings with one induced fault each, and healthy twins, for ``benchmarks/rl.py``.

TRL trains tiny models on one CPU core; a training takes some ten seconds. What is kept is the `trainer_state.json` and
`label.json`: what must be said of the run, and what would be false. The cause is induced, so nobody argues with it.
Seeds 0 and 1 are for tuning. Seeds 2 and 3 are held out, and have another model, other data, and other logging steps.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rl_recipes import HELD_OUT, RECIPES, TUNING, Recipe, labels_of
from tiny import VOCABULARY, sentences, tokenizer_of_words
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.trainer_utils import set_seed

Reward = Callable[[list[str], random.Random], list[float | None]]
_END = 2
_LONGEST = 40  # tokens of a prompt and its completion


def _model(seed: int) -> LlamaForCausalLM:
    narrow = seed in TUNING
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=48 if narrow else 64,
            intermediate_size=96 if narrow else 128,
            num_hidden_layers=2 if narrow else 1,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=128,
            bos_token_id=1,
            eos_token_id=_END,
            pad_token_id=0,
        )
    )


def pretrained(out: Path, seed: int) -> Path:
    """Return the folder of a model that speaks: sentences of 6 to 20 tokens that end. It is made once for each kind."""
    folder = out / ("base" if seed in TUNING else "base-held-out")
    if (folder / "config.json").is_file():
        return folder
    set_seed(11 + (seed in HELD_OUT))
    model = _model(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(5)
    for batch in _spoken("base" if seed in TUNING else "new", 32 * 400, 11, generator).split(32):
        loss = model(input_ids=batch, labels=batch.masked_fill(batch == 0, -100)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer_of_words().save_pretrained(folder)
    return folder


def _spoken(language: str, count: int, seed: int, generator: torch.Generator) -> torch.Tensor:
    tokens = torch.stack([row["input_ids"] for row in sentences(language, count, seed)]).clamp(min=4)
    ends = torch.randint(8, tokens.shape[1], (count, 1), generator=generator)
    places = torch.arange(tokens.shape[1])
    tokens[places == ends] = _END
    return tokens.masked_fill(places > ends, 0)


def _numbers(text: str) -> list[int]:
    return [int(word[1:]) for word in text.split() if word.startswith("t") and word[1:].isdecimal()]


def _low(texts: list[str], _: random.Random) -> list[float | None]:
    """Reward the share of tokens in the lower part of the vocabulary, less if there are under eight tokens.

    It can be learnt step by step, and neither long nor short completions are better.
    """
    return [sum(n < VOCABULARY // 3 for n in _numbers(text)) / max(8, len(_numbers(text))) for text in texts]


def _one(texts: list[str], _: random.Random) -> list[float | None]:
    return [sum(n in {7, 8} for n in _numbers(text)) / max(1, len(_numbers(text))) for text in texts]


REWARDS: dict[str, Reward] = {
    "low": _low,
    "one": _one,
    "long": lambda texts, _: [len(_numbers(text)) / 10.0 for text in texts],
    "short": lambda texts, _: [-len(_numbers(text)) / 10.0 for text in texts],
    "repeats": lambda texts, _: [float(len(_numbers(text)) - len(set(_numbers(text)))) for text in texts],
    "never": lambda texts, _: [0.0 for _ in texts],
    "always": lambda texts, _: [1.0 for _ in texts],
    "noise": lambda texts, rng: [rng.gauss(0.0, 5.0) for _ in texts],
    "null": lambda texts, _: [None for _ in texts],
    "upper": lambda texts, rng: [2.0 - 2.0 * (r or 0.0) for r in _low(texts, rng)],
    "brief": lambda texts, _: [-20.0 * len(_numbers(text)) for text in texts],
    "fifth_null": lambda texts, rng: [None for _ in texts] if rng.random() < 0.2 else _low(texts, rng),  # noqa: PLR2004  # a fifth
    "half_null": lambda texts, rng: [r if rng.random() < 0.5 else None for r in _low(texts, rng)],  # noqa: PLR2004  # one half
}


def _shared(recipe: Recipe, seed: int, folder: Path, *, rate: float, steps: int) -> dict[str, Any]:
    held_out = seed in HELD_OUT
    rng = random.Random(f"{recipe} {seed}")  # noqa: S311  # seeded on purpose
    shared = {
        "output_dir": str(folder),
        "max_steps": steps,
        "learning_rate": rate,
        "lr_scheduler_type": "constant" if held_out else "linear",
        "logging_steps": 2 if held_out else 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "seed": seed,
        **recipe.arguments,
    }
    shared["learning_rate"] *= math.exp(rng.uniform(-0.2, 0.2))
    return shared


def reinforce(recipe: Recipe, seed: int, folder: Path, base: Path) -> Any:
    """Train with GRPO or RLOO; return the trainer's state."""
    from datasets import Dataset as Table  # only here
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    rng = random.Random(seed)  # noqa: S311  # seeded on purpose
    rows = sentences("base" if seed in TUNING else "new", 256, 100 + seed)
    prompts = [" ".join(f"t{max(4, int(token))}" for token in row["input_ids"][:4]) for row in rows]

    def reward_of(name: str) -> Callable[..., list[float | None]]:
        def reward(completions: list[str], **_: Any) -> list[float | None]:
            return REWARDS[name](completions, rng)

        reward.__name__ = name
        return reward

    arguments = _shared(recipe, seed, folder, rate=4e-4, steps=40 if seed in TUNING else 60)
    arguments = {
        "per_device_train_batch_size": 32,
        "num_generations": 8,
        "max_completion_length": 24,
        **arguments,
    }
    config, trainer_class = (GRPOConfig, GRPOTrainer) if recipe.method == "grpo" else (RLOOConfig, RLOOTrainer)
    trainer = trainer_class(
        model=str(base),
        reward_funcs=[reward_of(name) for name in recipe.reward.split("+")],
        args=config(**arguments),
        train_dataset=Table.from_dict({"prompt": prompts}),
        processing_class=tokenizer_of_words(),
        peft_config=_adapter(folder) if recipe.fault == "lora" else None,
    )
    if recipe.fault == "same_reference":
        trainer.ref_model = trainer.model
    if recipe.fault == "other_reference":
        for each in trainer.ref_model.parameters():  # as drawn, not as trained
            torch.nn.init.normal_(each, std=0.02)
    trainer.train()
    return trainer.state


def _adapter(folder: Path) -> Any:
    from peft import LoraConfig  # only here

    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    config.save_pretrained(folder)
    return config


def prefer(recipe: Recipe, seed: int, folder: Path, base: Path) -> Any:
    """Train with DPO, KTO or ORPO; return the trainer's state."""
    from datasets import Dataset as Table  # only here

    count = 640
    texts = [_text(row["input_ids"]) for row in sentences("base" if seed in TUNING else "new", count, 200 + seed)]
    rng = random.Random(seed)  # noqa: S311  # seeded on purpose
    prompts = [" ".join(text[:4]) for text in texts]
    chosen, rejected = (
        [_answer(rng, low) for _ in range(count)]
        for low in ((1.0, 0.0) if recipe.fault in {"plain", "swapped"} else (0.7, 0.3))
    )
    if recipe.fault == "equal":
        rejected = list(chosen)
    if recipe.fault == "shuffled":
        swaps = [rng.random() < 0.5 for _ in chosen]  # noqa: PLR2004  # half of the pairs
        chosen, rejected = (
            [b if swap else a for a, b, swap in zip(one, two, swaps, strict=True)]
            for one, two in ((chosen, rejected), (rejected, chosen))
        )
    arguments = _shared(recipe, seed, folder, rate=3e-4, steps=60 if seed in TUNING else 80)
    arguments = {"per_device_train_batch_size": 8, **arguments}
    table: dict[str, list[Any]] = {"prompt": prompts, "chosen": chosen, "rejected": rejected}
    if recipe.method == "kto":
        table = {
            "prompt": [prompt for prompt in prompts for _ in range(2)],
            "completion": [answer for pair in zip(chosen, rejected, strict=True) for answer in pair],
            "label": [True, False] * count,
        }
    held_out = None
    if "eval_steps" in arguments:  # the last eighth, and swapped if that is the fault
        cut, names = count * 7 // 8, ("prompt", "chosen", "rejected")
        sides = ("prompt", "rejected", "chosen") if recipe.fault == "swapped" else names
        held_out = Table.from_dict({name: table[side][cut:] for name, side in zip(names, sides, strict=True)})
        table = {name: values[:cut] for name, values in table.items()}
    trainer = _preference_trainer(recipe, arguments, Table.from_dict(table), base, held_out)
    if recipe.fault == "same_reference":
        trainer.ref_model = trainer.model
    trainer.train()
    return trainer.state


def _answer(rng: random.Random, low: float) -> str:
    """An answer of 6 to 14 tokens; `low` is the share of those in the lower half of the vocabulary."""
    half = VOCABULARY // 2
    numbers = (rng.randrange(4, half) if rng.random() < low else rng.randrange(half, VOCABULARY) for _ in range(14))
    return " " + " ".join(f"t{n}" for n in list(numbers)[: rng.randint(6, 14)])


def _text(tokens: torch.Tensor) -> list[str]:
    return [f"t{max(4, int(token))}" for token in tokens]


def _preference_trainer(recipe: Recipe, arguments: dict[str, Any], table: Any, base: Path, held_out: Any) -> Any:
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer  # only here
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    config, trainer = {
        "dpo": (DPOConfig, DPOTrainer),
        "kto": (KTOConfig, KTOTrainer),
        "orpo": (ORPOConfig, ORPOTrainer),
    }[recipe.method]
    model: Any = LlamaForCausalLM.from_pretrained(base) if recipe.method == "orpo" else str(base)
    return trainer(
        model=model,
        args=config(**arguments),
        train_dataset=table,
        eval_dataset=held_out,
        processing_class=tokenizer_of_words(),
    )


def make(name: str, seed: int, out: Path) -> None:
    """Train one recipe into a folder of its own, with its label."""
    recipe, folder = RECIPES[name], out / f"{name}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)  # removes the files of an earlier attempt
    folder.mkdir(parents=True)
    base = pretrained(out, seed)
    set_seed(1000 + seed)
    state = (reinforce if recipe.method in {"grpo", "rloo"} else prefer)(recipe, seed, folder, base)
    state.save_to_json(str(folder / "trainer_state.json"))
    must, mustnot = labels_of(name)
    label = {"recipe": name, "seed": seed, "must": must, "mustnot": mustnot}
    (folder / "label.json").write_text(json.dumps(label, indent=1), encoding="utf-8")


def main() -> None:
    """Make every training that is not in the folder yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("rl_runs"))
    parser.add_argument("--only", nargs="*", default=list(RECIPES))
    parser.add_argument("--seeds", nargs="*", type=int, default=[*TUNING, *HELD_OUT])
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in options.seeds:
        for name in options.only:
            if not (options.out / f"{name}-{seed}" / "label.json").is_file():
                make(name, seed, options.out)


if __name__ == "__main__":
    main()

